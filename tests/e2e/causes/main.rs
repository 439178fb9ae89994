//! Faults, one after the other: each has exactly its own cause in the plugin's error, in the pod's story, in the metrics and in the
//! node's status, and `enid doctor` names it while it lasts and says nothing when it is gone.
//!
//! Each fault has a lab of its own, some of them at a time: most of it is waiting.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod fault;
mod faults;
mod stage;

use std::sync::Mutex;

use faults::FAULTS;

/// Labs at a time.
const AT_ONCE: usize = 4;

#[test]
fn each_fault_has_its_own_cause_everywhere() {
    let chosen = std::env::var("ENID_TEST_FAULT").ok();
    let wanted = FAULTS.iter().filter(|fault| chosen.as_ref().is_none_or(|name| fault.name == name));
    let wanted: Vec<_> = wanted.collect();
    assert!(!wanted.is_empty(), "there is no fault {chosen:?}");
    let waiting = Mutex::new(wanted);
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let Some(fault) = waiting.lock().unwrap().pop() else { return };
                    match stage::play(fault) {
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
