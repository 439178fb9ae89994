//! Beside whom pods live on a node: whoever carries services, whichever ENI a pod is on, every way a packet can take.
//! Each cell is a connection that says who saw whom; the VPC drops whatever leaves by the wrong ENI, and counts it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod rules;

use std::time::Duration;

use enid_tests::{
    Backend, Daemon, Lab, LabConfig, Place, Pod,
    traffic::{PORT, Spot, serve},
    wait_until,
};
use rules::{NOBODY, Proxy, REJECTED};
use vpclab::PEER_CLIENT;

const BOUND: Duration = Duration::from_secs(45);
const SETTINGS: &[(&str, &str)] = &[("MINIMUM_IP_TARGET", "14"), ("WARM_IP_TARGET", "1")];

/// A node with two pods on the primary ENI and two on a secondary: name and address.
struct Node<'a> {
    place: Place<'a>,
    _daemon: Daemon,
    pods: [[(String, String); 2]; 2],
}

impl<'a> Node<'a> {
    fn new(lab: &'a Lab, index: usize) -> Self {
        let place = Place::node(lab, index);
        // As strict as hosts come.
        place.sh("sysctl -q net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1").unwrap();
        if Proxy::all() == [Proxy::Ipvs] {
            crowd(place);
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

    /// Every address that the node itself has in the VPC: whatever it translates leaves under one of them.
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

/// What else a host may carry, where the kernel has it: a VLAN in a VRF, an ipvlan link, a slow primary link. Each kind
/// brings rules, tables or links of its own.
fn crowd(place: Place<'_>) {
    place
        .sh("ip link add blue type vrf table 77; ip link set blue up
             ip link add link eth0 name eth0.5 type vlan id 5; ip link set eth0.5 master blue
             ip addr add 192.168.5.1/24 dev eth0.5; ip link set eth0.5 up
             ip link add link eth0 name ipvl0 type ipvlan mode l2; ip link set ipvl0 up
             tc qdisc add dev eth0 root netem delay 1ms")
        .unwrap();
}

/// What was asked, and how it went.
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

    /// The caller must be told at once that nobody listens.
    fn refused(&mut self, what: &str, from: Spot<'_>, to: (&str, u16)) {
        let said =
            format!("{:#}", from.ask(to.0, to.1).map_or_else(|failure| failure, |_| anyhow::anyhow!("answered")));
        self.note(what, said.contains("refused"), || said.clone());
    }

    fn note(&mut self, what: &str, ok: bool, said: impl Fn() -> String) {
        if ok {
            self.passed += 1;
        } else {
            self.failed.push(format!("{what}: {}", said()));
        }
    }
}

#[test]
fn every_cell_of_the_matrix() {
    let lab = Lab::up(&LabConfig { nodes: 2, ec2: Backend::Model, ..LabConfig::default() }).unwrap();
    let (near, far) = (Node::new(&lab, 0), Node::new(&lab, 1));
    let names: Vec<&str> = far.pods.iter().flatten().map(|(name, _)| name.as_str()).collect();
    let _servers = serve(far.place, &names).unwrap();
    let peer = Spot { place: Place { lab: &lab, name: "peer" }, netns: None };
    let inet = Spot { place: Place { lab: &lab, name: "inet" }, netns: None };
    let endpoints: Vec<String> = far.pods.iter().map(|pods| pods[0].1.clone()).collect();
    let (near_host, far_host) = (lab.node(0).address.as_str(), lab.node(1).address.as_str());
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
            let callers = [
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
                cells.reaches(&what(&format!("its address from {who}")), from, (address, PORT), &[own], address);
            }
            if proxy == Proxy::Nobody {
                continue;
            }
            let (cluster_ip, node_port, local_port) = (format!("10.96.0.1{k}"), 30080 + k, 30090 + k);
            let (node_port, local_port) = (u16::try_from(node_port).unwrap(), u16::try_from(local_port).unwrap());
            for (who, from, own) in &callers[..6] {
                cells.reaches(&what(&format!("ClusterIP from {who}")), *from, (&cluster_ip, 80), &[own], address);
                cells.refused(&what(&format!("a service without endpoints from {who}")), *from, (NOBODY, 80));
            }
            let itself = Spot { place: far.place, netns: Some(name) };
            cells.reaches(&what("ClusterIP from itself"), itself, (&cluster_ip, 80), &[far_host], address);
            for (who, from, own) in callers {
                let cell = what(&format!("its own node's NodePort, Cluster, from {who}"));
                cells.reaches(&cell, from, (far_host, node_port), &by_far, address);
                let cell = what(&format!("its own node's NodePort, Local, from {who}"));
                cells.reaches(&cell, from, (far_host, local_port), &[own], address);
                let cell = what(&format!("another node's NodePort, Cluster, from {who}"));
                cells.reaches(&cell, from, (near_host, node_port), &by_near, address);
            }
            cells.reaches(
                &what("NodePort, Local, from the Internet"),
                inet,
                (&lab.node(1).public_address, local_port),
                &[vpclab::INTERNET_SERVER],
                address,
            );
            for (who, from, _) in [callers[0], callers[2], callers[3], callers[6]] {
                cells.refused(&what(&format!("a port that a policy rejects, from {who}")), from, (address, REJECTED));
            }
        }
        proxy.remove(near.place).unwrap();
        proxy.remove(far.place).unwrap();
    }
    for pods in &near.pods {
        link_local(&mut cells, &near, &pods[0]);
        transparent(&mut cells, &near, &pods[0], &far.pods[1][0].1);
    }
    for node in [&near, &far] {
        let shadows = node.place.enid("status").unwrap()["shadows"].clone();
        cells.note("nothing is told to be in the way", shadows == serde_json::json!([]), || shadows.to_string());
    }
    println!("{} cells passed, {} failed", cells.passed, cells.failed.len());
    assert!(cells.failed.is_empty(), "{:#?}", cells.failed);
    let drops = lab.drops().unwrap();
    assert_eq!((drops.foreign_source, drops.inet_private), (0, 0), "the VPC dropped packets of a foreign source");
}

/// What listens on the node at link-local addresses: NodeLocal DNSCache, the pod identity agent.
fn link_local(cells: &mut Cells, node: &Node<'_>, pod: &(String, String)) {
    let _server = serve(node.place, &[]).unwrap();
    for address in ["169.254.20.10", "169.254.170.23"] {
        node.place.sh(&format!("ip addr replace {address}/32 dev lo")).unwrap();
        cells.reaches(
            &format!("{address} on the node from {}", pod.0),
            node.pod(pod),
            (address, PORT),
            &[&pod.1],
            address,
        );
    }
}

/// A proxy on the node that speaks to others under the pod's own address, as Cilium's and Envoy's do.
fn transparent(cells: &mut Cells, node: &Node<'_>, pod: &(String, String), server: &str) {
    let (from, program) = (
        &pod.1,
        "import socket, sys
s = socket.socket()
s.setsockopt(socket.SOL_IP, 19, 1)
s.settimeout(3)
s.bind((sys.argv[1], 0))
s.connect((sys.argv[2], int(sys.argv[3])))
s.send(b'proxy')
s.shutdown(socket.SHUT_WR)
print(s.recv(100).decode())
",
    );
    node.place
        .sh("nft 'table ip proxy { chain pre { type filter hook prerouting priority -160;
             socket transparent 1 meta mark set 0x200; }; }'
             ip rule add pref 100 fwmark 0x200/0xf00 lookup 100; ip route add local default dev lo table 100")
        .unwrap();
    let said = node.place.lab.run(node.place.name, "python3", &["-c", program, from, server, &PORT.to_string()]);
    let ok = said.as_ref().is_ok_and(|said| said.trim() == format!("5 {from} {server}"));
    cells.note(&format!("a transparent proxy in the name of {}", pod.0), ok, || format!("{said:?}"));
    node.place.sh("nft delete table ip proxy; ip rule del pref 100; ip route flush table 100").unwrap();
}
