//! Pods with IPv6 addresses, and pods with a way out in the other family, become ours, and are given back.

use std::net::IpAddr;

use enid_datapath::{Family, peer::egress_chain};
use enid_tests::{
    Daemon, Lab, Place, Pod,
    peer::{self, Backend, PeerPod},
    traffic::{PORT, Ping, Spot, Stream, serve},
    wait_until,
};
use vpclab::{INTERNET_SERVER, INTERNET_SERVER_V6, LabConfig};

use super::{
    BOUND, DONE,
    flows::macs,
    given_back::{hand_back_with, of_file, of_pods, state},
    with_enis,
};

pub fn lab(name: &str) -> Lab {
    let name = format!("{name}{}", std::process::id());
    let config =
        LabConfig { name, nodes: 1, instance_type: "m5.xlarge".to_owned(), ipv6: true, ..LabConfig::default() };
    Lab::up(&LabConfig { ec2: enid_tests::Backend::Model, large_subnets: true, ..config }).unwrap()
}

/// Streams between the pods, and out of the VPC in both families.
fn flows(place: Place<'_>, pods: &[PeerPod]) -> (Vec<Stream>, Vec<Ping>) {
    let (mut streams, mut pings) = (Vec::new(), Vec::new());
    for from in pods {
        let inside = Spot { place, netns: Some(&from.pod.name) };
        let others = pods.iter().map(|pod| pod.address.as_str()).filter(|address| *address != from.address);
        for to in others.chain([INTERNET_SERVER, INTERNET_SERVER_V6]) {
            streams.push(inside.stream(to, PORT).unwrap());
            pings.push(inside.ping_on(to).unwrap());
        }
    }
    (streams, pings)
}

/// All of the node that a take-over changes: kernel, what iptables says, and what its egress plugin has noted.
pub fn all(place: Place<'_>) -> Vec<String> {
    let mut all = state(place, &[]);
    let more = "for save in iptables-nft-save ip6tables-nft-save; do $save | grep -v -e '^[#:]' | sed 's/^\\[[0-9:]*\\] //'; done
        cd /run/cni && grep -r . */*/aws-cni | tr -d '\\r' | sort";
    all.extend(place.sh(more).unwrap().lines().map(str::to_owned));
    all.sort();
    all
}

/// New connections of a pod to both servers, as the node; in the family in which pods have no address of the VPC at least.
fn leaves(place: Place<'_>, name: &str, of_v4: bool, what: &str) {
    let inside = Spot { place, netns: Some(name) };
    let node = place.lab.node(0);
    let of_v6 = if of_v4 { node.address_v6.clone() } else { None };
    for (server, client) in [(INTERNET_SERVER, Some(node.public_address.clone())), (INTERNET_SERVER_V6, of_v6)] {
        let answer = inside.ask(server, PORT).unwrap_or_else(|failure| panic!("{name}: {failure:#}, {what}"));
        assert!(client.is_none_or(|client| answer.client == client), "{name} to {server}: {answer:?}");
    }
}

fn takes_over(place: Place<'_>, settings: &[(&str, &str)], pod: &str) -> Daemon {
    let more = [("ENID_TAKE_OVER", "true"), ("IP_COOLDOWN_PERIOD", "1"), ("MAX_ENI", "2"), ("MY_POD_NAME", pod)];
    let daemon = Daemon::start(place, &[settings, &more].concat()).unwrap();
    wait_until(BOUND, || peer::traces(place).is_ok_and(|traces| traces.is_empty()) && daemon.log().contains(DONE))
        .unwrap_or_else(|_| panic!("{}, {}", peer::traces(place).unwrap(), daemon.log()));
    daemon
}

fn there_and_back(lab: &Lab, pods: &[PeerPod], settings: &[(&str, &str)], second: &str) {
    let place = Place::node(lab, 0);
    let of_v4 = !pods[0].address.contains(':');
    let made = peer::traces(place).unwrap();
    for trace in ["512:", "CNI-E", "Block Node", "10-aws.conflist", "vpc-cni-ipam/1"] {
        assert!(made.contains(trace), "{trace} is not in {made}");
    }
    let (before, macs_before) = (all(place), macs(place, pods));
    let names: Vec<&str> = pods.iter().map(|pod| pod.pod.name.as_str()).collect();
    let servers = (serve(place, &names).unwrap(), serve(Place { lab, name: "inet" }, &[]).unwrap());
    let (running, pings) = flows(place, pods);

    let hand_back = |pod| hand_back_with(place, &[settings, &[("MY_POD_NAME", pod)]].concat(), "");
    let daemon = takes_over(place, settings, "enid-first");
    let (said, is_fine) = hand_back("enid-first");
    assert!(is_fine, "{said}, {}", daemon.log());
    let after = all(place);
    let missing = |from: &[String], of: &[String]| {
        let mut there = from.to_vec();
        let gone = |line: &&String| there.iter().position(|it| it == *line).map(|at| there.remove(at)).is_none();
        of.iter().filter(gone).cloned().collect::<Vec<_>>()
    };
    let (less, more) = (missing(&after, &before), missing(&before, &after));
    assert!(less.is_empty() && more.is_empty(), "less {less:#?}, more {more:#?}, {}", daemon.log());
    assert_eq!(of_file(place), of_pods(pods));
    names.iter().for_each(|name| leaves(place, name, of_v4, &daemon.log()));
    daemon.kill().unwrap();

    // A new pod, whose addresses nobody else has, has both on one link.
    let daemon = takes_over(place, settings, "enid-second");
    let new = Pod { config: peer::config(), ..Pod::new(0, "new") };
    let (address, _) = new.add(place).unwrap();
    assert!(pods.iter().all(|pod| pod.address != address));
    let of_new = || {
        let leases = place.leases().unwrap();
        leases
            .into_iter()
            .find(|lease| lease["address"] == address.as_str())
            .unwrap_or_else(|| panic!("{}", daemon.log()))
    };
    assert_eq!(of_new()["second_address"], second, "those of the pods that stay are in use");
    names.iter().copied().chain(["new"]).for_each(|name| leaves(place, name, of_v4, &daemon.log()));
    for pod in pods {
        let asked = Spot { place, netns: Some("new") }.ask(&pod.address, PORT).unwrap();
        asked.expect(&address, &pod.address).unwrap();
    }
    let (said, is_fine) = hand_back("enid-second");
    assert!(is_fine, "{said}, {}", daemon.log());
    let chain = egress_chain(if of_v4 { Family::V6 } else { Family::V4 }, &new.container);
    let after = all(place);
    let of_new_pod = |word: &str| after.iter().filter(|line| line.contains(word)).count();
    assert_eq!(of_new_pod(&format!("-A {chain} ")), 2, "{after:#?}");
    assert_eq!(of_new_pod(&format!("/{second}:{}", new.container)), 1, "{after:#?}");
    assert!(
        !after.iter().any(|line| line.contains("to ") && line.contains(second) && line.starts_with("512")),
        "{after:#?}"
    );
    let expected = of_pods(pods).into_iter().chain([(new.container.clone(), address.clone())]).collect();
    assert_eq!(of_file(place), expected);
    names.iter().copied().chain(["new"]).for_each(|name| leaves(place, name, of_v4, &daemon.log()));
    daemon.kill().unwrap();

    let daemon = takes_over(place, settings, "enid-third");
    let leases = place.leases().unwrap();
    let of_new = leases.iter().find(|lease| lease["address"] == address.as_str()).unwrap();
    assert_eq!((&of_new["second_address"], &of_new["state"]), (&second.into(), &"wired".into()), "{}", daemon.log());
    for ping in pings {
        let (sent, back) = ping.end().unwrap();
        println!("{sent} echoes, {} lost", sent - back);
        assert_eq!(sent, back);
    }
    running.into_iter().for_each(|stream| drop(stream.end().unwrap()));
    let (ways_out, leases): (Vec<_>, Vec<_>) = leases.into_iter().partition(|lease| lease["state"] == "orphaned");
    assert_eq!((ways_out.len(), leases.len()), (pods.len(), pods.len() + 1), "{ways_out:?}");
    for pod in pods {
        let lease = leases.iter().find(|lease| lease["address"] == pod.address.as_str()).unwrap();
        assert_eq!((&lease["container"], &lease["state"]), (&pod.pod.container.as_str().into(), &"wired".into()));
    }
    assert_eq!(macs(place, pods), macs_before);
    drop(servers);
    for pod in pods.iter().map(|pod| &pod.pod).chain([&new]) {
        pod.call(place, "DEL").unwrap();
        pod.remove_namespace(place).unwrap();
    }
    wait_until(BOUND, || place.leases().is_ok_and(|leases| leases.is_empty())).unwrap();
    assert_eq!(
        place.sh("ip -o link | grep -c -e ': eni' -e ': veth' || true").unwrap().trim(),
        "0",
        "{}",
        daemon.log()
    );
    assert_eq!(lab.drops().unwrap().foreign_source, 0);
}

#[test]
fn of_an_ipv6_cluster_with_ipv4_egress() {
    let lab = lab("v6");
    let place = Place::node(&lab, 0);
    let v6 = [("ENABLE_IPv4", "false"), ("ENABLE_IPv6", "true")];
    let daemon = Daemon::start(place, &v6).unwrap();
    daemon.kill().unwrap();
    place.sh(&format!("{} uninstall", enid_tests::program("enid").unwrap().display())).unwrap();
    let pods = peer::make_v6(place, 4).unwrap();
    peer::with_egress(place, &pods, lab.node(0).address.parse::<IpAddr>().unwrap()).unwrap();
    there_and_back(&lab, &pods, &v6, "169.254.172.6");
}

#[test]
fn of_an_ipv4_cluster_with_ipv6_egress() {
    let lab = lab("v6egress");
    let place = Place::node(&lab, 0);
    with_enis(place, &[("MINIMUM_IP_TARGET", "42"), ("WARM_ENI_TARGET", "0")]);
    let pods = peer::make(place, &[2, 2], Backend::Nft).unwrap();
    let own = lab.node(0).address_v6.clone().unwrap();
    peer::with_egress(place, &pods, own.parse::<IpAddr>().unwrap()).unwrap();
    there_and_back(&lab, &pods, &[("ENABLE_V6_EGRESS", "true")], "fd00::ac:6");
}
