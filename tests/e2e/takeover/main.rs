//! A node that Amazon's VPC CNI has served is taken over under running pods.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod adopted;
mod checked;
mod flows;
mod given_back;
mod host_ports;
mod ipv6;
mod killed;
mod waits;

use std::time::Duration;

use enid_tests::{Backend, Daemon, Lab, LabConfig, Place, program, wait_until};

const BOUND: Duration = Duration::from_secs(45);
/// What the daemon says at the end of a take-over.
const DONE: &str = "nothing of Amazon's VPC CNI is left on this node";

/// A lab of one node.
fn lab(name: &str) -> Lab {
    lab_of(name, 1)
}

fn lab_of(name: &str, nodes: usize) -> Lab {
    let name = format!("{name}{}", std::process::id());
    let instance_type = "m5.xlarge".to_owned();
    Lab::up(&LabConfig { name, nodes, instance_type, ec2: Backend::Model, large_subnets: true, ..LabConfig::default() })
        .unwrap()
}

/// Three ENIs with addresses for pods, and nothing of Enid's.
fn with_enis(place: Place<'_>, settings: &[(&str, &str)]) {
    let endpoint = place.lab.state().ec2_endpoint.clone();
    let settings = [settings, &[("AWS_EC2_ENDPOINT", endpoint.as_str())]].concat();
    let daemon = Daemon::start(place, &settings).unwrap();
    wait_until(BOUND, || place.number("total").is_ok_and(|total| total >= 42))
        .unwrap_or_else(|_| panic!("{}", daemon.log()));
    daemon.kill().unwrap();
    place.sh(&format!("{} uninstall", program("enid").unwrap().display())).unwrap();
}
