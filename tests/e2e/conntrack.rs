//! An address that is given again does not meet its predecessor's connections.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use enid_tests::{
    Backend, Daemon, Lab, LabConfig, Place, Pod,
    traffic::{PORT, Spot, serve},
    wait_until,
};
use vpclab::INTERNET_SERVER;

const BOUND: Duration = Duration::from_secs(45);

#[test]
fn connections_are_forgotten_before_their_address_is_given_again() {
    // One ENI of this type carries one pod's address.
    let config =
        LabConfig { nodes: 1, instance_type: "t3.nano".to_owned(), ec2: Backend::Model, ..LabConfig::default() };
    let lab = Lab::up(&config).unwrap();
    let place = Place::node(&lab, 0);
    let settings = [("MAX_ENI", "1"), ("WARM_IP_TARGET", "1"), ("IP_COOLDOWN_PERIOD", "5")];
    let daemon = Daemon::start(place, &settings).unwrap();
    let _server = serve(Place { lab: &lab, name: "inet" }, &[]).unwrap();
    let first = Pod::new(0, "first");
    let (address, _) = first.add(place).unwrap();
    let entries = |options: &str| {
        let listed = place.sh(&format!("conntrack -L {options} 2>/dev/null")).unwrap();
        listed.lines().count()
    };
    let of_pod = || entries(&format!("-s {address}")) + entries(&format!("-d {address}"));
    let seen = Spot { place, netns: Some("first") }.ask(INTERNET_SERVER, PORT).unwrap();
    assert_eq!(seen.client, lab.node(0).public_address);
    place.sh(&format!("ip netns exec first bash -c 'echo > /dev/udp/{INTERNET_SERVER}/53'")).unwrap();
    place.sh(&format!("bash -c 'echo > /dev/udp/{address}/53'")).unwrap();
    let (tcp, udp) = (format!("-p tcp -s {address}"), format!("-p udp -s {address}"));
    assert!(entries(&tcp) > 0 && entries(&udp) > 0);
    assert!(entries(&format!("-p udp -d {address}")) > 0);
    // Others have many more, so that forgetting takes longer than the rest of an ADD.
    let fill = "import socket
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for host in range(2, 4):
    for port in range(1, 60001):
        udp.sendto(b'x', (f'127.0.0.{host}', port))";
    let others =
        || place.sh("cat /proc/sys/net/netfilter/nf_conntrack_count").unwrap().trim().parse::<usize>().unwrap();
    first.del(place).unwrap();
    lab.run(place.name, "python3", &["-c", fill]).unwrap();
    assert!(of_pod() > 0, "connection tracking remembers a cooling address: late packets reach no pod");
    assert!(others() > 100_000);
    // This one waits for the end of the rest, and is answered the moment it comes.
    let second = Pod::new(0, "second");
    assert_eq!(second.add(place).unwrap().0, address);
    assert_eq!(of_pod(), 0);
    assert!(others() > 100_000, "entries of others have gone");
    // A daemon that starts anew goes on with it: sooner than TIME_WAIT, which lasts two minutes, would end.
    Spot { place, netns: Some("second") }.ask(INTERNET_SERVER, PORT).unwrap();
    assert!(of_pod() > 0);
    second.del(place).unwrap();
    daemon.kill().unwrap();
    let daemon = Daemon::spawn(place, &settings).unwrap();
    wait_until(BOUND, || of_pod() == 0).unwrap();
    assert!(!daemon.log().contains("cannot delete connection tracking entries"), "{}", daemon.log());
    assert_eq!(lab.drops().unwrap().foreign_source, 0);
}
