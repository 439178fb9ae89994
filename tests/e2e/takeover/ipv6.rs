//! Pods with IPv6 addresses, and pods with a way out in the other family, become ours.

use std::net::IpAddr;

use enid_tests::{
    Daemon, Lab, Place, Pod,
    peer::{self, Backend, PeerPod},
    traffic::{PORT, Ping, Spot, Stream, serve},
    wait_until,
};
use vpclab::{INTERNET_SERVER, INTERNET_SERVER_V6, LabConfig};

use super::{BOUND, DONE, flows::macs, with_enis};

fn lab(name: &str) -> Lab {
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

fn taken_over(lab: &Lab, pods: &[PeerPod], settings: &[(&str, &str)], second: &str) {
    let place = Place::node(lab, 0);
    let settings = [settings, &[("ENID_TAKE_OVER", "true"), ("IP_COOLDOWN_PERIOD", "1"), ("MAX_ENI", "2")]].concat();
    let made = peer::traces(place).unwrap();
    for trace in ["512:", "CNI-E", "Block Node", "10-aws.conflist", "vpc-cni-ipam/1"] {
        assert!(made.contains(trace), "{trace} is not in {made}");
    }
    let macs_before = macs(place, pods);
    let names: Vec<&str> = pods.iter().map(|pod| pod.pod.name.as_str()).collect();
    let servers = (serve(place, &names).unwrap(), serve(Place { lab, name: "inet" }, &[]).unwrap());
    let (running, pings) = flows(place, pods);

    let daemon = Daemon::start(place, &settings).unwrap();
    wait_until(BOUND, || daemon.log().contains(DONE)).unwrap_or_else(|_| panic!("{}", daemon.log()));
    assert_eq!(peer::traces(place).unwrap(), "", "{}", daemon.log());
    // A new pod, whose addresses nobody else has; new connections of all of them, in both families.
    let new = Pod { config: peer::config(), ..Pod::new(0, "new") };
    let (address, _) = new.add(place).unwrap();
    assert!(pods.iter().all(|pod| pod.address != address));
    let leases = place.leases().unwrap();
    let of_new = leases.iter().find(|lease| lease["address"] == address.as_str()).unwrap();
    assert_eq!(of_new["second_address"], second, "those of the pods that stay are in use");
    for name in names.iter().copied().chain(["new"]) {
        let inside = Spot { place, netns: Some(name) };
        let of_v6 = if address.contains(':') { None } else { lab.node(0).address_v6.clone() };
        let as_node = [(INTERNET_SERVER, Some(lab.node(0).public_address.clone())), (INTERNET_SERVER_V6, of_v6)];
        for (server, client) in as_node {
            let answer =
                inside.ask(server, PORT).unwrap_or_else(|failure| panic!("{name}: {failure:#}, {}", daemon.log()));
            assert!(client.is_none_or(|client| answer.client == client), "{name} to {server}: {answer:?}");
        }
    }
    for pod in pods {
        let asked = Spot { place, netns: Some("new") }.ask(&pod.address, PORT).unwrap();
        asked.expect(&address, &pod.address).unwrap();
    }
    for ping in pings {
        let (sent, back) = ping.end().unwrap();
        println!("{sent} echoes, {} lost", sent - back);
        assert_eq!(sent, back);
    }
    running.into_iter().for_each(|stream| drop(stream.end().unwrap()));
    let (ways_out, leases): (Vec<_>, Vec<_>) =
        place.leases().unwrap().into_iter().partition(|lease| lease["state"] == "orphaned");
    assert_eq!((ways_out.len(), leases.len()), (pods.len(), pods.len() + 1), "{ways_out:?}");
    for pod in pods {
        let lease = leases.iter().find(|lease| lease["address"] == pod.address.as_str()).unwrap();
        assert_eq!((&lease["container"], &lease["state"]), (&pod.pod.container.as_str().into(), &"wired".into()));
    }
    assert_eq!(macs(place, pods), macs_before);
    drop(servers);
    daemon.kill().unwrap();
    let daemon = Daemon::start(place, &settings).unwrap();
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
    taken_over(&lab, &pods, &v6, "169.254.172.6");
}

#[test]
fn of_an_ipv4_cluster_with_ipv6_egress() {
    let lab = lab("v6egress");
    let place = Place::node(&lab, 0);
    with_enis(place, &[("MINIMUM_IP_TARGET", "42"), ("WARM_ENI_TARGET", "0")]);
    let pods = peer::make(place, &[2, 2], Backend::Nft).unwrap();
    let own = lab.node(0).address_v6.clone().unwrap();
    peer::with_egress(place, &pods, own.parse::<IpAddr>().unwrap()).unwrap();
    taken_over(&lab, &pods, &[("ENABLE_V6_EGRESS", "true")], "fd00::ac:6");
}
