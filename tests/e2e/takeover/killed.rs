//! A take-over that is killed at each of its steps goes on at the next start.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use enid_tests::{
    Daemon, Place, Pod,
    peer::{self, Backend},
    program,
    traffic::{Spot, serve},
    wait_until,
};
use vpclab::INTERNET_SERVER_V6;

use super::{BOUND, flows::streams, given_back::of_file, ipv6, lab, with_enis};

/// By what anything is changed: netlink; the store and files. Each kind of call is counted by itself, so each has a round.
const ROUNDS: [&str; 5] = ["sendto,sendmsg", "fdatasync", "fsync", "rename", "unlink"];
/// More runs than there are steps.
const MOST: usize = 200;

/// A program that runs the daemon, and kills it when one of its threads makes the call of this number: the call is not made any
/// more.
fn killing(calls: &str, number: usize) -> PathBuf {
    let path = std::env::temp_dir().join(format!("enid-killing-{}", std::process::id()));
    let enid = program("enid").unwrap();
    let strace = format!("strace -f -qq -o /dev/null -e trace={calls} -e inject={calls}:signal=KILL:when={number}");
    fs::write(&path, format!("#!/bin/sh\nexec {strace} {} \"$@\"\n", enid.display())).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// The daemon below `strace`.
fn traced(daemon: &Daemon) -> Option<u32> {
    let pid = daemon.pid().ok()?;
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// Runs it once; whether it came to the end of the take-over.
fn run(place: Place<'_>, program: &Path, settings: &[(&str, &str)]) -> bool {
    let daemon = Daemon::spawn_program(place, program, settings).unwrap();
    let mut done = false;
    wait_until(BOUND, || {
        done = place.serves() && peer::traces(place).is_ok_and(|traces| traces.is_empty());
        done || daemon.pid().is_err()
    })
    .unwrap_or_else(|_| panic!("{}", daemon.log()));
    if let Some(pid) = traced(&daemon) {
        Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
        wait_until(BOUND, || daemon.pid().is_err()).unwrap();
    }
    done
}

/// A daemon that nobody kills, once it has come to the end of the take-over.
fn take_over(place: Place<'_>, settings: &[(&str, &str)]) -> Daemon {
    let daemon = Daemon::start(place, settings).unwrap();
    wait_until(BOUND, || peer::traces(place).is_ok_and(|traces| traces.is_empty()))
        .unwrap_or_else(|_| panic!("{:?}, {}", peer::traces(place), daemon.log()));
    daemon
}

/// Takes the node over, however often it is killed; how often it was.
fn taken_over(place: Place<'_>, calls: &str, settings: &[(&str, &str)]) -> usize {
    let mut killed = 0;
    while !run(place, &killing(calls, killed + 1), settings) {
        killed += 1;
        assert!(killed < MOST, "it is killed again and again");
    }
    killed
}

/// Gives it back, by the command alone, since no daemon runs.
fn given_back(place: Place<'_>, calls: &str) -> usize {
    let mut killed = 0;
    let is_done = |program: &Path| {
        place.sh(&format!("ENABLE_V6_EGRESS=true {} handback >/dev/null 2>&1", program.display())).is_ok()
    };
    while !is_done(&killing(calls, killed + 1)) {
        killed += 1;
        assert!(killed < MOST, "it is killed again and again");
    }
    killed
}

#[test]
fn killed_after_any_step_it_goes_on_and_no_pod_notices() {
    let lab = ipv6::lab("killed");
    let place = Place::node(&lab, 0);
    with_enis(place, &[("MINIMUM_IP_TARGET", "42"), ("WARM_ENI_TARGET", "0")]);
    let pods = peer::make(place, &[4, 4, 4], Backend::Nft).unwrap();
    // Some of them leave in the other family, too.
    let own: std::net::IpAddr = lab.node(0).address_v6.clone().unwrap().parse().unwrap();
    peer::with_egress(place, &pods[..2], own).unwrap();
    let (before, file) = (ipv6::all(place), of_file(place));
    let names: Vec<&str> = pods.iter().map(|pod| pod.pod.name.as_str()).collect();
    let servers = (serve(place, &names).unwrap(), serve(Place { lab: &lab, name: "inet" }, &[]).unwrap());
    let (running, mut pings) = streams(place, &[&pods[0], &pods[4], &pods[8]]);
    pings.push(Spot { place, netns: Some(names[0]) }.ping_on(INTERNET_SERVER_V6).unwrap());
    let settings = [
        ("ENID_TAKE_OVER", "true"),
        ("WARM_IP_TARGET", "3"),
        ("IP_COOLDOWN_PERIOD", "1"),
        ("ENABLE_V6_EGRESS", "true"),
    ];
    for calls in ROUNDS {
        let over = taken_over(place, calls, &settings);
        let daemon = take_over(place, &settings);
        let leases = place.leases().unwrap();
        assert_eq!(leases.iter().filter(|lease| lease["state"] != "orphaned").count(), pods.len());
        for pod in &pods {
            let lease = leases.iter().find(|lease| lease["address"] == pod.address.as_str()).unwrap();
            assert_eq!(lease["container"], pod.pod.container.as_str());
        }
        let new = Pod { config: peer::config(), ..Pod::new(0, "new") };
        let (address, _) = new.add(place).unwrap();
        assert!(pods.iter().all(|pod| pod.address != address), "an address has two owners");
        new.call(place, "DEL").unwrap();
        new.remove_namespace(place).unwrap();
        daemon.kill().unwrap();
        let back = given_back(place, calls);
        println!("{calls}: killed {over} times on the way over, {back} times on the way back");
        // Of netlink there are many more.
        let least = if calls == ROUNDS[0] { 15 } else { 1 };
        assert!(over >= least && back >= least, "{over} and {back} kills at {calls}");
        let now = ipv6::all(place);
        assert_eq!((now, of_file(place)), (before.clone(), file.clone()), "{calls}");
        place.sh(&format!("{} handback --cancel", program("enid").unwrap().display())).unwrap();
    }
    for ping in pings {
        let (sent, back) = ping.end().unwrap();
        println!("{sent} echoes, {} lost", sent - back);
        assert_eq!(sent, back);
    }
    running.into_iter().for_each(|stream| drop(stream.end().unwrap()));
    drop(servers);
    fs::remove_file(killing("", 1)).unwrap();
}

/// With a boot goes what is in memory: all of the kernel's state, and the state file, which is below /run.
#[test]
fn a_way_back_that_a_reboot_interrupts_goes_on_after_it() {
    let lab = lab("rebooted");
    let place = Place::node(&lab, 0);
    with_enis(place, &[("MINIMUM_IP_TARGET", "42"), ("WARM_ENI_TARGET", "0")]);
    peer::make(place, &[2, 2, 2], Backend::Nft).unwrap();
    take_over(place, &[("ENID_TAKE_OVER", "true")]).kill().unwrap();
    // The mark and the stamp are there, and nothing else is done.
    let killed = place.sh(&format!("{} handback", killing("rename", 4).display()));
    assert!(killed.is_err(), "{killed:?}");
    let files = "ls -A /etc/cni/net.d; grep -o -e enid-takeover/1 -e vpc-cni-ipam/1 /var/run/aws-node/ipam.json";
    assert_eq!(place.sh(files).unwrap(), ".10-aws.earlier\n05-enid.conflist\nenid-takeover/1\n");
    place.reboot().unwrap();
    place.sh("rm -r /var/run/aws-node").unwrap();
    place.sh(&format!("{} handback", program("enid").unwrap().display())).unwrap();
    assert_eq!(place.sh(files).unwrap(), "10-aws.conflist\nvpc-cni-ipam/1\n");
    assert!(of_file(place).is_empty(), "no pod has outlived the boot");
    let made = place.sh("cat /var/lib/enid/handback.json; nft list tables; ip rule").unwrap();
    for what in ["\"step\":\"done\"", "table ip aws-cni", "1024:"] {
        assert!(made.contains(what), "{what}: {made}");
    }
    fs::remove_file(killing("", 1)).unwrap();
}

/// Its DEL, or its end, comes when its rules, its chain and its file of host-local are Amazon's already.
#[test]
fn a_pod_that_ends_between_two_runs_of_the_way_back_leaves_nothing() {
    let lab = ipv6::lab("ended");
    let place = Place::node(&lab, 0);
    with_enis(place, &[("MINIMUM_IP_TARGET", "42"), ("WARM_ENI_TARGET", "0")]);
    let pods = peer::make(place, &[2, 2, 2], Backend::Nft).unwrap();
    let own: std::net::IpAddr = lab.node(0).address_v6.clone().unwrap().parse().unwrap();
    peer::with_egress(place, &pods, own).unwrap();
    take_over(place, &[("ENID_TAKE_OVER", "true"), ("ENABLE_V6_EGRESS", "true")]).kill().unwrap();
    let hand_back = |program: &Path| place.sh(&format!("ENABLE_V6_EGRESS=true {} handback", program.display()));
    let mut runs = 0;
    while !peer::traces(place).unwrap().contains("CNI-E6") {
        runs += 1;
        assert!(runs < 20 && hand_back(&killing("rename", runs)).is_err(), "it is not interrupted in time");
    }
    let of_pod = |container: &str, address: &str| {
        let all = ipv6::all(place);
        all.into_iter().filter(|line| line.contains(container) || line.contains(address)).collect::<Vec<_>>()
    };
    let (ended, stays) = (&pods[2], &pods[3]);
    assert!(!of_pod(&ended.pod.container, &ended.address).is_empty());
    ended.pod.remove_namespace(place).unwrap();
    wait_until(BOUND, || place.sh(&format!("ip link show {}", ended.ifname)).is_err()).unwrap();
    hand_back(&program("enid").unwrap()).unwrap();
    assert_eq!(of_pod(&ended.pod.container, &ended.address), Vec::<String>::new());
    // Its rules, its chain, the rules that lead there, its routes, its file.
    assert!(of_pod(&stays.pod.container, &stays.address).len() >= 5, "{:#?}", ipv6::all(place));
    let file = of_file(place);
    assert!(file.len() == 5 && !file.contains_key(&ended.pod.container), "{file:?}");
    fs::remove_file(killing("", 1)).unwrap();
}
