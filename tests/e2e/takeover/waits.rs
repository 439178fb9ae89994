//! As long as the other daemon answers, nothing is changed.

use enid_tests::{Daemon, Place, kernel, wait_until};

use super::{BOUND, lab};

/// Where its daemon listens.
const SOCKET: &str = "/var/run/aws-node/ipamd.sock";

/// What a probe hears: the HTTP status.
fn probe(place: Place<'_>, path: &str) -> String {
    let url = format!("http://127.0.0.1:61680/{path}");
    place.sh(&format!("curl -s -o /dev/null -w '%{{http_code}}' {url} || true")).unwrap().trim().to_owned()
}

#[test]
fn nothing_is_changed_while_the_other_daemon_is_there() {
    let lab = lab("waits");
    let place = Place::node(&lab, 0);
    place.sh("mkdir -p /var/run/aws-node").unwrap();
    let other = place.sh(&format!("nc -l -k -d -U {SOCKET} </dev/null >/dev/null 2>&1 & echo $!")).unwrap();
    wait_until(BOUND, || place.sh(&format!("test -S {SOCKET}")).is_ok()).unwrap();
    let untouched = kernel::state(place).unwrap();
    let settings = [("AWS_EC2_ENDPOINT", lab.state().ec2_endpoint.as_str())];

    let daemon = Daemon::spawn(place, &settings).unwrap();
    wait_until(BOUND, || daemon.log().contains("waits until that one has gone")).unwrap();
    wait_until(BOUND, || probe(place, "healthz") == "200").unwrap();
    assert_eq!(probe(place, "readyz"), "503", "it waits");
    assert!(place.sh("test -e /run/enid/cni.sock || test -e /etc/cni/net.d/05-enid.conflist").is_err());
    assert_eq!(kernel::state(place).unwrap(), untouched);
    // One that was killed leaves its socket.
    place.sh(&format!("kill -9 {}", other.trim())).unwrap();
    wait_until(BOUND, || place.serves()).unwrap_or_else(|_| panic!("{}", daemon.log()));
    assert_eq!((probe(place, "healthz"), probe(place, "readyz")), ("200".to_owned(), "200".to_owned()));
}
