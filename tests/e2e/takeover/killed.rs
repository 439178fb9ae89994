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
    traffic::serve,
    wait_until,
};

use super::{BOUND, flows::streams, given_back, lab, with_enis};

/// By what the daemon changes anything: netlink, the store, files.
const STEPS: &str = "sendto,sendmsg,fdatasync,rename,unlink";
/// More runs than there are steps.
const MOST: usize = 200;

/// A program that runs the daemon, and kills it right after the call of this number, in whichever of its threads.
fn killing(number: usize) -> PathBuf {
    let path = std::env::temp_dir().join(format!("enid-killing-{}", std::process::id()));
    let enid = program("enid").unwrap();
    let strace = format!("strace -f -qq -o /dev/null -e trace={STEPS} -e inject={STEPS}:signal=KILL:when={number}");
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

#[test]
fn killed_after_any_step_it_goes_on_and_no_pod_notices() {
    let lab = lab("killed");
    let place = Place::node(&lab, 0);
    with_enis(place, &[("MINIMUM_IP_TARGET", "42"), ("WARM_ENI_TARGET", "0")]);
    let pods = peer::make(place, &[4, 4, 4], Backend::Nft).unwrap();
    let names: Vec<&str> = pods.iter().map(|pod| pod.pod.name.as_str()).collect();
    let servers = (serve(place, &names).unwrap(), serve(Place { lab: &lab, name: "inet" }, &[]).unwrap());
    let (running, pings) = streams(place, &[&pods[0], &pods[4], &pods[8]]);
    let settings = [("ENID_TAKE_OVER", "true"), ("WARM_IP_TARGET", "3"), ("IP_COOLDOWN_PERIOD", "1")];
    let mut killed = 0;
    while !run(place, &killing(killed + 1), &settings) {
        killed += 1;
        assert!(killed < MOST, "it is killed again and again");
    }
    let daemon = Daemon::start(place, &settings).unwrap();
    wait_until(BOUND, || peer::traces(place).is_ok_and(|traces| traces.is_empty()))
        .unwrap_or_else(|_| panic!("{:?}, {}", peer::traces(place), daemon.log()));
    println!("killed {killed} times");
    assert!(killed >= 10);
    for ping in pings {
        let (sent, back) = ping.end().unwrap();
        println!("{sent} echoes, {} lost", sent - back);
        assert_eq!(sent, back);
    }
    running.into_iter().for_each(|stream| drop(stream.end().unwrap()));
    let leases = place.leases().unwrap();
    assert_eq!(leases.len(), pods.len());
    for pod in &pods {
        let lease = leases.iter().find(|lease| lease["address"] == pod.address.as_str()).unwrap();
        assert_eq!(lease["container"], pod.pod.container.as_str());
    }
    let new = Pod { config: peer::config(), ..Pod::new(0, "new") };
    let (address, _) = new.add(place).unwrap();
    assert!(pods.iter().all(|pod| pod.address != address), "an address has two owners");
    drop(servers);
    fs::remove_file(killing(1)).unwrap();
}

#[test]
fn a_way_back_that_is_killed_after_any_step_goes_on() {
    let lab = lab("backkilled");
    let place = Place::node(&lab, 0);
    with_enis(place, &[("MINIMUM_IP_TARGET", "42"), ("WARM_ENI_TARGET", "0")]);
    let pods = peer::make(place, &[4, 4, 4], Backend::Nft).unwrap();
    let before = given_back::state(place, &[]);
    let file = given_back::of_file(place);
    let names: Vec<&str> = pods.iter().map(|pod| pod.pod.name.as_str()).collect();
    let servers = (serve(place, &names).unwrap(), serve(Place { lab: &lab, name: "inet" }, &[]).unwrap());
    let (running, pings) = streams(place, &[&pods[0], &pods[4], &pods[8]]);
    let settings = [("ENID_TAKE_OVER", "true"), ("WARM_IP_TARGET", "3"), ("IP_COOLDOWN_PERIOD", "1")];
    let daemon = Daemon::start(place, &settings).unwrap();
    wait_until(BOUND, || peer::traces(place).is_ok_and(|traces| traces.is_empty()))
        .unwrap_or_else(|_| panic!("{:?}, {}", peer::traces(place), daemon.log()));
    // Without a daemon the command does it itself.
    daemon.kill().unwrap();
    let mut killed = 0;
    let given_back = |program: &Path| place.sh(&format!("{} handback >/dev/null 2>&1", program.display())).is_ok();
    while !given_back(&killing(killed + 1)) {
        killed += 1;
        assert!(killed < MOST, "it is killed again and again");
    }
    println!("killed {killed} times");
    assert!(killed >= 10);
    assert_eq!(given_back::state(place, &[]), before);
    assert_eq!(given_back::of_file(place), file);
    for ping in pings {
        let (sent, back) = ping.end().unwrap();
        println!("{sent} echoes, {} lost", sent - back);
        assert_eq!(sent, back);
    }
    running.into_iter().for_each(|stream| drop(stream.end().unwrap()));
    drop(servers);
    fs::remove_file(killing(1)).unwrap();
}
