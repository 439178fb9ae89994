//! IPv6 alone, both families, and egress in the family in which pods have no address of the VPC.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{sync::OnceLock, time::Duration};

use enid_tests::{
    Backend, Daemon, Lab, LabConfig, Place, Pod,
    kernel::{
        Notifications, REPAIR_BOUND, counter, state, wait_until_idle, wait_until_reconciled, wait_until_restored,
    },
    traffic::{PORT, Servers, Spot, serve},
    wait_until,
};
use serde_json::Value;
use vpclab::{Drops, INTERNET_SERVER, INTERNET_SERVER_V6, PEER_CLIENT_V6};

const BOUND: Duration = Duration::from_secs(45);
const DUAL: &[(&str, &str)] = &[("ENABLE_IPv6", "true"), ("MINIMUM_IP_TARGET", "12"), ("WARM_IP_TARGET", "1")];
const V6: &[(&str, &str)] = &[("ENABLE_IPv4", "false"), ("ENABLE_IPv6", "true")];

/// Two nodes for each test, and a third one in the subnet of the first.
fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(|| {
        Lab::up(&LabConfig { nodes: 8, ec2: Backend::Model, ipv6: true, ..LabConfig::default() }).unwrap()
    })
}

/// A pod, and the addresses in the result of its ADD.
struct Added {
    name: String,
    pod: Pod,
    addresses: Vec<String>,
}

fn add(place: Place<'_>, node: usize, name: &str) -> Added {
    let pod = Pod::new(node, name);
    pod.make_namespace(place).unwrap();
    // As containerd leaves a sandbox that asks for no IPv6.
    place.sh(&format!("ip netns exec {name} sysctl -q net.ipv6.conf.default.disable_ipv6=1")).unwrap();
    let (result, _) = pod.call(place, "ADD").unwrap();
    let config: Value = serde_json::from_str(&pod.config).unwrap();
    let mut config = config;
    config["prevResult"] = result.clone();
    let pod = Pod { config: config.to_string(), ..pod };
    pod.call(place, "CHECK").unwrap();
    let ips = result["ips"].as_array().unwrap();
    let addresses =
        ips.iter().map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().to_owned()).collect();
    Added { name: name.to_owned(), pod, addresses }
}

fn spot<'a>(place: Place<'a>, pod: &'a Added) -> Spot<'a> {
    Spot { place, netns: Some(&pod.name) }
}

fn outside() -> [Servers; 2] {
    ["inet", "peer"].map(|name| serve(Place { lab: lab(), name }, &[]).unwrap())
}

fn no_drops_since(before: Drops) {
    assert_eq!(lab().drops().unwrap(), before, "the VPC dropped packets of a foreign source");
}

fn slot_of(place: Place<'_>, pod: &Added) -> u64 {
    let leases = place.leases().unwrap();
    let lease = leases.iter().find(|lease| lease["address"] == pod.addresses[0].as_str()).unwrap();
    let enis = place.enid("enis").unwrap();
    enis.as_array().unwrap().iter().find(|eni| eni["id"] == lease["eni"]).unwrap()["slot"].as_u64().unwrap()
}

#[test]
fn a_pod_of_two_families_uses_both_by_its_own_eni() {
    let dropped = lab().drops().unwrap();
    let (here, there, neighbour) = (Place::node(lab(), 0), Place::node(lab(), 1), Place::node(lab(), 2));
    let [daemon_here, _daemon_there] = [here, there].map(|place| Daemon::start(place, DUAL).unwrap());
    let third_daemon = Daemon::start(neighbour, DUAL).unwrap();
    for place in [here, there] {
        wait_until(BOUND, || place.number("available").is_ok_and(|available| available >= 12)).unwrap();
    }
    let before = state(here).unwrap();
    let near: Vec<Added> = (0..11).map(|n| add(here, 0, &format!("near-{n}"))).collect();
    let far: Vec<Added> = (0..11).map(|n| add(there, 1, &format!("far-{n}"))).collect();
    let third = add(neighbour, 2, "third");
    let first_and_last = |pods: &[Added]| [slot_of(here, &pods[0]), slot_of(here, &pods[10])];
    assert_eq!(first_and_last(&near), [0, 1], "one on the primary ENI, one on a secondary");
    let names: Vec<&str> = far.iter().map(|pod| pod.name.as_str()).collect();
    let _servers =
        [serve(there, &names).unwrap(), serve(neighbour, &["third"]).unwrap(), serve(here, &["near-0"]).unwrap()];
    let _outside = outside();
    let peer = Spot { place: Place { lab: lab(), name: "peer" }, netns: None };
    let inet = Spot { place: Place { lab: lab(), name: "inet" }, netns: None };
    for from in [&near[0], &near[10]] {
        for to in [&far[0], &far[10], &third] {
            // The third node is in the same subnet: on the link, as far as the node knows.
            for family in [0, 1] {
                let answer =
                    spot(here, from).ask(&to.addresses[family], PORT).unwrap_or_else(|failure| panic!("{failure:#}"));
                answer.expect(&from.addresses[family], &to.addresses[family]).unwrap();
            }
        }
        // The Internet, the peered network: never translated.
        for server in [INTERNET_SERVER_V6, PEER_CLIENT_V6] {
            spot(here, from).ask(server, PORT).unwrap().expect(&from.addresses[1], server).unwrap();
        }
    }
    for to in [&far[0], &far[10]] {
        for (from, address) in [(peer, PEER_CLIENT_V6), (inet, INTERNET_SERVER_V6)] {
            from.ask(&to.addresses[1], PORT).unwrap().expect(address, &to.addresses[1]).unwrap();
        }
        // The node itself, and another node.
        for (node, index) in [(there, 1), (here, 0)] {
            let own = lab().node(index).address_v6.clone().unwrap();
            let answer = Spot { place: node, netns: None }.ask(&to.addresses[1], PORT).unwrap();
            answer.expect(&own, &to.addresses[1]).unwrap();
        }
        spot(there, to).ping(&near[0].addresses[1], 8000).unwrap(); // jumbo frames
    }
    a_restart_writes_nothing(neighbour, third_daemon);
    services_and_resets(there, &far[10].addresses[1], peer, inet);
    // The same node.
    spot(here, &near[10])
        .ask(&near[0].addresses[1], PORT)
        .unwrap()
        .expect(&near[10].addresses[1], &near[0].addresses[1])
        .unwrap();
    // IPv4 leaves as the node, from a secondary ENI too.
    let public = &lab().node(0).public_address;
    spot(here, &near[10]).ask(INTERNET_SERVER, PORT).unwrap().expect(public, INTERNET_SERVER).unwrap();
    // Nothing has waited for neighbour discovery or duplicate address detection.
    assert_eq!(here.sh("ip netns exec near-10 ip -6 -o addr show scope global tentative").unwrap(), "");
    no_drops_since(dropped);
    // What is removed is repaired, in either family, while a stream runs. Without the tables a packet may leave by the
    // primary ENI for a moment, where the VPC drops it; afterwards none does.
    let expected = state(here).unwrap();
    each_part_of_ipv6_is_repaired(here, &near[10].addresses[1], &expected);
    let stream = spot(here, &near[10]).stream(&far[10].addresses[1], PORT).unwrap();
    here.sh("nft flush ruleset; ip -6 rule flush; ip rule flush; ip -6 route flush table 2
             for link in $(ls /sys/class/net | grep ^eni); do ip -6 route flush dev $link proto static; ip -6 neigh flush nud permanent dev $link; done
             sysctl -q net.ipv6.conf.all.forwarding=0")
        .unwrap();
    wait_until_restored(here, &expected, REPAIR_BOUND)
        .unwrap_or_else(|failure| panic!("{failure:#}: {}", daemon_here.log()));
    let dropped = lab().drops().unwrap();
    stream.end().unwrap().expect(&near[10].addresses[1], &far[10].addresses[1]).unwrap();
    for address in &far[10].addresses {
        spot(here, &near[10]).ask(address, PORT).unwrap();
    }
    no_drops_since(dropped);
    near.iter().for_each(|pod| pod.pod.del(here).unwrap());
    assert_eq!(state(here).unwrap(), before, "something is left of pods that have gone");
}

/// One after the other, so that each is found by its own notification.
fn each_part_of_ipv6_is_repaired(place: Place<'_>, pod: &str, expected: &str) {
    let link = place.sh(&format!("ip -6 -o route show {pod}")).unwrap();
    let link = link.split_whitespace().nth(2).unwrap();
    for change in [
        "ip -6 rule del pref 1536",
        "ip -6 route flush table 2",
        "ip -6 route replace unreachable default table 2",
        "sysctl -q net.ipv6.conf.all.forwarding=0",
        "nft flush chain ip6 enid steer",
        &format!("ip -6 route del {pod}"),
        &format!("ip -6 neigh del {pod} dev {link}"),
        &format!("ip -6 neigh replace {pod} dev {link} lladdr 02:00:00:00:00:01 nud stale"),
    ] {
        wait_until_idle(place).unwrap();
        place.sh(change).unwrap();
        let took = wait_until_restored(place, expected, REPAIR_BOUND)
            .unwrap_or_else(|failure| panic!("{change}: {failure:#}"));
        println!("{change}: repaired, seen after {} ms", took.as_millis());
    }
}

/// Neither family's links, addresses, neighbours, routes, rules, link sysctls or tables change.
fn a_restart_writes_nothing(place: Place<'_>, daemon: Daemon) {
    let notifications = Notifications::record(place).unwrap();
    daemon.kill().unwrap();
    let _again = Daemon::start(place, DUAL).unwrap();
    wait_until_reconciled(place).unwrap();
    assert_eq!(counter(place, "enid_repairs_total").unwrap(), 0, "a restart with nothing changed repairs");
    assert_eq!(notifications.end().unwrap(), "", "a restart with nothing changed writes");
}

/// A node port for a pod on a secondary ENI, with the client's own address, and a port that a policy rejects: both
/// answers take the way of the request.
fn services_and_resets(node: Place<'_>, pod: &str, peer: Spot<'_>, inet: Spot<'_>) {
    node.sh(&format!(
        "nft 'table ip6 services {{
             chain prerouting {{ type nat hook prerouting priority dstnat;
                 fib daddr type local tcp dport 30080 dnat to [{pod}]:{PORT}; }}
             chain forward {{ type filter hook forward priority filter;
                 ip6 daddr {pod} tcp dport 9999 reject with tcp reset; }}
         }}'"
    ))
    .unwrap();
    let own = lab().node(1).address_v6.clone().unwrap();
    for (from, address) in [(peer, PEER_CLIENT_V6), (inet, INTERNET_SERVER_V6)] {
        from.ask(&own, 30080).unwrap().expect(address, pod).unwrap();
        let refused = format!("{:#}", from.ask(pod, 9999).unwrap_err());
        assert!(refused.contains("refused"), "{refused}");
    }
    node.sh("nft delete table ip6 services").unwrap();
}

#[test]
fn ipv6_alone_leaves_by_ipv4_as_the_node() {
    let dropped = lab().drops().unwrap();
    let (here, there) = (Place::node(lab(), 3), Place::node(lab(), 4));
    let daemons = [here, there].map(|place| Daemon::start(place, V6).unwrap());
    let near: Vec<Added> = (0..3).map(|n| add(here, 3, &format!("six-{n}"))).collect();
    let far = add(there, 4, "six-far");
    assert!(
        near.iter().all(|pod| pod.addresses.len() == 1 && pod.addresses[0].contains(':')),
        "{:?}",
        near[0].addresses
    );
    let _servers = [serve(there, &["six-far"]).unwrap(), serve(here, &["six-1"]).unwrap()];
    let _outside = outside();
    let from = spot(here, &near[0]);
    from.ask(&far.addresses[0], PORT).unwrap().expect(&near[0].addresses[0], &far.addresses[0]).unwrap();
    from.ask(INTERNET_SERVER_V6, PORT).unwrap().expect(&near[0].addresses[0], INTERNET_SERVER_V6).unwrap();
    // IPv4: as the node, to the Internet and within the VPC.
    let node = lab().node(3);
    from.ask(INTERNET_SERVER, PORT).unwrap().expect(&node.public_address, INTERNET_SERVER).unwrap();
    let _on_node = serve(there, &[]).unwrap();
    from.ask(&lab().node(4).address, PORT).unwrap().expect(&node.address, &lab().node(4).address).unwrap();
    // Another pod cannot be reached at its address of the node's own range.
    let local = here.sh("ip netns exec six-1 ip -4 -o addr show dev eth0").unwrap();
    let local = local.split_whitespace().nth(3).unwrap().split('/').next().unwrap().to_owned();
    assert!(local.starts_with("169.254.17"), "{local}");
    let refused = format!("{:#}", from.ask(&local, PORT).unwrap_err());
    assert!(refused.contains("refused") || refused.contains("unreachable"), "{refused}");
    // What connection tracking does not translate does not leave: a reset of no connection, with a wrong checksum.
    let program = "import socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
s.sendto(struct.pack('!HHIIBBHHH', 1000, 80, 0, 0, 0x50, 4, 0, 0, 0), ('198.51.100.10', 0))";
    here.sh(&format!("ip netns exec six-0 python3 -c \"{program}\"")).unwrap();
    // A restart reads what is there, and writes none of it again.
    let (expected, leases) = (state(here).unwrap(), here.leases().unwrap().len());
    let [first, _second] = daemons;
    first.kill().unwrap();
    let _again = Daemon::start(here, V6).unwrap();
    wait_until_reconciled(here).unwrap();
    assert_eq!((state(here).unwrap(), here.leases().unwrap().len()), (expected, leases));
    // A firewall that drops IPv6 alone is found by an IPv6 packet.
    let cause = || here.enid("status").map_or(String::new(), |status| status["cause_message"].to_string());
    here.sh("nft 'table ip6 filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }'").unwrap();
    wait_until(3 * REPAIR_BOUND, || cause().contains("drops IPv6 packets between pods")).unwrap();
    here.sh("nft delete table ip6 filter").unwrap();
    wait_until(BOUND, || here.serves()).unwrap();
    // One block, however many pods.
    let enis = here.enid("enis").unwrap();
    assert_eq!((enis.as_array().unwrap().len(), enis[0]["blocks"].as_array().unwrap().len()), (1, 1), "{enis}");
    no_drops_since(dropped);
}

#[test]
fn ipv4_alone_leaves_by_ipv6_as_the_node() {
    let dropped = lab().drops().unwrap();
    let place = Place::node(lab(), 5);
    let settings = [("ENABLE_V6_EGRESS", "true"), ("MINIMUM_IP_TARGET", "12"), ("WARM_IP_TARGET", "1")];
    let _daemon = Daemon::start(place, &settings).unwrap();
    wait_until(BOUND, || place.number("available").is_ok_and(|available| available >= 12)).unwrap();
    let pods: Vec<Added> = (0..11).map(|n| add(place, 5, &format!("four-{n}"))).collect();
    assert_eq!([slot_of(place, &pods[0]), slot_of(place, &pods[10])], [0, 1]);
    let _outside = outside();
    let node = lab().node(5);
    let own = node.address_v6.clone().unwrap();
    for pod in [&pods[0], &pods[10]] {
        assert_eq!(pod.addresses.len(), 1, "an address of the node's own range is in the result");
        spot(place, pod).ask(INTERNET_SERVER_V6, PORT).unwrap().expect(&own, INTERNET_SERVER_V6).unwrap();
        spot(place, pod).ask(INTERNET_SERVER, PORT).unwrap().expect(&node.public_address, INTERNET_SERVER).unwrap();
    }
    no_drops_since(dropped);
}

#[test]
fn the_second_family_is_switched_on_and_off_under_running_pods() {
    let dropped = lab().drops().unwrap();
    let place = Place::node(lab(), 6);
    let four: &[(&str, &str)] = &[("WARM_IP_TARGET", "2")];
    let dual: &[(&str, &str)] = &[("WARM_IP_TARGET", "2"), ("ENABLE_IPv6", "true")];
    let _outside = outside();
    let daemon = Daemon::start(place, four).unwrap();
    let old = add(place, 6, "old");
    let stream = spot(place, &old).stream(INTERNET_SERVER, PORT).unwrap();
    daemon.kill().unwrap();
    let daemon = Daemon::start(place, dual).unwrap();
    let new = add(place, 6, "new");
    assert_eq!((old.addresses.len(), new.addresses.len()), (1, 2));
    let stream_v6 = spot(place, &new).stream(INTERNET_SERVER_V6, PORT).unwrap();
    old.pod.call(place, "CHECK").unwrap();
    daemon.kill().unwrap();
    // A change to IPv6 alone is refused while they run, and nothing is changed.
    let expected = state(place).unwrap();
    let refused = Daemon::spawn(place, V6).unwrap();
    let log = || refused.log();
    wait_until(BOUND, || log().contains("2 pods on this node have addresses of the other family")).unwrap();
    assert_eq!(state(place).unwrap(), expected);
    drop(refused);
    let _daemon = Daemon::start(place, four).unwrap();
    let newest = add(place, 6, "newest");
    assert_eq!(newest.addresses.len(), 1);
    new.pod.call(place, "CHECK").unwrap();
    spot(place, &new).ask(INTERNET_SERVER_V6, PORT).unwrap().expect(&new.addresses[1], INTERNET_SERVER_V6).unwrap();
    stream.end().unwrap();
    stream_v6.end().unwrap().expect(&new.addresses[1], INTERNET_SERVER_V6).unwrap();
    no_drops_since(dropped);
}

/// The kind: facts of the instance that were read once.
#[test]
fn an_ipv6_address_that_the_instance_gets_later_is_used() {
    let name = format!("later{}", std::process::id());
    let config = LabConfig { name, nodes: 1, ipv6: true, ec2: Backend::Model, ..LabConfig::default() };
    let lab = Lab::up(&config).unwrap();
    let place = Place::node(&lab, 0);
    let is_primary = |eni: &vpclab::ec2::Eni| eni.attachment.as_ref().is_some_and(|it| it.is_primary());
    let primary = lab.enis().unwrap().into_iter().find(is_primary).unwrap();
    let own = lab.node(0).address_v6.clone().unwrap();
    let of_primary = ("NetworkInterfaceId", primary.id.as_str());
    lab.ec2("UnassignIpv6Addresses", &[of_primary, ("Ipv6Addresses.1", &own)]).unwrap();
    let ask = "import urllib.request as u
base = 'http://169.254.169.254/latest/'
ttl = {'X-aws-ec2-metadata-token-ttl-seconds': '60'}
token = u.urlopen(u.Request(base + 'api/token', headers=ttl, method='PUT')).read().decode()
print(u.urlopen(u.Request(base + 'meta-data/ipv6', headers={'X-aws-ec2-metadata-token': token})).read())";
    wait_until(BOUND, || {
        lab.run(place.name, "python3", &["-c", ask]).is_err_and(|it| format!("{it:#}").contains("404"))
    })
    .unwrap();
    let settings = [("ENABLE_V6_EGRESS", "true"), ("WARM_IP_TARGET", "2")];
    let daemon = Daemon::start(place, &settings).unwrap();
    assert!(daemon.log().contains("it is off until it has one"), "{}", daemon.log());
    let without = Pod::new(0, "without");
    without.add(place).unwrap();
    lab.ec2("AssignIpv6Addresses", &[of_primary, ("Ipv6AddressCount", "1")]).unwrap();
    // All of metadata is read when the VPC's CIDRs change, and every ten minutes.
    let more = vpclab::Faults { more_cidrs: vec!["100.64.0.0/16".to_owned()], ..vpclab::Faults::default() };
    lab.set_imds(&more).unwrap();
    let (code, log) = daemon.wait(Duration::from_secs(60)).unwrap();
    assert!(code == Some(1) && log.contains("this instance has an IPv6 address now"), "{code:?} {log}");
    let daemon = Daemon::start(place, &settings).unwrap();
    let second = || place.leases().unwrap().iter().any(|lease| lease["second_address"] != "");
    Pod::new(0, "with").add(place).unwrap();
    assert!(second(), "{}", daemon.log());
}
