//! Nodes change hands by a label, as docs/takeover.md says. In the place of Amazon's daemon, which cannot run here, there is a
//! DaemonSet of its name.

use std::time::{Duration, Instant};

use anyhow::ensure;
use enid_tests::{kube, wait_until};
use kubelab::{Cluster, Node};
use serde_json::json;

use crate::{
    CLUSTER, debug,
    disturbance::{are_ready, rolled_out},
    handback::{DONE, ENIDS, given_back, in_phase, pod_of},
    traffic::Ends,
};

const BOUND: Duration = Duration::from_secs(120);
const AMAZONS: &str = "k8s-app=aws-node";
const TAKES_OVER: [&str; 2] = ["--set", "env.ENID_TAKE_OVER=true"];
const BY_LABEL: [&str; 2] = ["--set", "nodeSelector.cni=enid"];

/// Amazon's DaemonSet, with the affinity that the documentation gives it; its pods take 15 s to end.
fn amazons(cluster: &Cluster) -> anyhow::Result<()> {
    let labels = json!({ "k8s-app": "aws-node" });
    let not_enids = json!({ "matchExpressions": [{ "key": "cni", "operator": "NotIn", "values": ["enid"] }] });
    let required = json!({ "nodeSelectorTerms": [not_enids] });
    let container = json!({
        "name": "aws-node",
        "image": kube::AGNHOST,
        "imagePullPolicy": "Never",
        "args": ["pause"],
        "lifecycle": { "preStop": { "sleep": { "seconds": 15 } } },
    });
    let pod = json!({
        "hostNetwork": true,
        "tolerations": [{ "operator": "Exists" }],
        "terminationGracePeriodSeconds": 20,
        "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": required } },
        "containers": [container],
    });
    let daemons = json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": { "name": "aws-node", "namespace": "kube-system" },
        "spec": {
            "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": pod },
        },
    });
    cluster.apply(&daemons.to_string())?;
    cluster.kubectl(&["-n", "kube-system", "rollout", "status", "daemonset/aws-node", "--timeout=60s"]).map(drop)
}

/// Waits until one of both has a pod on a node, and the other has none.
fn is_served_by(cluster: &Cluster, label: &str, node: &Node) -> anyhow::Result<()> {
    let other = if label == ENIDS { AMAZONS } else { ENIDS };
    let has = |label: &str| pod_of(cluster, label, &node.name).map(|pod| !pod.is_empty());
    wait_until(BOUND, || has(label).unwrap_or(false) && !has(other).unwrap_or(true))
}

fn labelled(cluster: &Cluster, node: &Node, label: &str) -> anyhow::Result<()> {
    cluster.kubectl(&["label", "node", &node.name, label]).map(drop)
}

/// What a node's files say: the runtime's configurations, and the version of the state file.
fn files(node: &Node) -> anyhow::Result<String> {
    node.sh("ls /etc/cni/net.d; grep -o -e 'vpc-cni-ipam/1' -e 'enid-takeover/1' /var/run/aws-node/ipam.json")
}

const OF_AMAZON: &str = "10-aws.conflist\nvpc-cni-ipam/1\n";

fn by_label(cluster: &Cluster, nodes: &[Node], step: &dyn Fn(&str)) -> anyhow::Result<()> {
    let [other, node] = nodes else { anyhow::bail!("{} nodes", nodes.len()) };
    let refused = |more: &[&str]| match cluster.install_enid(more) {
        Ok(_) => String::new(),
        Err(refusal) => format!("{refusal:#}"),
    };
    ensure!(refused(&[]).contains("Two CNIs must not serve one node"), "{}", refused(&[]));
    ensure!(refused(&TAKES_OVER).contains("nodeSelector is empty"), "{}", refused(&TAKES_OVER));
    cluster.install_enid(&[TAKES_OVER, BY_LABEL].concat())?;
    for node in nodes {
        is_served_by(cluster, AMAZONS, node)?;
    }
    step("the chart is refused twice, then installed for no node");

    labelled(cluster, node, "cni=enid")?;
    // Its daemon is there before Amazon's has ended.
    in_phase(cluster, node, "Waiting")?;
    step("waits");
    in_phase(cluster, node, "Serving")?;
    step("serves");
    is_served_by(cluster, ENIDS, node)?;
    rolled_out(cluster)?;
    let daemon = pod_of(cluster, ENIDS, &node.name)?;
    let log = cluster.kubectl(&["-n", "kube-system", "logs", &daemon, "-c", "enid"])?;
    ensure!(log.contains("a pod of its DaemonSet aws-node is on it") && log.contains(DONE), "{log}");
    ensure!(files(node)? == "05-enid.conflist\nenid-takeover/1\n", "{}", files(node)?);
    is_served_by(cluster, AMAZONS, other)?;
    ensure!(files(other)? == OF_AMAZON, "{}", files(other)?);
    // New pods are only served on this one.
    let only_here = json!({ "spec": { "nodeName": node.name, "terminationGracePeriodSeconds": 1, "containers": [
        { "name": "idle", "image": kube::AGNHOST, "imagePullPolicy": "Never", "args": ["pause"] }] },
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "new", "namespace": "default" } });
    cluster.apply(&only_here.to_string())?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/new", "--timeout=60s"])?;

    step("a new pod runs");
    given_back(cluster, node)?;
    labelled(cluster, node, "cni-")?;
    is_served_by(cluster, AMAZONS, node)?;
    step("is given back");
    ensure!(files(node)? == OF_AMAZON, "{}", files(node)?);
    ensure!(are_ready(cluster)?, "a node that was given back is not ready");

    // The label is taken away too early: Amazon's daemon refuses the stamped file, and a debugging pod gives the node back.
    labelled(cluster, node, "cni=enid")?;
    is_served_by(cluster, ENIDS, node)?;
    in_phase(cluster, node, "Serving")?;
    step("serves again");
    labelled(cluster, node, "cni-")?;
    is_served_by(cluster, AMAZONS, node)?;
    ensure!(files(node)?.ends_with("enid-takeover/1\n"), "{}", files(node)?);
    let told = debug(cluster, node, &["handback"])?;
    ensure!(told.contains("given back to Amazon's VPC CNI"), "{told}");
    ensure!(files(node)? == OF_AMAZON, "{}", files(node)?);
    step("is given back by a debugging pod");
    let pods = kube::pods(cluster, None)?;
    let of_node: Vec<_> = pods.iter().filter(|pod| pod.node == node.name).collect();
    let file = node.sh("cat /var/run/aws-node/ipam.json")?;
    ensure!(of_node.iter().all(|pod| file.contains(&format!("\"{}\"", pod.address))), "{of_node:?}, {file}");
    Ok(())
}

#[test]
fn a_label_says_whose_a_node_is() {
    let cluster = &*CLUSTER;
    let nodes = cluster.nodes().unwrap();
    cluster.install_enid(&TAKES_OVER).unwrap();
    let ends = Ends::make(cluster, "stay").unwrap();
    let started = Instant::now();
    let step = |what: &str| println!("{:6.1} s  {what}", started.elapsed().as_secs_f32());
    ends.lose_nothing_while(None, || {
        for node in &nodes {
            given_back(cluster, node)?;
        }
        cluster.helm(&["uninstall", "enid", "--namespace", "kube-system", "--wait"])?;
        amazons(cluster)?;
        step("both nodes are Amazon's");
        by_label(cluster, &nodes, &step)?;
        cluster.helm(&["uninstall", "enid", "--namespace", "kube-system", "--wait"])?;
        cluster.kubectl(&["-n", "kube-system", "delete", "daemonset", "aws-node"])?;
        cluster.install_enid(&TAKES_OVER)?;
        nodes.iter().try_for_each(|node| in_phase(cluster, node, "Serving"))?;
        step("both serve");
        Ok(())
    })
    .unwrap();
    kube::wait_for_agreement(cluster).unwrap();
    cluster.kubectl(&["delete", "pod", "new"]).unwrap();
    kube::remove(cluster, "stay").unwrap();
    kube::wait_for_agreement(cluster).unwrap();
    cluster.install_enid(&[]).unwrap();
}
