//! Bad input and missing parts: one clear message with its cause, and nothing left half-made.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{sync::OnceLock, time::Duration};

use enid_tests::{Daemon, Lab, LabConfig, Place, Pod, pod};
use serde_json::Value;
use vpclab::Faults;

const BOUND: Duration = Duration::from_secs(20);

fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(|| Lab::up(&LabConfig { nodes: 3, ..LabConfig::default() }).unwrap())
}

fn refused(place: Place<'_>, pod: &Pod, code: u64, words: &[&str]) -> Value {
    pod.refused(place, code, words).unwrap()
}

#[test]
fn without_instance_metadata_the_daemon_says_so() {
    let place = Place::node(lab(), 0);
    lab().set_imds(&Faults { down: true, ..Faults::default() }).unwrap();
    let daemon = Daemon::spawn(place, &[("ENID_START_WAIT", "1")]).unwrap();
    let (code, log) = daemon.wait(BOUND).unwrap();
    lab().set_imds(&Faults::default()).unwrap();
    assert_eq!(code, Some(1));
    assert!(log.contains("the instance metadata service did not answer within 1 s"), "{log}");
    assert!(!log.contains("panicked"), "{log}");
    assert_eq!(place.sh("ls /etc/cni/net.d; nft list tables").unwrap(), "");
}

#[test]
fn bad_settings_are_named_all_at_once() {
    let place = Place::node(lab(), 0);
    let settings = [("WARM_IP_TARGET", "many"), ("AWS_VPC_ENI_MTU", "100"), ("ENID_RUN_DIR", "here")];
    let (code, log) = Daemon::spawn(place, &settings).unwrap().wait(BOUND).unwrap();
    assert_eq!(code, Some(1));
    for line in [
        "WARM_IP_TARGET is \"many\"; allowed: whole numbers",
        "AWS_VPC_ENI_MTU is \"100\"; allowed: whole numbers from 576 to 9001",
        "ENID_RUN_DIR is \"here\"; allowed: an absolute path",
    ] {
        assert!(log.contains(line), "{line:?} is not in {log}");
    }
}

// D45
#[test]
fn without_a_daemon_add_asks_to_try_later() {
    let place = Place::node(lab(), 1);
    let pod = Pod::new(1, "lonely");
    pod.make_namespace(place).unwrap();
    refused(place, &pod, 11, &["/run/enid/cni.sock", "daemon_down"]);
    pod.del(place).unwrap();
}

#[test]
fn bad_requests_consume_nothing() {
    let place = Place::node(lab(), 1);
    let _daemon = Daemon::start(place, &[("WARM_IP_TARGET", "2")]).unwrap();
    let pod = Pod::new(1, "bad");
    refused(place, &pod, 4, &["CNI_NETNS", "/run/netns/bad"]);
    refused(place, &Pod { config: "no JSON".to_owned(), ..pod.clone() }, 6, &["JSON"]);
    refused(place, &Pod { container: "../x".to_owned(), ..pod.clone() }, 4, &["../x"]);
    // A file that is no namespace, and the plugin's own namespace.
    place.sh("touch /run/netns/bad").unwrap();
    refused(place, &pod, 4, &["it is not a namespace"]);
    place.sh("rm /run/netns/bad; mkdir -p /run/netns; touch /run/netns/bad; mount --bind /proc/self/ns/net /run/netns/bad").unwrap();
    refused(place, &pod, 8, &["own namespace"]);
    // Another kind of namespace.
    place.sh("umount /run/netns/bad; mount --bind /proc/self/ns/uts /run/netns/bad").unwrap();
    refused(place, &pod, 4, &["no network namespace"]);
    place.sh("umount /run/netns/bad; rm /run/netns/bad").unwrap();
    // An interface of that name is already there: it stays as it is.
    pod.make_namespace(place).unwrap();
    place.sh("ip -n bad link add eth0 type veth peer name other; ip -n bad addr add 192.0.2.1/32 dev eth0").unwrap();
    refused(place, &pod, 100, &["already has an interface named eth0"]);
    assert!(place.sh("ip -n bad addr show eth0").unwrap().contains("192.0.2.1"));
    // None of them took an address out of the pool.
    let status = place.enid("status").unwrap();
    assert_eq!((&status["assigned"], &status["cooling"]), (&0.into(), &0.into()), "{status}");
    // A socket that is not the daemon's.
    place.sh("ip -n bad link del eth0").unwrap();
    let config = r#"{"cniVersion":"1.0.0","name":"enid","socket":"/run/enid/debug.sock"}"#.to_owned();
    refused(place, &Pod { config, ..pod.clone() }, 11, &["daemon_refused", "not an enid daemon"]);
    pod.del(place).unwrap();
}

// D46
#[test]
fn a_node_at_its_eni_limit_refuses_at_once() {
    let place = Place::node(lab(), 2);
    let _daemon = Daemon::start(place, &[("MAX_ENI", "1"), ("WARM_IP_TARGET", "1")]).unwrap();
    let pods: Vec<Pod> = (0..9).map(|n| Pod::new(2, &format!("full-{n}"))).collect();
    for pod in &pods {
        pod.add(place).unwrap();
    }
    let one_more = Pod { config: pod::config("1.0.0", 600), ..Pod::new(2, "one-more") };
    one_more.make_namespace(place).unwrap();
    refused(place, &one_more, 11, &["eni_limit", "1 of 1 ENIs", "9 pod addresses"]);
    assert_eq!(place.enid("status").unwrap()["cause"], "eni_limit");
    for pod in pods.iter().chain([&one_more]) {
        pod.del(place).unwrap();
    }
}

// D45
#[test]
fn without_ec2_the_pool_serves_and_growth_says_why_not() {
    let config = LabConfig { name: format!("noec2{}", std::process::id()), nodes: 2, ..LabConfig::default() };
    let lab = Lab::up(&config).unwrap();
    // A wrong endpoint: the limits come from the built-in table, the pool stays empty.
    let place = Place::node(&lab, 0);
    let daemon = Daemon::spawn(place, &[("AWS_EC2_ENDPOINT", "http://10.0.0.5:1")]).unwrap();
    enid_tests::wait_until(BOUND, || place.enid("status").is_ok()).unwrap();
    let pod = Pod { config: pod::config("1.0.0", 1), ..Pod::new(0, "unreachable") };
    pod.make_namespace(place).unwrap();
    let error = refused(place, &pod, 11, &["ec2_unreachable", "got no answer", "Connection refused"]);
    assert!(!error["msg"].as_str().unwrap().contains('{'), "no dump: {error}");
    daemon.kill().unwrap();
    // EC2 goes away under a running daemon: what the pool holds keeps flowing, restarts work.
    let place = Place::node(&lab, 1);
    let settings = [("WARM_IP_TARGET", "3")];
    let daemon = Daemon::start(place, &settings).unwrap();
    lab.kill_ec2().unwrap();
    let pods: Vec<Pod> = (0..3).map(|n| Pod::new(1, &format!("pool-{n}"))).collect();
    pods[0].add(place).unwrap();
    daemon.kill().unwrap();
    let _daemon = Daemon::start(place, &settings).unwrap();
    pods[1].add(place).unwrap();
    pods[2].add(place).unwrap();
    let pod = Pod { config: pod::config("1.0.0", 1), ..Pod::new(1, "too-many") };
    pod.make_namespace(place).unwrap();
    refused(place, &pod, 11, &["ec2_unreachable"]);
    for pod in &pods {
        pod.del(place).unwrap();
    }
}

/// The kind: a source that cannot get out of a bad state by itself.
#[test]
fn a_metadata_service_that_forgot_its_tokens_is_asked_with_a_new_one() {
    let lab = Lab::up(&LabConfig { name: format!("tokens{}", std::process::id()), nodes: 1, ..LabConfig::default() });
    let lab = lab.unwrap();
    let place = Place::node(&lab, 0);
    let daemon = Daemon::start(place, &[("WARM_IP_TARGET", "1")]).unwrap();
    lab.set_imds(&Faults { tokens: 1, ..Faults::default() }).unwrap();
    // What EC2 assigns now is only seen in metadata.
    let pods: Vec<Pod> = (0..9).map(|n| Pod::new(0, &format!("token-{n}"))).collect();
    pods.iter().for_each(|pod| drop(pod.add(place).unwrap_or_else(|error| panic!("{error:#}: {}", daemon.log()))));
    pods.iter().for_each(|pod| pod.del(place).unwrap());
    assert!(!daemon.log().contains("instance metadata:"), "{}", daemon.log());
    // One that stays unreadable is a cause of its own, and no reason for STATUS.
    lab.set_imds(&Faults { down: true, ..Faults::default() }).unwrap();
    let source = || place.enid("status").unwrap()["source"].as_str().unwrap().to_owned();
    enid_tests::wait_until(4 * BOUND, || source().starts_with("metadata_unreadable: ")).unwrap();
    assert_eq!(place.enid("status").unwrap()["ready"], true);
    assert!(place.metrics().unwrap().contains("enid_cause{cause=\"metadata_unreadable\",kind=\"source\"} 1"));
    lab.set_imds(&Faults::default()).unwrap();
    enid_tests::wait_until(4 * BOUND, || source().is_empty()).unwrap();
}

/// The kind: a setting for everything that runs in a cluster reaches what it is not meant for.
#[test]
fn a_proxy_is_not_asked_for_metadata() {
    let lab = Lab::up(&LabConfig { name: format!("proxy{}", std::process::id()), nodes: 1, ..LabConfig::default() });
    let lab = lab.unwrap();
    let ec2 = lab.state().ec2_endpoint.trim_start_matches("http://").split(':').next().unwrap().to_owned();
    // Nobody listens there.
    let settings = [("HTTP_PROXY", "http://127.0.0.1:9"), ("NO_PROXY", ec2.as_str()), ("WARM_IP_TARGET", "1")];
    let place = Place::node(&lab, 0);
    let _daemon = Daemon::start(place, &settings).unwrap();
    let pod = Pod::new(0, "proxied");
    pod.add(place).unwrap();
    pod.del(place).unwrap();
}
