//! Coexistence with what else is on a node: each implementation of services, pods on each ENI, every path of a packet.
//! Each cell is a connection of which both sides report the addresses that they saw; the VPC drops what leaves by the
//! wrong ENI, and counts it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod proxy;

use std::time::Duration;

use enid_tests::{
    Backend, Daemon, Lab, LabConfig, Place, Pod,
    traffic::{PORT, REJECTED, Spot, serve},
    wait_until,
};
use proxy::{NO_ENDPOINT, Proxy};
use vpclab::{INTERNET_SERVER, PEER_CLIENT};

const BOUND: Duration = Duration::from_secs(45);
const SETTINGS: &[(&str, &str)] = &[("MINIMUM_IP_TARGET", "14"), ("WARM_IP_TARGET", "1")];

/// Clients of a pod: first those in the VPC.
const CALLERS: usize = 7;
const IN_VPC: usize = 6;
/// Those among them whose packets a node forwards, so that a policy sees them.
const FORWARDED: [usize; 4] = [0, 2, 3, 6];
/// What listens on a node: NodeLocal DNSCache, the pod identity agent.
const LINK_LOCAL: [&str; 2] = ["169.254.20.10", "169.254.170.23"];
/// Other links of a host, where the kernel has them: name of the link, address at its other end.
const OTHER_LINKS: [(&str, &str); 2] = [("eth0.5", "192.168.5.2"), ("ipvl0", "192.168.6.2")];

/// A node with two pods on the primary ENI and two on a secondary: name and address.
struct Node<'a> {
    place: Place<'a>,
    _daemon: Daemon,
    pods: [[(String, String); 2]; 2],
}

impl<'a> Node<'a> {
    fn new(lab: &'a Lab, index: usize) -> Self {
        let place = Place::node(lab, index);
        // The strictest setting that hosts have.
        place.sh("sysctl -q net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1").unwrap();
        if has_other_links() {
            add_other_links(place);
        }
        let daemon = Daemon::start(place, SETTINGS).unwrap();
        wait_until(BOUND, || place.number("available").is_ok_and(|available| available >= 14)).unwrap();
        let pods: Vec<Pod> = (0..13).map(|n| Pod::new(index, &format!("pod-{index}-{n}"))).collect();
        let pods: Vec<(String, String)> =
            pods.iter().map(|pod| (pod.name.clone(), pod.add(place).unwrap().0)).collect();
        let enis = place.enid("enis").unwrap();
        let primary = enis.as_array().unwrap().iter().find(|eni| eni["slot"] == 0).unwrap()["id"].clone();
        let leases = place.leases().unwrap();
        let on_primary =
            |address: &str| leases.iter().any(|lease| lease["address"] == address && lease["eni"] == primary);
        let two = |wanted: bool| {
            let mut two = pods.iter().filter(|(_, address)| on_primary(address) == wanted).cloned();
            [two.next().unwrap(), two.next().unwrap()]
        };
        Node { place, _daemon: daemon, pods: [two(true), two(false)] }
    }

    /// Every address that the node itself has in the VPC: what it translates leaves with one of them.
    fn addresses(&self) -> Vec<String> {
        let enis = self.place.enid("enis").unwrap();
        let address = |eni: &serde_json::Value| eni["primary_address"].as_str().unwrap().to_owned();
        enis.as_array().unwrap().iter().map(address).collect()
    }

    fn host(&self) -> Spot<'_> {
        Spot { place: self.place, netns: None }
    }

    fn pod<'b>(&self, pod: &'b (String, String)) -> Spot<'b>
    where
        'a: 'b,
    {
        Spot { place: self.place, netns: Some(&pod.0) }
    }
}

/// Whether the kernel has the other kinds of links: the one with IPVS has.
fn has_other_links() -> bool {
    Proxy::all() == [Proxy::Ipvs]
}

/// Adds a VLAN in a VRF, two ipvlan links, one of them in a container, and delay on the primary link. Each kind adds
/// rules, tables or links of its own.
fn add_other_links(place: Place<'_>) {
    place
        .sh("ip link add blue type vrf table 77; ip link set blue up
             ip link add link eth0 name eth0.5 type vlan id 5; ip link set eth0.5 master blue
             ip addr add 192.168.5.1/24 dev eth0.5; ip link set eth0.5 up
             ip link add link eth0 name ipvl0 type ipvlan mode l2; ip link set ipvl0 up
             ip addr add 192.168.6.1/24 dev ipvl0
             ip netns add other; ip link add link eth0 name ipvl1 netns other type ipvlan mode l2
             ip -n other addr add 192.168.6.2/24 dev ipvl1; ip -n other link set ipvl1 up
             tc qdisc add dev eth0 root netem delay 1ms")
        .unwrap();
}

/// The results of all connections.
#[derive(Default)]
struct Cells {
    passed: usize,
    failed: Vec<String>,
}

impl Cells {
    /// The caller must reach this server and be seen by it as one of these.
    fn reaches(&mut self, what: &str, from: Spot<'_>, to: (&str, u16), seen_as: &[&str], server: &str) {
        let answer = from.ask(to.0, to.1);
        let ok =
            answer.as_ref().is_ok_and(|answer| seen_as.contains(&answer.client.as_str()) && answer.server == server);
        self.note(what, ok, || format!("{answer:?}, not {seen_as:?} by {server}"));
    }

    /// What `enid explain` says on this node of a packet that a cell has sent: the kernel agrees, and it leaves with the address
    /// that the other side saw.
    fn explained(&mut self, what: &str, node: Place<'_>, from: &str, to: &str, seen_as: &str) {
        let said = node.enid(&format!("explain {from} {to}"));
        let ok = said
            .as_ref()
            .is_ok_and(|said| said["kernel_agrees"] == true && said["dropped"] == "" && said["leaves_as"] == seen_as);
        self.note(&format!("explain {what}"), ok, || format!("{said:?}"));
    }

    /// The connection must be refused at once.
    fn refused(&mut self, what: &str, from: Spot<'_>, to: (&str, u16)) {
        let output =
            format!("{:#}", from.ask(to.0, to.1).map_or_else(|failure| failure, |_| anyhow::anyhow!("answered")));
        self.note(what, output.contains("refused"), || output.clone());
    }

    fn note(&mut self, what: &str, ok: bool, output: impl Fn() -> String) {
        if ok {
            self.passed += 1;
        } else {
            self.failed.push(format!("{what}: {}", output()));
        }
    }
}

/// The number of cells.
fn expected() -> usize {
    let (nodes, enis, proxies) = (2, 2, Proxy::all());
    let with_services = proxies.iter().filter(|proxy| **proxy != Proxy::None).count();
    let of_pod = CALLERS + FORWARDED.len();
    // The Internet is a caller of node ports too.
    let of_services = 2 * IN_VPC + 1 + 3 * (CALLERS + 1);
    let on_node = LINK_LOCAL.len() + 1;
    let others = if has_other_links() { OTHER_LINKS.len() } else { 0 };
    // Callers of a pod's address, on each node that they pass; and the Internet, by a packet and explained.
    let explained = 8 + 2;
    let on_node = on_node + explained;
    enis * (proxies.len() * (of_pod + on_node) + with_services * of_services) + others + nodes
}

#[test]
fn every_cell_of_the_matrix() {
    let lab = Lab::up(&LabConfig { nodes: 2, ec2: Backend::Model, ..LabConfig::default() }).unwrap();
    let (near, far) = (Node::new(&lab, 0), Node::new(&lab, 1));
    let names: Vec<&str> = far.pods.iter().flatten().map(|(name, _)| name.as_str()).collect();
    let peer = Spot { place: Place { lab: &lab, name: "peer" }, netns: None };
    let inet = Spot { place: Place { lab: &lab, name: "inet" }, netns: None };
    let _servers =
        [(far.place, &*names), (near.place, &[]), (inet.place, &[])].map(|(place, of)| serve(place, of).unwrap());
    let endpoints: Vec<String> = far.pods.iter().map(|pods| pods[0].1.clone()).collect();
    let [near_host, far_host] = [0, 1].map(|index| lab.node(index).address.as_str());
    let [near_public, far_public] = [0, 1].map(|index| lab.node(index).public_address.as_str());
    let [by_near, by_far] = [&near, &far].map(Node::addresses);
    let [by_near, by_far] = [&by_near, &by_far].map(|list| list.iter().map(String::as_str).collect::<Vec<_>>());
    let mut cells = Cells::default();
    for proxy in Proxy::all() {
        proxy.install(near.place, &endpoints, false).unwrap();
        proxy.install(far.place, &endpoints, true).unwrap();
        for (k, eni) in ["primary", "secondary"].iter().enumerate() {
            let [server, sibling] = &far.pods[k];
            let (name, address) = (&server.0, server.1.as_str());
            let what = |cell: &str| format!("{proxy:?}, pod on a {eni} ENI: {cell}");
            let callers: [_; CALLERS] = [
                ("a pod of the same node", far.pod(sibling), sibling.1.as_str()),
                (
                    "a pod of the other ENI of the same node",
                    far.pod(&far.pods[1 - k][1]),
                    far.pods[1 - k][1].1.as_str(),
                ),
                ("a pod of another node", near.pod(&near.pods[0][0]), near.pods[0][0].1.as_str()),
                ("a pod of a secondary ENI of another node", near.pod(&near.pods[1][0]), near.pods[1][0].1.as_str()),
                ("the node itself", far.host(), far_host),
                ("another node", near.host(), near_host),
                ("a client outside the VPC", peer, PEER_CLIENT),
            ];
            for (who, from, own) in callers {
                // A load balancer that targets pods does the same.
                let cell = what(&format!("its address from {who}"));
                cells.reaches(&cell, from, (address, PORT), &[own], address);
            }
            for (at, (who, _, own)) in callers.into_iter().enumerate() {
                let cell = what(&format!("its address from {who}"));
                let by_nodes: &[Place<'_>] = match at {
                    0 | 1 => &[far.place],
                    2 | 3 => &[near.place, far.place],
                    // The node itself sends what no rule for forwarded packets is asked for.
                    4 => &[],
                    _ => &[far.place],
                };
                by_nodes.iter().for_each(|node| cells.explained(&cell, *node, own, address, own));
            }
            let (own, outside) = (near.pods[k][0].1.as_str(), what("the Internet"));
            cells.explained(&outside, near.place, own, INTERNET_SERVER, near_host);
            let answer = near.pod(&near.pods[k][0]).ask(INTERNET_SERVER, PORT);
            let ok = answer.as_ref().is_ok_and(|answer| answer.client == near_public);
            cells.note(&outside, ok, || format!("{answer:?}"));
            let forwarded = FORWARDED.map(|at| callers[at]);
            if proxy == Proxy::None {
                for (who, from, own) in forwarded {
                    let cell = what(&format!("a port that no policy rejects, from {who}"));
                    cells.reaches(&cell, from, (address, REJECTED), &[own], address);
                }
                continue;
            }
            let (cluster_ip, node_port, local_port) = (format!("10.96.0.1{k}"), 30080 + k, 30090 + k);
            let (node_port, local_port) = (u16::try_from(node_port).unwrap(), u16::try_from(local_port).unwrap());
            for (who, from, own) in &callers[..IN_VPC] {
                cells.reaches(&what(&format!("ClusterIP from {who}")), *from, (&cluster_ip, 80), &[own], address);
                cells.refused(&what(&format!("a service without endpoints from {who}")), *from, (NO_ENDPOINT, 80));
            }
            let itself = Spot { place: far.place, netns: Some(name) };
            cells.reaches(&what("ClusterIP from itself"), itself, (&cluster_ip, 80), &[far_host], address);
            let by_address = callers.map(|caller| (caller, [near_host, far_host]));
            let by_nat = (("the Internet", inet, INTERNET_SERVER), [near_public, far_public]);
            for ((who, from, own), [near_host, far_host]) in by_address.into_iter().chain([by_nat]) {
                let cell = what(&format!("its own node's NodePort, Cluster, from {who}"));
                cells.reaches(&cell, from, (far_host, node_port), &by_far, address);
                let cell = what(&format!("its own node's NodePort, Local, from {who}"));
                cells.reaches(&cell, from, (far_host, local_port), &[own], address);
                let cell = what(&format!("another node's NodePort, Cluster, from {who}"));
                cells.reaches(&cell, from, (near_host, node_port), &by_near, address);
            }
            for (who, from, _) in forwarded {
                cells.refused(&what(&format!("a port that a policy rejects, from {who}")), from, (address, REJECTED));
            }
        }
        for [pod, _] in &near.pods {
            link_local(&mut cells, proxy, &near, pod);
            transparent(&mut cells, proxy, &near, pod, &far.pods[1][0].1);
        }
        proxy.remove(near.place).unwrap();
        proxy.remove(far.place).unwrap();
    }
    if has_other_links() {
        other_links(&mut cells, near.place, near_host);
    }
    for node in [&near, &far] {
        let conflicts = node.place.enid("status").unwrap()["conflicts"].clone();
        cells.note("no conflict is reported", conflicts == serde_json::json!([]), || conflicts.to_string());
    }
    println!("{} cells passed, {} failed", cells.passed, cells.failed.len());
    assert!(cells.failed.is_empty(), "{:#?}", cells.failed);
    assert_eq!(cells.passed, expected(), "cells were left out");
    let drops = lab.drops().unwrap();
    assert_eq!((drops.foreign_source, drops.inet_private), (0, 0), "the VPC dropped packets of a foreign source");
}

/// What listens on the node at link-local addresses.
fn link_local(cells: &mut Cells, proxy: Proxy, node: &Node<'_>, pod: &(String, String)) {
    for address in LINK_LOCAL {
        node.place.sh(&format!("ip addr replace {address}/32 dev lo")).unwrap();
        let what = format!("{proxy:?}, {address} on the node from {}", pod.0);
        cells.reaches(&what, node.pod(pod), (address, PORT), &[&pod.1], address);
    }
}

/// A proxy on the node that connects to others with the pod's own address, as Cilium's and Envoy's do.
fn transparent(cells: &mut Cells, proxy: Proxy, node: &Node<'_>, pod: &(String, String), server: &str) {
    node.place
        .sh("nft 'table ip proxy { chain pre { type filter hook prerouting priority -160;
             socket transparent 1 meta mark set 0x200; }; }'
             ip rule add pref 100 fwmark 0x200/0xf00 lookup 100; ip route add local default dev lo table 100")
        .unwrap();
    let answer = node.host().ask_as((&pod.1, 0), server, PORT);
    let ok = answer.as_ref().is_ok_and(|answer| answer.expect(&pod.1, server).is_ok());
    cells.note(&format!("{proxy:?}, a transparent proxy with the address of {}", pod.0), ok, || format!("{answer:?}"));
    node.place.sh("nft delete table ip proxy; ip rule del pref 100; ip route flush table 100").unwrap();
}

/// An echo over each of the other links: the VPC has the VLAN's other end for this.
fn other_links(cells: &mut Cells, place: Place<'_>, address: &str) {
    let vpc = Place { name: "vpc", ..place };
    let port = vpc.sh(&format!("ip -o route get {address}")).unwrap();
    let port = port.split("dev ").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap();
    vpc.sh(&format!(
        "ip link add link {port} name vlan5 type vlan id 5; ip addr add 192.168.5.2/24 dev vlan5; ip link set vlan5 up"
    ))
    .unwrap();
    for (link, other) in OTHER_LINKS {
        let output = place.sh(&format!("ping -n -q -c 1 -W 10 -I {link} {other}"));
        cells.note(&format!("an echo over {link}"), output.is_ok(), || format!("{output:?}"));
    }
}
