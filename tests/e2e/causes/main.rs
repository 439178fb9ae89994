//! Faults, one after the other: each has exactly its own cause in the plugin's error, in the pod's story, in the metrics and in the
//! node's status, and `enid doctor` names it while it lasts and says nothing when it is gone.
//!
//! Each fault has a lab of its own, some of them at a time: most of it is waiting. With ENID_TEST_API_SERVER=1, which
//! `make test-cluster` sets, the nodes are a cluster's, and events and status objects are looked at, too. ENID_TEST_FAULT chooses one
//! fault by its name, and with ENID_TEST_HOLD, a file, it lasts until somebody has looked for it and has removed the file.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;
mod fault;
mod faults;
mod stage;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use enid_tests::{Backend, Daemon, Lab, LabConfig, Place, Pod, api_server::ApiServer, wait_until};
use faults::FAULTS;

/// Labs at a time; and where a status object is waited for, which is written once a minute.
const AT_ONCE: usize = 4;
const AT_ONCE_TOLD: usize = 8;

#[test]
fn each_fault_has_its_own_cause_everywhere() {
    let chosen = std::env::var("ENID_TEST_FAULT").ok();
    let api_server = std::env::var_os("ENID_TEST_API_SERVER").map(|_| Arc::new(ApiServer::start().unwrap()));
    let is_chosen = |name: &str| chosen.as_ref().is_none_or(|chosen| name == chosen);
    // Of what the cluster is not told, it is not asked; nor of a cooldown, which is over before a status object is written.
    let is_for_cluster = |fault: &fault::Fault| (fault.add.is_some() || fault.is_told) && fault.finding != "cooldown";
    let counts = |fault: &fault::Fault| api_server.is_none() || is_for_cluster(fault);
    let wanted: Vec<_> = FAULTS.iter().filter(|fault| is_chosen(fault.name) && counts(fault)).collect();
    assert!(!wanted.is_empty(), "there is no fault {chosen:?}");
    let waiting = Mutex::new(wanted);
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..if api_server.is_some() { AT_ONCE_TOLD } else { AT_ONCE } {
            scope.spawn(|| {
                loop {
                    let Some(fault) = waiting.lock().unwrap().pop() else { return };
                    match stage::play(fault, api_server.as_ref()) {
                        Ok(()) => println!("{}: as it should be", fault.name),
                        Err(failure) => {
                            println!("{}: NOT as it should be: {failure:#}", fault.name);
                            failed.lock().unwrap().push(fault.name);
                        }
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} of {} faults: {failed:#?}", failed.len(), FAULTS.len());
    assert!(FAULTS.len() >= 24);
}

/// The kind: a daemon that asks the API server for anything serves no pod without it.
#[test]
#[ignore = "it needs an API server: make test-cluster"]
fn an_api_server_that_goes_is_named_and_pods_are_served_all_the_same() {
    const BOUND: Duration = Duration::from_secs(60);
    let api = Arc::new(ApiServer::start().unwrap());
    let lab = Lab::up(&LabConfig { nodes: 1, ec2: Backend::Model, ..LabConfig::default() }).unwrap();
    let place = Place::node(&lab, 0);
    let told = cluster::Told::new(&api, place, "alone").unwrap();
    let of_cluster = told.settings();
    let settings: Vec<(&str, &str)> = of_cluster.iter().map(|(name, value)| (*name, &**value)).collect();
    let daemon = Daemon::start(place, &settings).unwrap();
    let faults = || place.enid("status").ok()?["api_server"].as_array().map(Vec::len);
    // It has joined: its status object is there.
    wait_until(BOUND, || api.get("enidnode", "alone").is_ok() && faults() == Some(0)).unwrap();
    told.cut_off(true);
    wait_until(BOUND, || faults() > Some(0)).unwrap_or_else(|_| panic!("{}", daemon.log()));
    let doctor = format!("{} doctor -o json || true", enid_tests::program("enid").unwrap().display());
    let findings = || place.sh(&doctor).unwrap();
    assert!(findings().contains("\"api_server\""), "{}", findings());
    let pod = Pod::new(0, "served");
    pod.add(place).unwrap();
    pod.del(place).unwrap();
    told.cut_off(false);
    wait_until(BOUND, || faults() == Some(0)).unwrap_or_else(|_| panic!("{}", daemon.log()));
    assert!(!findings().contains("\"api_server\""), "{}", findings());
}
