//! What others take away or put in the way under a running daemon, and how it comes right again.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    process::{Child, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use enid_tests::{
    Daemon, Lab, LabConfig, Place, Pod,
    traffic::{PORT, Spot, serve},
    wait_until,
};
use vpclab::INTERNET_SERVER;

const BOUND: Duration = Duration::from_secs(20);

fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(|| Lab::up(&LabConfig { nodes: 6, ..LabConfig::default() }).unwrap())
}

/// m5.large has nine addresses for pods on an ENI.
const SETTINGS: &[(&str, &str)] = &[("MINIMUM_IP_TARGET", "12"), ("WARM_IP_TARGET", "1")];

/// A node with pods on its primary and on a secondary ENI, which is eth1 with table 2.
struct Stage {
    daemon: Daemon,
    pods: Vec<(Pod, String)>,
}

fn stage(place: Place<'_>, node: usize) -> Stage {
    let daemon = Daemon::start(place, SETTINGS).unwrap();
    wait_until(BOUND, || place.number("available").is_ok_and(|available| available >= 12)).unwrap();
    let pods: Vec<Pod> = (0..11).map(|n| Pod::new(node, &format!("pod-{node}-{n}"))).collect();
    let pods = pods.into_iter().map(|pod| (pod.clone(), pod.add(place).unwrap().0)).collect();
    Stage { daemon, pods }
}

impl Stage {
    /// The address and the host link of the pod that was made last, which lives on the secondary ENI.
    fn last(&self, place: Place<'_>) -> (String, String) {
        let address = self.pods.last().unwrap().1.clone();
        let leases = place.leases().unwrap();
        let lease = leases.iter().find(|lease| lease["address"] == address.as_str()).unwrap();
        (address, lease["host_ifname"].as_str().unwrap().to_owned())
    }
}

/// The host as pods need it: what a repair has to bring back, to the letter.
fn state(place: Place<'_>) -> String {
    let sysctls = place.sh("sysctl net.ipv4.ip_forward net.ipv4.conf.eth0.rp_filter net.ipv4.conf.eth1.rp_filter");
    let eth = place.sh("ip -4 -o addr show dev eth0; ip -4 -o addr show dev eth1");
    format!("{}{}{}", place.snapshot().unwrap(), sysctls.unwrap(), eth.unwrap())
}

#[test]
fn each_thing_that_is_taken_away_comes_back_by_itself() {
    let place = Place::node(lab(), 0);
    let stage = stage(place, 0);
    let (address, link) = stage.last(place);
    let primary = place.sh("ip -4 -o addr show dev eth1").unwrap();
    let primary = primary.split_whitespace().nth(3).unwrap();
    let _servers = serve(place, &[&stage.pods.last().unwrap().0.name]).unwrap();
    let whole = state(place);
    let harms = [
        ("a rule of an ENI", "ip rule del pref 1536".to_owned()),
        ("all rules, main's and default's too", "ip rule flush".to_owned()),
        ("the rule for main alone", "ip rule del pref 32766".to_owned()),
        ("an ENI's table", "ip route flush table 2".to_owned()),
        ("an ENI's default route, changed", "ip route replace default dev eth0 table 2".to_owned()),
        ("a pod's route", format!("ip route del {address}")),
        ("a pod's route, over another link", format!("ip route replace {address} dev eth0")),
        ("a pod's neighbour", format!("ip neigh del {address} dev {link}")),
        (
            "a pod's neighbour, changed",
            format!("ip neigh replace {address} dev {link} lladdr 02:00:00:00:00:01 nud permanent"),
        ),
        ("an ENI's address", format!("ip addr del {primary} dev eth1")),
        ("a pod's address on its ENI", format!("ip addr add {address}/32 dev eth1")),
        ("a pod's address on the primary ENI", format!("ip addr add {address}/32 dev eth0")),
        ("an ENI's link down", "ip link set eth1 down".to_owned()),
        ("an ENI's MTU", "ip link set eth1 mtu 1500".to_owned()),
        ("an ENI's device group", "ip link set eth1 group 7".to_owned()),
        ("an ENI's MAC", "ip link set eth1 address 02:00:00:00:00:02".to_owned()),
        ("a pod's link down", format!("ip link set {link} down")),
        ("a pod's MTU", format!("ip link set {link} mtu 1400")),
        ("a pod's device group", format!("ip link set {link} group 0")),
        ("a pod's MAC", format!("ip link set {link} address 02:00:00:00:00:03")),
        ("a pod's alias", format!("ip link set {link} alias ''")),
        ("an ENI's rp_filter", "sysctl -q net.ipv4.conf.eth1.rp_filter=1".to_owned()),
        ("forwarding", "sysctl -q net.ipv4.ip_forward=0".to_owned()),
        ("every table of nftables", "nft flush ruleset".to_owned()),
        // Ours is written between two of them.
        ("every table of nftables, again and again", "for i in $(seq 40); do nft flush ruleset; done".to_owned()),
        ("a chain of ours", "nft flush chain ip enid steer".to_owned()),
        ("an address in a set of ours", "nft flush set ip enid native".to_owned()),
        ("a rule in a chain of ours", "nft insert rule ip enid steer drop".to_owned()),
        ("what systemd-networkd does to foreign rules and routes when it starts again, and to links' MACs", format!(
            "ip rule flush; ip route flush table all proto static; ip neigh flush nud permanent dev {link}
             for l in $(ls /sys/class/net | grep ^eni); do ip link set $l address 0e:$(od -An -tx1 -N5 /dev/urandom | tr -s ' ' : | cut -c2-); done"
        )),
    ];
    for (what, harm) in harms {
        place.sh(&harm).unwrap();
        let started = Instant::now();
        let mut seen = String::new();
        let repaired = wait_until(BOUND, || {
            seen = state(place);
            seen == whole
        });
        let difference: Vec<&str> = seen.lines().filter(|line| !whole.contains(line)).collect();
        let missing: Vec<&str> = whole.lines().filter(|line| !seen.contains(line)).collect();
        repaired.unwrap_or_else(|_| panic!("{what}: there is {difference:#?}, there is not {missing:#?}"));
        println!("{what}: whole again when looked at {} ms later", started.elapsed().as_millis());
        Spot { place, netns: None }.ask(&address, PORT).unwrap_or_else(|failure| panic!("{what}: {failure:#}"));
    }
    let metrics = place.metrics().unwrap();
    for kind in ["rule", "route", "neighbour", "address", "link", "sysctl", "table"] {
        assert!(metrics.contains(&format!("enid_repairs{{kind=\"{kind}\"}}")), "{kind}: {metrics}");
    }
    // nftables tells whose transaction it was.
    let log = stage.daemon.log();
    let told = log.lines().find(|line| line.contains("repaired") && line.contains("kind=\"table\"")).unwrap();
    assert!(told.contains("nft (process "), "{told}");
}

/// All of it at once, and what is not ours too.
const FLUSH: &str = "nft flush ruleset; ip rule flush; ip route flush table 2; ip neigh flush nud permanent dev eth0
    for link in $(ls /sys/class/net | grep ^eni); do
        ip neigh flush nud permanent dev $link; ip route flush dev $link
    done";

#[test]
fn a_stream_and_a_ping_outlive_the_flush_of_everything() {
    let (here, there) = (Place::node(lab(), 2), Place::node(lab(), 3));
    let (stage_here, stage_there) = (stage(here, 2), stage(there, 3));
    let (near, far) = (stage_here.pods.last().unwrap(), stage_there.pods.last().unwrap());
    let _servers = serve(there, &[&far.0.name]).unwrap();
    let _outside = serve(Place { lab: lab(), name: "inet" }, &[]).unwrap();
    let pod = Spot { place: here, netns: Some(&near.0.name) };
    let whole = state(here);
    let public = &Spot { place: here, netns: None }.ask(INTERNET_SERVER, PORT).unwrap().client;
    for round in 0..3 {
        let (stream, ping) = (pod.stream(&far.1, PORT).unwrap(), pod.ping_on(&far.1).unwrap());
        here.sh(FLUSH).unwrap();
        let started = Instant::now();
        wait_until(BOUND, || state(here) == whole).unwrap();
        let whole_after = started.elapsed();
        // What was translated cannot live on, since the node has forgotten it; what comes next is translated.
        let seen = pod.ask(INTERNET_SERVER, PORT).unwrap().client;
        assert_eq!(&seen, public, "the node's public address");
        stream.end().unwrap().expect(&near.1, &far.1).unwrap();
        let (sent, came_back) = ping.end().unwrap();
        println!(
            "flush {round}: whole again when looked at {} ms later; {} of {sent} echoes, 10 ms apart, lost",
            whole_after.as_millis(),
            sent - came_back
        );
        assert!(sent - came_back <= 100, "{} echoes lost: more than a second", sent - came_back);
    }
}

#[test]
fn fifty_restarts_under_traffic_write_nothing_and_lose_nothing() {
    let place = Place::node(lab(), 5);
    let Stage { mut daemon, pods } = stage(place, 5);
    let server = &pods.last().unwrap().0;
    let _servers = serve(place, &[&server.name]).unwrap();
    let node = Spot { place, netns: None };
    let (stream, ping) = (node.stream(&pods.last().unwrap().1, PORT).unwrap(), node.ping_on(&pods[0].1).unwrap());
    // Links that have just come are still looking whether anybody has their IPv6 address.
    wait_until(BOUND, || place.sh("ip -6 -o addr show tentative").is_ok_and(|list| list.is_empty())).unwrap();
    let told = Told::of(place);
    let whole = state(place);
    for _ in 0..50 {
        daemon.kill().unwrap();
        daemon = Daemon::start(place, SETTINGS).unwrap();
        let read = || {
            place.metrics().is_ok_and(|text| text.contains("\nenid_readings ") && !text.contains("\nenid_readings 0"))
        };
        wait_until(BOUND, read).unwrap();
    }
    assert_eq!(told.end(), "", "50 restarts changed the kernel");
    assert_eq!(state(place), whole);
    let (sent, came_back) = ping.end().unwrap();
    println!("50 restarts: no notice of a change; {} of {sent} echoes, 10 ms apart, lost", sent - came_back);
    assert_eq!(sent, came_back);
    stream.end().unwrap();
    drop(daemon);
}

#[test]
fn when_more_changed_than_can_be_told_everything_is_read_again() {
    let place = Place::node(lab(), 4);
    let stage = stage(place, 4);
    let whole = state(place);
    stage.daemon.hang(true).unwrap();
    // What is told waits in a buffer of one megabyte, and what comes after that is lost.
    place
        .sh("for n in $(seq 20000); do echo route add blackhole 198.18.$((n / 256)).$((n % 256)) table 500; done > /run/b
            ip -batch /run/b; ip rule del pref 1536; nft flush chain ip enid steer")
        .unwrap();
    stage.daemon.hang(false).unwrap();
    place.sh("ip route flush table 500").unwrap();
    let repaired = wait_until(BOUND, || state(place) == whole);
    repaired.unwrap_or_else(|_| panic!("{}", stage.daemon.log()));
}

/// What the kernel tells of changes: all but neighbours that come and go by themselves.
struct Told<'a> {
    place: Place<'a>,
    monitors: Vec<Child>,
}

impl<'a> Told<'a> {
    fn of(place: Place<'a>) -> Self {
        let monitor = |line: &str| {
            let line = format!("{line} >> /run/told");
            place.command("sh").unwrap().args(["-c", &line]).stdin(Stdio::null()).spawn().unwrap()
        };
        let monitors = vec![
            monitor("exec ip -o monitor link address route rule netconf"),
            monitor("ip -o monitor neigh | grep --line-buffered PERMANENT"),
            monitor("exec nft monitor"),
        ];
        let told = Told { place, monitors };
        told.hears(1);
        told
    }

    /// Waits until every monitor has told of a change that is made for it.
    fn hears(&self, number: u8) {
        let marks =
            [format!("lookup {}", 7700 + u32::from(number)), format!("192.0.2.{number} "), format!("mark{number}")];
        let [rule, neighbour, table] = &marks;
        let heard = || {
            self.place
                .sh(&format!(
                    "ip rule add pref 9 {rule}; ip rule del pref 9 {rule}
                     ip neigh add {neighbour} dev eth0 lladdr 02:00:00:00:00:09 nud permanent
                     ip neigh del {neighbour} dev eth0; nft add table ip {table}; nft delete table ip {table}"
                ))
                .unwrap();
            let told = self.place.sh("cat /run/told").unwrap();
            marks.iter().all(|mark| told.contains(mark))
        };
        wait_until(BOUND, heard).unwrap();
    }

    /// All that was told, without what was made for it.
    fn end(&self) -> String {
        self.hears(2);
        let told = self.place.sh("cat /run/told").unwrap();
        let of_others = |line: &&str| {
            !["lookup 770", "192.0.2.", " mark", "# new generation"].iter().any(|ours| line.contains(ours))
        };
        told.lines().filter(of_others).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        let _ = self.monitors.iter_mut().try_for_each(enid_tests::traffic::end);
    }
}

#[test]
fn what_stands_in_the_way_is_told_and_left_alone() {
    let place = Place::node(lab(), 1);
    let stage = stage(place, 1);
    let (address, _) = stage.last(place);
    let shadows = || place.enid("status").unwrap()["shadows"].to_string();
    assert_eq!(shadows(), "[]");
    let harms = [
        (format!("rule add pref 100 from {address} lookup 77"), "the rule 100".to_owned()),
        ("rule add pref 200 lookup 77".to_owned(), "the rule 200".to_owned()),
        ("rule add pref 300 fwmark 1/1 lookup 77".to_owned(), "the rule 300: from all fwmark 0x1/0x1".to_owned()),
        (format!("rule add pref 5000 to {address}/24 lookup 77"), "the rule 5000".to_owned()),
        ("route add 192.0.2.0/24 dev eth1 table 2".to_owned(), "192.0.2.0/24 in table 2".to_owned()),
        (format!("addr add {address}/32 dev lo"), format!("{address}, an address for pods")),
    ];
    for (harm, words) in harms {
        place.sh(&format!("ip {harm}")).unwrap();
        wait_until(BOUND, || shadows().contains(&words)).unwrap_or_else(|_| panic!("{harm}: {}", shadows()));
        assert!(stage.daemon.log().contains(&words), "{harm}");
        place.sh(&format!("ip {}", harm.replace(" add ", " del "))).unwrap();
        wait_until(BOUND, || shadows() == "[]").unwrap_or_else(|_| panic!("{harm}: {}", shadows()));
    }
    // What others use beside us is nobody's business.
    for harmless in [
        "rule add pref 100 fwmark 0x200/0xf00 lookup 77",
        "rule add pref 101 iif lo lookup 77",
        "rule add pref 5001 lookup 77",
        "rule add pref 102 from 198.51.100.0/24 lookup 77",
    ] {
        place.sh(&format!("ip {harmless}")).unwrap();
    }
    place.sh("ip rule add pref 103 from all to 0.0.0.0/0 fwmark 1 lookup 77; ip rule del pref 1536").unwrap();
    wait_until(BOUND, || place.sh("ip rule").is_ok_and(|rules| rules.contains("1536:"))).unwrap();
    assert_eq!(shadows(), "[]");
}
