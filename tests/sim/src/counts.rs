//! What the usual situations cost in EC2 calls, each named.

use std::collections::BTreeMap;

use comfy_table::{Table, presets::NOTHING};
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
    let before = world.cloud.counts();
    for _ in 0..24 {
        world.play(&Move::Pass(3_600_000));
    }
    let (found, calls) = difference(&before, &world.cloud.counts());
    rows.push(Row { situation: "a quiet day", most: 24, found, calls });
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
