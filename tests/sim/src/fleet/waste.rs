//! What idle addresses, EC2 calls and waiting cost: `auto` beside the peer's settings, on the same traces.

use comfy_table::{Table, presets::NOTHING};
use enid_ipamd::Target;
use rayon::prelude::*;
use vpclab::model::Options;

use super::{
    Fleet, Setting, WIRING_MS,
    number::float,
    trace::{KINDS, LENGTH, Trace},
};
use crate::world::settings;

/// Seeds of the comparison. Those that the constants were chosen on are below 100.
pub const SEEDS: std::ops::Range<u64> = 100..105;

/// Seconds of waiting for each ADD that make no difference.
const SAME: f64 = 0.001;

/// Nodes of a large cluster.
const NODES: f64 = 5_000.0;

/// One way to fill the pool.
struct Way {
    name: &'static str,
    target: Target,
}

const WAYS: [Way; 4] = [
    Way { name: "auto", target: Target::Auto },
    Way { name: "WARM_ENI_TARGET=1", target: Target::Warm { enis: 1, addresses: 0, minimum: 0, prefixes: 0 } },
    Way { name: "WARM_IP_TARGET=2", target: Target::Warm { enis: 0, addresses: 2, minimum: 0, prefixes: 0 } },
    Way {
        name: "WARM_IP_TARGET=5, MINIMUM_IP_TARGET=10",
        target: Target::Warm { enis: 0, addresses: 5, minimum: 10, prefixes: 0 },
    },
];

/// What a way costs on a trace.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Hours in which an address was taken from the subnet and no pod used it.
    pub idle: f64,
    /// EC2 calls.
    pub calls: f64,
    /// Seconds that ADDs waited for an address, added up.
    pub waits: f64,
    /// ADDs.
    pub adds: f64,
    /// Hours that nodes lived, added up.
    pub hours: f64,
    /// How often their status objects were written.
    pub writes: f64,
}

impl Cost {
    fn plus(self, other: Cost) -> Cost {
        Cost {
            idle: self.idle + other.idle,
            calls: self.calls + other.calls,
            waits: self.waits + other.waits,
            adds: self.adds + other.adds,
            hours: self.hours + other.hours,
            writes: self.writes + other.writes,
        }
    }

    /// In how many of the three it is at least as good.
    fn wins(self, other: Cost) -> usize {
        let same = SAME * self.adds;
        let wins = [self.idle <= other.idle, self.calls <= other.calls, self.waits <= other.waits + same];
        wins.into_iter().filter(|won| *won).count()
    }
}

/// What every way costs on a trace.
pub type Costs = Vec<(&'static str, Cost)>;

fn cost(trace: &Trace, target: Target, seed: u64) -> anyhow::Result<Cost> {
    let mut policy = settings(0);
    policy.target = target;
    policy.cooldown_ms = 30_000;
    let options = Options { seed, imds_lag_ms: (100, 1_000), ..Options::default() };
    let setting = Setting { kind: "m5.xlarge", policy, options, listing_ms: 30_000, knows_bound: false, subnet: 16 };
    let mut fleet = Fleet::new(setting, trace.nodes.len(), seed)?;
    for (node, span) in trace.nodes.iter().enumerate() {
        fleet.boot(span.from, node);
        fleet.end(span.to, node);
    }
    for (number, life) in trace.pods.iter().enumerate() {
        let number = u64::try_from(number)?;
        fleet.start(life.from, life.node, number);
        fleet.stop(life.to, life.node, number);
    }
    fleet.run(LENGTH, usize::MAX);
    let waits = fleet.waits.iter().map(|wait| float(wait.saturating_sub(WIRING_MS + 1)) / 1000.0).sum();
    let calls = float(fleet.counts().values().map(|counted| counted.calls).sum());
    let hours = trace.nodes.iter().map(|span| float(span.to - span.from) / 3_600_000.0).sum();
    Ok(Cost {
        idle: fleet.idle_seconds() / 3600.0,
        calls,
        waits,
        adds: float(u64::try_from(fleet.waits.len())?),
        hours,
        writes: float(fleet.writes()),
    })
}

/// Plays all ways on all traces with these seeds: costs by trace and way.
pub fn play(seeds: std::ops::Range<u64>) -> anyhow::Result<Vec<(&'static str, Costs)>> {
    let mut found = Vec::new();
    for (kind, draw) in KINDS {
        let played = WAYS.par_iter().map(|way| {
            let mut sum = Cost::default();
            for seed in seeds.clone() {
                sum = sum.plus(cost(&draw(seed), way.target, seed)?);
            }
            Ok((way.name, sum))
        });
        found.push((kind, played.collect::<anyhow::Result<Costs>>()?));
    }
    Ok(found)
}

/// Compares; a rival that is better in two of three on a trace is an error.
pub fn run(seeds: Option<std::ops::Range<u64>>) -> anyhow::Result<()> {
    let seeds = seeds.unwrap_or(SEEDS);
    let found = play(seeds.clone())?;
    let mut table = Table::new();
    table.load_style(NOTHING).set_header([
        "trace",
        "ADDs",
        "target",
        "idle address-hours",
        "EC2 calls",
        "seconds waited",
        "auto is as good in",
    ]);
    let mut lost = Vec::new();
    for (trace, costs) in &found {
        let auto = costs[0].1;
        for (name, cost) in costs {
            let wins = auto.wins(*cost);
            let first = *name == costs[0].0;
            if wins < 2 {
                lost.push(format!("{trace}, {name}: {wins} of 3"));
            }
            table.add_row([
                if first { (*trace).to_owned() } else { String::new() },
                if first { format!("{:.0}", cost.adds) } else { String::new() },
                (*name).to_owned(),
                format!("{:.0}", cost.idle),
                format!("{:.0}", cost.calls),
                format!("{:.1}", cost.waits),
                if first { String::new() } else { format!("{wins} of 3") },
            ]);
        }
    }
    let hours = LENGTH / 3_600_000;
    println!("Waste: {hours} hours on m5.xlarge nodes, seeds {} to {}\n{table}\n", seeds.start, seeds.end - 1);
    let busiest = found.iter().map(|(trace, costs)| (trace, costs[0].1.writes / costs[0].1.hours));
    if let Some((trace, writes)) = busiest.max_by(|(_, one), (_, other)| one.total_cmp(other)) {
        let second = writes * NODES / 3600.0;
        println!(
            "Status objects: {writes:.1} writes a node and hour where most change ({trace}); of {NODES:.0} such nodes \
             {second:.1} a second\n"
        );
        anyhow::ensure!(writes <= 60.0 + 1.0, "a status object is written more than once a minute");
    }
    anyhow::ensure!(lost.is_empty(), "auto loses: {}", lost.join("; "));
    Ok(())
}
