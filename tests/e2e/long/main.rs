//! What takes minutes of the clock: EC2 away for ten of them, and two until a subnet is asked for /28s again.
//!
//! Not among the rest (Cargo.toml says `test = false`): `make test` runs these beside them, each in a lab of its
//! own. ENID_OUTAGE_SECONDS shortens the outage while one works on it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod fragments;
mod outage;

use std::time::Duration;

use enid_tests::{Backend, Lab, LabConfig, Place, Pod};

/// For what has nothing to wait for but the machine.
const BOUND: Duration = Duration::from_secs(60);
/// Pauses after refusals grow to a minute; audits and orders follow each other.
const MINUTES: Duration = Duration::from_secs(180);

fn lab(name: &str) -> Lab {
    let name = format!("{name}{}", std::process::id());
    Lab::up(&LabConfig { name, ec2: Backend::Model, ..LabConfig::default() }).unwrap()
}

/// Adds so many pods; each with its address.
fn add(place: Place<'_>, node: usize, name: &str, count: usize) -> Vec<(Pod, String)> {
    let pods = (0..count).map(|n| Pod::new(node, &format!("{name}-{n}")));
    pods.map(|pod| (pod.clone(), pod.add(place).unwrap().0)).collect()
}
