//! Ten minutes without EC2, refused and silent in turn, while daemons are killed and pods come and go.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use enid_tests::{
    Daemon, Place, Pod, pod,
    traffic::{PORT, Spot, serve},
    truth, wait_until,
};
use vpclab::{INTERNET_SERVER, model::Faults};

use crate::{BOUND, MINUTES, add, lab};

/// How long EC2 stays away.
const OUTAGE: Duration = Duration::from_secs(600);
/// Checks and events on the way.
const ROUNDS: u32 = 60;
/// EC2 is not hammered: calls a minute and node that are made in vain, restarts included.
const CALLS_PER_MINUTE: u64 = 12;

/// A node, its daemon, the pods that live through it all and one that comes and goes.
struct Side<'a> {
    place: Place<'a>,
    settings: &'a [(&'a str, &'a str)],
    daemon: Option<Daemon>,
    live: Vec<(Pod, String)>,
    guest: Pod,
}

impl<'a> Side<'a> {
    fn start(place: Place<'a>, node: usize, settings: &'a [(&'a str, &'a str)], live: usize) -> Self {
        let daemon = Some(Daemon::start(place, settings).unwrap());
        let (total, guest) = (settings[0].1.parse().unwrap(), Pod::new(node, &format!("guest{node}")));
        wait_until(BOUND, || place.number("total").unwrap() >= total).unwrap();
        let live = add(place, node, &format!("live{node}"), live);
        let calm = || place.enid("status").unwrap()["calls"].as_array().unwrap().is_empty();
        wait_until(BOUND, || calm() && truth::agree(place).is_ok()).unwrap();
        Side { place, settings, daemon, live, guest }
    }

    /// kill −9, and a new one. Meanwhile DEL works and ADD says who is missing.
    fn restart(&mut self) {
        let visited = self.place.number("available").unwrap() > 0;
        if visited {
            self.guest.add(self.place).unwrap();
        }
        self.daemon.take().unwrap().kill().unwrap();
        if visited {
            self.guest.del(self.place).unwrap();
        }
        self.guest.make_namespace(self.place).unwrap();
        self.guest.refused(self.place, 11, &["daemon_down"]).unwrap();
        self.guest.remove_namespace(self.place).unwrap();
        self.daemon = Some(Daemon::spawn(self.place, self.settings).unwrap());
        let held = || self.place.leases().map(|leases| leases.len());
        wait_until(BOUND, || held().is_ok_and(|held| held == self.live.len())).unwrap();
    }

    /// A pod that comes and goes on what the pool holds.
    fn visit(&self) {
        self.guest.add(self.place).unwrap();
        self.guest.del(self.place).unwrap();
    }

    /// Takes all that the pool has; one more is refused, and why is said. Then gives it back.
    fn run_dry(&self) {
        let many: Vec<Pod> =
            (0..64).map(|n| Pod { name: format!("{}-{n}", self.guest.name), ..self.guest.clone() }).collect();
        let many: Vec<Pod> = many
            .into_iter()
            .map(|pod| Pod { container: pod.name.clone(), config: pod::config("1.0.0", 8), ..pod })
            .collect();
        let mut served = Vec::new();
        for pod in &many {
            pod.make_namespace(self.place).unwrap();
            if !pod.try_call(self.place, "ADD").unwrap().0 {
                break;
            }
            served.push(pod);
        }
        let status = self.place.enid("status").unwrap();
        assert_eq!(status["available"], 0, "{status}");
        assert_eq!(status["cause"], "ec2_unreachable", "{status}");
        let last = &many[served.len()];
        last.refused(self.place, 11, &["ec2_unreachable", "got no answer"]).unwrap();
        last.remove_namespace(self.place).unwrap();
        served.iter().for_each(|pod| pod.del(self.place).unwrap());
    }

    /// Every live pod still holds its address.
    fn keeps_its_leases(&self) {
        let leases = self.place.leases().unwrap();
        let held: BTreeSet<_> =
            leases.iter().map(|lease| (lease["pod_name"].as_str(), lease["address"].as_str())).collect();
        for (pod, address) in &self.live {
            assert!(held.contains(&(Some(&pod.name), Some(address))), "{} lost {address}: {leases:?}", pod.name);
        }
    }
}

/// Every live pod asks one of the other node, and one of each asks the Internet.
fn talk(a: &Side<'_>, b: &Side<'_>) {
    for (from, to) in [(a, b), (b, a)] {
        for ((client, own), (_, server)) in from.live.iter().zip(to.live.iter().cycle()) {
            let spot = Spot { place: from.place, netns: Some(&client.name) };
            spot.ask(server, PORT).unwrap().expect(own, server).unwrap();
        }
        let last = from.live.last().map(|(pod, _)| pod.name.as_str());
        Spot { place: from.place, netns: last }.ask(INTERNET_SERVER, PORT).unwrap();
    }
}

#[test]
fn ten_minutes_without_ec2_cost_no_live_pod_anything() {
    let outage = std::env::var("ENID_OUTAGE_SECONDS").map_or(OUTAGE, |text| Duration::from_secs(text.parse().unwrap()));
    let lab = lab("outage");
    // One has enough, on two ENIs; the other one's primary is full but for one address.
    let enough = [("MINIMUM_IP_TARGET", "16"), ("IP_COOLDOWN_PERIOD", "5")];
    let scarce = [("MINIMUM_IP_TARGET", "9"), ("WARM_IP_TARGET", "1"), ("IP_COOLDOWN_PERIOD", "5")];
    let mut a = Side::start(Place::node(&lab, 0), 0, &enough, 11);
    let mut b = Side::start(Place::node(&lab, 1), 1, &scarce, 7);
    let names = |side: &Side<'_>| side.live.iter().map(|(pod, _)| pod.name.clone()).collect::<Vec<_>>();
    let serve =
        |side: &Side<'_>| serve(side.place, &names(side).iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    let _servers = (serve(&a), serve(&b), enid_tests::traffic::serve(Place { lab: &lab, name: "inet" }, &[]).unwrap());
    talk(&a, &b);
    // EC2 goes in the middle of a creation: it is carried out, and nobody hears of it; nothing else arrives.
    let lost = |action: &str| lab.ec2_counts().unwrap().get(action).map_or(0, |counted| counted.lost);
    let all_lost = || lab.ec2_counts().unwrap().values().map(|counted| counted.lost).sum::<u64>();
    let lose_answer = [("CreateNetworkInterface".to_owned(), 1.0)].into();
    let others = ["AssignPrivateIpAddresses", "AttachNetworkInterface", "DescribeNetworkInterfaces"];
    let lose_request = others.map(|action| (action.to_owned(), 1.0)).into();
    lab.set_ec2(&Faults { lose_answer, lose_request, ..Faults::default() }).unwrap();
    b.live.extend(add(b.place, 1, "late", 2));
    let _late = enid_tests::traffic::serve(b.place, &["late-0", "late-1"]).unwrap();
    wait_until(BOUND, || lost("CreateNetworkInterface") > 0).unwrap();
    // From then on it refuses, or says nothing at all.
    let be_away = |silent: bool| lab.set_ec2(&Faults { down: !silent, silent, ..Faults::default() }).unwrap();
    be_away(false);
    let started = Instant::now();
    let is_over = || started.elapsed() >= outage;
    let mut dry = false;
    for round in 0.. {
        match round % 12 {
            2 => b.restart(),
            4 => a.restart(),
            7 => be_away(true),
            8 => a.restart(),
            9 => be_away(false),
            10 if started.elapsed() >= outage / 2 && !dry => {
                a.run_dry();
                dry = true;
            }
            _ => a.visit(),
        }
        talk(&a, &b);
        a.keeps_its_leases();
        b.keeps_its_leases();
        if is_over() && dry {
            break;
        }
        // The next round is due, or it is over.
        let _ = wait_until(outage / ROUNDS, is_over);
    }
    let minutes = started.elapsed().as_secs().div_ceil(60);
    assert!(all_lost() <= 2 * CALLS_PER_MINUTE * minutes, "{:?}", lab.ec2_counts());

    lab.set_ec2(&Faults::default()).unwrap();
    let well = |side: &Side<'_>| {
        let status = side.place.enid("status").unwrap();
        let calm = status["pause"] == "" && status["calls"].as_array().unwrap().is_empty();
        calm && status["ready"] == true && truth::agree(side.place).is_ok()
    };
    if let Err(late) = wait_until(MINUTES, || well(&a) && well(&b)) {
        let said =
            [&a, &b].map(|side| format!("{} {:?}", side.place.enid("status").unwrap(), truth::agree(side.place)));
        panic!("not well again: {late}; {said:#?}");
    }
    // What was created and never heard of serves: more pods than the primary carries.
    b.live.extend(add(b.place, 1, "after", 3));
    a.visit();
    for side in [&a, &b] {
        side.keeps_its_leases();
        wait_until(MINUTES, || truth::agree(side.place).is_ok()).unwrap();
        let metrics = side.place.metrics().unwrap();
        assert!(metrics.lines().any(|line| line == "enid_invariants_broken 0"), "{metrics}");
        side.live.iter().for_each(|(pod, _)| pod.del(side.place).unwrap());
        assert!(side.place.leases().unwrap().is_empty());
    }
    assert_eq!(lab.drops().unwrap().foreign_source, 0);
}
