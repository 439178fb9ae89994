//! Everybody at once: how an account's buckets are shared by nodes that do not know of each other.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context;
use comfy_table::{Table, presets::NOTHING};
use enid_ipamd::Target;
use vpclab::model::Options;

use super::{Fleet, Setting, number::float};
use crate::world::settings;

/// What the buckets are to be used for at the least, and how much later than the least the last pod may come.
const GOODPUT: f64 = 0.9;
const LATE: f64 = 1.2;

struct Crowd {
    name: &'static str,
    kind: &'static str,
    nodes: usize,
    pods: u64,
    /// Daemons start within so many milliseconds; pods come right then, or when all daemons are up.
    boot_ms: u64,
    pods_ms: u64,
}

const CROWDS: [Crowd; 2] = [
    Crowd {
        name: "500 nodes, 15,000 pods at once",
        kind: "m5.xlarge",
        nodes: 500,
        pods: 30,
        boot_ms: 30_000,
        pods_ms: 60_000,
    },
    Crowd { name: "5,000 nodes boot together", kind: "m5.large", nodes: 5_000, pods: 3, boot_ms: 30_000, pods_ms: 0 },
];

fn setting(crowd: &Crowd, charge_refused: bool, others_share: f64) -> Setting {
    let options = Options {
        seed: 1,
        throttling: true,
        charge_refused,
        others_share,
        imds_lag_ms: (100, 1_000),
        eni_quota: 50_000,
        ..Options::default()
    };
    let mut policy = settings(0);
    policy.target = Target::Auto;
    policy.cooldown_ms = 30_000;
    Setting { kind: crowd.kind, policy, options, listing_ms: 60_000, knows_bound: true, subnet: 9 }
}

/// One row of the table, and what was missed.
type Row = (Vec<String>, Option<String>);

/// Runs every crowd under every kind of bucket; a figure that is missed is an error.
pub fn run() -> anyhow::Result<()> {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header([
        "crowd",
        "refusals charged",
        "used by others",
        "tightest action",
        "calls",
        "served",
        "goodput",
        "of all",
        "last pod s",
        "least s",
        "ratio",
    ]);
    let buckets = [(false, 0.0), (true, 0.0), (false, 0.2), (true, 0.2)];
    let cases: Vec<_> =
        CROWDS.iter().flat_map(|crowd| buckets.map(|(charged, others)| (crowd, charged, others))).collect();
    let mut missed = Vec::new();
    for (row, miss) in side_by_side(&cases, |(crowd, charged, others)| one(crowd, *charged, *others))? {
        table.add_row(row);
        missed.extend(miss);
    }
    println!("One account\n{table}\n");
    anyhow::ensure!(missed.is_empty(), "{}", missed.join("\n"));
    Ok(())
}

/// As many of the cases at a time as the machine has processors; the answers in the order of the cases.
fn side_by_side<T: Sync>(cases: &[T], run: impl Fn(&T) -> anyhow::Result<Row> + Sync) -> anyhow::Result<Vec<Row>> {
    let next = AtomicUsize::new(0);
    let worker = || {
        let taken = std::iter::from_fn(|| {
            let at = next.fetch_add(1, Ordering::Relaxed);
            Some((at, cases.get(at)?))
        });
        taken.map(|(at, case)| Ok((at, run(case)?))).collect::<anyhow::Result<Vec<_>>>()
    };
    let mut rows = Vec::new();
    std::thread::scope(|scope| {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..processors).map(|_| scope.spawn(worker)).collect();
        for worker in workers {
            rows.extend(worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        anyhow::Ok(())
    })?;
    rows.sort_by_key(|(at, _)| *at);
    Ok(rows.into_iter().map(|(_, row)| row).collect())
}

fn one(crowd: &Crowd, charged: bool, others: f64) -> anyhow::Result<Row> {
    let mut fleet = Fleet::new(setting(crowd, charged, others), crowd.nodes, 1)?;
    let mut rng = fastrand::Rng::with_seed(2);
    let mut first = u64::MAX;
    for node in 0..crowd.nodes {
        let boot = rng.u64(0..crowd.boot_ms);
        fleet.boot(boot, node);
        for pod in 0..crowd.pods {
            let at = crowd.pods_ms.max(boot);
            first = first.min(at);
            fleet.start(at, node, pod);
        }
    }
    let pods = crowd.nodes * usize::try_from(crowd.pods)?;
    fleet.run(3_600_000, pods);
    let figures = fleet.meter.figures(fleet.now);
    let least = figures.iter().map(|figure| figure.least).fold(0.0, f64::max);
    let tightest = figures.iter().max_by(|one, other| one.least.total_cmp(&other.least)).context("no call was made")?;
    let last = float(fleet.last - first) / 1000.0;
    let ratio = last / least.max(0.001);
    let goodput = tightest.goodput.unwrap_or(1.0);
    let all = fleet.meter.goodput(fleet.now).unwrap_or(1.0);
    if std::env::var_os("SIM_TRACE").is_some() {
        figures.iter().for_each(|figure| eprintln!("  {figure:?}"));
    }
    let row = vec![
        crowd.name.to_owned(),
        if charged { "yes" } else { "no" }.to_owned(),
        format!("{:.0} %", others * 100.0),
        tightest.action.to_owned(),
        tightest.calls.to_string(),
        tightest.served.to_string(),
        format!("{:.0} %", goodput * 100.0),
        format!("{:.0} %", all * 100.0),
        format!("{last:.0}"),
        format!("{least:.0}"),
        format!("{ratio:.2}"),
    ];
    let name = format!("{}, refusals {}charged, {others} by others", crowd.name, if charged { "" } else { "not " });
    let missed = if fleet.waits.len() < pods {
        let stuck = (0..crowd.nodes).map(|node| fleet.explain(node)).find(|text| !text.starts_with("0 pods"));
        let stuck = stuck.unwrap_or_default();
        Some(format!("{name}: {} of {pods} pods run after an hour: {stuck}", fleet.waits.len()))
    } else {
        let fits = goodput >= GOODPUT && ratio <= LATE;
        (!fits).then(|| format!("{name}: goodput {goodput:.2}, last pod at {ratio:.2} of the least"))
    };
    Ok((row, missed))
}
