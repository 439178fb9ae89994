//! `fill-bench [ROUNDS]`: sixty pods at once on two fresh nodes, where the daemons know which pods the scheduler has bound to
//! them, and where they do not: EC2 calls, and how long ADDs waited.

use std::{path::PathBuf, time::Instant};

use anyhow::Context;
use comfy_table::Table;
use enid_tests::{Lab, kube};
use kubelab::{Cluster, ClusterConfig};

const PODS: u32 = 60;
/// An address of the VPC that nobody has.
const NOWHERE: &str = "env: { CLUSTER_ENDPOINT: \"https://10.0.3.250:6443\" }\n";

/// What one fill took.
struct Fill {
    /// EC2 calls of both nodes.
    calls: f64,
    /// Milliseconds from ADD's question to its answer, of all pods together.
    waited: f64,
    /// ADDs that took longer than a hundred milliseconds.
    late: f64,
    /// Seconds from the order to the last pod that is ready.
    ready: f64,
}

fn main() -> anyhow::Result<()> {
    let rounds = std::env::args().nth(1).map_or(Ok(3), |text| text.parse()).context("ROUNDS is a number")?;
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        known.push(fill(true)?);
        unknown.push(fill(false)?);
    }
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["60 pods on two fresh nodes, median", "bound pods are known", "are not"]);
    type Row = (&'static str, fn(&Fill) -> f64);
    let rows: [Row; 4] = [
        ("EC2 calls", |fill| fill.calls),
        ("ADDs waited, ms in all", |fill| fill.waited),
        ("ADDs that waited longer than 100 ms", |fill| fill.late),
        ("all ready, s", |fill| fill.ready),
    ];
    for (what, of) in rows {
        let figure = |fills: &[Fill]| format!("{:.1}", median(fills.iter().map(of).collect()));
        table.add_row([what.to_owned(), figure(&known), figure(&unknown)]);
    }
    println!("{table}");
    Ok(())
}

fn fill(is_known: bool) -> anyhow::Result<Fill> {
    let values = std::env::temp_dir().join(format!("enid-fill-{}.yaml", std::process::id()));
    std::fs::write(&values, if is_known { "{}\n" } else { NOWHERE }).context("cannot write a file of values")?;
    let config =
        ClusterConfig { name: "fill".to_owned(), values: vec![PathBuf::from(&values)], ..ClusterConfig::default() };
    let name = config.name.clone();
    Cluster::down(&name)?;
    let lab = Lab::up(&config.lab())?;
    let cluster = Cluster::raise(config, lab, &mut |_, _| ())?;
    let before = sums(&cluster)?;
    let started = Instant::now();
    kube::idle(&cluster, "fill", PODS)?;
    let ready = started.elapsed().as_secs_f64();
    let after = sums(&cluster)?;
    drop(cluster);
    Cluster::down(&name)?;
    let fill = Fill {
        calls: after[0] - before[0],
        waited: (after[1] - before[1]) * 1000.0,
        late: (after[2] - before[2]) - (after[3] - before[3]),
        ready,
    };
    eprintln!("known {is_known}: {:.0} calls, {:.0} ms, {:.0} late, {ready:.1} s", fill.calls, fill.waited, fill.late);
    Ok(fill)
}

/// Of both nodes: EC2 calls, seconds that ADDs took, ADDs, and ADDs of at most a hundred milliseconds.
fn sums(cluster: &Cluster) -> anyhow::Result<[f64; 4]> {
    let mut sums = [0.0; 4];
    for node in cluster.nodes()? {
        let page = node.sh("curl -s -S -m 5 http://127.0.0.1:61678/metrics")?;
        let of = |begins: &str, has: &str| -> f64 {
            let lines = page.lines().filter(|line| line.starts_with(begins) && line.contains(has));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        sums[0] += of("awscni_ec2api_req_count{", "");
        sums[1] += of("enid_add_seconds_sum{", "");
        sums[2] += of("enid_add_seconds_count{", "");
        sums[3] += of("enid_add_seconds_bucket{", "le=\"0.1\"");
    }
    Ok(sums)
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}
