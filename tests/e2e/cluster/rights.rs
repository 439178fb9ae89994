//! Each rule of the daemon's ClusterRole is needed: without it something is missing, and `enid status` names it.

use std::time::Duration;

use enid_tests::wait_until;
use serde_json::{Value, json};

use crate::{CLUSTER, api_server::enid, disturbance::rolled_out};

const BOUND: Duration = Duration::from_secs(60);
/// The daemons' pods.
const DAEMONS: &str = "app.kubernetes.io/name=enid";
/// A taint that the daemons take off.
const TAINT: &str = "node.example.com/starting";
/// The resources that rules are about, and what is missing without each rule.
const MISSING: [(&str, &str); 7] = [
    ("nodes", "nodes"),
    ("pods", "pods"),
    ("eniconfigs", "eniconfigs"),
    ("events", "events"),
    ("nodes", "taints"),
    ("enidnodes", "enidnodes"),
    ("enidnodes/status", "enidnodes"),
];

#[test]
fn without_any_rule_something_is_missing() {
    let cluster = &*CLUSTER;
    let node = &cluster.nodes().unwrap()[0];
    // Some of the rules are for those who ask for custom networking, or for a taint to be taken off.
    let taint = format!("env.ENID_STARTUP_TAINT={TAINT}");
    cluster.install_enid(&["--set", "env.AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG=true", "--set", &taint]).unwrap();
    let text = cluster.kubectl(&["get", "clusterrole", "enid", "-o", "json"]).unwrap();
    let role: Value = serde_json::from_str(&text).unwrap();
    let rules = role["rules"].as_array().unwrap();
    let resources: Vec<&str> = rules.iter().map(|rule| rule["resources"][0].as_str().unwrap()).collect();
    assert_eq!(resources, MISSING.map(|(resource, _)| resource), "a rule that is not looked at here");
    let allow = |rules: &[Value]| {
        let patch = json!({ "rules": rules }).to_string();
        cluster.kubectl(&["patch", "clusterrole", "enid", "--type=merge", "-p", &patch]).unwrap();
    };
    let faults = || enid(node, "status").map(|status| status["api_server"].clone()).unwrap_or_default();
    let here = format!("spec.nodeName={}", node.name);
    for (index, (_, missing)) in MISSING.into_iter().enumerate() {
        let mut less = rules.clone();
        less.remove(index);
        allow(&less);
        // Watches that are open go on without the right.
        cluster.kubectl(&["-n", "kube-system", "delete", "pods", "-l", DAEMONS, "--field-selector", &here]).unwrap();
        wait_until(BOUND, || enid(node, "status").is_ok()).unwrap();
        // It has to be made anew.
        cluster.kubectl(&["delete", "enidnodes", "--all"]).unwrap();
        cluster.kubectl(&["taint", "node", &node.name, "--overwrite", &format!("{TAINT}=1:PreferNoSchedule")]).unwrap();
        // Something to tell of the node: nobody can make a socket there.
        node.sh("rm -f /run/enid/cni.sock; mkdir /run/enid/cni.sock").unwrap();
        let is_named = |fault: &Value| {
            fault
                .as_str()
                .is_some_and(|fault| fault.starts_with(&format!("{missing}: ")) && fault.contains("forbidden"))
        };
        wait_until(BOUND, || faults().as_array().is_some_and(|faults| faults.iter().any(is_named)))
            .unwrap_or_else(|_| panic!("without {missing}: {}", faults()));
        assert_eq!(faults().as_array().map(Vec::len), Some(1), "{}", faults());
        allow(rules);
        node.sh("rmdir /run/enid/cni.sock").unwrap();
        if missing != "events" {
            wait_until(BOUND, || faults() == json!([])).unwrap();
        }
    }
    // The rules are those of the chart again, whoever has changed them meanwhile.
    cluster.install_enid(&["--force-conflicts"]).unwrap();
    rolled_out(cluster).unwrap();
    wait_until(BOUND, || faults() == json!([])).unwrap();
}
