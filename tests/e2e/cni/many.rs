//! Many at once, and many one after the other.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicUsize, Ordering},
};

use enid_tests::{Call, Daemon, Lab, LabConfig, Place, Pod, pod, wait_until};
use serde_json::json;

use super::{BOUND, with};

/// ADDs and DELs of the long run, and how many at once.
const CYCLES: usize = 1_000;
/// Rounds of so many cycles.
const ROUNDS: usize = 2;
/// A leak adds more than this in each round; the allocator rounds up in one of them.
const LEAK_KIB: u64 = 768;
const AT_ONCE: usize = 16;

/// A node of its own with room for all of them.
fn lab(name: &str) -> Lab {
    let name = format!("{name}{}", std::process::id());
    let instance_type = "m5.4xlarge".to_owned();
    Lab::up(&LabConfig { name, nodes: 1, instance_type, ..LabConfig::default() }).unwrap()
}

fn daemon(place: Place<'_>, warm: &str) -> Daemon {
    let daemon = Daemon::start(place, &[("MINIMUM_IP_TARGET", warm), ("IP_COOLDOWN_PERIOD", "0")]).unwrap();
    let warm: u64 = warm.parse().unwrap();
    wait_until(BOUND, || place.number("available").is_ok_and(|available| available >= warm)).unwrap();
    daemon
}

/// Resident memory in KiB, and open descriptors.
fn size(pid: u32) -> (u64, usize) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let resident = resident.split_whitespace().next().unwrap().parse().unwrap();
    (resident, std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count())
}

// D50 D51
#[test]
fn a_hundred_at_once_and_interfaces_and_networks_are_independent() {
    let lab = lab("hundred");
    let place = Place::node(&lab, 0);
    let _daemon = daemon(place, "110");
    let pods: Vec<Pod> = (0..100).map(|n| Pod::new(0, &format!("h{n}"))).collect();
    let addresses: BTreeSet<String> = std::thread::scope(|scope| {
        let adding: Vec<_> = pods.iter().map(|pod| scope.spawn(|| pod.add(place).unwrap().0)).collect();
        adding.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(addresses.len(), 100);
    let first = &pods[0];
    let more = [
        Pod { ifname: "eth1".to_owned(), ..first.clone() },
        Pod { ifname: "net0".to_owned(), config: with(first, &[("name", json!("other"))]), ..first.clone() },
    ];
    let further: BTreeSet<String> = std::thread::scope(|scope| {
        let call = |pod| Call::new(pod, "ADD").make(place).unwrap().fine().unwrap();
        let adding: Vec<_> = more.iter().map(|pod| scope.spawn(move || pod::address(&call(pod)).unwrap())).collect();
        adding.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(further.len() == 2 && further.is_disjoint(&addresses));
    // Each ends alone.
    more[0].call(place, "DEL").unwrap();
    let containers = || place.leases().unwrap().iter().filter(|lease| lease["container"] == "sandbox-h0").count();
    assert_eq!(containers(), 2);
    more[1].call(place, "DEL").unwrap();
    assert_eq!(containers(), 1);
    std::thread::scope(|scope| {
        for pod in &pods {
            scope.spawn(|| pod.del(place).unwrap());
        }
    });
    assert!(place.leases().unwrap().is_empty());
}

// D97 D102
#[test]
fn gc_ends_hundreds_of_lost_attachments_in_one_call() {
    let lab = lab("hundreds");
    let place = Place::node(&lab, 0);
    let _daemon = daemon(place, "200");
    let pods: Vec<Pod> = (0..200).map(|n| Pod::new(0, &format!("l{n}"))).collect();
    std::thread::scope(|scope| {
        for part in pods.chunks(25) {
            scope.spawn(|| part.iter().for_each(|pod| drop(pod.add(place).unwrap())));
        }
    });
    // Their namespaces go, and with them their links; nobody sends a DEL.
    let names: Vec<&str> = pods.iter().map(|pod| pod.name.as_str()).collect();
    place.sh(&format!("for ns in {}; do ip netns del $ns; done", names.join(" "))).unwrap();
    wait_until(BOUND, || !place.sh("ip -o link").unwrap().contains("eni")).unwrap();
    let config = with(
        &Pod { config: pod::config("1.1.0", 30), ..Pod::new(0, "none") },
        &[("cni.dev/valid-attachments", json!([]))],
    );
    Call::bare("GC").stdin(&config).make(place).unwrap().silent().unwrap();
    assert!(place.leases().unwrap().is_empty());
}

// D109
#[test]
fn a_thousand_cycles_leave_no_trace_on_the_host_and_none_in_the_daemon() {
    let lab = lab("cycles");
    let place = Place::node(&lab, 0);
    let daemon = daemon(place, "32");
    let pid = daemon.pid().unwrap();
    let pods: Vec<Pod> = (0..AT_ONCE).map(|n| Pod::new(0, &format!("cycle-{n}"))).collect();
    pods.iter().for_each(|pod| pod.make_namespace(place).unwrap());
    let run = |cycles: usize| {
        let left = AtomicUsize::new(cycles);
        let one_more = || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        std::thread::scope(|scope| {
            for pod in &pods {
                scope.spawn(|| {
                    while one_more() {
                        pod.call(place, "ADD").unwrap();
                        pod.call(place, "DEL").unwrap();
                    }
                });
            }
        });
    };
    // Fills what the daemon keeps of the past: its last operations, and its recording.
    run(CYCLES);
    let before = (place.snapshot().unwrap(), size(pid));
    let mut grown = Vec::new();
    for _ in 0..ROUNDS {
        run(CYCLES);
        grown.push(size(pid).0.saturating_sub(before.1.0));
    }
    println!(
        "{CYCLES} cycles a round, {AT_ONCE} at once: {:?} KiB and descriptors before, then larger by {grown:?} KiB",
        before.1
    );
    assert_eq!(place.snapshot().unwrap(), before.0);
    // A reading of the kernel has one open for a moment.
    wait_until(BOUND, || size(pid).1 <= before.1.1)
        .unwrap_or_else(|_| panic!("open descriptors: {} before, {} after", before.1.1, size(pid).1));
    // A leak of a kilobyte per cycle makes it a round larger with each round.
    let allowed = LEAK_KIB * u64::try_from(ROUNDS).unwrap();
    assert!(grown.last().is_some_and(|kib| *kib < allowed), "larger by {grown:?} KiB after each {CYCLES} cycles");
}
