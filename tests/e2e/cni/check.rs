//! CHECK: it names what is missing, minds nothing that others added, and changes nothing.

use enid_tests::{Call, Pod, wait_until};
use serde_json::json;

use super::{BOUND, add, del, host_link, node, pod_of, when_idle, with};

fn check(pod: &Pod) -> enid_tests::call::Answer {
    Call::new(pod, "CHECK").make(node()).unwrap()
}

/// A pod that has been added, and whose configuration holds its result.
fn added(name: &str) -> Pod {
    let pod = pod_of("1.0.0", name);
    let config = with(&pod, &[("prevResult", add(&pod))]);
    Pod { config, ..pod }
}

// D70 D76
#[test]
fn right_after_add_it_is_silent_and_leaves_no_trace() {
    let pod = added("right");
    let before = when_idle();
    for _ in 0..3 {
        check(&pod).silent().unwrap();
    }
    assert_eq!(when_idle(), before);
    del(&pod);
    pod.remove_namespace(node()).unwrap();
}

// D71 D72
#[test]
fn what_is_missing_is_named() {
    let mut pod = added("with_fault");
    // The host is put right by the daemon, the pod's own namespace by nobody.
    let faults = [
        ("ip -n with_fault link set eth0 down", "eth0"),
        ("ip -n with_fault addr del ADDRESS/32 dev eth0", "ADDRESS"),
        ("ip -n with_fault route del default", "default"),
        ("ip route del ADDRESS", "ADDRESS"),
        ("ip link set HOST group 7", "group"),
        ("ip link set HOST down", "HOST"),
        ("ip rule del priority 512", "512"),
        ("ip route flush table 2", "table 2"),
        ("nft delete table ip enid", "ip enid"),
        ("echo 0 > /proc/sys/net/ipv4/ip_forward", "ip_forward"),
    ];
    for (fault, word) in faults {
        let address = node().sh("ip -n with_fault -4 -o addr show eth0 | awk '{print $4}' | cut -d/ -f1").unwrap();
        let host = host_link(&pod);
        let named = |text: &str| text.replace("ADDRESS", address.trim()).replace("HOST", &host);
        // The daemon may put the host right before CHECK has looked: then the fault is done once more.
        let mut said = String::new();
        wait_until(BOUND, || {
            node().sh(&named(fault)).unwrap();
            check(&pod).refused(101, &[&named(word)]).map_err(|error| said = format!("{error:#}")).is_ok()
        })
        .unwrap_or_else(|_| panic!("{fault}: {said}"));
        // Taking a link down takes routes and neighbours with it: the cure is a new one.
        del(&pod);
        pod.config = with(&pod, &[("prevResult", serde_json::Value::Null)]);
        pod.config = with(&pod, &[("prevResult", add(&pod))]);
        wait_until(BOUND, || check(&pod).silent().map_err(|error| said = format!("{error:#}")).is_ok())
            .unwrap_or_else(|_| panic!("after {fault}: {said}"));
    }
    node().sh("ip -n with_fault link del eth0").unwrap();
    check(&pod).refused(101, &["eth0"]).unwrap();
    del(&pod);
    check(&pod).refused(101, &["no address"]).unwrap();
    pod.remove_namespace(node()).unwrap();
}

// D73
#[test]
fn what_others_added_is_theirs() {
    let pod = added("tuned");
    node()
        .sh("ip -n tuned addr add 192.0.2.9/32 dev eth0; ip -n tuned route add 198.51.100.0/24 via 169.254.1.1; \
             ip -n tuned rule add from 192.0.2.9 lookup 77; ip -n tuned link set eth0 mtu 1400; \
             ip -n tuned link set eth0 address 02:00:00:00:00:07")
        .unwrap();
    check(&pod).silent().unwrap();
    del(&pod);
    pod.remove_namespace(node()).unwrap();
}

// D69 D74 D75
#[test]
fn without_result_or_daemon_or_in_an_old_version_it_fails() {
    let pod = added("asked");
    let config = |keys: &[(&str, serde_json::Value)]| Call::new(&pod, "CHECK").stdin(&with(&pod, keys));
    config(&[("prevResult", json!(null))]).make(node()).unwrap().refused(7, &["prevResult"]).unwrap();
    config(&[("prevResult", json!({"ips": []}))]).make(node()).unwrap().refused(7, &["eth0"]).unwrap();
    config(&[("cniVersion", json!("0.3.1"))]).make(node()).unwrap().refused(1, &["0.4.0"]).unwrap();
    config(&[("cniVersion", json!("0.4.0"))]).make(node()).unwrap().silent().unwrap();
    config(&[("socket", json!("/none/such"))]).make(node()).unwrap().refused(11, &["daemon_down"]).unwrap();
    del(&pod);
    pod.remove_namespace(node()).unwrap();
}
