//! Variables of Amazon's daemon (v1.23.1) that Enid does not have, so that manifests written for that one are not
//! misunderstood: what asks for something that pods would then lack is refused, all else is named once at the start.

/// A variable that Enid does not have.
pub struct Foreign {
    /// Its name.
    pub name: &'static str,
    /// Values, in lower case, that ask for nothing; an empty one is none of them, and asks for nothing either.
    idle: &'static [&'static str],
    /// What becomes of others.
    pub treated: Treated,
}

/// What becomes of a value that asks for something.
#[derive(Clone, Copy)]
pub enum Treated {
    /// The daemon does not start; why.
    Refused(&'static str),
    /// It has no effect; why that is fine.
    Ignored(&'static str),
}

use Treated::{Ignored, Refused};

const fn row(name: &'static str, idle: &'static [&'static str], treated: Treated) -> Foreign {
    Foreign { name, idle, treated }
}

const OFF: &[&str] = &["false", "f", "0"];

/// All of them.
pub const FOREIGN: &[Foreign] = &[
    row("ENABLE_POD_ENI", OFF, Refused("security groups for pods are not offered: pods would have the node's")),
    row("POD_SECURITY_GROUP_ENFORCING_MODE", &["strict"], Ignored("it is about security groups for pods")),
    row(
        "NETWORK_POLICY_ENFORCING_MODE",
        &["none"],
        Ignored("Enid does not wait for a network policy agent; the agent finds pods by their links' names"),
    ),
    row("DISABLE_TCP_EARLY_DEMUX", OFF, Ignored("only security groups for pods need it")),
    row("AWS_VPC_K8S_CNI_LOG_FILE", &["stdout", "stderr"], Ignored("the log goes to stderr")),
    row("AWS_VPC_K8S_PLUGIN_LOG_FILE", &["stderr"], Ignored("the plugin has no log: its errors are in the runtime's")),
    row("AWS_VPC_K8S_PLUGIN_LOG_LEVEL", &[], Ignored("the plugin has no log")),
    row("AWS_VPC_K8S_EGRESS_V4_PLUGIN_LOG_FILE", &[], Ignored("there is no such plugin")),
    row("AWS_VPC_K8S_EGRESS_V6_PLUGIN_LOG_FILE", &[], Ignored("there is no such plugin")),
    row("HTTP_TIMEOUT", &[], Ignored("an EC2 call has ten seconds")),
    row("VPC_CNI_VERSION", &[], Ignored("it was part of a user agent")),
    row("ENABLE_NFTABLES", &[], Ignored("Enid uses nftables, and Amazon's daemon does not read it either")),
    row("AWS_VPC_K8S_CNI_CONFIGURE_RPFILTER", &[], Ignored("Amazon's daemon does not read it either")),
];

/// What of the environment is refused, and what has no effect; one sentence for each variable.
pub fn look(value: &dyn Fn(&str) -> Option<String>) -> (Vec<String>, Vec<String>) {
    let (mut refused, mut ignored) = (Vec::new(), Vec::new());
    for Foreign { name, idle, treated } in FOREIGN {
        let Some(given) = value(name).map(|given| given.trim().to_owned()) else { continue };
        if given.is_empty() || idle.contains(&given.to_ascii_lowercase().as_str()) {
            continue;
        }
        match treated {
            Refused(why) => refused.push(format!("{name} is {given:?}; allowed: false, since {why}")),
            Ignored(why) => ignored.push(format!("{name} ({why})")),
        }
    }
    // In strict mode a pod has no network until its policies are known: a pod without them would have too much.
    if value("NETWORK_POLICY_ENFORCING_MODE").is_some_and(|mode| mode.trim().eq_ignore_ascii_case("strict")) {
        refused.push(
            "NETWORK_POLICY_ENFORCING_MODE is \"strict\"; allowed: standard, none, since pods would start before their \
             policies are in force"
                .to_owned(),
        );
    }
    (refused, ignored)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;
    use crate::settings::{Applies, SETTINGS};

    fn of(vars: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
        look(&|name| vars.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
    }

    /// The kind: a switch of the peer that is not honoured.
    #[test]
    fn what_would_leave_pods_without_something_is_refused_and_the_rest_is_named() {
        assert_eq!(of(&[]), (vec![], vec![]));
        let (refused, ignored) = of(&[
            ("ENABLE_POD_ENI", "true"),
            ("NETWORK_POLICY_ENFORCING_MODE", "Strict"),
            ("POD_SECURITY_GROUP_ENFORCING_MODE", "standard"),
            ("ENABLE_NFTABLES", ""),
            ("HTTP_TIMEOUT", ""),
        ]);
        assert_eq!(refused.len(), 2, "{refused:#?}");
        assert!(refused[0].starts_with("ENABLE_POD_ENI is \"true\"; allowed: false"));
        let named: Vec<&str> = ignored.iter().filter_map(|text| text.split(' ').next()).collect();
        let expected = ["POD_SECURITY_GROUP_ENFORCING_MODE", "NETWORK_POLICY_ENFORCING_MODE"];
        assert_eq!(named, expected);
    }

    /// docs/settings.md is this text. ENID_WRITE_DOCS=1 writes it.
    #[test]
    fn the_documentation_lists_every_setting() {
        let mut text = "# Settings\n\nEach is an environment variable, a flag of `enid agent` and a value of the chart (`env`). The names \
                        are those of Amazon's\nVPC CNI where that has the setting. The tests compare this page with the code.\n\n\
                        A NodeConfig (docs/objects.md) gives other values to some of the nodes: `live` ones count at once, others \
                        `at start`, that is\nwhen the node's daemon starts next, and where it says `no` the chart alone decides.\n\n\
                        | variable | default | meaning | NodeConfig | differs from Amazon's VPC CNI |\n|---|---|---|---|---|\n"
            .to_owned();
        for setting in SETTINGS {
            let differs = DIFFERENT.iter().find(|(name, _)| *name == setting.name).map(|(_, how)| *how);
            let differs = differs.unwrap_or(if OURS.contains(&setting.name) { "it has no such setting" } else { "" });
            let default = if setting.default.is_empty() { String::new() } else { format!("`{}`", setting.default) };
            let applies = match setting.applies {
                Applies::Live => "live",
                Applies::AtStart => "at start",
                Applies::Given => "no",
            };
            writeln!(text, "| `{}` | {default} | {} | {applies} | {differs} |", setting.name, setting.help).unwrap();
        }
        text.push_str(
            "\n## Settings of Amazon's VPC CNI that Enid does not have\n\nA refused one keeps the daemon from starting, if it \
             asks for something. The others are named in one warning at the start.\n\n| variable | | because |\n|---|---|---|\n",
        );
        for Foreign { name, treated, .. } in FOREIGN {
            let (what, why) = match treated {
                Refused(why) => ("refused", why),
                Ignored(why) => ("no effect", why),
            };
            writeln!(text, "| `{name}` | {what} | {why} |").unwrap();
        }
        text.push_str(
            "\n`NETWORK_POLICY_ENFORCING_MODE=strict` is refused: pods would start before their policies are in force. The \
             variables of\nthe metrics helper (`USE_CLOUDWATCH` and others) are those of another program.\n",
        );
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/settings.md");
        if std::env::var_os("ENID_WRITE_DOCS").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        assert!(std::fs::read_to_string(path).unwrap() == text, "docs/settings.md is not up to date");
        for (name, _) in DIFFERENT {
            assert!(SETTINGS.iter().any(|setting| setting.name == *name), "{name}");
        }
    }

    const OURS: [&str; 19] = [
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "ENID_ADMIN",
        "ENID_DEBUG_ADDRESS",
        "ENID_TAKE_OVER",
        "MAX_PODS",
        "ENID_NO_ADDRESSES_TAINT",
        "ENID_STARTUP_TAINT",
        "ENID_PUBLISH_ADDRESSES",
        "ENID_ENI_MARK_MASK",
        "ENID_FORWARD_PROBE",
        "ENID_LOG_FORMAT",
        "ENID_RUN_DIR",
        "ENID_STORE_DIR",
        "ENID_CONFLIST_TEMPLATE",
        "ENID_ADD_WAIT",
        "ENID_START_WAIT",
        "ENID_METRICS_ADDRESS",
        "ENID_HEALTH_ADDRESS",
        "HOST_PROC_SYS_NET_PATH",
    ];

    /// How settings that both have differ.
    const DIFFERENT: &[(&str, &str)] = &[
        (
            "WARM_ENI_TARGET",
            "counts available addresses, whatever ENI they are on; with no target set the node learns its own",
        ),
        ("WARM_IP_TARGET", "available addresses are those whose cooldown is over; -1 is not set"),
        ("MINIMUM_IP_TARGET", "-1 is not set"),
        ("WARM_PREFIX_TARGET", "1, if only another target is set"),
        ("MAX_ENI", "0 and -1 are no limit"),
        ("ENABLE_IPv4", "true if not set; with ENABLE_IPv6 pods have both families"),
        ("ENABLE_IPv6", "needs no ENABLE_PREFIX_DELEGATION"),
        ("AWS_VPC_K8S_CNI_LOGLEVEL", "info if not set; fatal is error"),
        ("AWS_VPC_K8S_CNI_CONNMARK", "must share no bit with ENID_ENI_MARK_MASK"),
        ("AWS_EC2_ENDPOINT", "reaches the EC2 client"),
        ("INTROSPECTION_BIND_ADDRESS", "a loopback address, and no Unix socket"),
        ("HOST_CNI_BIN_PATH", "has another default"),
        ("HOST_CNI_CONFDIR_PATH", "has another default"),
    ];
}
