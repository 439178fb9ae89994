//! Every setting: its name, its flag, its default and what it means, in one table.
//!
//! The chart carries the same names; a test fails when one of them is missing there. Names are the
//! peer's where it has the setting. An empty value counts as not set.

pub mod given;
pub mod peer;
mod read;
pub mod remembered;
mod stack;
mod table;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use enid_ipamd::{Kind, Provisioning};

use crate::host::kernel::Steering;
pub use read::Mistake;
pub use table::{Applies, SETTINGS, Setting};

use read::{Reader, URLS, is_url};
use stack::Stack;

/// Taints of the node that the daemon sees to.
#[derive(Clone, Debug)]
pub struct Taints {
    /// The key of one that goes once pods can be served.
    pub startup: Option<String>,
    /// One of ours is there while the subnets have no address for another pod.
    pub no_addresses: bool,
}

/// What names a node's ENIConfig, besides the label `vpc.amazonaws.com/externalEniConfig`.
#[derive(Clone, Debug)]
pub struct EniConfigNames {
    /// An annotation of the node.
    pub annotation: String,
    /// A label of the node.
    pub label: String,
}

/// The settings, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The settings of the core.
    pub policy: enid_ipamd::Policy,
    /// Tags on new ENIs, besides our own.
    pub extra_tags: BTreeMap<String, String>,
    /// CLUSTER_NAME, if set.
    pub cluster_name: Option<String>,
    /// CLUSTER_ENDPOINT, if set.
    pub cluster_endpoint: Option<String>,
    /// Which taints of the node are kept.
    pub taints: Taints,
    /// ANNOTATE_POD_IP.
    pub annotate_pods: bool,
    /// ENID_PUBLISH_ADDRESSES.
    pub publish_addresses: bool,
    /// What names the node's ENIConfig.
    pub eni_config: EniConfigNames,
    /// ENIs, and pods' packets on the node.
    pub steering: Steering,
    /// ENID_TAKE_OVER.
    pub take_over: bool,
    /// AWS_VPC_K8S_CNI_BACKING_STORE.
    pub backing_store: PathBuf,
    /// ENID_HOST_LOCAL_DIR.
    pub host_local_dir: PathBuf,
    /// MY_POD_NAME; empty if it is not known.
    pub pod_name: String,
    /// ENID_FORWARD_PROBE.
    pub forward_probe: bool,
    /// Bytes.
    pub pod_mtu: u32,
    /// Of pods' host links.
    pub veth_prefix: String,
    /// A filter of `tracing`.
    pub log_level: String,
    /// One JSON object per line.
    pub log_json: bool,
    /// AWS_EC2_ENDPOINT, if set.
    pub ec2_endpoint: Option<String>,
    /// MY_NODE_NAME or the host's name.
    pub node_name: String,
    /// Sockets.
    pub run_dir: PathBuf,
    /// Store.
    pub store_dir: PathBuf,
    /// Plugin.
    pub bin_dir: PathBuf,
    /// Conflist.
    pub conf_dir: PathBuf,
    /// HOST_PROC_SYS_NET_PATH.
    pub sys_net_dir: PathBuf,
    /// ENABLE_BANDWIDTH_PLUGIN.
    pub chain_bandwidth: bool,
    /// DISABLE_POD_V6.
    pub disable_pod_v6: bool,
    /// ENID_CONFLIST_TEMPLATE, if set.
    pub conflist_template: Option<PathBuf>,
    /// Written into the conflist.
    pub add_wait: Duration,
    /// For IMDS.
    pub start_wait: Duration,
    /// `None`: no metrics.
    pub metrics: Option<SocketAddr>,
    /// ENID_HEALTH_ADDRESS.
    pub health: SocketAddr,
    /// ENID_DEBUG_ADDRESS, if set.
    pub debug: Option<SocketAddr>,
    /// OTEL_EXPORTER_OTLP_ENDPOINT, if set.
    pub traces: Option<String>,
    /// ENID_ADMIN.
    pub admin: bool,
    /// `None`: no introspection.
    pub introspection: Option<SocketAddr>,
    /// Variables of Amazon's daemon that are set and have no effect, and why.
    pub ignored: Vec<String>,
}

impl Settings {
    /// Reads all of them and reports every mistake in one go.
    pub fn read(value: &dyn Fn(&Setting) -> Option<String>) -> Result<Self, Vec<Mistake>> {
        let mut read = Reader::new(value);
        let stack = read.stack();
        // RFC 8200, 5: no link of IPv6 carries less.
        let least_mtu = if stack.has_v6() { 1280 } else { 576 };
        let eni_mtu = read.number("AWS_VPC_ENI_MTU", least_mtu, 9001).unwrap_or(9001);
        let settings = Settings {
            policy: enid_ipamd::Policy {
                target: read.target(),
                kind: match (stack, read.switch("ENABLE_PREFIX_DELEGATION")) {
                    (Stack::V6 { .. }, _) => Kind::V6Prefix,
                    (_, true) => Kind::Prefix,
                    (_, false) => Kind::Single,
                },
                second: stack.second(),
                placement: read.placement(stack),
                multi_card: read.switch("ENABLE_MULTI_NIC"),
                max_enis: read.number_or_unset("MAX_ENI", 1000),
                max_pods: read.number("MAX_PODS", 1, 100_000),
                cooldown_ms: u64::from(read.number("IP_COOLDOWN_PERIOD", 0, 86_400).unwrap_or(30)) * 1000,
                manage_untagged: read.switch("MANAGE_UNTAGGED_ENI"),
                provisioning: match (
                    read.switch("ENABLE_IMDS_ONLY_MODE"),
                    read.switch("DISABLE_NETWORK_RESOURCE_PROVISIONING"),
                ) {
                    (true, _) => Provisioning::ImdsOnly,
                    (_, true) => Provisioning::Off,
                    _ => Provisioning::On,
                },
                clean_leaked: !read.switch("DISABLE_LEAKED_ENI_CLEANUP") && read.text("CLUSTER_NAME").is_some(),
                manage_cordoned: read.switch("AWS_MANAGE_ENIS_NON_SCHEDULABLE"),
            },
            extra_tags: read.tags("ADDITIONAL_ENI_TAGS"),
            cluster_name: read.text("CLUSTER_NAME"),
            cluster_endpoint: read.https_url("CLUSTER_ENDPOINT"),
            taints: Taints {
                startup: read.taint("ENID_STARTUP_TAINT"),
                no_addresses: read.switch("ENID_NO_ADDRESSES_TAINT"),
            },
            annotate_pods: read.switch("ANNOTATE_POD_IP"),
            publish_addresses: read.switch("ENID_PUBLISH_ADDRESSES"),
            eni_config: EniConfigNames {
                annotation: read.text("ENI_CONFIG_ANNOTATION_DEF").unwrap_or_default(),
                label: read.text("ENI_CONFIG_LABEL_DEF").unwrap_or_default(),
            },
            steering: Steering {
                policy: read.policy(stack),
                native: read.cidrs("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS"),
                eni_mtu,
            },
            take_over: read.switch("ENID_TAKE_OVER"),
            pod_name: read.text("MY_POD_NAME").unwrap_or_default(),
            backing_store: read.folder("AWS_VPC_K8S_CNI_BACKING_STORE"),
            host_local_dir: read.folder("ENID_HOST_LOCAL_DIR"),
            forward_probe: read.switch("ENID_FORWARD_PROBE"),
            pod_mtu: read.number("POD_MTU", least_mtu, 9001).unwrap_or(eni_mtu),
            veth_prefix: read.prefix("AWS_VPC_K8S_CNI_VETHPREFIX"),
            log_level: read.log_level("AWS_VPC_K8S_CNI_LOGLEVEL"),
            log_json: read.one_of("ENID_LOG_FORMAT", &["text", "json"]) == "json",
            ec2_endpoint: read.url("AWS_EC2_ENDPOINT"),
            node_name: read.text("MY_NODE_NAME").unwrap_or_else(host_name),
            run_dir: read.folder("ENID_RUN_DIR"),
            store_dir: read.folder("ENID_STORE_DIR"),
            bin_dir: read.folder("HOST_CNI_BIN_PATH"),
            conf_dir: read.folder("HOST_CNI_CONFDIR_PATH"),
            sys_net_dir: read.folder("HOST_PROC_SYS_NET_PATH"),
            chain_bandwidth: read.switch("ENABLE_BANDWIDTH_PLUGIN"),
            disable_pod_v6: read.switch("DISABLE_POD_V6"),
            conflist_template: read.file("ENID_CONFLIST_TEMPLATE"),
            add_wait: Duration::from_secs(read.number("ENID_ADD_WAIT", 1, 600).unwrap_or(60).into()),
            start_wait: Duration::from_secs(read.number("ENID_START_WAIT", 0, 3600).unwrap_or(30).into()),
            metrics: Some(read.parsed::<SocketAddr>("ENID_METRICS_ADDRESS", "ADDRESS:PORT"))
                .flatten()
                .filter(|_| !read.switch("DISABLE_METRICS")),
            health: read.loopback("ENID_HEALTH_ADDRESS"),
            debug: read.loopback_if_set("ENID_DEBUG_ADDRESS"),
            traces: read.url("OTEL_EXPORTER_OTLP_ENDPOINT"),
            admin: read.switch("ENID_ADMIN"),
            introspection: Some(read.loopback("INTROSPECTION_BIND_ADDRESS"))
                .filter(|_| !read.switch("DISABLE_INTROSPECTION")),
            ignored: Vec::new(),
        };
        if settings.pod_mtu > eni_mtu {
            let most = format!("at most AWS_VPC_ENI_MTU, which is {eni_mtu}");
            read.mistake("POD_MTU", &settings.pod_mtu.to_string(), most);
        }
        if settings.disable_pod_v6 && stack.has_v6() {
            read.mistake("DISABLE_POD_V6", "true", "false, where ENABLE_IPv6 or ENABLE_V6_EGRESS is true");
        }
        for name in ["AWS_ENDPOINT_URL_EC2", "AWS_ENDPOINT_URL", "AWS_EC2_METADATA_SERVICE_ENDPOINT"] {
            // The SDK reads these itself, and complains at length.
            let value = std::env::var(name).unwrap_or_default();
            if !value.is_empty() && !is_url(&value) {
                read.mistake(name, &value, URLS);
            }
        }
        let mistakes = read.into_mistakes();
        if mistakes.is_empty() { Ok(settings) } else { Err(mistakes) }
    }
}

fn host_name() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use enid_datapath::Family;
    use enid_ipamd::{LOCAL_V4, LOCAL_V6, Second, Target};
    use ipnet::IpNet;

    use super::*;

    fn read(given: &[(&str, &str)]) -> Result<Settings, Vec<String>> {
        let read = Settings::read(&|setting| {
            given.iter().find(|(name, _)| *name == setting.name).map(|(_, value)| (*value).to_owned())
        });
        read.map_err(|mistakes| mistakes.into_iter().map(|mistake| mistake.text).collect())
    }

    #[test]
    fn the_defaults_are_allowed() {
        let settings = read(&[]).unwrap();
        assert_eq!((settings.policy.target, settings.steering.eni_mtu, settings.pod_mtu), (Target::Auto, 9001, 9001));
        assert_eq!(settings.policy.cooldown_ms, 30_000);
    }

    #[test]
    fn every_mistake_is_named_in_one_go() {
        let bad = [
            ("WARM_ENI_TARGET", "-2"),
            ("MAX_ENI", "three"),
            ("IP_COOLDOWN_PERIOD", "1.5"),
            ("AWS_VPC_ENI_MTU", "9002"),
            ("POD_MTU", "575"),
            ("AWS_VPC_K8S_CNI_VETHPREFIX", "eth"),
            ("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", "10.0.0.0/33"),
            ("AWS_EXTERNAL_SERVICE_CIDRS", "everywhere"),
            ("AWS_VPC_K8S_CNI_RANDOMIZESNAT", "dice"),
            ("AWS_VPC_K8S_CNI_EXTERNALSNAT", "maybe"),
            ("AWS_VPC_CNI_NODE_PORT_SUPPORT", "sometimes"),
            ("AWS_VPC_K8S_CNI_CONNMARK", "0x40"),
            ("ADDITIONAL_ENI_TAGS", "team=net"),
            ("AWS_VPC_K8S_CNI_LOGLEVEL", "loud"),
            ("AWS_EC2_ENDPOINT", "http://"),
            ("CLUSTER_ENDPOINT", "http://10.0.0.5"),
            ("ENID_RUN_DIR", "run"),
            ("ENID_METRICS_ADDRESS", "everywhere"),
            ("ENID_HEALTH_ADDRESS", "0.0.0.0:61680"),
            ("MANAGE_UNTAGGED_ENI", "perhaps"),
        ];
        let mistakes = read(&bad).unwrap_err();
        assert_eq!(mistakes.len(), bad.len(), "{mistakes:#?}");
        for (name, value) in bad {
            let named = |text: &String| text.starts_with(name) && text.contains(value) && text.contains("allowed:");
            assert!(mistakes.iter().any(named), "{name}: {mistakes:#?}");
        }
        let all = read(&[("AWS_EXTERNAL_SERVICE_CIDRS", "10.0.0.0/8, 1.2.3.4/0")]).unwrap_err();
        assert!(all.len() == 1 && all[0].contains("0.0.0.0/0"), "{all:?}");
    }

    #[test]
    fn the_families_are_chosen_together() {
        let policy = |given: &[(&str, &str)]| {
            let settings = read(given).unwrap();
            let policy = settings.steering.policy;
            let list = |ranges: BTreeSet<IpNet>| ranges.into_iter().collect::<Vec<_>>();
            (settings.policy.kind, settings.policy.second, Vec::from_iter(policy.of_vpc), list(policy.of_node))
        };
        let both = Family::ALL.to_vec();
        let v6 = [("ENABLE_IPv4", "false"), ("ENABLE_IPv6", "true")];
        assert_eq!(policy(&[]), (Kind::Single, Second::None, vec![Family::V4], vec![]));
        assert_eq!(policy(&v6), (Kind::V6Prefix, Second::NodeLocal, vec![Family::V6], vec![LOCAL_V4]));
        assert_eq!(policy(&[("ENABLE_IPv6", "true")]), (Kind::Single, Second::V6OfEni, both, vec![]));
        assert_eq!(policy(&[("ENABLE_V6_EGRESS", "true")]).3, [LOCAL_V6]);
        let garbled = read(&[("ENABLE_IPv4", "maybe")]).unwrap_err();
        assert_eq!(garbled.len(), 1, "{garbled:?}");
        let neither = read(&[("ENABLE_IPv4", "false")]).unwrap_err();
        assert!(neither[0].contains("ENABLE_IPv4 is \"false\"; allowed: true, unless ENABLE_IPv6"), "{neither:?}");
        let small = read(&[("ENABLE_IPv6", "true"), ("POD_MTU", "1279"), ("DISABLE_POD_V6", "true")]).unwrap_err();
        assert!(small[0].contains("1280 to 9001") && small[1].contains("DISABLE_POD_V6"), "{small:?}");
    }

    #[test]
    fn marks_that_meet_name_both_settings() {
        let mistakes = read(&[("AWS_VPC_K8S_CNI_CONNMARK", "0x100"), ("ENID_ENI_MARK_MASK", "0x1fc0")]).unwrap_err();
        assert!(mistakes[0].contains("AWS_VPC_K8S_CNI_CONNMARK is \"0x100\"") && mistakes[0].contains("0x1fc0"));
        let mistakes = read(&[("ENID_ENI_MARK_MASK", "0xff")]).unwrap_err();
        assert!(mistakes[0].contains("seven bits side by side"), "{mistakes:?}");
        assert!(read(&[("AWS_VPC_K8S_CNI_CONNMARK", "128")]).is_ok());
    }

    #[test]
    fn what_the_peer_documents_is_taken() {
        let targets = ["WARM_ENI_TARGET", "WARM_IP_TARGET", "MINIMUM_IP_TARGET", "WARM_PREFIX_TARGET", "MAX_ENI"];
        let settings = read(&targets.map(|name| (name, "-1"))).unwrap();
        assert_eq!((settings.policy.target, settings.policy.max_enis), (Target::Auto, None));
        assert_eq!(read(&[("AWS_VPC_K8S_CNI_LOGLEVEL", "FATAL")]).unwrap().log_level, "error");
    }

    /// The kind: a setting that is said to count live, and does not.
    #[test]
    fn live_settings_are_those_that_change_what_is_read_live() {
        let given = |name: &str| match name {
            "AWS_VPC_K8S_CNI_LOGLEVEL" => "debug",
            name if name.starts_with("DISABLE_") || name.starts_with("AWS_") => "true",
            _ => "2",
        };
        let started = read(&[("CLUSTER_NAME", "a")]).unwrap();
        for setting in SETTINGS.iter().filter(|setting| setting.applies == Applies::Live) {
            let now = read(&[("CLUSTER_NAME", "a"), (setting.name, given(setting.name))]).unwrap();
            let policy = started.policy.with_live(&now.policy);
            assert_eq!(policy, now.policy, "{}", setting.name);
            assert!(policy != started.policy || now.log_level != started.log_level, "{}", setting.name);
        }
        let other =
            [("ENABLE_PREFIX_DELEGATION", "true"), ("ENABLE_SUBNET_DISCOVERY", "false"), ("ENABLE_MULTI_NIC", "true")];
        for setting in other {
            let now = read(&[("CLUSTER_NAME", "a"), setting]).unwrap();
            assert_eq!(started.policy.with_live(&now.policy), started.policy, "{setting:?}");
        }
    }

    #[test]
    fn an_empty_value_is_not_set() {
        assert_eq!(read(&[("WARM_IP_TARGET", ""), ("MAX_ENI", " ")]).unwrap().policy.max_enis, None);
    }

    #[test]
    fn the_chart_knows_every_setting_and_no_other() {
        let chart = |file: &str| {
            std::fs::read_to_string(format!("{}/../charts/enid/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap()
        };
        let schema: serde_json::Value = serde_json::from_str(&chart("values.schema.json")).unwrap();
        let known = schema["properties"]["env"]["properties"].as_object().unwrap();
        let values = chart("values.yaml");
        for setting in SETTINGS {
            assert!(known.contains_key(setting.name), "values.schema.json lacks {}", setting.name);
            assert!(values.contains(&format!("\n  {}:", setting.name)), "values.yaml lacks {}", setting.name);
        }
        for name in known.keys() {
            assert!(SETTINGS.iter().any(|setting| setting.name == name), "{name} is no setting");
        }
    }
}
