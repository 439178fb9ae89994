//! What is installed into the cluster: Enid by its chart, CoreDNS and the bridge plugin by manifests.

use std::path::Path;

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

/// A DaemonSet that installs the standard bridge plugin, in the two steps in which CNIs come to a node: an init container
/// copies the plugins, and then the configuration is written. Node 3 has the range that the controller manager gives it,
/// 10.244.3.0/24.
pub fn bridge(plugins: &Path) -> Value {
    let ipam = json!({
        "type": "host-local",
        "ranges": [[{ "subnet": "10.244.NODE.0/24" }]],
        "routes": [{ "dst": "0.0.0.0/0" }],
    });
    let conflist = json!({
        "cniVersion": "1.0.0",
        "name": "bridge",
        "plugins": [
            { "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true, "ipam": ipam },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    });
    let write = "echo \"$CONFLIST\" | sed s/NODE/${NODE_NAME#node}/ > /net.d/.new && mv /net.d/.new /net.d/10-bridge.conflist; \
                 exec sleep infinity";
    let container = |name: &str, line: &str, mounts: Value| {
        json!({
            "name": name,
            "image": "registry.k8s.io/e2e-test-images/agnhost:2.56",
            "imagePullPolicy": "Never",
            "command": ["sh", "-ec", line],
            "env": [
                { "name": "NODE_NAME", "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } } },
                { "name": "CONFLIST", "value": conflist.to_string() },
            ],
            "volumeMounts": mounts,
        })
    };
    let (from, to) =
        (json!({ "name": "plugins", "mountPath": "/plugins" }), json!({ "name": "bin", "mountPath": "/bin.d" }));
    let volume = |name: &str, path: &str| json!({ "name": name, "hostPath": { "path": path } });
    let labels = json!({ "app": "bridge" });
    json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": { "name": "bridge", "namespace": "kube-system" },
        "spec": { "selector": { "matchLabels": labels }, "template": {
            "metadata": { "labels": labels },
            "spec": {
                "hostNetwork": true,
                "priorityClassName": "system-node-critical",
                "terminationGracePeriodSeconds": 1,
                "tolerations": [{ "operator": "Exists" }],
                "initContainers": [container("install", "cp /plugins/* /bin.d/", json!([from, to]))],
                "containers": [container("bridge", write, json!([{ "name": "net", "mountPath": "/net.d" }]))],
                "volumes": [
                    volume("plugins", &plugins.to_string_lossy()),
                    volume("bin", "/opt/cni/bin"),
                    volume("net", "/etc/cni/net.d"),
                ],
            },
        } },
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
