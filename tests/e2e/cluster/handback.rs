//! A node is given back to Amazon's VPC CNI and taken over again, on a cluster: what kubelet, containerd and kube-proxy make of
//! it. Its daemon is not here, so new pods wait meanwhile.

use std::time::Duration;

use anyhow::ensure;
use enid_tests::{kube, wait_until};
use kubelab::{Cluster, Node};
use serde_json::Value;

use crate::{
    CLUSTER, debug,
    disturbance::{are_ready, rolled_out},
    traffic::Ends,
};

const BOUND: Duration = Duration::from_secs(120);

/// The label of its pods.
pub const ENIDS: &str = "app.kubernetes.io/name=enid";
/// What the daemon says at the end of a take-over.
pub const DONE: &str = "nothing of Amazon's VPC CNI is left";

/// The daemon's pod on a node.
fn daemon_of(cluster: &Cluster, node: &str) -> anyhow::Result<String> {
    pod_of(cluster, ENIDS, node)
}

/// The name of a DaemonSet's pod on a node, nothing if there is none.
pub fn pod_of(cluster: &Cluster, label: &str, node: &str) -> anyhow::Result<String> {
    let of_node = format!("spec.nodeName={node}");
    let names = "jsonpath={.items[*].metadata.name}";
    let get = ["-n", "kube-system", "get", "pods", "-l", label];
    Ok(cluster.kubectl(&[&get[..], &["--field-selector", &of_node, "-o", names]].concat())?.trim().to_owned())
}

/// Whose a node is, as its status object says.
fn phase(cluster: &Cluster, node: &str) -> anyhow::Result<String> {
    cluster.kubectl(&["get", "enidnode", node, "-o", "jsonpath={.status.phase}"])
}

/// Waits until that is so.
pub fn in_phase(cluster: &Cluster, node: &Node, expected: &str) -> anyhow::Result<()> {
    wait_until(BOUND, || phase(cluster, &node.name).is_ok_and(|phase| phase == expected))
        .map_err(|_| anyhow::anyhow!("{} is not {expected}, but {:?}", node.name, phase(cluster, &node.name)))
}

/// Gives a node back as the documentation says.
pub fn given_back(cluster: &Cluster, node: &Node) -> anyhow::Result<()> {
    let of_node = format!("spec.nodeName={}", node.name);
    let get = ["-n", "kube-system", "get", "pods", "-l", ENIDS, "--field-selector", &of_node, "-o", "name"];
    let pod = cluster.kubectl(&get)?;
    let said = cluster.kubectl(&["-n", "kube-system", "exec", pod.trim(), "-c", "enid", "--", "enid", "handback"])?;
    ensure!(said.contains("given back to Amazon's VPC CNI"), "{said}");
    in_phase(cluster, node, "GivenBack")
}

#[test]
fn a_node_is_given_back_and_taken_over_again_under_traffic() {
    let cluster = &*CLUSTER;
    let nodes = cluster.nodes().unwrap();
    let node = &nodes[1];
    cluster.install_enid(&["--set", "env.ENID_TAKE_OVER=true"]).unwrap();
    let ends = Ends::make(cluster, "stay").unwrap();
    // One that is reached by its node's port, through kube-proxy.
    kube::serve_http(cluster, "ported", 2).unwrap();
    cluster.kubectl(&["expose", "deployment", "ported", "--type=NodePort", "--port=80", "--target-port=8080"]).unwrap();
    let port = cluster.kubectl(&["get", "service", "ported", "-o", "jsonpath={.spec.ports[0].nodePort}"]).unwrap();
    let address = &cluster.lab().node(1).address;
    let asked = || nodes[0].sh(&format!("curl -sSf -m 5 http://{address}:{port}/ >/dev/null"));
    wait_until(BOUND, || asked().is_ok()).unwrap();
    let before = daemon_of(cluster, &node.name).unwrap();
    ends.lose_nothing_while(None, || {
        given_back(cluster, node)?;
        let files = node.sh("ls /etc/cni/net.d; cat /var/run/aws-node/ipam.json")?;
        ensure!(files.starts_with("10-aws.conflist\n{"), "{files}");
        for _ in 0..5 {
            asked()?;
        }
        // Neither the runtime nor the kubelet finds anything wrong with the node, whose daemon waits in the same pod.
        let looks = std::time::Instant::now();
        wait_until(BOUND, || !are_ready(cluster).unwrap_or(false) || looks.elapsed() > Duration::from_secs(15))?;
        ensure!(are_ready(cluster)?, "a node that was given back is not ready");
        ensure!(daemon_of(cluster, &node.name)? == before, "its pod does not wait");
        // What taking it over would do, as docs/takeover.md says.
        let number = kube::pods(cluster, None)?.iter().filter(|pod| pod.node == node.name).count();
        let told = debug(cluster, node, &["takeover", "--check"])?;
        ensure!(told.contains(&format!("{number} pods would be taken over, and 0 addresses")), "{told}");
        ensure!(told.contains("Nothing stands against it."), "{told}");

        cluster.kubectl(&["-n", "kube-system", "delete", "pod", &before])?;
        rolled_out(cluster)?;
        let daemon = daemon_of(cluster, &node.name)?;
        let log = || cluster.kubectl(&["-n", "kube-system", "logs", &daemon, "-c", "enid"]);
        wait_until(BOUND, || log().is_ok_and(|log| log.contains(DONE)))
            .map_err(|_| anyhow::anyhow!("{}", log().unwrap_or_default()))?;
        asked().map(drop)
    })
    .unwrap();
    in_phase(cluster, node, "Serving").unwrap();
    kube::wait_for_agreement(cluster).unwrap();
    // New pods beside the old ones; then both go.
    kube::idle(cluster, "after", 4).unwrap();
    for name in ["after", "stay", "ported"] {
        kube::remove(cluster, name).unwrap();
    }
    cluster.kubectl(&["delete", "service", "ported"]).unwrap();
    let file = node.sh("cat /var/run/aws-node/ipam.json").unwrap();
    let file: Value = serde_json::from_str(&file).unwrap();
    assert_eq!(file["version"], "enid-takeover/1", "Amazon's daemon refuses the node from now on");
    kube::wait_for_agreement(cluster).unwrap();
    cluster.install_enid(&[]).unwrap();
}
