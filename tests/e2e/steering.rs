//! By which ENI pods' packets leave, with which source address and MTU, as the settings and the VPC's CIDRs have it,
//! and while both change under running connections.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{sync::OnceLock, time::Duration};

use enid_tests::{
    Daemon, Lab, LabConfig, Place, Pod,
    kernel::wait_until_reconciled,
    traffic::{PORT, Servers, Spot, Stream, serve},
    wait_until,
};
use vpclab::{Drops, Faults, INTERNET_SERVER, PEER_CLIENT};

const BOUND: Duration = Duration::from_secs(45);
const PEER_NET: &str = "172.31.0.0/16";

fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(|| Lab::up(&LabConfig { nodes: 5, ..LabConfig::default() }).unwrap())
}

/// A node with one pod on the primary ENI and one on a secondary, and servers outside the VPC.
struct TestNode<'a> {
    place: Place<'a>,
    daemon: Option<Daemon>,
    /// On the primary, on a secondary: name and address.
    pods: [(String, String); 2],
    _servers: [Servers; 3],
}

impl<'a> TestNode<'a> {
    fn new(index: usize) -> Self {
        let place = Place::node(lab(), index);
        let mut test_node = TestNode {
            place,
            daemon: None,
            pods: Default::default(),
            _servers: [
                serve(Place { lab: lab(), name: "inet" }, &[]).unwrap(),
                serve(Place { lab: lab(), name: "peer" }, &[]).unwrap(),
                serve(place, &[]).unwrap(),
            ],
        };
        test_node.restart(&[]);
        wait_until(BOUND, || place.number("available").is_ok_and(|available| available >= 12))
            .unwrap_or_else(|_| panic!("{}", test_node.daemon.as_ref().unwrap().log()));
        let pods: Vec<Pod> = (0..11).map(|n| Pod::new(index, &format!("pod-{index}-{n}"))).collect();
        let addresses: Vec<String> = pods.iter().map(|pod| pod.add(place).unwrap().0).collect();
        let of_slot = |slot: u64| {
            let enis = place.enid("enis").unwrap();
            let eni = enis.as_array().unwrap().iter().find(|eni| eni["slot"] == slot).unwrap().clone();
            let leases = place.leases().unwrap();
            let lease = leases.iter().find(|lease| lease["eni"] == eni["id"]).unwrap();
            let at = addresses.iter().position(|address| lease["address"] == address.as_str()).unwrap();
            (pods[at].name.clone(), addresses[at].clone())
        };
        test_node.pods = [of_slot(0), of_slot(1)];
        test_node
    }

    /// Restarts the daemon with these settings.
    fn restart(&mut self, settings: &[(&str, &str)]) {
        if let Some(daemon) = self.daemon.take() {
            daemon.kill().unwrap();
        }
        let usual = [("MINIMUM_IP_TARGET", "12"), ("WARM_IP_TARGET", "1")];
        self.daemon = Some(Daemon::start(self.place, &[&usual[..], settings].concat()).unwrap());
    }

    fn pod(&self, at: usize) -> Spot<'_> {
        Spot { place: self.place, netns: Some(&self.pods[at].0) }
    }

    /// The client address that the peered network sees for each pod.
    fn seen_by_peer(&self) -> [String; 2] {
        [0, 1].map(|at| self.pod(at).ask(PEER_CLIENT, PORT).unwrap().client)
    }

    fn own_addresses(&self) -> [String; 2] {
        [0, 1].map(|at| self.pods[at].1.clone())
    }

    fn host(&self) -> Spot<'_> {
        Spot { place: self.place, netns: None }
    }

    fn node_address(&self) -> [String; 2] {
        [0, 1].map(|_| self.host().ask(PEER_CLIENT, PORT).unwrap().client)
    }

    /// Connections of both pods to the peered network.
    fn streams(&self) -> [Stream; 2] {
        [0, 1].map(|at| self.pod(at).stream(PEER_CLIENT, PORT).unwrap())
    }

    fn table(&self) -> String {
        self.place.sh("nft list table ip enid").unwrap()
    }

    fn rules(&self) -> String {
        self.place.sh("ip rule").unwrap()
    }

    /// The link over which the host reaches a pod.
    fn link_to(&self, address: &str) -> String {
        let route = self.place.sh(&format!("ip -o route show {address}")).unwrap();
        route.split_whitespace().nth(2).unwrap().to_owned()
    }
}

fn ended(streams: [Stream; 2]) -> [String; 2] {
    streams.map(|stream| stream.end().unwrap().client)
}

fn no_drops_since(before: Drops) {
    assert_eq!(lab().drops().unwrap(), before, "the VPC dropped packets of a foreign source");
}

#[test]
fn settings_change_under_running_connections() {
    let dropped = lab().drops().unwrap();
    let mut test_node = TestNode::new(0);
    let (own, node) = (test_node.own_addresses(), test_node.node_address());
    assert_eq!(test_node.seen_by_peer(), node, "by default what leaves the VPC does so as the node");
    // Translated connections continue when nothing is translated any more.
    let streams = test_node.streams();
    test_node.restart(&[("AWS_VPC_K8S_CNI_EXTERNALSNAT", "true")]);
    assert_eq!(test_node.seen_by_peer(), own);
    assert!(!test_node.table().contains("snat to"));
    assert_eq!(ended(streams), node);
    // And the other way round.
    let streams = test_node.streams();
    test_node.restart(&[]);
    assert_eq!(test_node.seen_by_peer(), node);
    assert_eq!(ended(streams), own);
    let streams = test_node.streams();
    test_node.restart(&[("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", "198.51.100.0/24, 172.31.0.0/16")]);
    assert_eq!(test_node.seen_by_peer(), own);
    assert_eq!(ended(streams), node);
    for (value, words) in [("prng", "fully-random"), ("hashrandom", "random"), ("none", "")] {
        test_node.restart(&[("AWS_VPC_K8S_CNI_RANDOMIZESNAT", value)]);
        let table = test_node.table();
        let line = table.lines().find(|line| line.contains("snat to")).unwrap();
        assert_eq!(line.split("snat to").nth(1).unwrap().split_whitespace().nth(1).unwrap_or(""), words, "{line}");
        assert_eq!(test_node.seen_by_peer(), node);
    }
    no_drops_since(dropped);
}

#[test]
fn rules_and_marks_follow_the_settings() {
    let dropped = lab().drops().unwrap();
    let mut test_node = TestNode::new(1);
    let usual = test_node.rules();
    assert!(usual.contains("fwmark 0x80/0x80") && usual.contains("fwmark 0x41/0x7f"), "{usual}");
    // Instance metadata answers pods of either ENI, as it answers the node (401: a token is required); multicast, which a
    // VPC does not carry by itself, ends here and not in the VPC's count of drops.
    let script = "import socket as s, urllib.request as u, urllib.error as e
m = s.socket(s.AF_INET, s.SOCK_DGRAM); m.setsockopt(s.IPPROTO_IP, s.IP_MULTICAST_TTL, 8)
m.sendto(b'-', ('239.1.1.1', 5000))
try: u.urlopen('http://169.254.169.254/latest/meta-data/mac', timeout=5)
except e.HTTPError as x: print(x.code)";
    for (name, _) in &test_node.pods {
        let output = test_node.place.sh(&format!("ip netns exec {name} python3 - <<'P'\n{script}\nP")).unwrap();
        assert_eq!(output.trim(), "401", "{name}");
    }
    // What only main has a route to cannot be reached by a pod that leaves by its own ENI, but for this setting.
    test_node
        .place
        .sh("ip netns add behind; ip link add behind type veth peer name eth0 netns behind
             ip addr add 192.0.2.1/24 dev behind; ip link set behind up
             ip -n behind addr add 192.0.2.10/24 dev eth0; ip -n behind link set eth0 up
             ip -n behind route add default via 192.0.2.1")
        .unwrap();
    let _behind = serve(test_node.place, &["behind"]).unwrap();
    // A client there gets answers of pods on either ENI, though it is outside the VPC: replies go back to it.
    test_node.restart(&[]);
    let names = test_node.pods.clone().map(|(name, _)| name);
    let pods = serve(test_node.place, &names.each_ref().map(String::as_str)).unwrap();
    for (_, address) in &test_node.pods {
        let behind = Spot { place: test_node.place, netns: Some("behind") };
        behind.ask(address, PORT).unwrap().expect("192.0.2.10", address).unwrap();
    }
    drop(pods);
    let (own_way, by_main) = (("AWS_VPC_K8S_CNI_EXTERNALSNAT", "true"), "203.0.113.0/24,192.0.2.10/32");
    test_node.restart(&[own_way]);
    test_node.pod(1).ask("192.0.2.10", PORT).unwrap_err();
    test_node.restart(&[own_way, ("AWS_EXTERNAL_SERVICE_CIDRS", by_main)]);
    let rules = test_node.rules();
    for net in ["203.0.113.0/24", "192.0.2.10"] {
        assert!(rules.contains(&format!("1535:\tfrom all to {net} lookup main")), "{rules}");
    }
    test_node.pod(1).ask("192.0.2.10", PORT).unwrap().expect(&test_node.pods[1].1, "192.0.2.10").unwrap();
    // Other bits: what comes in by the primary for a pod on a secondary ENI still returns by the primary.
    test_node.restart(&[("AWS_VPC_K8S_CNI_CONNMARK", "0x100"), ("ENID_ENI_MARK_MASK", "0x7f0000")]);
    let rules = test_node.rules();
    assert!(rules.contains("1024:\tfrom all fwmark 0x100/0x100 lookup main"), "{rules}");
    assert!(rules.contains("1536:\tfrom all fwmark 0x410000/0x7f0000"), "{rules}");
    assert_eq!(rules.lines().filter(|line| line.starts_with("1536:")).count(), 2, "{rules}");
    let (name, address) = &test_node.pods[1].clone();
    let _server = serve(test_node.place, &[name]).unwrap();
    test_node
        .place
        .sh(&format!(
            "nft 'table ip services {{ chain prerouting {{ type nat hook prerouting priority dstnat;
             fib daddr type local tcp dport 30080 dnat to {address}:{PORT}; }}; }}'"
        ))
        .unwrap();
    let outside = Spot { place: Place { lab: lab(), name: "peer" }, netns: None };
    let asked = || outside.ask(&lab().node(1).address, 30080);
    asked().unwrap().expect(PEER_CLIENT, address).unwrap();
    test_node.pod(1).ask(INTERNET_SERVER, PORT).unwrap();
    test_node.restart(&[]);
    assert_eq!(test_node.rules(), usual);
    asked().unwrap().expect(PEER_CLIENT, address).unwrap();
    no_drops_since(dropped);
    // Without it the pod's own ENI takes the answer, under the node's address, and the VPC drops it.
    test_node.restart(&[("AWS_VPC_CNI_NODE_PORT_SUPPORT", "false")]);
    assert!(!test_node.rules().contains("1024:") && !test_node.rules().contains("1535:"), "{}", test_node.rules());
    assert!(!test_node.table().contains("chain arrive"));
    asked().unwrap_err();
    assert!(lab().drops().unwrap().foreign_source > dropped.foreign_source);
}

#[test]
fn links_follow_the_settings() {
    let dropped = lab().drops().unwrap();
    let mut test_node = TestNode::new(3);
    let there = &lab().node(0).address;
    let [_, (name, address)] = test_node.pods.clone();
    let (former, link) = (Pod::new(3, &name), test_node.link_to(&address));
    test_node.restart(&[("AWS_VPC_ENI_MTU", "8000"), ("POD_MTU", "1400"), ("AWS_VPC_K8S_CNI_VETHPREFIX", "veth")]);
    let pod = Pod::new(3, "pod-3-new");
    let (new_address, _) = pod.add(test_node.place).unwrap();
    let new_link = test_node.link_to(&new_address);
    assert!(link.starts_with("eni") && new_link.starts_with("veth"), "{link}, {new_link}");
    let listed = test_node.place.enid("pods").unwrap().to_string();
    assert!(listed.contains(&link) && listed.contains(&new_link), "{listed}");
    let new = Spot { place: test_node.place, netns: Some(&pod.name) };
    let far = Spot { place: Place::node(lab(), 0), netns: None };
    // Pods of before still have large links: the limit is that of the ENIs.
    let paths = [
        (test_node.host(), there, 8000),
        (test_node.pod(0), there, 8000),
        (test_node.pod(1), there, 8000),
        (new, there, 1400),
        (far, &new_address, 1400),
    ];
    for (from, to, mtu) in paths {
        let payload = mtu - 28; // behind the headers of IP and ICMP
        from.ping(to, payload).unwrap();
        from.ping(to, payload + 1).unwrap_err();
    }
    // Links are identified by their MACs: those with a former prefix are repaired and deleted like all others.
    test_node.place.sh(&format!("ip link set {link} down")).unwrap();
    wait_until(BOUND, || test_node.pod(1).ping(there, 56).is_ok()).unwrap();
    former.del(test_node.place).unwrap();
    test_node.restart(&[]);
    test_node.place.sh(&format!("ip link set {new_link} down")).unwrap();
    wait_until(BOUND, || new.ping(there, 56).is_ok()).unwrap();
    test_node.daemon.take().unwrap().kill().unwrap();
    pod.del(test_node.place).unwrap(); // by the plugin alone
    let left = test_node.place.sh("ip -o link").unwrap();
    assert!(!left.contains(&link) && !left.contains(&new_link), "{left}");
    no_drops_since(dropped);
}

#[test]
fn the_nodes_own_sockets_are_never_translated() {
    let dropped = lab().drops().unwrap();
    let (place, node) = (Place::node(lab(), 4), lab().node(4));
    let _daemon = Daemon::start(place, &[]).unwrap();
    let _servers = ["inet", "peer"].map(|name| serve(Place { lab: lab(), name }, &[]).unwrap());
    assert!(place.sh("nft list chain ip enid egress").unwrap().contains("snat to"));
    for (server, own) in [(PEER_CLIENT, &node.address), (INTERNET_SERVER, &node.public_address)] {
        let seen = Spot { place, netns: None }.ask_as(("", 2000), server, PORT).unwrap();
        assert_eq!((&seen.client, seen.port), (own, 2000), "{server}");
    }
    no_drops_since(dropped);
}

#[test]
fn the_vpcs_cidrs_are_followed() {
    let dropped = lab().drops().unwrap();
    let test_node = TestNode::new(2);
    let (own, node) = (test_node.own_addresses(), test_node.node_address());
    let has_net = |net: &str| test_node.table().contains(net);
    let streams = test_node.streams();
    lab().set_imds(&Faults { more_cidrs: vec![PEER_NET.to_owned()], ..Faults::default() }).unwrap();
    wait_until(BOUND, || has_net(PEER_NET)).unwrap();
    assert_eq!(test_node.seen_by_peer(), own);
    assert_eq!(ended(streams), node);
    let streams = test_node.streams();
    lab().set_imds(&Faults::default()).unwrap();
    wait_until(BOUND, || !has_net(PEER_NET)).unwrap();
    assert_eq!(test_node.seen_by_peer(), node);
    assert_eq!(ended(streams), own);
    no_drops_since(dropped);
}

/// Nor after a link has lost its MAC meanwhile.
#[test]
fn a_start_that_is_shown_no_second_eni_breaks_no_connection() {
    let dropped = lab().drops().unwrap();
    let mut test_node = TestNode::new(4);
    let (rules, own) = (test_node.rules(), test_node.own_addresses());
    let far = lab().node(0).address.clone();
    let _far = serve(Place::node(lab(), 0), &[]).unwrap();
    let works = |test_node: &TestNode| test_node.pod(1).ask(&far, PORT)?.expect(&own[1], &far);
    works(&test_node).unwrap();
    lab().set_imds(&Faults { only_primary: true, ..Faults::default() }).unwrap();
    // LocalStack would attach another one in the place of that which is not shown.
    test_node.daemon.take().unwrap().kill().unwrap();
    let alone = [("DISABLE_NETWORK_RESOURCE_PROVISIONING", "true")];
    test_node.daemon = Some(Daemon::spawn(test_node.place, &alone).unwrap());
    wait_until_reconciled(test_node.place).unwrap();
    assert_eq!(test_node.rules(), rules);
    works(&test_node).unwrap();
    no_drops_since(dropped);
    lab().set_imds(&Faults::default()).unwrap();
    // Only the kernel's rules and tables say now which link it is.
    test_node.daemon.take().unwrap().kill().unwrap();
    let mac = test_node.place.sh("cat /sys/class/net/eth1/address").unwrap();
    test_node.place.sh("ip link set eth1 address 02:00:00:00:00:99").unwrap();
    test_node.restart(&[]);
    wait_until(BOUND, || test_node.place.sh("cat /sys/class/net/eth1/address").is_ok_and(|now| now == mac)).unwrap();
    assert_eq!(test_node.rules(), rules);
    works(&test_node).unwrap();
}
