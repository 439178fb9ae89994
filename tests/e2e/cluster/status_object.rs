//! What the API server has of each node (`kubectl get enidnodes`), and who may write it.

use std::{path::Path, time::Duration};

use enid_tests::{kube, wait_until};
use serde_json::Value;

use crate::{CLUSTER, api_server::enid};

/// It is written once a minute at most, and what changes is seen within five seconds.
const BOUND: Duration = Duration::from_secs(90);

#[test]
fn each_node_has_a_status_object_that_agrees_with_its_daemon_and_is_its_own() {
    let cluster = &*CLUSTER;
    let nodes = cluster.nodes().unwrap();
    kube::idle(cluster, "seen", 8).unwrap();
    let object = |node: &str| -> Value {
        let text = cluster.kubectl(&["get", "enidnode", node, "-o", "json"]).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    };
    for node in &nodes {
        let agrees = || {
            let (status, daemon) = (&object(&node.name)["status"], enid(node, "status").unwrap_or_default());
            ["assigned", "available", "enis", "version", "ready"].iter().all(|key| status[*key] == daemon[*key])
                && status["assigned"].as_u64() >= Some(1)
        };
        wait_until(BOUND, agrees).unwrap_or_else(|_| panic!("{}, {:?}", object(&node.name), enid(node, "status")));
        let object = object(&node.name);
        let subnets = object["status"]["subnets"].as_array().unwrap();
        assert!(subnets.iter().all(|subnet| subnet["free"].as_u64() > Some(0)), "{object}");
        // It goes with the node.
        let uid = cluster.kubectl(&["get", "node", &node.name, "-o", "jsonpath={.metadata.uid}"]).unwrap();
        assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], uid.as_str());
    }
    // By its short name, as people look at it.
    let table = cluster.kubectl(&["get", "en"]).unwrap();
    let head: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(
        head,
        ["NAME", "READY", "PHASE", "ENIS", "ASSIGNED", "AVAILABLE", "COOLING", "CAUSE", "VERSION"],
        "{table}"
    );
    kube::remove(cluster, "seen").unwrap();

    // A token of the daemon of one node changes nothing of the other.
    let pods = cluster.kubectl(&[
        "-n",
        "kube-system",
        "get",
        "pods",
        "--field-selector",
        &format!("spec.nodeName={}", nodes[0].name),
        "-l",
        "app.kubernetes.io/name=enid",
        "-o",
        "jsonpath={.items[0].metadata.name}",
    ]);
    let bound = ["--bound-object-kind", "Pod", "--bound-object-name", &pods.unwrap()].map(str::to_owned);
    let [kind, pod, name, of] = &bound;
    let token = cluster.kubectl(&["-n", "kube-system", "create", "token", "enid", kind, pod, name, of]).unwrap();
    let (server, authority) = (cluster.control_plane().server().unwrap(), cluster.folder().join("pki/ca.crt"));
    // As the daemon does it: kubectl would read the object before.
    let patch = |path: String, body: &str| -> String {
        let mut curl = cluster.command(Path::new("curl")).unwrap();
        curl.args(["-s", "-S", "-X", "PATCH", "-H", "Content-Type: application/merge-patch+json"]);
        curl.arg("-H").arg(format!("Authorization: Bearer {}", token.trim())).arg("--cacert").arg(&authority);
        curl.args(["-d", body]).arg(format!("{server}{path}"));
        String::from_utf8(curl.output().unwrap().stdout).unwrap()
    };
    let object = r#"{"status": {"message": "tried"}}"#;
    let node = r#"{"status": {"capacity": {"example.com/tried": "1"}}}"#;
    for (kind, body) in [("/apis/enid.dev/v1alpha1/enidnodes", object), ("/api/v1/nodes", node)] {
        let [own, other] = [0, 1].map(|number| patch(format!("{kind}/{}/status", nodes[number].name), body));
        assert!(own.contains("tried") && !own.contains("\"Failure\""), "{own}");
        let words = format!("the token is of the node '{}', and the object is '{}'", nodes[0].name, nodes[1].name);
        assert!(other.contains(&words), "{other}");
    }
    patch(format!("/api/v1/nodes/{}/status", nodes[0].name), &node.replace("\"1\"", "null"));
}
