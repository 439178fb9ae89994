//! A subnet with free addresses and no free /28.

use std::{net::Ipv4Addr, time::Duration};

use enid_tests::{
    Daemon, Place, consistency,
    traffic::{PORT, Spot, serve},
    wait_until,
};

use crate::{BOUND, MINUTES, add, lab};

/// A pod is added this often.
const PERIOD: Duration = Duration::from_secs(15);

/// One address out of each /28 of a lab's subnet.
fn one_of_each_block(subnet: u8) -> Vec<Ipv4Addr> {
    (0..16).map(|block| Ipv4Addr::new(10, 0, subnet, block * 16 + 8)).collect()
}

#[test]
fn single_addresses_are_assigned_until_the_subnet_has_prefixes_again() {
    let lab = lab("fragments");
    let (bare, auto) = (Place::node(&lab, 0), Place::node(&lab, 1));
    for subnet in [1, 2] {
        lab.occupy(&lab.node(usize::from(subnet) - 1).subnet_id, &one_of_each_block(subnet)).unwrap();
    }
    let common = [("ENABLE_PREFIX_DELEGATION", "true"), ("IP_COOLDOWN_PERIOD", "1")];
    // Nothing is assigned before it is needed: EC2 refuses a /28 while the ADD waits, which gets a single address.
    let _bare = Daemon::spawn(bare, &[&common[..], &[("WARM_PREFIX_TARGET", "0")]].concat()).unwrap();
    wait_until(BOUND, || bare.enid("status").is_ok()).unwrap();
    let mut on_bare = add(bare, 0, "bare", 1);
    let assign = lab.ec2_counts().unwrap()["AssignPrivateIpAddresses"].clone();
    assert_eq!((assign.calls, assign.failed), (2, 1), "one for a /28, one for a single address");
    let _auto = Daemon::start(auto, &common).unwrap();
    let mut on_auto = add(auto, 1, "auto", 6);
    let has_prefix = |place: Place<'_>| place.number("prefixes").unwrap() > 0;
    assert!(!has_prefix(bare) && !has_prefix(auto));
    // These addresses are free again. Pods keep coming, and after two minutes the subnet is asked again.
    for subnet in [1, 2] {
        lab.vacate(&lab.node(usize::from(subnet) - 1).subnet_id, &one_of_each_block(subnet)).unwrap();
    }
    let mut coming = 0;
    wait_until(MINUTES, || {
        coming += 1;
        on_bare.extend(add(bare, 0, &format!("bare{coming}"), 1));
        on_auto.extend(add(auto, 1, &format!("auto{coming}"), 1));
        wait_until(PERIOD, || has_prefix(bare) && has_prefix(auto)).is_ok()
    })
    .unwrap();
    // Addresses of both kinds work together.
    for (place, pods) in [(bare, &on_bare), (auto, &on_auto)] {
        let blocks = place.enid("enis").unwrap().to_string();
        assert!(blocks.contains("/28") && blocks.contains("/32"), "{blocks}");
        let names: Vec<&str> = pods.iter().map(|(pod, _)| pod.name.as_str()).collect();
        let _servers = serve(place, &names).unwrap();
        let (client, own) = &on_bare[0];
        for (pod, address) in pods.iter().filter(|(pod, _)| pod.name != client.name) {
            let answer = Spot { place: bare, netns: Some(&client.name) }.ask(address, PORT).unwrap();
            answer.expect(own, address).unwrap_or_else(|wrong| panic!("{}: {wrong}", pod.name));
        }
    }
    for (place, pods) in [(bare, &on_bare), (auto, &on_auto)] {
        wait_until(BOUND, || consistency::check(place).is_ok()).unwrap();
        pods.iter().for_each(|(pod, _)| pod.del(place).unwrap());
        assert!(place.leases().unwrap().is_empty());
    }
    assert_eq!(lab.drops().unwrap().foreign_source, 0);
}
