//! `cluster-bench [ROUNDS]`: how soon pods run on a real cluster, with Enid and with the standard bridge plugin, which gives
//! addresses out of a file. Both in one run, in turn, each time on a cluster of its own.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use comfy_table::Table;
use enid_tests::{Lab, kube, wait_until};
use kubelab::{Cluster, ClusterConfig, Cni};
use serde_json::json;

const BOUND: Duration = Duration::from_secs(180);
/// On two nodes of 56 addresses each.
const BURST: u32 = 100;
/// How much longer than with the bridge plugin it may take.
const TARGET: f64 = 1.05;

/// Seconds, and a count.
struct Figures {
    /// From the boot of a node to its condition Ready.
    ready: f64,
    /// From then on to the first pod that runs there.
    first: f64,
    /// From the order of a hundred pods to the last that is ready.
    burst: f64,
    /// Sandboxes that could not be made in the burst.
    failed: usize,
}

/// What is compared, and where it is.
type Row = (&'static str, fn(&Figures) -> f64);

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
    let rows: [Row; 3] = [
        ("boot of a node to Ready", |figures| figures.ready),
        ("Ready to its first pod Running", |figures| figures.first),
        ("100 pods at once on two nodes, all ready", |figures| figures.burst),
    ];
    for (what, of) in rows {
        let (enid, bridge) = (median(with_enid.iter().map(of)), median(with_bridge.iter().map(of)));
        let ratio = enid / bridge;
        let verdict = if ratio <= TARGET { "met" } else { "MISSED" };
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

fn words(Figures { ready, first, burst, failed }: &Figures) -> String {
    format!("Ready after {ready:.1} s, first pod {first:.1} s later, {BURST} pods {burst:.1} s, {failed} failed")
}

/// A cluster of this kind, and nothing of it afterwards.
fn measure(cni: Cni) -> anyhow::Result<Figures> {
    let config = ClusterConfig { name: "bench".to_owned(), cni, ..ClusterConfig::default() };
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
    let node = &nodes[1];

    // A hundred pods, on nodes that have served.
    kube::idle(&cluster, "burst", 0)?;
    let before = failures(&cluster)?;
    let started = Instant::now();
    kube::idle(&cluster, "burst", BURST)?;
    let burst = started.elapsed().as_secs_f64();
    let failed = failures(&cluster)? - before;
    kube::remove(&cluster, "burst")?;

    // A node that boots, and a pod that waits for it.
    let boot = ["get", "node", &node.name, "-o", "jsonpath={.status.nodeInfo.bootID}"];
    let earlier = cluster.kubectl(&boot)?;
    node.stop()?;
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "first", "namespace": "default" },
        "spec": {
            "nodeName": node.name,
            "tolerations": [{ "operator": "Exists" }],
            "containers": [{ "name": "idle", "image": kube::AGNHOST, "imagePullPolicy": "Never", "args": ["pause"] }],
        },
    });
    cluster.apply(&pod.to_string())?;
    let started = Instant::now();
    node.boot()?;
    wait_until(BOUND, || cluster.kubectl(&boot).is_ok_and(|now| now != earlier))?;
    let seconds = format!("--timeout={}s", BOUND.as_secs());
    cluster.kubectl(&["wait", "--for=condition=Ready", &format!("node/{}", node.name), &seconds])?;
    let ready = started.elapsed().as_secs_f64();
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/first", &seconds])?;
    let first = started.elapsed().as_secs_f64() - ready;
    Ok(Figures { ready, first, burst, failed })
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
