//! A daemon on a quiet node: it runs no program, and costs next to no processor time.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use enid_tests::{
    Backend, Daemon, Lab, LabConfig, Place, Pod,
    kernel::{counter, wait_until_idle},
    wait_until,
};

const BOUND: Duration = Duration::from_secs(30);
/// Pods of the node.
const PODS: usize = 30;
/// The kernel's clock ticks per second (USER_HZ, which is 100 on every architecture that EC2 has).
const HZ: f64 = 100.0;
/// How long it is watched in `make test`: longer than the period of everything that is done periodically.
const SHORT: Duration = Duration::from_secs(35);

/// Lines of log, at rest: fewer than so many.
const LINES_AN_HOUR: u64 = 10;
/// Links are listed often while an ENI is younger than a minute.
const YOUNG: Duration = Duration::from_secs(75);

/// A node on which nothing happens any more.
fn quiet_node() -> (Lab, Daemon, Vec<Pod>) {
    let config = LabConfig { nodes: 1, instance_type: "m5.xlarge".to_owned(), ..LabConfig::default() };
    let lab = Lab::up(&config).unwrap();
    let place = Place::node(&lab, 0);
    let daemon = Daemon::start(place, &[]).unwrap();
    let pods: Vec<Pod> = (0..PODS).map(|number| Pod::new(0, &format!("quiet-{number}"))).collect();
    pods.iter().for_each(|pod| drop(pod.add(place).unwrap()));
    let settled = || place.number("available").is_ok_and(|available| available > 0);
    wait_until(BOUND, settled).unwrap();
    wait_until_idle(place).unwrap();
    (lab, daemon, pods)
}

/// Processor time of a process and of its children that have ended, in seconds (proc(5), /proc/PID/stat).
fn processor_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit_once(") ").unwrap().1.split(' ').collect::<Vec<_>>();
    // utime, stime, cutime, cstime are the 14th to the 17th; the first of these is the 3rd.
    let ticks: u32 = fields[11..15].iter().map(|ticks| ticks.parse::<u32>().unwrap()).sum();
    f64::from(ticks) / HZ
}

/// Programs that a process has started and that still run.
fn children(pid: u32) -> BTreeSet<String> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of_thread = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    of_thread.flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// Processor time of children that have ended, and page faults of theirs: both are 0 more if there was none.
fn of_ended_children(pid: u32) -> [u64; 3] {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit_once(") ").unwrap().1.split(' ').collect::<Vec<_>>();
    [8, 13, 14].map(|at| fields[at].parse().unwrap()) // cminflt, cutime, cstime
}

#[test]
fn a_quiet_daemon_runs_no_program() {
    let (lab, daemon, _pods) = quiet_node();
    let pid = daemon.pid().unwrap();
    let place = Place::node(&lab, 0);
    let (before, requests) = (of_ended_children(pid), place.metadata_requests().unwrap());
    let lines = daemon.log().lines().count();
    let until = Instant::now() + SHORT;
    let started = wait_until(SHORT, || Instant::now() >= until || !children(pid).is_empty());
    assert!(children(pid).is_empty(), "it runs {:?}: {started:?}", children(pid));
    // A program that has ended leaves its page faults here.
    assert_eq!(of_ended_children(pid), before, "a program was run: {}", daemon.log());
    // What is done in hours has a line each; what is done in minutes has none.
    let log = daemon.log();
    assert_eq!(log.lines().count(), lines, "a quiet daemon logs: {log}");
    // Twice at most, the list of ENIs, the VPC's CIDRs, the primary's security groups and one list of one ENI.
    let requests = place.metadata_requests().unwrap() - requests;
    assert!(requests <= 8, "{requests} requests of metadata {}", daemon.log());
}

/// `cargo test -p enid-tests --test quiet -- --ignored --nocapture`; QUIET_SECONDS says how long, 600 by default.
#[test]
#[ignore = "a measurement, not a check: ten minutes of the clock, and other work on the machine would change the figure"]
fn what_a_quiet_daemon_costs() {
    let seconds = std::env::var("QUIET_SECONDS").ok().map_or(600, |text| text.parse().unwrap());
    let (lab, daemon, pods) = quiet_node();
    let pid = daemon.pid().unwrap();
    let old = Instant::now() + YOUNG;
    wait_until(YOUNG * 2, || Instant::now() >= old).unwrap();
    let place = Place::node(&lab, 0);
    let (started, before, requests) = (Instant::now(), processor_seconds(pid), place.metadata_requests().unwrap());
    let lines = daemon.log().lines().count();
    let until = started + Duration::from_secs(seconds);
    wait_until(Duration::from_secs(seconds + 1), || Instant::now() >= until).unwrap();
    let (used, took) = (processor_seconds(pid) - before, started.elapsed().as_secs_f64());
    let log = daemon.log();
    let logged: Vec<&str> = log.lines().skip(lines).collect();
    println!(
        "{} pods, {took:.0} quiet seconds: {used:.2} s of processor time, children included (in ten minutes {:.2} s), \
         {} requests of metadata, and {} lines of log",
        pods.len(),
        used * 600.0 / took,
        place.metadata_requests().unwrap() - requests,
        logged.len()
    );
    println!("{}", logged.join("\n"));
    let allowed = seconds.div_ceil(3600) * LINES_AN_HOUR;
    assert!(logged.len() < usize::try_from(allowed).unwrap(), "a quiet daemon logs: {log}");
    drop(lab);
}

/// The settings with which the peer's daemon made 133 requests of metadata from its start to 30 pods, one a second.
const GROWING: [(&str, &str); 2] = [("WARM_IP_TARGET", "5"), ("MINIMUM_IP_TARGET", "10")];
const PEERS_REQUESTS: u64 = 133;

/// A daemon's requests of metadata from its start to 30 pods, which come as `pace` lets them.
fn requests_of_growth(pace: impl Fn(usize)) -> u64 {
    let name = format!("growing{}", std::process::id());
    let config = LabConfig {
        name,
        nodes: 1,
        instance_type: "m5.xlarge".to_owned(),
        ec2: Backend::Model,
        ..LabConfig::default()
    };
    let lab = Lab::up(&config).unwrap();
    let place = Place::node(&lab, 0);
    let daemon = Daemon::start(place, &GROWING).unwrap();
    for number in 0..PODS {
        Pod::new(0, &format!("grown-{number}")).add(place).unwrap();
        pace(number);
    }
    let settled = || place.number("available").is_ok_and(|available| available >= 5);
    wait_until(BOUND, settled).unwrap_or_else(|_| panic!("{}", daemon.log()));
    assert_eq!(place.number("enis").unwrap(), 3, "35 addresses, 14 on each ENI: {}", daemon.log());
    place.metadata_requests().unwrap()
}

/// The kind: what is known is asked for again and again while something else is awaited.
#[test]
fn growth_reads_of_metadata_what_is_new() {
    let requests = requests_of_growth(|_| {});
    println!("{PODS} pods as fast as they come: {requests} requests of metadata");
    assert!(requests <= PEERS_REQUESTS, "{requests} requests");
}

/// `cargo test -p enid-tests --test quiet what_growth -- --ignored --nocapture`
#[test]
#[ignore = "a measurement, not a check: half a minute of the clock"]
fn what_growth_costs() {
    let started = Instant::now();
    let requests = requests_of_growth(|number| {
        let next = started + Duration::from_secs(u64::try_from(number).unwrap() + 5);
        wait_until(BOUND, || Instant::now() >= next).unwrap();
    });
    println!("{PODS} pods, one a second: {requests} requests of metadata");
}

/// The kind: work for which there is nothing to do. Nothing is left of a link that is gone.
#[test]
fn a_pod_that_goes_makes_no_reading() {
    let (lab, daemon, pods) = quiet_node();
    let place = Place::node(&lab, 0);
    let readings = || counter(place, "enid_readings_total").unwrap();
    let before = readings();
    pods.iter().take(10).for_each(|pod| pod.del(place).unwrap());
    // A reading would come within 0.7 s (`wait_until_idle` has waited for those of before); one is due every 30 s anyway.
    let more = wait_until(Duration::from_secs(2), || readings() > before + 1);
    assert!(more.is_err(), "{} readings: {}", readings() - before, daemon.log());
    // A pod that comes is looked at.
    let before = readings();
    Pod::new(0, "comes").add(place).unwrap();
    wait_until(BOUND, || readings() > before).unwrap();
    drop(lab);
}

/// `ENID_BIN=$PWD/target/release/enid cargo test -p enid-tests --test quiet what_a_del -- --ignored --nocapture`
#[test]
#[ignore = "a measurement, not a check: half a minute of the clock, and other work on the machine would change the figure"]
fn what_a_del_costs_the_daemon() {
    let (lab, daemon, pods) = quiet_node();
    let (place, pid) = (Place::node(&lab, 0), daemon.pid().unwrap());
    let (started, before) = (Instant::now(), processor_seconds(pid));
    for (number, pod) in (1_u32..).zip(&pods) {
        pod.del(place).unwrap();
        // What follows a DEL comes before the next one.
        let next = started + Duration::from_millis(800) * number;
        wait_until(BOUND, || Instant::now() >= next).unwrap();
    }
    let used = processor_seconds(pid) - before;
    println!(
        "{} DELs, one after the other: {:.1} ms of the daemon's processor time each",
        pods.len(),
        used * 1000.0 / 30.0
    );
    drop(lab);
}
