//! What a current containerd tells the kubelet of the network. A node whose network is "not ready" for five minutes loses
//! all of its pods, so nothing that only keeps new pods from an address may make it so.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{net::Ipv4Addr, time::Duration};

use enid_tests::{
    Backend, Daemon, Lab, LabConfig, Place, Pod, pod,
    runtime::{Release, Runtime},
    wait_until,
};

const BOUND: Duration = Duration::from_secs(30);
const CONFLIST: &str = "/etc/cni/net.d/05-enid.conflist";
/// One ENI with nine addresses for pods.
const SMALL: [(&str, &str); 2] = [("MAX_ENI", "1"), ("WARM_IP_TARGET", "1")];

fn lab(name: &str) -> Lab {
    let name = format!("{name}{}", std::process::id());
    Lab::up(&LabConfig { name, nodes: 1, ec2: Backend::Model, ..LabConfig::default() }).unwrap()
}

/// The containerd of this node, which asks STATUS each time that it is asked itself, since the whole chain serves 1.1.0.
fn containerd(place: Place<'_>) -> Runtime {
    let plugins = concat!(env!("CARGO_MANIFEST_DIR"), "/../.tools/cni-plugins");
    place.sh(&format!("mkdir -p /opt/cni/bin; cp {plugins}/loopback {plugins}/portmap /opt/cni/bin/")).unwrap();
    Runtime::start(place, Release::Current).unwrap()
}

fn offers_status(place: Place<'_>) -> bool {
    place.sh(&format!("grep -q '\"1.1.0\"' {CONFLIST}")).is_ok()
}

// D81 D86
/// The kind: STATUS is an answer to "is the network of this node there", not to "is there an address at this moment".
#[test]
fn a_node_that_is_full_or_without_its_daemon_stays_ready() {
    let lab = lab("kept");
    let place = Place::node(&lab, 0);
    let runtime = containerd(place);
    let is_ready = |state: &str| {
        let (ready, message) = runtime.network().unwrap();
        assert!(ready, "{state}: {message}");
    };
    let (ready, message) = runtime.network().unwrap();
    assert!(!ready, "nothing has served yet: {message}");
    let daemon = Daemon::start(place, &SMALL).unwrap();
    wait_until(BOUND, || offers_status(place) && runtime.network().unwrap().0).unwrap();

    let pods: Vec<Pod> = (0..8).map(|n| Pod::new(0, &format!("full-{n}"))).collect();
    pods.iter().for_each(|pod| drop(pod.add(place).unwrap()));
    let sandbox = runtime.run_pod("last", &[]).unwrap();
    is_ready("all addresses are assigned");
    let refused = runtime.run_pod("one-more", &[]).unwrap_err();
    assert!(format!("{refused:#}").contains("eni_limit"), "{refused:#}");
    wait_until(BOUND, || place.metrics().unwrap().contains("{cause=\"eni_limit\",")).unwrap();
    is_ready("a pod was refused");
    let status = place.enid("status").unwrap();
    assert_eq!((&status["ready"], &status["cause"]), (&true.into(), &"eni_limit".into()));
    let enid = enid_tests::program("enid").unwrap();
    place.lab.run(place.name, &enid.to_string_lossy(), &["health", "--ready"]).unwrap();

    daemon.hang(true).unwrap();
    is_ready("the daemon hangs");
    daemon.hang(false).unwrap();
    daemon.kill().unwrap();
    is_ready("the daemon is away");
    // Whoever cleans the folder makes the node NotReady; a daemon that starts on a full node ends that.
    place.sh(&format!("rm {CONFLIST}")).unwrap();
    wait_until(BOUND, || !runtime.network().unwrap().0).unwrap();
    let daemon = Daemon::spawn(place, &SMALL).unwrap();
    wait_until(BOUND, || offers_status(place) && runtime.network().unwrap().0)
        .unwrap_or_else(|_| panic!("{}", daemon.log()));
    pods[0].del(place).unwrap();
    is_ready("the last address is in its cooldown");
    assert_eq!(place.enid("status").unwrap()["cause"], "cooldown");
    runtime.remove(&sandbox).unwrap();
    pods[1..].iter().for_each(|pod| pod.del(place).unwrap());
}

// D86
/// The kind: texts that a runtime or the kubelet compares and counts have no countdown in them.
#[test]
fn what_is_said_again_and_again_is_said_in_the_same_words() {
    let lab = lab("words");
    let place = Place::node(&lab, 0);
    let subnet = &lab.node(0).subnet_id;
    let everything: Vec<Ipv4Addr> = (1..255).map(|last| Ipv4Addr::new(10, 0, 1, last)).collect();
    lab.occupy(subnet, &everything).unwrap();
    let _daemon = Daemon::spawn(place, &[]).unwrap();
    wait_until(BOUND, || place.enid("status").is_ok_and(|status| status["cause"] == "subnet_full"))
        .unwrap_or_else(|_| panic!("{:?}", place.enid("status")));
    let asks = Pod { config: pod::config("1.1.0", 1), ..Pod::new(0, "asks") };
    asks.make_namespace(place).unwrap();
    let said = |verb: &str| {
        let (ok, error, _) = asks.try_call(place, verb).unwrap();
        assert!(!ok, "{verb}");
        error
    };
    let first = said("STATUS");
    assert_eq!((&first["code"], &first["details"]), (&50.into(), &"cause=subnet_full".into()));
    // It is tried again in between.
    let tries = || {
        let metrics = place.metrics().unwrap();
        let counted = |line: &&str| line.starts_with("awscni_aws_api_error_count") && line.contains("subnet_full");
        metrics.lines().filter(counted).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = tries();
    wait_until(BOUND, || tries() != before).unwrap();
    assert_eq!(said("STATUS"), first);
    let details = said("ADD")["details"].as_str().unwrap().to_owned();
    let at = details.split("retry_at=").nth(1).unwrap_or_else(|| panic!("{details}"));
    assert!(at.ends_with(":00Z"), "a minute, not a countdown: {details}");
}
