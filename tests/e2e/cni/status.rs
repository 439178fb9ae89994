//! STATUS: one rule, the same for health, metrics and the operator.

use enid_tests::{Call, Pod};
use serde_json::json;

use super::{node, with};

fn ask(keys: &[(&str, serde_json::Value)]) -> enid_tests::call::Answer {
    let pod = Pod { config: enid_tests::pod::config("1.1.0", 30), ..Pod::new(0, "none") };
    Call::bare("STATUS").stdin(&with(&pod, keys)).make(node()).unwrap()
}

// D16 D79 D84
#[test]
fn a_node_that_can_give_addresses_is_silent_and_pays_nothing() {
    ask(&[]).silent().unwrap();
    let sent = || node().metrics().unwrap().lines().filter(|line| line.starts_with("awscni_ec2api_req_count")).count();
    let (before, calls) = (node().sh("stat -c %Y.%Z /var/lib/enid/enid.redb").unwrap(), sent());
    for _ in 0..50 {
        ask(&[]).silent().unwrap();
    }
    assert_eq!(node().sh("stat -c %Y.%Z /var/lib/enid/enid.redb").unwrap(), before);
    assert_eq!(sent(), calls);
    assert!(node().metrics().unwrap().contains("enid_ready 1"));
    assert_eq!(node().enid("status").unwrap()["ready"], true);
}

// D78 D80
#[test]
fn no_daemon_is_code_50_and_an_old_version_code_1() {
    let none = ("socket", json!("/none/such"));
    ask(std::slice::from_ref(&none)).refused(50, &["/none/such", "daemon_down"]).unwrap();
    ask(&[none.clone(), ("bootId", json!("another"))]).refused(50, &["daemon_down"]).unwrap();
    // A daemon that has served pods of this boot keeps nobody out by being away.
    let boot = node().sh("cat /proc/sys/kernel/random/boot_id").unwrap();
    ask(&[none, ("bootId", json!(boot.trim()))]).silent().unwrap();
    ask(&[("cniVersion", json!("1.0.0"))]).refused(1, &["1.1.0"]).unwrap();
}
