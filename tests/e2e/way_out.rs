//! What pods need of the host's routing and a host may change under them: its default route, the ENI by which something
//! came in.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use enid_tests::{
    Backend, Daemon, Lab, LabConfig, Place, Pod, kernel,
    traffic::{PORT, Spot, serve},
    wait_until,
};
use vpclab::{INTERNET_SERVER, INTERNET_SERVER_V6, PEER_CLIENT};

const BOUND: Duration = Duration::from_secs(45);

/// One pod on the primary ENI and one on a secondary: name and address; and the address of the secondary ENI itself.
struct Node<'a> {
    place: Place<'a>,
    _daemon: Daemon,
    pods: [(String, String); 2],
    secondary: String,
}

impl<'a> Node<'a> {
    fn new(lab: &'a Lab, index: usize) -> Self {
        let place = Place::node(lab, index);
        let daemon = Daemon::start(place, &[("MINIMUM_IP_TARGET", "12"), ("WARM_IP_TARGET", "1")]).unwrap();
        wait_until(BOUND, || place.number("available").is_ok_and(|available| available >= 12)).unwrap();
        let pods: Vec<Pod> = (0..11).map(|n| Pod::new(index, &format!("way-{index}-{n}"))).collect();
        let pods: Vec<(String, String)> =
            pods.iter().map(|pod| (pod.name.clone(), pod.add(place).unwrap().0)).collect();
        let enis = place.enid("enis").unwrap();
        let leases = place.leases().unwrap();
        let of_slot = |slot: u64| enis.as_array().unwrap().iter().find(|eni| eni["slot"] == slot).unwrap();
        let pods = [0, 1].map(|slot| {
            let lease = leases.iter().find(|lease| lease["eni"] == of_slot(slot)["id"]).unwrap();
            pods.iter().find(|(_, address)| lease["address"] == address.as_str()).unwrap().clone()
        });
        let secondary = of_slot(1)["primary_address"].as_str().unwrap().to_owned();
        Node { place, _daemon: daemon, pods, secondary }
    }

    /// What is wrong with the host's own network.
    fn host(&self) -> String {
        self.place.enid("status").unwrap()["host"].as_str().unwrap().to_owned()
    }

    fn conflicts(&self) -> String {
        self.place.enid("status").unwrap()["conflicts"].to_string()
    }
}

/// A DHCP client on a secondary ENI sets a default route of its own, or takes the one that there is along when it ends:
/// pods leave by their ENIs as before, and the host's other routes count for them as before.
#[test]
fn pods_leave_by_their_enis_whatever_becomes_of_the_hosts_default_route() {
    let lab = Lab::up(&LabConfig { name: "way-out".to_owned(), ec2: Backend::Model, ..LabConfig::default() }).unwrap();
    let dropped = lab.drops().unwrap();
    let node = Node::new(&lab, 0);
    let host = Spot { place: node.place, netns: None };
    node.place
        .sh("ip netns add behind; ip link add behind type veth peer name eth0 netns behind
             ip addr add 192.0.2.1/24 dev behind; ip link set behind up
             ip -n behind addr add 192.0.2.10/24 dev eth0; ip -n behind link set eth0 up
             ip -n behind route add default via 192.0.2.1")
        .unwrap();
    let names = node.pods.clone().map(|(name, _)| name);
    let _servers = [
        serve(Place { lab: &lab, name: "inet" }, &[]).unwrap(),
        serve(Place { lab: &lab, name: "peer" }, &[]).unwrap(),
        serve(node.place, &["behind", &names[0], &names[1]]).unwrap(),
    ];
    let peer = Spot { place: Place { lab: &lab, name: "peer" }, netns: None };
    let works = || {
        for (name, address) in &node.pods {
            let pod = Spot { place: node.place, netns: Some(name) };
            pod.ask(INTERNET_SERVER, PORT)
                .and_then(|seen| seen.expect(&lab.node(0).public_address, INTERNET_SERVER))?;
            pod.ask(PEER_CLIENT, PORT).and_then(|seen| seen.expect(&lab.node(0).address, PEER_CLIENT))?;
            // A VPN, or a network of containers.
            pod.ask("192.0.2.10", PORT)?;
            peer.ask(address, PORT).and_then(|seen| seen.expect(PEER_CLIENT, address))?;
        }
        anyhow::Ok(())
    };
    works().unwrap();
    assert_eq!(node.conflicts(), "[]");
    let before = node.place.sh("ip route show default").unwrap();
    host.ask(INTERNET_SERVER, PORT).unwrap();

    node.place.sh("ip route replace default via 10.0.1.1 dev eth1 onlink").unwrap();
    wait_until(BOUND, || node.host().starts_with("host_route: ") && node.host().contains("over eth1")).unwrap();
    works().unwrap();
    assert_eq!(lab.drops().unwrap(), dropped, "pods' packets left by an ENI that is not theirs");
    let host_is_steered = node.place.sh("ip route get 203.0.113.1").unwrap();
    assert!(host_is_steered.contains("dev eth1"), "the host's own packets go as the host has it: {host_is_steered}");

    node.place.sh("ip route del default").unwrap();
    wait_until(BOUND, || node.host().contains("no default route")).unwrap();
    assert!(node.place.metrics().unwrap().contains("enid_cause{cause=\"host_route\",kind=\"host\"} 1"));
    works().unwrap();
    host.ask(INTERNET_SERVER, PORT).unwrap_err();

    node.place.sh(&format!("ip route add {}", before.trim())).unwrap();
    wait_until(BOUND, || node.host().is_empty()).unwrap();
    assert_eq!(node.conflicts(), "[]");
    host.ask(INTERNET_SERVER, PORT).unwrap();
    works().unwrap();
    assert_eq!(lab.drops().unwrap(), dropped);
}

/// What is asked at the address of a secondary ENI is answered by that ENI, whoever answers: a pod of any ENI, the host,
/// a node that the request was passed on to.
#[test]
fn what_came_in_by_an_eni_is_answered_by_that_eni() {
    let lab =
        Lab::up(&LabConfig { name: "way-back".to_owned(), nodes: 2, ec2: Backend::Model, ..LabConfig::default() })
            .unwrap();
    let dropped = lab.drops().unwrap();
    let node = Node::new(&lab, 0);
    let names = node.pods.clone().map(|(name, _)| name);
    let _servers = [
        serve(node.place, &[&names[0], &names[1]]).unwrap(),
        serve(node.place, &[]).unwrap(),
        serve(Place::node(&lab, 1), &[]).unwrap(),
    ];
    let far = lab.node(1).address.clone();
    let [(_, of_primary), (_, of_secondary)] = &node.pods;
    node.place
        .sh(&format!(
            "nft 'table ip services {{
               chain prerouting {{ type nat hook prerouting priority dstnat;
                 tcp dport 30080 fib daddr type local dnat to {of_primary}:{PORT};
                 tcp dport 30081 fib daddr type local dnat to {of_secondary}:{PORT};
                 tcp dport 30082 fib daddr type local dnat to {far}:{PORT};
                 tcp dport 30083 fib daddr type local dnat to {}:{PORT}; }};
               chain postrouting {{ type nat hook postrouting priority srcnat; ip daddr {far} masquerade; }}; }}'",
            lab.node(0).address
        ))
        .unwrap();
    let peer = Spot { place: Place { lab: &lab, name: "peer" }, netns: None };
    for asked in [&node.secondary, &lab.node(0).address] {
        for (port, who) in [
            (30080, "a pod of the primary ENI"),
            (30081, "a pod of the secondary ENI"),
            (30082, "another node"),
            (30083, "the host at its primary address"),
            (PORT, "the host"),
        ] {
            let answer = peer.ask(asked, port);
            assert!(answer.is_ok(), "{who}, asked at {asked}:{port}: {answer:?}");
        }
    }
    assert_eq!(lab.drops().unwrap(), dropped, "answers left by an ENI that has not their address");
}

/// The primary ENI may be a port of a bridge that has its address and the default route, as OVN makes it: pods come and
/// go by that bridge.
#[test]
fn the_primary_eni_may_be_a_port_of_a_bridge() {
    let lab = Lab::up(&LabConfig { name: "bridged".to_owned(), ec2: Backend::Model, ..LabConfig::default() }).unwrap();
    let dropped = lab.drops().unwrap();
    let (place, own) = (Place::node(&lab, 0), &lab.node(0).address);
    place
        .sh(&format!(
            "mac=$(cat /sys/class/net/eth0/address)
             ip link add name br-ex address $mac type bridge
             ip addr del {own}/24 dev eth0; ip link set eth0 master br-ex; ip link set br-ex up
             ip addr add {own}/24 dev br-ex; ip route add default via 10.0.1.1 dev br-ex"
        ))
        .unwrap();
    let node = Node::new(&lab, 0);
    let _servers = [
        serve(Place { lab: &lab, name: "inet" }, &[]).unwrap(),
        serve(Place { lab: &lab, name: "peer" }, &[]).unwrap(),
    ];
    for (name, _) in &node.pods {
        let pod = Spot { place, netns: Some(name) };
        pod.ask(INTERNET_SERVER, PORT).unwrap().expect(&lab.node(0).public_address, INTERNET_SERVER).unwrap();
        pod.ask(PEER_CLIENT, PORT).unwrap().expect(own, PEER_CLIENT).unwrap();
    }
    assert_eq!((node.conflicts().as_str(), lab.drops().unwrap()), ("[]", dropped));
}

/// Whoever is behind a pod's link finds its gateway by ARP and neighbour discovery (a guest behind a bridge in the pod,
/// a pod that flushed its neighbours), and the host answers for nothing else.
#[test]
fn a_pods_gateway_is_found_by_the_ordinary_protocol() {
    let config = LabConfig { name: "gateway".to_owned(), ec2: Backend::Model, ipv6: true, ..LabConfig::default() };
    let lab = Lab::up(&config).unwrap();
    let place = Place::node(&lab, 0);
    let _daemon = Daemon::start(place, &[("ENABLE_IPv6", "true"), ("WARM_IP_TARGET", "2")]).unwrap();
    let _servers = serve(Place { lab: &lab, name: "inet" }, &[]).unwrap();
    let pod = Pod::new(0, "forgets");
    pod.add(place).unwrap();
    let spot = Spot { place, netns: Some(&pod.name) };
    let inside = |line: &str| place.sh(&format!("ip netns exec {} sh -ec '{line}'", pod.name));
    let forget = "ip neigh flush all nud permanent; ip -6 neigh flush all nud permanent";
    let reaches = || [INTERNET_SERVER, INTERNET_SERVER_V6].map(|server| spot.ask(server, PORT).map(|_| ()));
    inside(forget).unwrap();
    for answer in reaches() {
        answer.unwrap();
    }
    for (family, other) in [("-4", "169.254.1.2"), ("-4", "10.0.1.1"), ("-6", "fe80::2")] {
        inside(&format!("ip {family} route replace {other} dev eth0; ping -c 1 -W 2 {other} || true")).unwrap();
        let known = inside(&format!("ip {family} neigh show {other} dev eth0")).unwrap();
        assert!(known.contains("FAILED") || known.contains("INCOMPLETE"), "was {other} asked for? {known}");
        assert!(!known.contains("lladdr"), "the host answers for {other}: {known}");
    }
    // A guest behind a bridge in the pod that has taken over its address and MAC, as KubeVirt binds one.
    let host = Pod::new(0, "host-of-guest");
    let (address, _) = host.add(place).unwrap();
    place
        .sh(&format!(
            "pod() {{ ip netns exec {} \"$@\"; }}
             mac=$(pod cat /sys/class/net/eth0/address)
             ip netns add guest
             pod ip link set eth0 down; pod ip addr flush dev eth0; pod ip link set eth0 address 02:00:00:00:77:01
             pod ip link add name binding type bridge; pod ip link set binding up; pod ip link set eth0 master binding
             pod ip link add name tap0 type veth peer name eth0 netns guest; pod ip link set tap0 master binding
             pod ip link set eth0 up; pod ip link set tap0 up
             ip -n guest link set eth0 address $mac; ip -n guest link set eth0 up
             ip -n guest addr add {address}/32 dev eth0
             ip -n guest route add 169.254.1.1 dev eth0; ip -n guest route add default via 169.254.1.1 dev eth0",
            host.name
        ))
        .unwrap();
    let guest = Spot { place, netns: Some("guest") };
    guest.ask(INTERNET_SERVER, PORT).unwrap();
    // What somebody takes away comes back.
    let answering = || place.sh("ip -6 -o addr show to fe80::1").unwrap();
    let link = answering().split_whitespace().nth(1).unwrap().to_owned();
    place.sh(&format!("ip -6 addr del fe80::1/128 dev {link}")).unwrap();
    wait_until(BOUND, || answering().contains(&link)).unwrap();
}

/// What the host masquerades over IPv6 leaves by the pod's ENI under an address that the VPC accepts there: EC2 gives a
/// secondary ENI none, so it keeps one of its prefix.
#[test]
fn what_a_secondary_eni_masquerades_over_ipv6_has_an_address_of_that_eni() {
    let config =
        LabConfig { name: "masquerade".to_owned(), nodes: 2, ec2: Backend::Model, ipv6: true, ..LabConfig::default() };
    let lab = Lab::up(&config).unwrap();
    let dropped = lab.drops().unwrap();
    let settings = [("ENABLE_IPv6", "true"), ("MINIMUM_IP_TARGET", "12"), ("WARM_IP_TARGET", "1")];
    let [near, far] = [0, 1].map(|index| Place::node(&lab, index));
    let _daemons = [near, far].map(|place| Daemon::start(place, &settings).unwrap());
    let endpoint = Pod::new(1, "endpoint");
    endpoint.add(far).unwrap();
    wait_until(BOUND, || near.number("available").is_ok_and(|available| available >= 12)).unwrap();
    let pods: Vec<Pod> = (0..11).map(|n| Pod::new(0, &format!("asks-{n}"))).collect();
    let addresses: Vec<String> = pods.iter().map(|pod| pod.add(near).unwrap().0).collect();
    let _server = serve(far, &[&endpoint.name]).unwrap();
    let v6_of = |place: Place<'_>, netns: &str| {
        let list = format!("ip netns exec {netns} ip -6 -o addr show dev eth0 scope global");
        place.sh(&list).unwrap().split_whitespace().nth(3).unwrap().split('/').next().unwrap().to_owned()
    };
    let to = v6_of(far, &endpoint.name);
    let own = near.sh("ip -6 -o addr show dev eth0 scope global").unwrap();
    let own = own.split_whitespace().nth(3).unwrap().split('/').next().unwrap().to_owned();
    near.sh(&format!(
        "nft 'table ip6 services {{
           chain prerouting {{ type nat hook prerouting priority dstnat;
             tcp dport 30080 fib daddr type local dnat to [{to}]:{PORT}; }};
           chain postrouting {{ type nat hook postrouting priority srcnat; ip6 daddr {to} masquerade; }}; }}'"
    ))
    .unwrap();
    let enis = near.enid("enis").unwrap();
    let slot = |address: &String| {
        let leases = near.leases().unwrap();
        let lease = leases.iter().find(|lease| lease["address"] == address.as_str()).unwrap();
        enis.as_array().unwrap().iter().find(|eni| eni["id"] == lease["eni"]).unwrap()["slot"].clone()
    };
    assert_eq!([slot(&addresses[0]), slot(&addresses[10])], [0, 1], "one on the primary ENI, one on a secondary");
    let on_secondary = near.sh("ip -6 -o addr show dev eth1 scope global").unwrap();
    assert!(on_secondary.contains("/128"), "{on_secondary}");
    // The kernel's own route for that address is nobody else's.
    kernel::wait_until_reconciled(near).unwrap();
    assert_eq!(near.enid("status").unwrap()["conflicts"], serde_json::json!([]));
    let on_primary = near.sh("ip -6 -o addr show dev eth0 scope global").unwrap();
    for (pod, addresses) in [(&pods[0], &on_primary), (&pods[10], &on_secondary)] {
        let answer = Spot { place: near, netns: Some(&pod.name) }.ask(&own, 30080).unwrap();
        assert_eq!(answer.server, to);
        assert!(addresses.contains(&format!(" {}/128", answer.client)), "{} is not of {addresses}", answer.client);
    }
    assert_eq!(lab.drops().unwrap(), dropped, "masqueraded packets left by an ENI that has not their address");
}
