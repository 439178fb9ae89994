//! NodeConfigs: one chart, and nodes that differ. What can change live does, what cannot waits for the next start, and what
//! makes no sense is named; pods notice nothing.

use std::time::Duration;

use enid_tests::{
    kube::{self, KubePod},
    wait_until,
};
use kubelab::{Cluster, Node};
use serde_json::{Value, json};

use crate::{CLUSTER, api_server::enid, disturbance::rolled_out};

/// A change is in force after so long, at the latest.
const LIVE: Duration = Duration::from_secs(10);
const BOUND: Duration = Duration::from_secs(60);
/// A label of the first node.
const LABEL: &str = "example.com/group";

fn configure(cluster: &Cluster, name: &str, priority: i32, settings: &Value) {
    let config = json!({
        "apiVersion": "enid.dev/v1alpha1",
        "kind": "NodeConfig",
        "metadata": { "name": name },
        "spec": { "selector": { "matchLabels": { LABEL: "small" } }, "priority": priority, "settings": settings },
    });
    cluster.apply(&config.to_string()).unwrap();
}

/// A setting as the node's daemon has it: its value, what gives it, and its value at the next start, if that differs.
fn setting(node: &Node, name: &str) -> (String, String, String) {
    let status = enid(node, "status").unwrap_or_default();
    let settings = status["settings"].as_array().cloned().unwrap_or_default();
    let found = settings.into_iter().find(|setting| setting["name"] == name).unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&found["value"]), text(&found["origin"]), text(&found["next"]["value"]))
}

fn has(node: &Node, name: &str, value: &str, origin: &str) -> bool {
    setting(node, name) == (value.to_owned(), origin.to_owned(), String::new())
}

/// What a NodeConfig says: settings, reasons and nodes.
fn problems(cluster: &Cluster, name: &str) -> Vec<(String, String, Value)> {
    let text = cluster.kubectl(&["get", "nodeconfig", name, "-o", "json"]).unwrap_or_default();
    let object: Value = serde_json::from_str(&text).unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let entries = object["status"]["problems"].as_array().cloned().unwrap_or_default();
    entries.iter().map(|it| (text(&it["setting"]), text(&it["reason"]), it["nodes"].clone())).collect()
}

/// The pods are those that they were: nothing has restarted or moved.
fn pods(cluster: &Cluster) -> Vec<KubePod> {
    kube::pods(cluster, Some("app=configured")).unwrap()
}

/// The node's daemon is started anew.
pub fn restart(cluster: &Cluster, node: &Node) {
    let here = format!("spec.nodeName={}", node.name);
    let daemons = ["-l", "app.kubernetes.io/name=enid", "--field-selector", &here];
    cluster.kubectl(&[&["-n", "kube-system", "delete", "pods"], &daemons[..]].concat()).unwrap();
    rolled_out(cluster).unwrap();
    wait_until(BOUND, || enid(node, "status").is_ok()).unwrap();
}

#[test]
fn nodes_have_what_their_nodeconfigs_give() {
    let cluster = &*CLUSTER;
    let nodes = cluster.nodes().unwrap();
    let (node, other) = (&nodes[0], &nodes[1]);
    cluster.install_enid(&[]).unwrap();
    cluster.kubectl(&["label", "node", &node.name, "--overwrite", &format!("{LABEL}=small")]).unwrap();
    kube::idle(cluster, "configured", 6).unwrap();
    let before = pods(cluster);
    wait_until(BOUND, || has(node, "WARM_IP_TARGET", "4", "environment")).unwrap();

    // Live, and only on the nodes that are named.
    configure(cluster, "first", 0, &json!({ "WARM_IP_TARGET": "9" }));
    wait_until(LIVE, || has(node, "WARM_IP_TARGET", "9", "NodeConfig first")).unwrap();
    wait_until(BOUND, || enid(node, "status").is_ok_and(|status| status["available"].as_u64() >= Some(9))).unwrap();
    assert!(has(other, "WARM_IP_TARGET", "4", "environment"), "{:?}", setting(other, "WARM_IP_TARGET"));

    // Two that tie: both say so, and the node keeps what it had. The higher priority ends that.
    configure(cluster, "second", 0, &json!({ "WARM_IP_TARGET": "2" }));
    let tie = [("WARM_IP_TARGET".to_owned(), "Tie".to_owned(), json!([node.name]))];
    for name in ["first", "second"] {
        wait_until(BOUND, || problems(cluster, name) == tie)
            .unwrap_or_else(|_| panic!("{name}: {:?}", problems(cluster, name)));
    }
    assert!(has(node, "WARM_IP_TARGET", "9", "NodeConfig first"), "{:?}", setting(node, "WARM_IP_TARGET"));
    configure(cluster, "second", 5, &json!({ "WARM_IP_TARGET": "2" }));
    wait_until(LIVE, || has(node, "WARM_IP_TARGET", "2", "NodeConfig second")).unwrap();
    for name in ["first", "second"] {
        wait_until(BOUND, || problems(cluster, name).is_empty())
            .unwrap_or_else(|_| panic!("{name}: {:?}", problems(cluster, name)));
    }

    // What makes no sense, and what cannot change live.
    let odd =
        json!({ "WARM_IP_TARGET": "many", "WARM_IPS": "1", "ENID_RUN_DIR": "/x", "ENABLE_PREFIX_DELEGATION": "true" });
    configure(cluster, "second", 5, &odd);
    let expected = [
        ("ENABLE_PREFIX_DELEGATION", "AtNextStart"),
        ("ENID_RUN_DIR", "OfTheChart"),
        ("WARM_IPS", "UnknownSetting"),
        ("WARM_IP_TARGET", "BadValue"),
    ];
    let said = || -> Vec<(String, String)> {
        problems(cluster, "second").into_iter().map(|(setting, reason, _)| (setting, reason)).collect()
    };
    let all = expected.map(|(setting, reason)| (setting.to_owned(), reason.to_owned()));
    wait_until(BOUND, || said() == all).unwrap_or_else(|_| panic!("{:?}", problems(cluster, "second")));
    assert!(has(node, "WARM_IP_TARGET", "2", "NodeConfig second"), "{:?}", setting(node, "WARM_IP_TARGET"));
    let waits = ("false".to_owned(), "environment".to_owned(), "true".to_owned());
    assert_eq!(setting(node, "ENABLE_PREFIX_DELEGATION"), waits);
    let listed = cluster.kubectl(&["get", "enc"]).unwrap();
    assert!(listed.lines().any(|line| line.contains("second") && line.contains("AtNextStart")), "{listed}");

    // The next start has it; and what this node cannot have does not keep its daemon from starting.
    configure(cluster, "first", 0, &json!({ "ENABLE_IPv6": "true" }));
    let counts_later = || problems(cluster, "first").iter().any(|(_, reason, _)| reason == "AtNextStart");
    wait_until(BOUND, counts_later).unwrap_or_else(|_| panic!("{:?}", problems(cluster, "first")));
    restart(cluster, node);
    let is_refused =
        || problems(cluster, "first").iter().any(|(name, reason, _)| name == "ENABLE_IPv6" && reason == "Refused");
    wait_until(BOUND, is_refused).unwrap_or_else(|_| panic!("{:?}", problems(cluster, "first")));
    cluster.kubectl(&["delete", "nodeconfig", "first"]).unwrap();
    wait_until(LIVE, || setting(node, "ENABLE_IPv6") == ("false".to_owned(), "environment".to_owned(), String::new()))
        .unwrap();
    restart(cluster, node);
    wait_until(BOUND, || has(node, "ENABLE_PREFIX_DELEGATION", "true", "NodeConfig second")).unwrap();
    wait_until(BOUND, || said() == [all[1].clone(), all[2].clone(), all[3].clone()])
        .unwrap_or_else(|_| panic!("{:?}", problems(cluster, "second")));

    // Without NodeConfigs all is as the chart says, the mode from the next start on.
    cluster.kubectl(&["delete", "nodeconfigs", "--all"]).unwrap();
    wait_until(LIVE, || has(node, "WARM_IP_TARGET", "4", "environment")).unwrap();
    restart(cluster, node);
    assert!(has(node, "ENABLE_PREFIX_DELEGATION", "false", "environment"));
    assert_eq!(pods(cluster), before, "pods have noticed");
    kube::remove(cluster, "configured").unwrap();
    cluster.kubectl(&["label", "node", &node.name, &format!("{LABEL}-")]).unwrap();
}
