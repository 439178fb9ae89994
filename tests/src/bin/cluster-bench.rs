//! `cluster-bench [ROUNDS]`: how soon pods run on a real cluster, with Enid and with the standard bridge plugin, which gives
//! addresses out of a file and is installed by a DaemonSet too. Both in one run, in turn, each time on a cluster of its own.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use comfy_table::Table;
use enid_tests::{Lab, kube, wait_until};
use kubelab::{Cluster, ClusterConfig, Cni, Node};
use serde_json::json;

const BOUND: Duration = Duration::from_secs(180);
/// On two nodes of 56 addresses each.
const BURST: u32 = 100;
/// How much longer than with the bridge plugin it may take.
const TARGET: f64 = 1.05;

/// Seconds, and a count.
struct Figures {
    /// From the order of a hundred pods to the last that is ready.
    burst: f64,
    /// Sandboxes that could not be made in all of this.
    failed: usize,
    /// From the boot of a new node, which imports its images first, to its condition Ready.
    ready: f64,
    /// The part of it that its kubelet runs.
    kubelet: f64,
    /// From then on to the first pod that runs there.
    first: f64,
    /// From the boot of a node that has served before to its condition Ready.
    again: f64,
}

/// What is compared, where it is, and whether there is a target for it.
type Row = (&'static str, fn(&Figures) -> f64, bool);

fn main() -> anyhow::Result<()> {
    let rounds = std::env::args().nth(1).map_or(Ok(3), |text| text.parse()).context("ROUNDS is a number")?;
    let (mut with_enid, mut with_bridge) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        for cni in if round % 2 == 0 { [Cni::Enid, Cni::Bridge] } else { [Cni::Bridge, Cni::Enid] } {
            let figures = measure(cni)?;
            eprintln!("round {round}, {cni:?}: {}", words(&figures));
            if cni == Cni::Enid { with_enid.push(figures) } else { with_bridge.push(figures) }
        }
    }
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["seconds, median", "Enid", "bridge", "ratio", ""]);
    let rows: [Row; 5] = [
        ("a new node boots, to Ready", |figures| figures.ready, true),
        ("of this: its kubelet starts, to Ready", |figures| figures.kubelet, false),
        ("Ready to its first pod Running", |figures| figures.first, true),
        ("100 pods at once on two nodes, all ready", |figures| figures.burst, true),
        ("a node reboots, to Ready", |figures| figures.again, false),
    ];
    for (what, of, bound) in rows {
        let (enid, bridge) = (median(with_enid.iter().map(of)), median(with_bridge.iter().map(of)));
        let ratio = enid / bridge;
        let verdict = match (bound, ratio <= TARGET) {
            (false, _) => "no target",
            (true, true) => "met",
            (true, false) => "MISSED",
        };
        table.add_row([
            what.to_owned(),
            format!("{enid:.1}"),
            format!("{bridge:.1}"),
            format!("{ratio:.2}"),
            verdict.to_owned(),
        ]);
    }
    println!("{table}");
    let failed: usize = with_enid.iter().map(|figures| figures.failed).sum();
    println!("sandboxes that could not be made with Enid: {failed}");
    ensure!(failed == 0, "no sandbox may fail");
    Ok(())
}

fn words(Figures { burst, failed, ready, kubelet, first, again }: &Figures) -> String {
    format!(
        "{BURST} pods {burst:.1} s, {failed} failed; new node Ready after {ready:.1} s, {kubelet:.1} s of its kubelet, \
         first pod {first:.1} s later; rebooted node Ready after {again:.1} s"
    )
}

/// A cluster of this kind, and nothing of it afterwards.
fn measure(cni: Cni) -> anyhow::Result<Figures> {
    let config = ClusterConfig { name: "bench".to_owned(), later: 1, cni, ..ClusterConfig::default() };
    let name = config.name.clone();
    Cluster::down(&name)?;
    let figures = measure_on(config);
    Cluster::down(&name)?;
    figures
}

fn measure_on(config: ClusterConfig) -> anyhow::Result<Figures> {
    let lab = Lab::up(&config.lab())?;
    let cluster = Cluster::raise(config, lab, &mut |_, _| ())?;
    let nodes = cluster.nodes()?;
    let [served, new] = [&nodes[1], &nodes[2]];
    let seconds = format!("--timeout={}s", BOUND.as_secs());
    let ready =
        |node: &Node| cluster.kubectl(&["wait", "--for=condition=Ready", &format!("node/{}", node.name), &seconds]);

    // A hundred pods, on nodes that have served.
    kube::idle(&cluster, "burst", 0)?;
    let before = failures(&cluster)?;
    let started = Instant::now();
    kube::idle(&cluster, "burst", BURST)?;
    let burst = started.elapsed().as_secs_f64();
    kube::remove(&cluster, "burst")?;

    // A node that boots for the first time, and a pod that waits for it.
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "first", "namespace": "default" },
        "spec": {
            "nodeSelector": { "kubernetes.io/hostname": new.name },
            "containers": [{ "name": "idle", "image": kube::AGNHOST, "imagePullPolicy": "Never", "args": ["pause"] }],
        },
    });
    cluster.apply(&pod.to_string())?;
    let started = Instant::now();
    new.boot()?;
    wait_until(BOUND, || new.has_images())?;
    let before_kubelet = started.elapsed().as_secs_f64();
    wait_until(BOUND, || cluster.kubectl(&["get", "node", &new.name]).is_ok())?;
    ready(new)?;
    let new_ready = started.elapsed().as_secs_f64();
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/first", &seconds])?;
    let kubelet = new_ready - before_kubelet;
    let first = started.elapsed().as_secs_f64() - new_ready;

    let boot = ["get", "node", &served.name, "-o", "jsonpath={.status.nodeInfo.bootID}"];
    let earlier = cluster.kubectl(&boot)?;
    served.stop()?;
    let started = Instant::now();
    served.boot()?;
    wait_until(BOUND, || cluster.kubectl(&boot).is_ok_and(|now| now != earlier))?;
    ready(served)?;
    let again = started.elapsed().as_secs_f64();
    let failed = failures(&cluster)? - before;
    Ok(Figures { burst, failed, ready: new_ready, kubelet, first, again })
}

/// How often a sandbox could not be made.
fn failures(cluster: &Cluster) -> anyhow::Result<usize> {
    Ok(cluster.list("events", &["--field-selector=reason=FailedCreatePodSandBox"])?.len())
}

fn median(numbers: impl Iterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = numbers.collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}
