//! Enid leaves a cluster: running pods keep their network, and what docs/eks.md says then leaves nothing behind.

use std::time::Duration;

use enid_tests::{kube, wait_until};
use kubelab::{Cluster, Node};

use crate::{CLUSTER, traffic::Ends};

const BOUND: Duration = Duration::from_secs(120);

/// The documented way: the image's own command, in a pod that `kubectl debug` makes on the node.
fn clean(cluster: &Cluster, node: &Node) -> anyhow::Result<String> {
    let endpoint = format!("--env=AWS_EC2_ENDPOINT={}", cluster.lab().state().ec2_endpoint);
    let target = format!("node/{}", node.name);
    let settings = [
        "--env=HOST_CNI_BIN_PATH=/host/opt/cni/bin",
        "--env=HOST_CNI_CONFDIR_PATH=/host/etc/cni/net.d",
        "--env=ENID_RUN_DIR=/host/run/enid",
        "--env=ENID_STORE_DIR=/host/var/lib/enid",
        "--env=AWS_VPC_K8S_CNI_BACKING_STORE=/host/var/run/aws-node/ipam.json",
        "--env=AWS_ACCESS_KEY_ID=test",
        "--env=AWS_SECRET_ACCESS_KEY=test",
        &endpoint,
    ];
    let debug =
        ["debug", &target, "--profile=sysadmin", "--image=docker.io/library/enid:0.1.0", "--image-pull-policy=Never"];
    cluster.kubectl(&[&debug[..], &settings[..], &["--", "enid", "uninstall", "--enis"][..]].concat())?;
    let prefix = format!("node-debugger-{}-", node.name);
    let find = || {
        let pods = cluster.list("pods", &[])?;
        let found =
            pods.into_iter().find(|pod| pod["metadata"]["name"].as_str().is_some_and(|name| name.starts_with(&prefix)));
        found.ok_or_else(|| anyhow::anyhow!("no pod {prefix}*"))
    };
    let phase = || find().map(|pod| pod["status"]["phase"].as_str().unwrap_or_default().to_owned());
    wait_until(BOUND, || phase().is_ok_and(|phase| phase == "Succeeded" || phase == "Failed"))?;
    let name = find()?["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let told = cluster.kubectl(&["logs", &name])?;
    anyhow::ensure!(phase()? == "Succeeded", "{}: {told}", node.name);
    cluster.kubectl(&["delete", "pod", &name])?;
    Ok(told)
}

#[test]
fn pods_keep_their_network_and_nothing_is_left() {
    let cluster = &*CLUSTER;
    let nodes = cluster.nodes().unwrap();
    let ends = Ends::make(cluster, "stay").unwrap();
    ends.lose_nothing_while(None, || {
        cluster.helm(&["uninstall", "enid", "--namespace", "kube-system", "--wait"])?;
        wait_until(BOUND, || nodes.iter().all(|node| node.sh("! pgrep -x -f 'enid agent'").is_ok()))?;
        // Long enough for whoever would take something away.
        let before = std::time::Instant::now();
        wait_until(BOUND, || before.elapsed() > Duration::from_secs(10))
    })
    .unwrap();
    // The nodes are emptied; each DEL works without a daemon.
    kube::remove(cluster, "stay").unwrap();
    cluster.kubectl(&["-n", "kube-system", "delete", "deployment", "coredns"]).unwrap();
    wait_until(BOUND, || kube::pods(cluster, None).is_ok_and(|pods| pods.is_empty())).unwrap();
    for node in &nodes {
        let told = clean(cluster, node).unwrap();
        assert!(told.contains("remove the rule 512"), "{told}");
        let left = node
            .sh("nft list tables | grep enid || true
                ip rule | grep -v -e '^0:' -e '^32766:' -e '^32767:' || true
                ip -br link | grep -e ^eni -e ^eth1 || true
                ls -A /run/enid /var/lib/enid /etc/cni/net.d /var/run/aws-node 2>/dev/null | grep -v '^/' | grep . || true")
            .unwrap();
        assert_eq!(left, "", "{} after {told}", node.name);
    }
    let enis = cluster.lab().enis().unwrap();
    assert_eq!(enis.len(), 3, "the primary ENIs of two nodes and of the control plane: {enis:?}");
    assert!(enis.iter().all(|eni| eni.addresses.len() == 1 && eni.prefixes.is_empty()), "{enis:?}");
}
