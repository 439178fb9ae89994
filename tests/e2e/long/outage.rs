//! Ten minutes without EC2, refused and silent in turn, while daemons are killed and pods come and go.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use enid_tests::{
    Daemon, Place, Pod, consistency, pod,
    traffic::{PORT, Spot, serve},
    wait_until,
};
use vpclab::{INTERNET_SERVER, model::Faults};

use crate::{BOUND, MINUTES, add, lab};

/// How long EC2 is unreachable.
const OUTAGE: Duration = Duration::from_secs(600);
/// Checks and events on the way.
const ROUNDS: u32 = 60;
/// Calls per minute and node that may fail during the outage, restarts included.
const CALLS_PER_MINUTE: u64 = 12;

/// A node, its daemon, the pods that run all the time and one that is added and deleted.
struct TestNode<'a> {
    place: Place<'a>,
    settings: &'a [(&'a str, &'a str)],
    daemon: Option<Daemon>,
    running: Vec<(Pod, String)>,
    transient: Pod,
}

impl<'a> TestNode<'a> {
    fn start(place: Place<'a>, node: usize, settings: &'a [(&'a str, &'a str)], running: usize) -> Self {
        let daemon = Some(Daemon::start(place, settings).unwrap());
        let (total, transient) = (settings[0].1.parse().unwrap(), Pod::new(node, &format!("transient{node}")));
        wait_until(BOUND, || place.number("total").unwrap() >= total).unwrap();
        let running = add(place, node, &format!("running{node}"), running);
        let no_calls = || place.enid("status").unwrap()["calls"].as_array().unwrap().is_empty();
        wait_until(BOUND, || no_calls() && consistency::check(place).is_ok()).unwrap();
        TestNode { place, settings, daemon, running, transient }
    }

    /// kill −9, and a new one. Meanwhile DEL works and the error of ADD names the cause.
    fn restart(&mut self) {
        let has_transient = self.place.number("available").unwrap() > 0;
        if has_transient {
            self.transient.add(self.place).unwrap();
        }
        self.daemon.take().unwrap().kill().unwrap();
        if has_transient {
            self.transient.del(self.place).unwrap();
        }
        self.transient.make_namespace(self.place).unwrap();
        self.transient.refused(self.place, 11, &["daemon_down"]).unwrap();
        self.transient.remove_namespace(self.place).unwrap();
        self.daemon = Some(Daemon::spawn(self.place, self.settings).unwrap());
        let count = || self.place.leases().map(|leases| leases.len());
        wait_until(BOUND, || count().is_ok_and(|count| count == self.running.len())).unwrap();
    }

    /// Adds and deletes a pod with what the pool has.
    fn add_and_delete(&self) {
        self.transient.add(self.place).unwrap();
        self.transient.del(self.place).unwrap();
    }

    /// Assigns all that the pool has; one more ADD is refused with its cause. Then all are deleted.
    fn exhaust(&self) {
        let many: Vec<Pod> =
            (0..64).map(|n| Pod { name: format!("{}-{n}", self.transient.name), ..self.transient.clone() }).collect();
        let many: Vec<Pod> = many
            .into_iter()
            .map(|pod| Pod { container: pod.name.clone(), config: pod::config("1.0.0", 8), ..pod })
            .collect();
        let mut added = Vec::new();
        for pod in &many {
            pod.make_namespace(self.place).unwrap();
            if !pod.try_call(self.place, "ADD").unwrap().0 {
                break;
            }
            added.push(pod);
        }
        let status = self.place.enid("status").unwrap();
        assert_eq!(status["available"], 0, "{status}");
        assert_eq!(status["cause"], "ec2_unreachable", "{status}");
        let last = &many[added.len()];
        last.refused(self.place, 11, &["ec2_unreachable", "got no answer"]).unwrap();
        last.remove_namespace(self.place).unwrap();
        added.iter().for_each(|pod| pod.del(self.place).unwrap());
    }

    /// Every running pod still has its lease.
    fn keeps_its_leases(&self) {
        let leases = self.place.leases().unwrap();
        let leased: BTreeSet<_> =
            leases.iter().map(|lease| (lease["pod_name"].as_str(), lease["address"].as_str())).collect();
        for (pod, address) in &self.running {
            assert!(leased.contains(&(Some(&pod.name), Some(address))), "{} lost {address}: {leases:?}", pod.name);
        }
    }
}

/// Every running pod connects to one of the other node, and one of each to the Internet.
fn connect_all(a: &TestNode<'_>, b: &TestNode<'_>) {
    for (from, to) in [(a, b), (b, a)] {
        for ((client, own), (_, server)) in from.running.iter().zip(to.running.iter().cycle()) {
            let spot = Spot { place: from.place, netns: Some(&client.name) };
            spot.ask(server, PORT).unwrap().expect(own, server).unwrap();
        }
        let last = from.running.last().map(|(pod, _)| pod.name.as_str());
        Spot { place: from.place, netns: last }.ask(INTERNET_SERVER, PORT).unwrap();
    }
}

#[test]
fn ten_minutes_without_ec2_disturb_no_running_pod() {
    let outage = std::env::var("ENID_OUTAGE_SECONDS").map_or(OUTAGE, |text| Duration::from_secs(text.parse().unwrap()));
    let lab = lab("outage");
    // One has enough, on two ENIs; the other one's primary is full but for one address.
    let enough = [("MINIMUM_IP_TARGET", "16"), ("IP_COOLDOWN_PERIOD", "5")];
    let scarce = [("MINIMUM_IP_TARGET", "9"), ("WARM_IP_TARGET", "1"), ("IP_COOLDOWN_PERIOD", "5")];
    let mut a = TestNode::start(Place::node(&lab, 0), 0, &enough, 11);
    let mut b = TestNode::start(Place::node(&lab, 1), 1, &scarce, 7);
    let names = |node: &TestNode<'_>| node.running.iter().map(|(pod, _)| pod.name.clone()).collect::<Vec<_>>();
    let serve =
        |node: &TestNode<'_>| serve(node.place, &names(node).iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    let _servers = (serve(&a), serve(&b), enid_tests::traffic::serve(Place { lab: &lab, name: "inet" }, &[]).unwrap());
    connect_all(&a, &b);
    // EC2 becomes unreachable while an ENI is created: the call is carried out and its answer is lost; others are lost.
    let lost = |action: &str| lab.ec2_counts().unwrap().get(action).map_or(0, |counted| counted.lost);
    let all_lost = || lab.ec2_counts().unwrap().values().map(|counted| counted.lost).sum::<u64>();
    let lose_answer = [("CreateNetworkInterface".to_owned(), 1.0)].into();
    let others = ["AssignPrivateIpAddresses", "AttachNetworkInterface", "DescribeNetworkInterfaces"];
    let lose_request = others.map(|action| (action.to_owned(), 1.0)).into();
    lab.set_ec2(&Faults { lose_answer, lose_request, ..Faults::default() }).unwrap();
    b.running.extend(add(b.place, 1, "late", 2));
    let _late = enid_tests::traffic::serve(b.place, &["late-0", "late-1"]).unwrap();
    wait_until(BOUND, || lost("CreateNetworkInterface") > 0).unwrap();
    // From then on it closes connections, or does not answer at all.
    let fail = |silent: bool| lab.set_ec2(&Faults { down: !silent, silent, ..Faults::default() }).unwrap();
    fail(false);
    let started = Instant::now();
    let is_over = || started.elapsed() >= outage;
    let mut exhausted = false;
    for round in 0.. {
        match round % 12 {
            2 => b.restart(),
            4 => a.restart(),
            7 => fail(true),
            8 => a.restart(),
            9 => fail(false),
            10 if started.elapsed() >= outage / 2 && !exhausted => {
                a.exhaust();
                exhausted = true;
            }
            _ => a.add_and_delete(),
        }
        connect_all(&a, &b);
        a.keeps_its_leases();
        b.keeps_its_leases();
        if is_over() && exhausted {
            break;
        }
        // The next round is due, or it is over.
        let _ = wait_until(outage / ROUNDS, is_over);
    }
    let minutes = started.elapsed().as_secs().div_ceil(60);
    assert!(all_lost() <= 2 * CALLS_PER_MINUTE * minutes, "{:?}", lab.ec2_counts());

    lab.set_ec2(&Faults::default()).unwrap();
    let recovered = |node: &TestNode<'_>| {
        let status = node.place.enid("status").unwrap();
        let quiet = status["pause"] == "" && status["calls"].as_array().unwrap().is_empty();
        quiet && node.place.serves() && consistency::check(node.place).is_ok()
    };
    if let Err(late) = wait_until(MINUTES, || recovered(&a) && recovered(&b)) {
        let states =
            [&a, &b].map(|node| format!("{} {:?}", node.place.enid("status").unwrap(), consistency::check(node.place)));
        panic!("not recovered: {late}; {states:#?}");
    }
    // The ENI whose creation was not answered is used: more pods than fit on the primary.
    b.running.extend(add(b.place, 1, "after", 3));
    a.add_and_delete();
    for node in [&a, &b] {
        node.keeps_its_leases();
        wait_until(MINUTES, || consistency::check(node.place).is_ok()).unwrap();
        let metrics = node.place.metrics().unwrap();
        assert!(metrics.lines().any(|line| line == "enid_invariants_broken 0"), "{metrics}");
        node.running.iter().for_each(|(pod, _)| pod.del(node.place).unwrap());
        assert!(node.place.leases().unwrap().is_empty());
    }
    assert_eq!(lab.drops().unwrap().foreign_source, 0);
}
