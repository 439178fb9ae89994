//! An operator changes the security groups of a whole fleet at one moment: every ENI follows, and EC2 is not stormed.

use comfy_table::{Table, presets::NOTHING};
use enid_ipamd::Target;
use vpclab::model::Options;

use super::{Fleet, Setting};
use crate::world::settings;

const NODES: usize = 1_000;
/// More pods than one ENI of an m5.large has addresses.
const PODS: u64 = 12;
/// When the groups are changed: every node has audited its ENIs by then, and has read its groups twice.
const CHANGED_MS: u64 = 10 * 60_000;
/// Two readings, and the five minutes over which nodes follow.
const FOLLOWED_MS: u64 = (60 + 300 + 30) * 1000;
const READING_MS: u64 = 30_000;

/// Runs it; an ENI that does not follow, a call that is refused and one that is not needed are errors.
pub fn run() -> anyhow::Result<()> {
    let options =
        Options { seed: 1, throttling: true, imds_lag_ms: (100, 1_000), eni_quota: 50_000, ..Options::default() };
    let mut policy = settings(0);
    policy.target = Target::Auto;
    let setting = Setting { kind: "m5.large", policy, options, listing_ms: 60_000, knows_bound: false, subnet: 9 };
    let mut fleet = Fleet::new(setting, NODES, 1)?;
    let mut rng = fastrand::Rng::with_seed(3);
    for node in 0..NODES {
        let boot = rng.u64(0..120_000);
        fleet.boot(boot, node);
        (0..PODS).for_each(|pod| fleet.start(boot + 1_000, node, pod));
        let first = boot + rng.u64(0..READING_MS);
        (0..).map(|n| first + n * READING_MS).take_while(|at| *at < CHANGED_MS + FOLLOWED_MS).for_each(|at| {
            fleet.read(at, node);
        });
    }
    fleet.run(CHANGED_MS, usize::MAX);
    let action = "ModifyNetworkInterfaceAttribute";
    let counted = |fleet: &Fleet| fleet.counts().get(action).map_or((0, 0), |it| (it.calls, it.throttled));
    let before = counted(&fleet);
    fleet.set_groups(&["sg-new"]);
    fleet.run(CHANGED_MS + FOLLOWED_MS, usize::MAX);
    let after = counted(&fleet);
    let (calls, refused) = (after.0 - before.0, after.1 - before.1);
    let (enis, behind) = fleet.enis_without(&["sg-new"]);
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(["nodes", "secondary ENIs", "calls", "refused", "behind"]);
    table.add_row([NODES.to_string(), enis.to_string(), calls.to_string(), refused.to_string(), behind.to_string()]);
    println!("Security groups of a fleet are changed\n{table}\n");
    let needed = u64::try_from(enis)?;
    anyhow::ensure!(behind == 0, "{behind} of {enis} ENIs have not followed");
    anyhow::ensure!(enis >= NODES && calls == needed, "{calls} calls for {enis} ENIs");
    anyhow::ensure!(refused == 0, "EC2 refused {refused} of {calls} calls");
    Ok(())
}
