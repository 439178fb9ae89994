//! Which families pods get, once it is known what the instance and the pods that run already have.

use std::net::IpAddr;

use enid_datapath::Family;
use enid_ipamd::{Kind, LOCAL, LOCAL_V6, Lease, Ledger, Limits, Provisioning, Second};
use thiserror::Error;
use tracing::warn;

use crate::{aws::imds::Instance, settings::Settings};

/// Settings that this instance, or the pods that run on it, cannot have.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct Unfit(pub String);

fn ensure(holds: bool, words: impl FnOnce() -> String) -> Result<(), Unfit> {
    if holds { Ok(()) } else { Err(Unfit(words())) }
}

/// IPv6 comes in prefixes, which the hypervisors before Nitro do not know (Amazon EC2 User Guide, prefix delegation).
pub fn check(settings: &Settings, limits: &Limits, instance: &Instance) -> Result<(), Unfit> {
    let v6 = settings.steering.policy.of_vpc.contains(&Family::V6);
    let cannot = v6 && !limits.prefixes && settings.policy.provisioning != Provisioning::ImdsOnly;
    let kind = &instance.kind;
    ensure(!cannot, || format!("ENABLE_IPv6 is true, and {kind} cannot have prefixes; Nitro instances can"))
}

/// Fits the settings to this instance, or says what is wrong with them here. What pods have they keep: families whose
/// pods still run are carried on. Whether IPv6 is off only because the instance has no address of it yet.
///
/// `carried`: the addresses that pods' links carry, those of links by which they leave in another family among them.
pub fn settle(
    settings: &mut Settings,
    instance: &Instance,
    ledger: &Ledger,
    carried: &[IpAddr],
) -> Result<bool, Unfit> {
    let leading_v6 = settings.policy.kind == Kind::V6Prefix;
    let others = ledger.leases.values().filter(|lease| lease.address.is_ipv6() != leading_v6).count();
    ensure(others == 0, || {
        format!(
            "{others} pods on this node have addresses of the other family: ENABLE_IPv4 and ENABLE_IPv6 can be changed from \
             IPv4 to both and back under running pods, and to or from IPv6 alone on a node without pods"
        )
    })?;
    let policy = &mut settings.steering.policy;
    ensure(!policy.of_vpc.contains(&Family::V6) || instance.subnet_has_v6, || {
        format!("ENABLE_IPv6 is true, and the subnet {} of this instance has no IPv6 CIDR", instance.subnet_id)
    })?;
    let lacks_v6 = policy.of_node.contains(&LOCAL_V6) && instance.own_v6.is_none();
    if lacks_v6 {
        warn!(
            "ENABLE_V6_EGRESS is true, and this instance has no IPv6 address that pods could leave with: it is off until it \
             has one"
        );
        policy.of_node.remove(&LOCAL_V6);
        settings.policy.second = Second::None;
    }
    // What pods have by earlier settings is carried until a start after the last of them has gone.
    let seconds = || ledger.leases.values().filter_map(|lease| lease.second).chain(carried.iter().copied());
    policy.of_vpc.extend(ledger.leases.values().filter_map(Lease::second_of_vpc).map(Family::of));
    policy.of_node.extend(LOCAL.into_iter().filter(|range| seconds().any(|second| range.contains(&second))));
    Ok(lacks_v6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_is_refused_where_no_prefix_can_be_had() {
        let read = |given: &[(&str, &str)]| {
            let value = |name: &str| given.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
            Settings::read(&|setting| value(setting.name)).unwrap()
        };
        let instance = Instance {
            account: String::new(),
            id: "i-1".to_owned(),
            kind: "m4.large".to_owned(),
            zone: "us-east-1a".to_owned(),
            region: "us-east-1".to_owned(),
            subnet_id: "subnet-1".to_owned(),
            vpc_id: "vpc-1".to_owned(),
            vpc_cidrs: Vec::new(),
            subnet_has_v6: true,
            own_v6: None,
        };
        let v6 = read(&[("ENABLE_IPv6", "true"), ("ENABLE_IPv4", "false"), ("ENABLE_PREFIX_DELEGATION", "true")]);
        let both = read(&[("ENABLE_IPv6", "true"), ("ENABLE_PREFIX_DELEGATION", "true")]);
        let given = |prefixes| Limits::of_one_card(2, 10, prefixes);
        for settings in [&v6, &both] {
            let refused = check(settings, &given(false), &instance).unwrap_err().to_string();
            assert!(refused.contains("ENABLE_IPv6") && refused.contains("m4.large"), "{refused}");
            check(settings, &given(true), &instance).unwrap();
        }
        check(&read(&[]), &given(false), &instance).unwrap();
        // Whatever metadata shows was given by somebody else, who knew.
        let mut imds_only = both;
        imds_only.policy.provisioning = Provisioning::ImdsOnly;
        check(&imds_only, &given(false), &instance).unwrap();
    }
}
