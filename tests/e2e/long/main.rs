//! What takes minutes: EC2 unreachable for ten of them, and two until a subnet is asked for /28s again, six until ENIs
//! have followed the security groups of the primary one.
//!
//! Not run with the others (`test = false` in Cargo.toml): `make test` runs these in parallel to them, each in a lab of
//! its own. ENID_OUTAGE_SECONDS shortens the outage for development.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod fragments;
mod groups;
mod outage;

use std::time::Duration;

use enid_tests::{Backend, Lab, LabConfig, Place, Pod};

/// For what depends on the machine's speed alone.
const BOUND: Duration = Duration::from_secs(60);
/// Pauses after refusals grow to a minute; audits and calls come after each other.
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
