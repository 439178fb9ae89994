//! `enid max-pods`: how many pods a node can have addresses for. Without a network, so that a bootstrap script can ask before
//! the kubelet starts.

use anyhow::{Context, bail};
use clap::ArgMatches;
use enid_ipamd::{Kind, Limits, Policy};
use serde::Serialize;

use crate::{
    aws::limits,
    kubernetes::ON_HOST,
    print::{Output, print, show},
    settings::Settings,
};

/// What limits the pods of a node.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct MaxPods {
    /// The instance type.
    instance_type: String,
    /// ENIs that pods can be on.
    enis: u32,
    /// Addresses for pods.
    addresses: u64,
    /// Pods that need none: this daemon and kube-proxy.
    on_the_hosts_network: u64,
    /// For the kubelet.
    max_pods: u64,
}

/// Prints the number alone, or with -o wide, json or yaml how it comes about.
pub fn run(matches: &ArgMatches, settings: &Settings, output: Output) -> anyhow::Result<()> {
    let kind = match matches.get_one::<String>("instance-type") {
        Some(kind) => kind.clone(),
        None => of_this_instance()?,
    };
    let Some(limits) = limits::built_in(&kind) else {
        let known = limits::of_family(&kind);
        let hint =
            if known.is_empty() { String::new() } else { format!("; of its family these are: {}", known.join(", ")) };
        bail!("the instance type {kind:?} is not known to this version{hint}");
    };
    let cap = matches.get_one::<u64>("cap").copied();
    if cap.is_none() && settings.policy.kind == Kind::V6Prefix {
        bail!(
            "with IPv6 addresses are no limit: --cap says how many pods the kubelet may have (Kubernetes recommends 110)"
        );
    }
    let found = max_pods(kind, limits, &settings.policy, cap);
    if output == Output::Table {
        return print(&found.max_pods.to_string());
    }
    show(output, &found, || {
        let MaxPods { instance_type, enis, addresses, on_the_hosts_network, max_pods } = &found;
        format!(
            "{max_pods}: {instance_type} has {enis} ENIs for pods with {addresses} addresses; {on_the_hosts_network} pods are \
             on the host's network"
        )
    })
}

fn max_pods(instance_type: String, limits: Limits, policy: &Policy, cap: Option<u64>) -> MaxPods {
    let (enis, addresses) = policy.for_pods(limits);
    let max_pods = (addresses + ON_HOST).min(cap.unwrap_or(u64::MAX));
    MaxPods { instance_type, enis, addresses, on_the_hosts_network: ON_HOST, max_pods }
}

/// The type as the firmware names it (SMBIOS, "product name"): on Nitro that is the instance type.
fn of_this_instance() -> anyhow::Result<String> {
    let path = "/sys/devices/virtual/dmi/id/product_name";
    let said = std::fs::read_to_string(path);
    let said = said.with_context(|| format!("cannot read {path}; --instance-type names the type"))?;
    Ok(said.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use crate::settings::SETTINGS;

    use super::*;

    fn of(kind: &str, given: &[(&str, &str)], cap: Option<u64>) -> u64 {
        let value = |setting: &crate::settings::Setting| {
            given.iter().find(|(name, _)| *name == setting.name).map(|(_, value)| (*value).to_owned())
        };
        assert!(given.iter().all(|(name, _)| SETTINGS.iter().any(|setting| setting.name == *name)));
        let settings = Settings::read(&value).unwrap();
        max_pods(kind.to_owned(), limits::built_in(kind).unwrap(), &settings.policy, cap).max_pods
    }

    /// Figures of the Amazon EKS User Guide and of Amazon's eni-max-pods.txt.
    #[test]
    fn the_numbers_are_those_of_the_type_and_the_mode() {
        assert_eq!(of("m5.large", &[], None), 29);
        assert_eq!(of("t3.medium", &[], None), 17);
        assert_eq!(of("m5.large", &[("ENABLE_PREFIX_DELEGATION", "true")], None), 434);
        assert_eq!(of("m5.large", &[("ENABLE_PREFIX_DELEGATION", "true")], Some(110)), 110);
        assert_eq!(of("m5.large", &[("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", "true")], None), 20);
        assert_eq!(of("m5.large", &[("MAX_ENI", "2")], None), 20);
    }
}
