//! What others take away or put in the way under a running daemon, and how it comes right again.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{sync::OnceLock, time::Duration};

use enid_tests::{
    Call, Daemon, Lab, LabConfig, Place, Pod,
    kernel::{
        Notifications, REPAIR_BOUND, counter, state, wait_until_idle, wait_until_reconciled, wait_until_restored,
    },
    traffic::{PORT, Servers, Spot, serve},
    wait_until, wait_until_still,
};
use vpclab::{Drops, INTERNET_SERVER};

const BOUND: Duration = Duration::from_secs(20);
/// A ping sends fifty echoes in this time.
const STILL: Duration = Duration::from_millis(500);

fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(|| Lab::up(&LabConfig { nodes: 7, ..LabConfig::default() }).unwrap())
}

/// m5.large has nine addresses for pods on an ENI.
const SETTINGS: &[(&str, &str)] = &[("MINIMUM_IP_TARGET", "12"), ("WARM_IP_TARGET", "1")];

/// A node with pods on its primary and on a secondary ENI, which is eth1 with table 2.
struct Stage {
    index: usize,
    place: Place<'static>,
    daemon: Daemon,
    pods: Vec<(Pod, String)>,
}

fn stage(index: usize) -> Stage {
    let place = Place::node(lab(), index);
    let daemon = Daemon::start(place, SETTINGS).unwrap();
    wait_until(BOUND, || place.number("available").is_ok_and(|available| available >= 12)).unwrap();
    let pods: Vec<Pod> = (0..11).map(|n| Pod::new(index, &format!("pod-{index}-{n}"))).collect();
    let pods = pods.into_iter().map(|pod| (pod.clone(), pod.add(place).unwrap().0)).collect();
    Stage { index, place, daemon, pods }
}

/// All below is about the pod that was made last, which lives on the secondary ENI.
impl Stage {
    fn name(&self) -> &str {
        &self.pods.last().unwrap().0.name
    }

    fn address(&self) -> &str {
        &self.pods.last().unwrap().1
    }

    /// Its host link.
    fn link(&self) -> String {
        let leases = self.place.leases().unwrap();
        let lease = leases.iter().find(|lease| lease["address"] == self.address()).unwrap();
        lease["host_ifname"].as_str().unwrap().to_owned()
    }

    fn pod(&self) -> Spot<'_> {
        Spot { place: self.place, netns: Some(self.name()) }
    }

    fn serve(&self) -> Servers {
        serve(self.place, &[self.name()]).unwrap()
    }

    /// Echoes that it has sent and that have not come back, as its kernel counts: ping does not wait for the last.
    fn lost(&self) -> u64 {
        let pod = self.name();
        let said = self.place.sh(&format!("ip netns exec {pod} nstat -asz IcmpOutEchos IcmpInEchoReps")).unwrap();
        let number = |name: &str| -> u64 {
            let line = said.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        number("IcmpOutEchos") - number("IcmpInEchoReps")
    }

    /// How the Internet sees it.
    fn public(&self) -> &str {
        &lab().node(self.index).public_address
    }

    /// That pod speaks to a pod of another node, which sees its own address, and to the Internet, which sees the node's.
    fn speaks(&self) -> anyhow::Result<()> {
        let far = far().address();
        self.pod().ask(far, PORT)?.expect(self.address(), far)?;
        self.pod().ask(INTERNET_SERVER, PORT)?.expect(self.public(), INTERNET_SERVER)
    }
}

/// The other node of all tests. It serves, and so does the Internet.
fn far() -> &'static Stage {
    static FAR: OnceLock<(Stage, [Servers; 2])> = OnceLock::new();
    let up = || {
        let stage = stage(3);
        let servers = [stage.serve(), serve(Place { lab: lab(), name: "inet" }, &[]).unwrap()];
        (stage, servers)
    };
    &FAR.get_or_init(up).0
}

#[test]
fn each_thing_that_is_taken_away_comes_back_by_itself() {
    let mut stage = stage(0);
    let (place, address, link) = (stage.place, stage.address(), stage.link());
    let primary = place.sh("ip -4 -o addr show dev eth1").unwrap();
    let primary = primary.split_whitespace().nth(3).unwrap();
    let _server = stage.serve();
    stage.speaks().unwrap();
    let dropped = lab().drops().unwrap();
    let whole = state(place).unwrap();
    let faults = [
        ("a rule of an ENI", "ip rule del pref 1536".to_owned()),
        ("all rules, main's and default's too", "ip rule flush".to_owned()),
        ("the rule for main alone", "ip rule del pref 32766".to_owned()),
        (
            "a rule of an ENI, narrowed",
            "ip rule del pref 1536; ip rule add pref 1536 fwmark 0x41/0x7f tos 0x10 lookup 2".to_owned(),
        ),
        ("an ENI's table", "ip route flush table 2".to_owned()),
        ("an ENI's default route, changed", "ip route replace default dev eth0 table 2".to_owned()),
        ("an ENI's default route, without a link", "ip route replace unreachable default table 2".to_owned()),
        ("a pod's route", format!("ip route del {address}")),
        ("a pod's route, over another link", format!("ip route replace {address} dev eth0")),
        ("a pod's route, without a link", format!("ip route replace blackhole {address}/32")),
        ("a pod's route, with an MTU", format!("ip route replace {address}/32 dev {link} mtu 500")),
        ("a pod's neighbour", format!("ip neigh del {address} dev {link}")),
        (
            "a pod's neighbour, changed",
            format!("ip neigh replace {address} dev {link} lladdr 02:00:00:00:00:01 nud permanent"),
        ),
        (
            "a pod's neighbour, changed and reachable",
            format!("ip neigh replace {address} dev {link} lladdr 02:00:00:00:00:01 nud reachable"),
        ),
        (
            "a pod's neighbour, changed and stale",
            format!("ip neigh replace {address} dev {link} lladdr 02:00:00:00:00:01 nud stale"),
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
    let mut times = Vec::new();
    for (what, fault) in faults {
        wait_until_idle(place).unwrap();
        place.sh(&fault).unwrap();
        let took =
            wait_until_restored(place, &whole, REPAIR_BOUND).unwrap_or_else(|failure| panic!("{what}: {failure:#}"));
        times.push(took);
        println!("{what}: whole again when looked at {} ms later", took.as_millis());
        Spot { place, netns: None }.ask(address, PORT).unwrap_or_else(|failure| panic!("{what}: {failure:#}"));
        stage.speaks().unwrap_or_else(|failure| panic!("{what}: {failure:#}"));
    }
    assert_eq!(lab().drops().unwrap(), dropped, "dropped for a foreign source");
    // So it is promised; of half of them at least a busy machine can be held to it.
    times.sort();
    assert!(times[times.len() / 2] < Duration::from_secs(1), "{times:?}");
    let metrics = place.metrics().unwrap();
    for kind in ["rule", "route", "neighbour", "address", "link", "sysctl", "table"] {
        assert!(metrics.contains(&format!("enid_repairs_total{{kind=\"{kind}\"}}")), "{kind}: {metrics}");
    }
    // nftables tells whose transaction it was.
    let log = stage.daemon.log();
    let notified = log.lines().find(|line| line.contains("repaired") && line.contains("kind=\"table\"")).unwrap();
    assert!(notified.contains("nft (process "), "{notified}");
    // Links' MACs changed while no daemon runs: the pods are alive, and their links come right again.
    let leases = place.leases().unwrap();
    stage.daemon.kill().unwrap();
    place
        .sh("for l in $(ls /sys/class/net | grep ^eni); do
                 ip link set $l address 0e:$(od -An -tx1 -N5 /dev/urandom | tr -s ' ' : | cut -c2-)
             done")
        .unwrap();
    stage.daemon = Daemon::start(place, SETTINGS).unwrap();
    wait_until_restored(place, &whole, REPAIR_BOUND).unwrap();
    assert_eq!(place.leases().unwrap(), leases);
    Spot { place, netns: None }.ask(&stage.pods.last().unwrap().1, PORT).unwrap();
    stage.speaks().unwrap();
}

/// All of it at once, and what is not ours too.
const FLUSH: &str = "nft flush ruleset; ip rule flush; ip route flush table 2; ip neigh flush nud permanent dev eth0
    for link in $(ls /sys/class/net | grep ^eni); do
        ip neigh flush nud permanent dev $link; ip route flush dev $link
    done";

/// What was dropped for a foreign source, once nothing more is. Packets that were routed while rules were missing may wait for the
/// gateway's MAC, which was flushed, too, and are dropped when they leave.
fn settled_drops() -> Drops {
    wait_until_still(BOUND, STILL, || lab().drops())
        .unwrap_or_else(|failure| panic!("packets leave with a foreign source: {failure:#}"))
}

#[test]
fn a_stream_and_a_ping_outlive_the_flush_of_everything() {
    let (stage, far) = (stage(2), far().address());
    let (place, pod) = (stage.place, stage.pod());
    let whole = state(place).unwrap();
    for round in 0..3 {
        let (stream, ping) = (pod.stream(far, PORT).unwrap(), pod.ping_on(far).unwrap());
        place.sh(FLUSH).unwrap();
        let took = wait_until_restored(place, &whole, REPAIR_BOUND).unwrap();
        let dropped = settled_drops();
        // What was translated cannot live on, since the node has forgotten it; what comes next is translated.
        stage.speaks().unwrap();
        pod.ping(far, 56).unwrap();
        stream.end().unwrap().expect(stage.address(), far).unwrap();
        let (sent, came_back) = ping.end().unwrap();
        assert_eq!(lab().drops().unwrap(), dropped, "dropped for a foreign source after the repair");
        println!(
            "flush {round}: whole again when looked at {} ms later; {} of {sent} echoes, 10 ms apart, lost",
            took.as_millis(),
            sent - came_back
        );
    }
}

#[test]
fn fifty_restarts_under_traffic_write_nothing_and_lose_nothing() {
    let (mut stage, far) = (stage(5), far().address());
    let place = stage.place;
    let dropped = lab().drops().unwrap();
    let [stream, translated] = [far, INTERNET_SERVER].map(|server| stage.pod().stream(server, PORT).unwrap());
    let ping = stage.pod().ping_on(far).unwrap();
    let notified = Notifications::record(place).unwrap();
    let whole = || (state(place).unwrap(), place.leases().unwrap());
    let before = whole();
    for _ in 0..50 {
        stage.daemon.kill().unwrap();
        stage.daemon = Daemon::start(place, SETTINGS).unwrap();
        wait_until_reconciled(place).unwrap();
        assert_eq!(counter(place, "enid_repairs_total").unwrap(), 0, "a restart repairs: {}", stage.daemon.log());
    }
    assert_eq!(notified.end().unwrap(), "", "50 restarts changed the kernel");
    assert_eq!(whole(), before);
    let (sent, _) = ping.end().unwrap();
    wait_until(BOUND, || stage.lost() == 0).unwrap_or_else(|_| panic!("{} of {sent} echoes lost", stage.lost()));
    println!("50 restarts: no notice of a change; none of {sent} echoes, 10 ms apart, lost");
    stream.end().unwrap().expect(stage.address(), far).unwrap();
    translated.end().unwrap().expect(stage.public(), INTERNET_SERVER).unwrap();
    assert_eq!(lab().drops().unwrap(), dropped, "dropped for a foreign source");
}

#[test]
fn when_more_changed_than_can_be_notified_everything_is_read_again() {
    let stage = stage(4);
    let place = stage.place;
    let whole = state(place).unwrap();
    let overruns = || counter(place, "enid_watch_overruns_total").unwrap();
    wait_until_idle(place).unwrap();
    let before = overruns();
    stage.daemon.hang(true).unwrap();
    // Notifications wait in a buffer of one megabyte, and what comes after that is lost: none tells of the rule.
    // Local routes, of which the buffer is full, concern nobody.
    place
        .sh("for n in $(seq 20000); do echo route add local 198.18.$((n / 256)).$((n % 256)) dev lo table local; done > /run/b
            ip -batch /run/b; ip rule del pref 1536; ip route flush table local root 198.18.0.0/16")
        .unwrap();
    stage.daemon.hang(false).unwrap();
    wait_until_restored(place, &whole, REPAIR_BOUND)
        .unwrap_or_else(|failure| panic!("{failure:#}: {}", stage.daemon.log()));
    assert!(overruns() > before, "nothing was lost");
}

#[test]
fn conflicts_are_reported_and_left_alone() {
    let stage = stage(1);
    let (place, address) = (stage.place, stage.address());
    let conflicts = || place.enid("status").unwrap()["conflicts"].to_string();
    assert_eq!(conflicts(), "[]");
    let faults = [
        (format!("rule add pref 100 from {address} lookup 77"), "the rule 100".to_owned()),
        ("rule add pref 200 lookup 77".to_owned(), "the rule 200".to_owned()),
        ("rule add pref 300 fwmark 1/1 lookup 77".to_owned(), "the rule 300: from all fwmark 0x1/0x1".to_owned()),
        (format!("rule add pref 5000 to {address}/24 lookup 77"), "the rule 5000".to_owned()),
        ("route add 192.0.2.0/24 dev eth1 table 2".to_owned(), "192.0.2.0/24 in table 2".to_owned()),
        (format!("addr add {address}/32 dev lo"), format!("{address}, an address for pods")),
    ];
    for (fault, words) in faults {
        place.sh(&format!("ip {fault}")).unwrap();
        wait_until(BOUND, || conflicts().contains(&words)).unwrap_or_else(|_| panic!("{fault}: {}", conflicts()));
        assert!(stage.daemon.log().contains(&words), "{fault}");
        place.sh(&format!("ip {}", fault.replace(" add ", " del "))).unwrap();
        wait_until(BOUND, || conflicts() == "[]").unwrap_or_else(|_| panic!("{fault}: {}", conflicts()));
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
    assert_eq!(conflicts(), "[]");
}

/// The kind: something that is under way is taken for drift.
#[test]
fn pods_that_come_and_go_and_slow_plugins_are_nobodys_drift() {
    let place = Place::node(lab(), 6);
    let daemon = Daemon::start(place, &[("MINIMUM_IP_TARGET", "27"), ("IP_COOLDOWN_PERIOD", "0")]).unwrap();
    wait_until(BOUND, || place.number("available").is_ok_and(|available| available == 27)).unwrap();
    let repairs = || counter(place, "enid_repairs_total").unwrap();
    let before = repairs();
    let pods: Vec<Pod> = (0..20).map(|n| Pod::new(6, &format!("burst-{n}"))).collect();
    for _ in 0..4 {
        for verb in ["ADD", "DEL"] {
            std::thread::scope(|scope| {
                for pod in &pods {
                    scope.spawn(
                        move || {
                            if verb == "ADD" { drop(pod.add(place).unwrap()) } else { pod.del(place).unwrap() }
                        },
                    );
                }
            });
        }
    }
    assert_eq!(repairs(), before, "{}", daemon.log());
    // The last thing that a plugin sends configures the host's end.
    let sent = |name: &str, delay: &str| {
        let pod = Pod::new(6, name);
        pod.make_namespace(place).unwrap();
        let trace = ["strace", "-o", "/run/trace", "-e", "trace=sendto", "-e", delay];
        Call::new(&pod, "ADD").under(&trace).make(place).unwrap().fine().unwrap();
        (pod, place.sh("grep -c ^sendto /run/trace").unwrap().trim().to_owned())
    };
    let (quick, last) = sent("quick", "inject=sendto:delay_enter=1:when=1");
    let (slow, _) = sent("slow", &format!("inject=sendto:delay_enter=1500000:when={last}"));
    assert_eq!(repairs(), before, "{}", daemon.log());
    [quick, slow].iter().for_each(|pod| pod.del(place).unwrap());
}
