//! The plugin's contract, line by line of docs/cni-checklist.md, on one node with a running daemon. The ids above a
//! test are the lines that it proves; `the_checklist_is_covered` (tests/checklist.rs) counts them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod add;
mod apart;
mod check;
mod cost;
mod del;
mod gc;
mod kills;
mod many;
mod packets;
mod skew;
mod status;

use std::{sync::OnceLock, time::Duration};

use enid_tests::{Call, Daemon, Lab, LabConfig, Place, Pod, pod, wait_until};
use serde_json::Value;

const BOUND: Duration = Duration::from_secs(30);

/// One m5.large node, with all 27 addresses that it can hold so that its pool never changes, and its daemon for all; the lab ends with the tests.
struct Node {
    lab: Lab,
    daemon: Daemon,
}

fn shared() -> &'static Node {
    static NODE: OnceLock<Node> = OnceLock::new();
    NODE.get_or_init(|| {
        let config = LabConfig { name: format!("cni{}", std::process::id()), nodes: 1, ..LabConfig::default() };
        let lab = Lab::up(&config).unwrap();
        let settings = [("MINIMUM_IP_TARGET", "27"), ("IP_COOLDOWN_PERIOD", "0")];
        let daemon = Daemon::start(Place { lab: &lab, name: &lab.node(0).name }, &settings).unwrap();
        Node { lab, daemon }
    })
}

fn node() -> Place<'static> {
    Place::node(&shared().lab, 0)
}

fn daemon_pid() -> u32 {
    shared().daemon.pid().unwrap()
}

/// A pod of this version's configuration, with its namespace.
fn pod_of(version: &str, name: &str) -> Pod {
    let pod = Pod { config: pod::config(version, 30), ..Pod::new(0, name) };
    pod.make_namespace(node()).unwrap();
    pod
}

/// The configuration of a pod with further keys.
fn with(pod: &Pod, keys: &[(&str, Value)]) -> String {
    let mut config: Value = serde_json::from_str(&pod.config).unwrap();
    for (key, value) in keys {
        config[*key] = value.clone();
    }
    config.to_string()
}

/// What the host is like when nothing is under way.
fn when_idle() -> String {
    let place = node();
    wait_until(BOUND, || place.enid("status").is_ok_and(|status| status["calls"] == serde_json::json!([]))).unwrap();
    place.snapshot().unwrap()
}

fn add(pod: &Pod) -> Value {
    Call::new(pod, "ADD").make(node()).unwrap().fine().unwrap()
}

fn del(pod: &Pod) {
    Call::new(pod, "DEL").make(node()).unwrap().silent().unwrap();
}

/// The host's link of a pod, by the daemon's word.
fn host_link(pod: &Pod) -> String {
    let leases = node().leases().unwrap();
    let mine = leases.iter().find(|lease| lease["container"] == pod.container.as_str()).unwrap();
    mine["host_ifname"].as_str().unwrap().to_owned()
}

fn has_lease(pod: &Pod) -> bool {
    node().leases().unwrap().iter().any(|lease| lease["container"] == pod.container.as_str())
}
