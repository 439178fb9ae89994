//! What operators and accidents do to a cluster costs no packet.

use std::time::Duration;

use enid_tests::{kube, wait_until};
use kubelab::{Cluster, Node};

use crate::{CLUSTER, traffic::Ends};

const BOUND: Duration = Duration::from_secs(90);
const DAEMONS: &str = "daemonset/enid";

/// Waits until all daemons are as asked.
pub fn rolled_out(cluster: &Cluster) -> anyhow::Result<()> {
    let timeout = format!("--timeout={}s", BOUND.as_secs());
    cluster.kubectl(&["-n", "kube-system", "rollout", "status", DAEMONS, &timeout]).map(drop)
}

/// Number of a process on the node.
fn pid_of(node: &Node, line: &str) -> anyhow::Result<String> {
    Ok(node.sh(&format!("pgrep -o -x -f '{line}'"))?.trim().to_owned())
}

/// Whether a node is Ready, as the scheduler and the node controller see it.
pub fn are_ready(cluster: &Cluster) -> anyhow::Result<bool> {
    let said = cluster.kubectl(&[
        "get",
        "nodes",
        "-o",
        "jsonpath={range .items[*]}{.status.conditions[?(@.type==\"Ready\")].status}{\"\\n\"}{end}",
    ])?;
    Ok(said.lines().all(|line| line == "True"))
}

/// The boot that the kubelet has told the API server of.
fn boot_id(cluster: &Cluster, node: &str) -> anyhow::Result<String> {
    cluster.kubectl(&["get", "node", node, "-o", "jsonpath={.status.nodeInfo.bootID}"])
}

#[test]
fn nothing_is_lost_while_the_cluster_is_worked_on() {
    let cluster = &*CLUSTER;
    let nodes = cluster.nodes().unwrap();
    let ends = Ends::make(cluster, "flow").unwrap();
    let during = |what: &str, left_out: Option<&str>, act: &dyn Fn() -> anyhow::Result<()>| {
        println!("== {what}");
        ends.lose_nothing_while(left_out, act).unwrap_or_else(|failure| panic!("{what}: {failure:?}"));
        kube::wait_for_agreement(cluster).unwrap_or_else(|failure| panic!("{what}: {failure:#}"));
        assert!(are_ready(cluster).unwrap(), "{what}: a node is not ready");
    };
    during("helm upgrade with a changed setting", None, &|| {
        cluster.install_enid(&["--set", "env.WARM_IP_TARGET=3"]).map(drop)
    });
    during("kubectl rollout restart", None, &|| {
        cluster.kubectl(&["-n", "kube-system", "rollout", "restart", DAEMONS])?;
        rolled_out(cluster)
    });
    during("kill -9 of both daemons", None, &|| {
        for node in &nodes {
            let pid = pid_of(node, "enid agent")?;
            node.sh(&format!("kill -9 {pid}"))?;
            wait_until(BOUND, || pid_of(node, "enid agent").is_ok_and(|now| now != pid))?;
        }
        rolled_out(cluster)
    });
    during("kill -9 of containerd", None, &|| {
        for node in &nodes {
            let pid = node.sh("cat /run/containerd.pid")?;
            node.sh(&format!("kill -9 {pid}"))?;
            wait_until(BOUND, || node.sh("cat /run/containerd.pid").is_ok_and(|now| now != pid))?;
        }
        // New pods, by the new containerd.
        kube::idle(cluster, "after", 4)?;
        kube::remove(cluster, "after")
    });
    let rebooted = &nodes[1];
    during("a reboot, for the other node's pods", Some(&rebooted.name), &|| {
        let before = boot_id(cluster, &rebooted.name)?;
        rebooted.reboot()?;
        wait_until(BOUND, || boot_id(cluster, &rebooted.name).is_ok_and(|now| now != before))?;
        wait_until(BOUND, || are_ready(cluster).unwrap_or(false))?;
        rolled_out(cluster)?;
        kube::rolled_out(cluster, "deployment/flow")
    });
    kube::remove(cluster, "flow").unwrap();
}
