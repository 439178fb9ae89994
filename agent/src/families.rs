//! Which families pods get, once it is known what the instance and the pods that run already have.

use anyhow::ensure;
use enid_datapath::Family;
use enid_ipamd::{Beside, Kind, LOCAL_V4, LOCAL_V6, Lease, Ledger, Limits, Provisioning};
use tracing::warn;

use crate::{imds::Instance, settings::Settings};

/// IPv6 comes in prefixes, which the hypervisors before Nitro do not know (Amazon EC2 User Guide, prefix delegation).
pub fn check(settings: &Settings, limits: &Limits, instance: &Instance) -> anyhow::Result<()> {
    let v6 = settings.steering.policy.of_vpc.contains(&Family::V6);
    let cannot = v6 && !limits.prefixes && settings.policy.provisioning != Provisioning::ImdsOnly;
    let kind = &instance.kind;
    ensure!(!cannot, "ENABLE_IPv6 is true, and {kind} cannot have prefixes; Nitro instances can");
    Ok(())
}

/// Fits the settings to this instance, or says what is wrong with them here. What pods have they keep: families whose
/// pods still run are carried on.
pub fn settle(settings: &mut Settings, instance: &Instance, ledger: &Ledger) -> anyhow::Result<()> {
    let leading_v6 = settings.policy.kind == Kind::V6Prefix;
    let others = ledger.leases.values().filter(|lease| lease.address.is_ipv6() != leading_v6).count();
    ensure!(
        others == 0,
        "{others} pods on this node have addresses of the other family: ENABLE_IPv4 and ENABLE_IPv6 can be changed from \
         IPv4 to both and back under running pods, and to or from IPv6 alone on a node without pods"
    );
    let policy = &mut settings.steering.policy;
    ensure!(
        !policy.of_vpc.contains(&Family::V6) || instance.subnet_has_v6,
        "ENABLE_IPv6 is true, and the subnet {} of this instance has no IPv6 CIDR",
        instance.subnet_id
    );
    if policy.of_node.contains(&LOCAL_V6) && instance.own_v6.is_none() {
        warn!(
            "ENABLE_V6_EGRESS is true, and this instance has no IPv6 address that pods could leave with: it is off here"
        );
        policy.of_node.remove(&LOCAL_V6);
        settings.policy.beside = Beside::Nothing;
    }
    // What pods have by earlier settings is carried until a start after the last of them has gone.
    let seconds = || ledger.leases.values().filter_map(|lease| lease.second);
    policy.of_vpc.extend(ledger.leases.values().filter_map(Lease::second_of_vpc).map(Family::of));
    policy
        .of_node
        .extend([LOCAL_V4, LOCAL_V6].into_iter().filter(|range| seconds().any(|second| range.contains(&second))));
    Ok(())
}
