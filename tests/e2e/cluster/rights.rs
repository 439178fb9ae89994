//! Each rule of the daemon's ClusterRole is needed: without it something is missing, and `enid status` names it.

use std::time::Duration;

use enid_tests::{kube, wait_until};
use kubelab::{Cluster, Node};
use serde_json::{Value, json};

use crate::{
    CLUSTER,
    api_server::enid,
    custom_network::{self, CIDRS},
    disturbance::rolled_out,
};

const BOUND: Duration = Duration::from_secs(60);
/// The daemons' pods.
const DAEMONS: &str = "app.kubernetes.io/name=enid";
/// A taint that the daemons take off.
const TAINT: &str = "node.example.com/starting";
/// A NodeConfig that names all nodes, which say that they have read it.
const NODE_CONFIG: &str = r#"{ "apiVersion": "enid.dev/v1alpha1", "kind": "NodeConfig", "metadata": { "name": "all" }, "spec": { "selector": {} } }"#;
/// Takes the daemon's condition off a node.
const NO_CONDITION: &str = r#"{ "status": { "conditions": [{ "type": "PodAddresses", "$patch": "delete" }] } }"#;
/// The resources that rules are about, and what is missing without each rule.
const MISSING: [(&str, &str); 11] = [
    ("nodes", "nodes"),
    ("pods", "pods"),
    ("eniconfigs", "eniconfigs"),
    ("events", "events"),
    ("nodes/status", "nodes/status"),
    ("nodes", "taints"),
    ("pods", "annotations"),
    ("nodeconfigs", "nodeconfigs"),
    ("nodeconfigs/status", "nodeconfigs/status"),
    ("enidnodes", "enidnodes"),
    ("enidnodes/status", "enidnodes"),
];

#[test]
fn without_any_rule_something_is_missing() {
    let cluster = &*CLUSTER;
    let node = &cluster.nodes().unwrap()[0];
    custom_network::configure(cluster, "default", &custom_network::subnet(cluster, CIDRS[0]), "sg-rights").unwrap();
    // Some of the rules are for those who ask for custom networking, or for a taint to be taken off.
    let taint = format!("env.ENID_STARTUP_TAINT={TAINT}");
    cluster
        .install_enid(&[
            "--set",
            "env.AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG=true",
            "--set",
            "env.ANNOTATE_POD_IP=true",
            "--set",
            &taint,
        ])
        .unwrap();
    let text = cluster.kubectl(&["get", "clusterrole", "enid", "-o", "json"]).unwrap();
    let role: Value = serde_json::from_str(&text).unwrap();
    let rules = role["rules"].as_array().unwrap();
    let resources: Vec<&str> = rules.iter().map(|rule| rule["resources"][0].as_str().unwrap()).collect();
    assert_eq!(resources, MISSING.map(|(resource, _)| resource), "a rule that is not looked at here");
    let allow = |rules: &[Value]| {
        let patch = json!({ "rules": rules }).to_string();
        cluster.kubectl(&["patch", "clusterrole", "enid", "--type=merge", "-p", &patch]).unwrap();
    };
    // The tests that follow find the cluster as it was, also where this one fails.
    let _restored = Restored { cluster, node };
    let faults = || enid(node, "status").map(|status| status["api_server"].clone()).unwrap_or_default();
    let here = format!("spec.nodeName={}", node.name);
    for (index, (_, missing)) in MISSING.into_iter().enumerate() {
        let mut less = rules.clone();
        less.remove(index);
        allow(&less);
        // Watches that are open go on without the right.
        cluster.kubectl(&["-n", "kube-system", "delete", "pods", "-l", DAEMONS, "--field-selector", &here]).unwrap();
        // It has to be made anew, by the daemon that comes: one that has just written waits for a minute.
        cluster.kubectl(&["delete", "enidnodes", "--all"]).unwrap();
        wait_until(BOUND, || enid(node, "status").is_ok()).unwrap();
        cluster.kubectl(&["taint", "node", &node.name, "--overwrite", &format!("{TAINT}=1:PreferNoSchedule")]).unwrap();
        // It says nothing yet.
        cluster.kubectl(&["delete", "nodeconfigs", "--all"]).unwrap();
        cluster.apply(NODE_CONFIG).unwrap();
        cluster.kubectl(&["patch", "node", &node.name, "--subresource=status", "-p", NO_CONDITION]).unwrap();
        if missing == "annotations" {
            cluster.apply(&pod(&node.name)).unwrap();
            cluster.kubectl(&["wait", "--for=condition=Ready", "pod/annotated", "--timeout=90s"]).unwrap();
            cluster.kubectl(&["delete", "pod", "annotated"]).unwrap();
        }
        // Something to tell of the node: nobody can make a socket there.
        node.sh("rm -f /run/enid/cni.sock; mkdir /run/enid/cni.sock").unwrap();
        let is_named = |fault: &Value| {
            fault
                .as_str()
                .is_some_and(|fault| fault.starts_with(&format!("{missing}: ")) && fault.contains("forbidden"))
        };
        // What was written while it was deleted is a fault for a moment, too.
        let is_alone = || faults().as_array().is_some_and(|faults| faults.len() == 1 && faults.iter().all(is_named));
        wait_until(BOUND, is_alone).unwrap_or_else(|_| panic!("without {missing}: {}", faults()));
        allow(rules);
        node.sh("rmdir /run/enid/cni.sock").unwrap();
        if !["events", "annotations"].contains(&missing) {
            wait_until(BOUND, || faults() == json!([])).unwrap();
        }
    }
    cluster.install_enid(&[]).unwrap();
    rolled_out(cluster).unwrap();
    wait_until(BOUND, || faults() == json!([])).unwrap();
}

fn pod(node: &str) -> String {
    let container = json!({ "name": "idle", "image": kube::AGNHOST, "imagePullPolicy": "Never", "args": ["pause"] });
    let spec = json!({ "terminationGracePeriodSeconds": 1, "nodeName": node, "containers": [container] });
    let metadata = json!({ "name": "annotated", "namespace": "default" });
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec }).to_string()
}

/// Brings back what the test has changed when it ends.
struct Restored<'a> {
    cluster: &'a Cluster,
    node: &'a Node,
}

impl Drop for Restored<'_> {
    fn drop(&mut self) {
        let _ = self.node.sh("rmdir /run/enid/cni.sock 2>/dev/null");
        let _ = self.cluster.kubectl(&["delete", "nodeconfigs,eniconfigs", "--all"]);
        // The rules are those of the chart again.
        let _ = self.cluster.install_enid(&[]);
    }
}
