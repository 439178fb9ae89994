//! A lab with IPv6: what the VPC carries, answers and refuses. Needs root.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use vpclab::{Backend, Drops, INTERNET_SERVER_V6, Lab, LabConfig, PEER_CLIENT_V6, VPC_CIDR_V6, ec2::Eni, wait_until};

const BOUND: Duration = Duration::from_secs(10);

fn lab(name: &str, nodes: usize) -> Lab {
    assert!(nix::unistd::geteuid().is_root(), "the lab needs root");
    let name = format!("{name}-{}", std::process::id());
    Lab::up(&LabConfig { name, nodes, ec2: Backend::Model, ipv6: true, ..LabConfig::default() }).unwrap()
}

/// One packet there and back.
fn reaches(lab: &Lab, from: &str, source: &str, to: &str) -> bool {
    lab.run(from, "ping", &["-6", "-n", "-c", "1", "-W", "1", "-I", source, to]).is_ok()
}

fn own(lab: &Lab, node: usize) -> &str {
    lab.node(node).address_v6.as_deref().unwrap()
}

fn primary(lab: &Lab, node: usize) -> Eni {
    let instance = &lab.node(node).instance_id;
    let is = |eni: &Eni| {
        eni.attachment.as_ref().is_some_and(|attachment| attachment.is_primary() && attachment.instance_id == *instance)
    };
    lab.enis().unwrap().into_iter().find(is).unwrap()
}

/// What metadata answers to a node; empty for 404.
fn metadata(lab: &Lab, node: usize, path: &str) -> String {
    let ask = format!(
        "at=http://169.254.169.254/latest
         token=$(curl -sX PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' $at/api/token)
         curl -sf -H \"X-aws-ec2-metadata-token: $token\" $at/meta-data/{path} || true"
    );
    lab.run(&format!("node{node}"), "sh", &["-c", &ask]).unwrap()
}

/// An address of the prefix.
fn within(prefix: &str) -> String {
    prefix.trim_end_matches(":/80").trim_end_matches(':').to_owned() + "::77"
}

#[test]
fn nodes_reach_each_other_and_the_world() {
    let lab = lab("six", 3);
    let node = |index: usize| own(&lab, index);
    // Another subnet, the same subnet, and outside both ways, all without waiting for anything.
    for (from, source, to) in [
        ("node0", node(0), node(1)),
        ("node0", node(0), node(2)),
        ("node0", node(0), INTERNET_SERVER_V6),
        ("node1", node(1), PEER_CLIENT_V6),
        ("peer", PEER_CLIENT_V6, node(2)),
        ("inet", INTERNET_SERVER_V6, node(0)),
        ("node0", node(0), "2001:db8:aa00:1::1"),
    ] {
        assert!(reaches(&lab, from, source, to), "{from} {source} {to}");
    }
    assert!(lab.run("node0", "ping", &["-n", "-c", "1", "-W", "1", &lab.node(1).address]).is_ok(), "IPv4");
    let routes = lab.run("node0", "ip", &["-6", "route"]).unwrap();
    assert!(routes.contains("default via fe80:ec2::1 dev eth0 proto ra"), "{routes}");
    assert!(routes.contains("2001:db8:aa00:1::/64 dev eth0 proto ra"), "{routes}");
    let eni = primary(&lab, 0);
    let of = |field: &str| metadata(&lab, 0, &format!("network/interfaces/macs/{}/{field}", eni.mac));
    assert_eq!((metadata(&lab, 0, "ipv6").as_str(), of("ipv6s").as_str()), (node(0), node(0)));
    assert_eq!((of("ipv6-prefix").as_str(), of("vpc-ipv6-cidr-blocks").as_str()), ("", VPC_CIDR_V6));
    assert_eq!(lab.drops().unwrap(), Drops { foreign_source: 0, inet_private: 0 });
}

#[test]
fn a_prefix_is_carried_wherever_in_it_an_address_is() {
    let lab = lab("eighty", 3);
    let eni = primary(&lab, 2);
    lab.ec2("AssignIpv6Addresses", &[("NetworkInterfaceId", &eni.id), ("Ipv6PrefixCount", "1")]).unwrap();
    let prefix = primary(&lab, 2).ipv6_prefixes[0].clone();
    let pod = within(&prefix);
    let path = format!("network/interfaces/macs/{}/ipv6-prefix", eni.mac);
    wait_until(BOUND, || metadata(&lab, 2, &path) == prefix).unwrap();
    lab.run("node2", "ip", &["-6", "address", "add", &format!("{pod}/128"), "dev", "lo"]).unwrap();
    // The kernel adds the route of a new address later.
    let is_local = || lab.run("node2", "ip", &["-6", "route", "show", "table", "local"]).unwrap().contains(&pod);
    wait_until(BOUND, is_local).unwrap();
    // Node 1 is in another subnet; node 0 asks its own for a neighbour, which the VPC answers for.
    assert!(reaches(&lab, "node1", own(&lab, 1), &pod), "from another subnet");
    assert!(reaches(&lab, "node0", own(&lab, 0), &pod), "from the same subnet");
    assert!(reaches(&lab, "node2", &pod, INTERNET_SERVER_V6), "to the Internet");
    let neighbours = lab.run("node0", "ip", &["-6", "neighbour", "show", &pod]).unwrap();
    assert!(neighbours.contains("lladdr 06:"), "the VPC's own MAC: {neighbours}");
    assert_eq!(lab.drops().unwrap().foreign_source, 0);

    lab.ec2("UnassignIpv6Addresses", &[("NetworkInterfaceId", &eni.id), ("Ipv6Prefix.1", &prefix)]).unwrap();
    wait_until(BOUND, || metadata(&lab, 2, &path).is_empty()).unwrap();
    assert!(!reaches(&lab, "node1", own(&lab, 1), &pod), "nothing is there any more");
    assert!(!reaches(&lab, "node2", &pod, own(&lab, 1)), "and nothing comes from there");
    assert_eq!(lab.drops().unwrap().foreign_source, 1);
}

#[test]
fn foreign_sources_are_dropped_and_counted() {
    let lab = lab("foreign", 2);
    for (foreign, place) in [(own(&lab, 1), "node0"), ("fd00::5", "node0"), ("fd00::6", "peer")] {
        // Without nodad the kernel ends its check later, and refuses the address to ping until then.
        lab.run(place, "ip", &["-6", "address", "add", &format!("{foreign}/128"), "dev", "lo", "nodad"]).unwrap();
        assert!(!reaches(&lab, place, foreign, INTERNET_SERVER_V6), "{foreign}");
    }
    assert_eq!(lab.drops().unwrap(), Drops { foreign_source: 2, inet_private: 1 });
    // An address that EC2 has not assigned is not reachable, and no solicitation for it is answered.
    assert!(!reaches(&lab, "node0", own(&lab, 0), "2001:db8:aa00:1::9"));
    assert!(!reaches(&lab, "node0", own(&lab, 0), "2001:db8:aa00:2::9"));
}

#[test]
fn localstack_has_no_ipv6() {
    let config = LabConfig { ipv6: true, ec2: Backend::LocalStack, ..LabConfig::default() };
    let refused = Lab::up(&config).err().unwrap().to_string();
    assert!(refused.contains("--ec2 model"), "{refused}");
}
