//! Enid leaves a cluster: running pods keep their network, and what docs/eks.md says then leaves nothing behind.

use std::time::Duration;

use enid_tests::{kube, wait_until};

use crate::{CLUSTER, debug, traffic::Ends};

const BOUND: Duration = Duration::from_secs(120);

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
        let told = debug(cluster, node, &["uninstall", "--enis"]).unwrap();
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
