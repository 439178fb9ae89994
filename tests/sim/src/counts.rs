//! What the usual situations cost in EC2 calls, each named.

use std::collections::BTreeMap;

use comfy_table::{Table, presets::NOTHING};
use enid_ipamd::{Placement, Policy, Target};
use vpclab::model::Options;

use crate::{
    story::Move,
    world::{World, settings},
};

fn difference(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> (u64, String) {
    let new = after.iter().map(|(action, count)| (action, count - before.get(action).copied().unwrap_or(0)));
    let new: Vec<_> = new.filter(|(_, count)| *count > 0).collect();
    let words: Vec<String> = new.iter().map(|(action, count)| format!("{count} {action}")).collect();
    (new.iter().map(|(_, count)| count).sum(), words.join(", "))
}

struct Row {
    situation: &'static str,
    most: u64,
    found: u64,
    calls: String,
}

/// Pods get what the subnet still has, and all of them once it has more again.
fn short_subnet() -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    let cases = [
        ("5 pods, 10 free addresses in the subnet, auto", settings(0), 10, 5, 4),
        ("5 pods, 5 free addresses, the peer's WARM_IP_TARGET=2", settings(2), 5, 5, 20),
        ("8 pods, 3 free addresses for two minutes, auto", settings(0), 3, 3, 40),
    ];
    for (situation, policy, left, served, most) in cases {
        let mut world = World::new(Options { seed: 7, ..Options::default() }, policy, None)?;
        world.cloud.fill(0, Some(left));
        let before = BTreeMap::from([("DescribeInstanceTypes".to_owned(), 1)]);
        let pods = if served < left { served } else { served + 5 * u32::from(left == 3) };
        world.play(&Move::Start(pods));
        world.play(&Move::Pass(120_000));
        let added = world.tally.added;
        anyhow::ensure!(added >= u64::from(served), "{situation}: {added} pods run");
        let (found, calls) = difference(&before, &world.cloud.counts());
        rows.push(Row { situation, most, found, calls });
        world.cloud.fill(0, None);
        (0..pods).for_each(|number| world.play(&Move::StartAgain(number)));
        world.play(&Move::Pass(240_000));
        anyhow::ensure!(world.cloud.enis(world.now).len() <= 3, "{situation}: more ENIs than there may be");
    }
    Ok(rows)
}

/// Pods that come one after the other, and all at once, while metadata lags: no ENI more than their addresses need, and no
/// call for each of them.
fn growth() -> anyhow::Result<Vec<Row>> {
    let peers = Target::Warm { enis: 1, addresses: 5, minimum: 10, prefixes: 0 };
    // m5.4xlarge: 29 addresses on each of 8 ENIs. Calls: audit, tag, the first order; then three for each ENI, and orders.
    let cases = [
        ("30 pods, one a second, WARM_IP_TARGET=5, MINIMUM_IP_TARGET=10", peers, 30, 1, 2, 16),
        ("100 pods, ten a second, the same", peers, 100, 10, 4, 24),
        ("100 pods at once, the same", peers, 100, 100, 4, 14),
        ("30 pods, one a second, auto", Target::Auto, 30, 1, 2, 10),
        ("100 pods at once, auto", Target::Auto, 100, 100, 4, 14),
    ];
    let mut rows = Vec::new();
    for (situation, target, pods, a_second, enis, most) in cases {
        let options = Options { seed: 7, imds_lag_ms: (300, 4_000), ..Options::default() };
        let mut world = World::of_kind("m5.4xlarge", options, Policy { target, ..settings(0) }, None)?;
        world.play(&Move::Pass(10_000));
        for _ in 0..pods / a_second {
            world.play(&Move::Start(a_second));
            world.play(&Move::Pass(1_000));
        }
        world.play(&Move::Pass(30_000));
        anyhow::ensure!(world.tally.added == u64::from(pods), "{situation}: {} of {pods} run", world.tally.added);
        let there = world.cloud.enis(world.now).len();
        anyhow::ensure!(there <= enis, "{situation}: {there} ENIs, and {enis} have room for all");
        let (found, calls) =
            difference(&BTreeMap::from([("DescribeInstanceTypes".to_owned(), 1)]), &world.cloud.counts());
        rows.push(Row { situation, most, found, calls });
    }
    Ok(rows)
}

/// A day on which nothing happens.
fn quiet_day(situation: &'static str, most: u64, mut world: World) -> Row {
    let before = world.cloud.counts();
    for _ in 0..24 {
        world.play(&Move::Pass(3_600_000));
    }
    let (found, calls) = difference(&before, &world.cloud.counts());
    Row { situation, most, found, calls }
}

/// Counts and prints; more than is allowed is an error.
pub fn run() -> anyhow::Result<()> {
    let mut rows = Vec::new();
    let calm = || Options { seed: 7, ..Options::default() };
    // Prefixes: 9 of them are 144 addresses, so that the primary ENI has room for 30 pods.
    for (situation, number, pods) in
        [("first boot to 30 pods, prefixes", 4, 30), ("first boot to 8 pods, single addresses", 0, 8)]
    {
        let mut world = World::new(calm(), settings(number), None)?;
        let before = BTreeMap::from([("DescribeInstanceTypes".to_owned(), 1)]);
        world.play(&Move::Pass(5_000));
        world.play(&Move::Start(pods));
        world.play(&Move::Pass(30_000));
        anyhow::ensure!(world.tally.added == u64::from(pods), "{} of {pods} pods run", world.tally.added);
        let (found, calls) = difference(&before, &world.cloud.counts());
        rows.push(Row { situation, most: 4, found, calls });
        let before = world.cloud.counts();
        world.play(&Move::Reboot);
        world.play(&Move::Pass(10_000));
        world.play(&Move::Start(pods));
        world.play(&Move::Pass(30_000));
        let (found, calls) = difference(&before, &world.cloud.counts());
        rows.push(Row { situation: "its second boot to as many", most: 2, found, calls });
    }
    let mut world = World::new(calm(), settings(7), None)?;
    world.play(&Move::Pass(5_000));
    let before = world.cloud.counts();
    world.play(&Move::Start(100));
    world.play(&Move::Pass(30_000));
    let (found, calls) = difference(&before, &world.cloud.counts());
    // m5.large: 27 addresses on three ENIs. Audit and tag, an order on the primary, three calls per new ENI.
    rows.push(Row { situation: "100 ADDs at once on an empty pool of 3 ENIs", most: 9, found, calls });
    rows.push(quiet_day("a quiet day", 24, world));
    let by_tags = Policy { placement: Placement::Tagged { cluster: None }, ..settings(7) };
    let mut world = World::new(calm(), by_tags, None)?;
    world.play(&Move::Pass(30_000));
    rows.push(quiet_day("the same, subnets by their tags (the default)", 36, world));
    rows.extend(growth()?);
    rows.extend(short_subnet()?);
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(["situation", "calls", "at most", "which"]);
    for row in &rows {
        table.add_row([row.situation.to_owned(), row.found.to_string(), row.most.to_string(), row.calls.clone()]);
    }
    println!("EC2 calls\n{table}\n");
    let over: Vec<&str> = rows.iter().filter(|row| row.found > row.most).map(|row| row.situation).collect();
    anyhow::ensure!(over.is_empty(), "more calls than allowed: {}", over.join("; "));
    Ok(())
}
