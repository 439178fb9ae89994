//! What is installed into the cluster: Enid by its chart, CoreDNS by its manifest.

use serde_json::{Value, json};

use crate::config::ClusterConfig;

/// The chart of this project.
pub const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../charts/enid");

/// Values that the lab needs, as an operator's file of values has them.
pub fn values(config: &ClusterConfig, ec2_endpoint: &str) -> Value {
    let yes_or_no = |yes: bool| if yes { "true" } else { "false" };
    let families = config.families;
    json!({
        // Imported into each node: no registry is asked.
        "image": { "repository": "docker.io/library/enid", "pullPolicy": "Never" },
        "env": {
            "CLUSTER_NAME": config.name,
            "AWS_EC2_ENDPOINT": ec2_endpoint,
            "ENABLE_IPv4": yes_or_no(families != crate::Families::Ipv6),
            "ENABLE_IPv6": yes_or_no(families.has_v6()),
        },
        "extraEnv": [
            { "name": "AWS_ACCESS_KEY_ID", "value": "test" },
            { "name": "AWS_SECRET_ACCESS_KEY", "value": "test" },
        ],
    })
}

/// CoreDNS, with the address that kubelets tell pods.
pub fn coredns(config: &ClusterConfig) -> String {
    include_str!("../coredns.yaml").replace("CLUSTER_DNS", &config.families.dns())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coredns_has_the_address_that_pods_are_told() {
        assert!(coredns(&ClusterConfig::default()).contains("clusterIP: \"172.20.0.10\""));
    }
}
