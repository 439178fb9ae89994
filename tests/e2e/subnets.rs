//! Subnets of one zone: pods get addresses as long as any that is tagged for them has one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{net::Ipv4Addr, time::Duration};

use enid_tests::{
    Backend, Daemon, Lab, LabConfig, Place, Pod, consistency,
    traffic::{PORT, Spot, serve},
    wait_until,
};
use vpclab::INTERNET_SERVER;

const BOUND: Duration = Duration::from_secs(30);
/// What is idle is detached a minute after it was needed last.
const MINUTES: Duration = Duration::from_secs(180);
/// The further subnet of the first node's zone.
const FURTHER: &str = "10.0.64.0/19";

fn further(lab: &Lab) -> String {
    let filter = [("Filter.1.Name", "cidr-block"), ("Filter.1.Value.1", FURTHER)];
    vpclab::ec2::first(&lab.ec2("DescribeSubnets", &filter).unwrap(), "subnetId").unwrap()
}

fn tag(lab: &Lab, subnet: &str, role: &str) {
    let tag = [("ResourceId.1", subnet), ("Tag.1.Key", "kubernetes.io/role/cni"), ("Tag.1.Value", role)];
    lab.ec2("CreateTags", &tag).unwrap();
}

fn is_further(address: &str) -> bool {
    let net: ipnet::Ipv4Net = FURTHER.parse().unwrap();
    net.contains(&address.parse::<Ipv4Addr>().unwrap())
}

#[test]
fn a_full_subnet_sends_pods_to_the_next_one_that_is_tagged_and_no_add_fails() {
    let lab = Lab::up(&LabConfig { name: "subnets".to_owned(), nodes: 1, ec2: Backend::Model, ..LabConfig::default() })
        .unwrap();
    let place = Place::node(&lab, 0);
    let (first, second) = (lab.node(0).subnet_id.clone(), further(&lab));
    tag(&lab, &second, "1");
    // Five addresses are left for pods where the node is.
    let all: Vec<Ipv4Addr> = (1..255).map(|last| Ipv4Addr::new(10, 0, 1, last)).collect();
    lab.occupy(&first, &all).unwrap();
    lab.vacate(&first, &all[99..104]).unwrap();
    let settings = [("WARM_IP_TARGET", "1"), ("IP_COOLDOWN_PERIOD", "1")];
    let daemon = Daemon::start(place, &settings).unwrap();
    let pods: Vec<(Pod, String)> = (0..9)
        .map(|number| {
            let pod = Pod::new(0, &format!("pod-{number}"));
            let (address, _) = pod.add(place).unwrap();
            (pod, address)
        })
        .collect();
    let (there, here): (Vec<_>, Vec<_>) = pods.iter().partition(|(_, address)| is_further(address));
    assert_eq!((here.len(), there.len()), (5, 4), "{:?}", pods.iter().map(|(_, address)| address).collect::<Vec<_>>());
    wait_until(BOUND, || consistency::check(place).is_ok()).unwrap();
    // Packets go both ways between the subnets, and out as the node.
    let server = serve(place, &[&there[0].0.name]).unwrap();
    for client in [&here[0], &there[1]] {
        let answer = Spot { place, netns: Some(&client.0.name) }.ask(&there[0].1, PORT).unwrap();
        answer.expect(&client.1, &there[0].1).unwrap();
    }
    drop(server);
    let server = serve(Place { lab: &lab, name: "inet" }, &[]).unwrap();
    let answer = Spot { place, netns: Some(&there[0].0.name) }.ask(INTERNET_SERVER, PORT).unwrap();
    assert_eq!(answer.client, lab.node(0).public_address);
    drop(server);

    // The tag goes the other way: who comes then is served where the node is, and the ENI goes once its pods have gone.
    tag(&lab, &second, "0");
    lab.vacate(&first, &all).unwrap();
    there.iter().for_each(|(pod, _)| pod.del(place).unwrap());
    let of_second = || lab.enis().unwrap().iter().filter(|eni| eni.subnet_id == second).count();
    assert_eq!(of_second(), 1);
    drop(daemon);
    let _daemon = Daemon::start(place, &settings).unwrap();
    let is_known = || place.enid("enis").unwrap().to_string().contains("\"excluded\"");
    wait_until(BOUND, is_known).unwrap();
    for (pod, _) in &there {
        let (address, _) = pod.add(place).unwrap();
        assert!(!is_further(&address), "{address}");
    }
    wait_until(MINUTES, || of_second() == 0).unwrap();
    wait_until(BOUND, || consistency::check(place).is_ok()).unwrap();
    assert_eq!(lab.drops().unwrap().foreign_source, 0, "a packet left an ENI with an address that is not on it");
}
