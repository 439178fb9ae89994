//! Nodes with several network cards, and ENIs that carry no IP. Needs root.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use vpclab::{Backend, Lab, LabConfig, ec2::Eni, wait_until};

const BOUND: Duration = Duration::from_secs(15);

fn at(lab: &Lab, card: u32, device_index: u32) -> Option<Eni> {
    let is = |eni: &Eni| {
        eni.attachment
            .as_ref()
            .is_some_and(|attachment| (attachment.card, attachment.device_index) == (card, device_index))
    };
    lab.enis().unwrap().into_iter().find(is)
}

/// What metadata shows of an ENI; empty for 404.
fn metadata(lab: &Lab, mac: &str, field: &str) -> String {
    let ask = format!(
        "at=http://169.254.169.254/latest
         token=$(curl -sX PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' $at/api/token)
         curl -sf -H \"X-aws-ec2-metadata-token: $token\" $at/meta-data/network/interfaces/macs/{mac}/{field} || true"
    );
    lab.run("node0", "sh", &["-c", &ask]).unwrap()
}

fn link(lab: &Lab, name: &str) -> String {
    lab.run("node0", "ip", &["-brief", "link", "show", name]).unwrap_or_default()
}

#[test]
fn enis_of_all_cards_are_links_and_efa_only_ones_have_no_address() {
    assert!(nix::unistd::geteuid().is_root(), "the lab needs root");
    let lab = Lab::up(&LabConfig {
        name: format!("cards-{}", std::process::id()),
        nodes: 1,
        instance_type: "c6in.32xlarge".to_owned(),
        ec2: Backend::Model,
        ipv6: true,
        efa_only_cards: vec![0, 1],
        ..LabConfig::default()
    })
    .unwrap();
    for (card, name) in [(0, "eth1"), (1, "eth101")] {
        let efa = at(&lab, card, 1).unwrap();
        assert!(efa.addresses.is_empty() && efa.ipv6_addresses.is_empty(), "{efa:?}");
        assert!(link(&lab, name).contains(&efa.mac), "{name}");
        let of = |field: &str| metadata(&lab, &efa.mac, field);
        assert_eq!(
            (of("interface-id"), of("subnet-id"), of("mac")),
            (efa.id.clone(), efa.subnet_id.clone(), efa.mac.clone())
        );
        assert_eq!((of("network-card"), of("device-number")), (card.to_string(), "1".to_owned()));
        assert_eq!((of("local-ipv4s"), of("ipv6s")), (String::new(), String::new()));
        let port = format!("p-{}", &efa.id[efa.id.len() - 12..]);
        assert_eq!(
            lab.run("vpc", "ip", &["address", "show", "dev", &port, "scope", "link"]).unwrap().matches("inet").count(),
            0
        );
        assert_eq!(lab.run("vpc", "ip", &["route", "show", "dev", &port]).unwrap(), "");
        assert_eq!(lab.run("vpc", "ip", &["-6", "route", "show", "dev", &port]).unwrap(), "");
        let refused = lab.ec2("AssignIpv6Addresses", &[("NetworkInterfaceId", &efa.id), ("Ipv6PrefixCount", "1")]);
        assert!(refused.unwrap_err().to_string().contains("InvalidParameterCombination"));
    }
    let answer =
        lab.ec2("DescribeNetworkInterfaces", &[("Filter.1.Name", "interface-type"), ("Filter.1.Value.1", "efa-only")]);
    assert_eq!(answer.unwrap().matches("<interfaceType>efa-only</interfaceType>").count(), 2);

    // An ordinary ENI on the second card, at an index that the first one has too.
    let node = lab.node(0);
    let made = lab.ec2("CreateNetworkInterface", &[("SubnetId", &node.subnet_id)]).unwrap();
    let eni = vpclab::ec2::first(&made, "networkInterfaceId").unwrap();
    let attach = [("NetworkInterfaceId", eni.as_str()), ("InstanceId", &node.instance_id)];
    let attach = [&attach[..], &[("DeviceIndex", "0"), ("NetworkCardIndex", "1")]].concat();
    lab.ec2("AttachNetworkInterface", &attach).unwrap();
    wait_until(BOUND, || !link(&lab, "eth100").is_empty()).unwrap();
    let second = at(&lab, 1, 0).unwrap();
    wait_until(BOUND, || metadata(&lab, &second.mac, "local-ipv4s") == second.addresses[0]).unwrap();
    assert_eq!(metadata(&lab, &second.mac, "public-ipv4s"), "", "not the primary");
    let own = lab.run("node0", "ip", &["-6", "-oneline", "address", "show", "scope", "global"]).unwrap();
    assert_eq!(own.lines().count(), 1, "only the primary is configured: {own}");
    // The ENI that is detached goes, and the primary stays.
    let attachment = lab.ec2("DescribeNetworkInterfaces", &[("NetworkInterfaceId.1", &eni)]).unwrap();
    let attachment = vpclab::ec2::first(&attachment, "attachmentId").unwrap();
    lab.ec2("DetachNetworkInterface", &[("AttachmentId", &attachment)]).unwrap();
    wait_until(BOUND, || link(&lab, "eth100").is_empty()).unwrap();
    assert!(!link(&lab, "eth0").is_empty());
}
