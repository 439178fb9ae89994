//! A node that Amazon's VPC CNI serves, or on which pods of its run, is left alone.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use enid_tests::{Daemon, Lab, LabConfig, Place, kernel, wait_until};

const BOUND: Duration = Duration::from_secs(30);
/// Where its daemon listens.
const SOCKET: &str = "/var/run/aws-node/ipamd.sock";
/// A pod's link as it makes one: `eni` and eleven digits.
const LINK: &str = "enic220f2ba281";

/// What a probe hears: the HTTP status.
fn probe(place: Place<'_>, path: &str) -> String {
    let url = format!("http://127.0.0.1:61680/{path}");
    place.sh(&format!("curl -s -o /dev/null -w '%{{http_code}}' {url} || true")).unwrap().trim().to_owned()
}

#[test]
fn nothing_is_changed_while_the_other_daemon_or_its_pods_are_there() {
    let name = format!("takeover{}", std::process::id());
    let lab = Lab::up(&LabConfig { name, nodes: 1, ..LabConfig::default() }).unwrap();
    let place = Place::node(&lab, 0);
    place.sh("mkdir -p /var/run/aws-node").unwrap();
    let other = place.sh(&format!("nc -l -k -d -U {SOCKET} </dev/null >/dev/null 2>&1 & echo $!")).unwrap();
    wait_until(BOUND, || place.sh(&format!("test -S {SOCKET}")).is_ok()).unwrap();
    let untouched = kernel::state(place).unwrap();
    let settings = [("AWS_EC2_ENDPOINT", lab.state().ec2_endpoint.as_str())];

    let daemon = Daemon::spawn(place, &settings).unwrap();
    wait_until(BOUND, || daemon.log().contains("waits until it has gone")).unwrap();
    wait_until(BOUND, || probe(place, "healthz") == "200").unwrap();
    assert_eq!(probe(place, "readyz"), "503", "it waits");
    assert!(place.sh("test -e /run/enid/cni.sock || test -e /etc/cni/net.d/05-enid.conflist").is_err());
    assert_eq!(kernel::state(place).unwrap(), untouched);
    // One that was killed leaves its socket.
    place.sh(&format!("kill -9 {}", other.trim())).unwrap();
    wait_until(BOUND, || place.serves()).unwrap_or_else(|_| panic!("{}", daemon.log()));
    assert_eq!((probe(place, "healthz"), probe(place, "readyz")), ("200".to_owned(), "200".to_owned()));
    daemon.kill().unwrap();

    let make = format!("ip link add {LINK} type veth peer name peer0 && ip link set {LINK} up");
    place.sh(&format!("{make} && ip link set peer0 up && ip route add 10.0.1.77 dev {LINK}")).unwrap();
    let untouched = kernel::state(place).unwrap();
    let (code, log) = Daemon::spawn(place, &settings).unwrap().wait(BOUND).unwrap();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains(&format!("10.0.1.77 by {LINK}")) && log.contains("drain the node first"), "{log}");
    assert_eq!(kernel::state(place).unwrap(), untouched);
    place.sh(&format!("ip link del {LINK}")).unwrap();
    let _daemon = Daemon::start(place, &settings).unwrap();
}
