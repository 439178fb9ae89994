//! Subnets fill one after the other: no pod is refused while any of them has an address, and then its event names what is
//! full.

use std::{net::Ipv4Addr, time::Duration};

use enid_tests::{
    kube::{self, KubePod},
    wait_until,
};
use kubelab::Cluster;

use crate::{
    CLUSTER,
    api_server::enid,
    custom_network::{self, CIDRS},
    disturbance::are_ready,
    node_config::restart,
    told::{deployment, told},
};

/// A subnet that was short is asked again within two minutes, and the kubelet asks again within some seconds.
const BOUND: Duration = Duration::from_secs(180);
/// Addresses that are left in the second subnet. An ENI of it has one.
const LEFT: u64 = 10;

/// What the test has changed, which ends with it.
struct Filled<'a> {
    cluster: &'a Cluster,
    /// The subnets and their addresses.
    subnets: [(String, Vec<Ipv4Addr>); 2],
}

impl Filled<'_> {
    fn tag(&self, role: &str) -> anyhow::Result<()> {
        let subnet = self.subnets[1].0.as_str();
        let tag = [("ResourceId.1", subnet), ("Tag.1.Key", "kubernetes.io/role/cni"), ("Tag.1.Value", role)];
        self.cluster.lab().ec2("CreateTags", &tag).map(drop)
    }

    fn occupy(&self) -> anyhow::Result<()> {
        self.subnets.iter().try_for_each(|(subnet, addresses)| self.cluster.lab().occupy(subnet, addresses))
    }

    fn vacate(&self) -> anyhow::Result<()> {
        self.subnets.iter().try_for_each(|(subnet, addresses)| self.cluster.lab().vacate(subnet, addresses))
    }
}

impl Drop for Filled<'_> {
    fn drop(&mut self) {
        let _ = self.vacate();
        let _ = kube::remove(self.cluster, "filling");
        let _ = self.tag("0");
    }
}

#[test]
fn pods_fill_one_subnet_after_the_other_before_any_is_refused() {
    let cluster = &*CLUSTER;
    cluster.install_enid(&[]).unwrap();
    cluster.kubectl(&["delete", "events", "--all", "--all-namespaces"]).unwrap();
    let lab = cluster.lab();
    let (node, daemon) = (lab.node(0), &cluster.nodes().unwrap()[0]);
    let second = custom_network::subnet(cluster, CIDRS[0]);
    let of_first = (1..255).map(|last| Ipv4Addr::new(10, 0, 1, last)).collect();
    let [begin, end] = [Ipv4Addr::new(10, 0, 64, 0), Ipv4Addr::new(10, 0, 95, 255)].map(u32::from);
    let of_second: Vec<Ipv4Addr> = (begin..=end).map(Ipv4Addr::from).collect();
    let left = of_second[99..99 + usize::try_from(LEFT).unwrap()].to_vec();
    let filled = Filled { cluster, subnets: [(node.subnet_id.clone(), of_first), (second.clone(), of_second)] };
    // A tag counts within a minute, or with the daemon's start.
    filled.tag("1").unwrap();
    restart(cluster, daemon);
    let has_some = || enid(daemon, "status").is_ok_and(|status| status["available"].as_u64() >= Some(4));
    wait_until(BOUND, has_some).unwrap();
    filled.occupy().unwrap();
    lab.vacate(&second, &left).unwrap();

    // What the node has, and five that only the second subnet has.
    let status = enid(daemon, "status").unwrap();
    let count = |what: &str| status[what].as_u64().unwrap_or_default();
    let replicas = count("available") + count("cooling") + 5;
    cluster.apply(&deployment("filling", &node.name, replicas)).unwrap();
    wait_until(BOUND, || kube::rolled_out(cluster, "deployment/filling").is_ok()).unwrap();
    let there = |pod: &KubePod| custom_network::is_in(pod.address, CIDRS[0]);
    let pods = kube::pods(cluster, Some("app=filling")).unwrap();
    assert!(pods.iter().filter(|pod| there(pod)).count() >= 5, "{pods:?}");
    assert!(told(cluster, "Pod").is_empty(), "no pod was refused: {:?}", told(cluster, "Pod"));

    // More than all of them have.
    cluster.apply(&deployment("filling", &node.name, replicas + LEFT)).unwrap();
    wait_until(BOUND, || !told(cluster, "Pod").is_empty()).unwrap();
    for event in told(cluster, "Pod") {
        let words = event["message"].as_str().unwrap_or_default();
        let names = [&node.subnet_id, &second].into_iter().any(|subnet| words.contains(subnet.as_str()));
        assert!(event["reason"] == "SubnetFull" && names, "{event}");
    }
    assert!(are_ready(cluster).unwrap(), "a node without addresses for more pods is not ready");

    filled.vacate().unwrap();
    wait_until(BOUND, || kube::rolled_out(cluster, "deployment/filling").is_ok()).unwrap();
}
