//! Firewalls that drop what the host forwards: reported as a cause of its own; ADDs succeed again when they are gone.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{sync::OnceLock, time::Duration};

use enid_tests::{Daemon, Lab, LabConfig, Place, Pod, wait_until};

const BOUND: Duration = Duration::from_secs(45);
/// nftables tells of its chains at once; without a word they are probed after 30 s. Nothing must pass for 10 s before
/// STATUS says so, and the next probe comes 2 s later.
const HEARD: Duration = Duration::from_secs(25);
const CONFLIST: &str = "/etc/cni/net.d/05-enid.conflist";
const NFT: &str = "nft 'table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }'";

fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(|| Lab::up(&LabConfig { nodes: 2, ..LabConfig::default() }).unwrap())
}

fn cause(place: Place<'_>) -> String {
    place.enid("status").map_or(String::new(), |status| format!("{} {}", status["cause"], status["cause_message"]))
}

fn is_dropped(place: Place<'_>) -> bool {
    cause(place).starts_with("\"forward_dropped\"") && place.enid("status").unwrap()["ready"] == false
}

fn no_probe_is_left(place: Place<'_>) {
    let links = || place.sh("ip -o link").unwrap();
    wait_until(BOUND, || !links().contains("probe-enid")).unwrap_or_else(|_| panic!("{}", links()));
}

// D82
#[test]
fn a_policy_that_drops_is_a_cause_and_serving_waits_for_its_end() {
    let place = Place::node(lab(), 0);
    place.sh(NFT).unwrap();
    let daemon = Daemon::spawn(place, &[("WARM_IP_TARGET", "2")]).unwrap();
    wait_until(BOUND, || is_dropped(place)).unwrap_or_else(|_| panic!("{}", daemon.log()));
    assert!(cause(place).contains("ip filter FORWARD drops at the forward hook"), "{}", cause(place));
    assert!(daemon.log().contains("forward_dropped"));
    assert!(place.sh(&format!("test -e {CONFLIST}")).is_err(), "pods are invited to a node that drops their packets");
    let pod = Pod::new(0, "asks");
    pod.make_namespace(place).unwrap();
    let pod = Pod { config: enid_tests::pod::config("1.1.0", 1), ..pod };
    let status = || pod.try_call(place, "STATUS").unwrap();
    let (ok, error, _) = status();
    assert!(!ok && error["code"] == 50 && error.to_string().contains("forward"), "{error}");
    // Whoever lets pods' packets through is no obstacle, whatever the policy.
    place.sh("nft add rule ip filter FORWARD ip saddr 10.0.0.0/16 accept").unwrap();
    wait_until(BOUND, || place.serves()).unwrap_or_else(|_| panic!("{}", daemon.log()));
    wait_until(BOUND, || place.sh(&format!("test -e {CONFLIST}")).is_ok()).unwrap();
    place.sh("nft flush chain ip filter FORWARD; nft 'chain ip filter FORWARD { policy accept; }'").unwrap();
    // firewalld accepts by policy and rejects by its last rule.
    let firewalld = "nft 'table inet firewalld { chain filter_FORWARD {
            type filter hook forward priority 10; policy accept;
            ct state established accept; reject with icmpx admin-prohibited; }; }'";
    for (closes, words, opens) in [
        ("nft 'chain ip filter FORWARD { policy drop; }'", "ip filter FORWARD", "nft delete table ip filter"),
        (firewalld, "inet firewalld filter_FORWARD", "nft delete table inet firewalld"),
    ] {
        place.sh(closes).unwrap();
        wait_until(HEARD, || is_dropped(place)).unwrap_or_else(|_| panic!("{}", daemon.log()));
        assert!(cause(place).contains(words), "{}", cause(place));
        // It has served: now the pods that run are what STATUS is about.
        let (ok, error, _) = status();
        assert!(!ok && error["code"] == 51 && error.to_string().contains("forward"), "{error}");
        place.sh(opens).unwrap();
        wait_until(BOUND, || place.serves()).unwrap_or_else(|_| panic!("{}", daemon.log()));
    }
    no_probe_is_left(place);
}

#[test]
fn the_older_iptables_is_found_out_too_unless_told_not_to() {
    let place = Place::node(lab(), 1);
    place.sh("iptables-legacy -P FORWARD DROP").unwrap();
    let daemon = Daemon::spawn(place, &[("WARM_IP_TARGET", "2")]).unwrap();
    wait_until(BOUND, || is_dropped(place)).unwrap_or_else(|_| panic!("{}", daemon.log()));
    assert!(cause(place).contains("the older iptables' filter FORWARD"), "{}", cause(place));
    place.sh("iptables-legacy -P FORWARD ACCEPT").unwrap();
    wait_until(BOUND, || place.serves()).unwrap_or_else(|_| panic!("{}", daemon.log()));
    daemon.kill().unwrap();
    place.sh("iptables-legacy -P FORWARD DROP").unwrap();
    let _daemon = Daemon::start(place, &[("WARM_IP_TARGET", "2"), ("ENID_FORWARD_PROBE", "false")]).unwrap();
    no_probe_is_left(place);
}
