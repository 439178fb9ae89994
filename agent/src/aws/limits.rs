//! What an instance type can carry: from EC2, kept on disk; a small table for a first boot without EC2.

use std::time::Instant;

use enid_ipamd::Limits;
use tracing::warn;

use crate::{
    aws::{ec2::Ec2, imds::Instance},
    metrics::Counters,
    store::Store,
};

/// (type, ENIs, IPv4 addresses per ENI), from the Amazon EC2 User Guide, "IP addresses per network
/// interface per instance type". Only common types: EC2 knows the rest.
const TABLE: [(&str, u32, u32); 16] = [
    ("t3.nano", 2, 2),
    ("t3.micro", 2, 2),
    ("t3.small", 3, 4),
    ("t3.medium", 3, 6),
    ("t3.large", 3, 12),
    ("t3.xlarge", 4, 15),
    ("m5.large", 3, 10),
    ("m5.xlarge", 4, 15),
    ("m5.2xlarge", 4, 15),
    ("m5.4xlarge", 8, 30),
    ("c5.large", 3, 10),
    ("c5.xlarge", 4, 15),
    ("c5.4xlarge", 8, 30),
    ("r5.large", 3, 10),
    ("m6i.large", 3, 10),
    ("m6i.xlarge", 4, 15),
];

/// Disk, then EC2, then the built-in table.
pub async fn read(ec2: &Ec2, store: &Store, instance: &Instance, counters: &Counters) -> anyhow::Result<Limits> {
    let kind = &instance.kind;
    if let Some(limits) = store.limits(kind)? {
        return Ok(limits);
    }
    let asked = Instant::now();
    let answer = ec2.limits().await;
    counters.ec2("DescribeInstanceTypes", asked.elapsed(), answer.as_ref().err());
    match (answer, built_in(kind)) {
        (Ok(limits), _) => {
            store.keep_limits(kind, limits)?;
            Ok(limits)
        }
        (Err(failure), Some(limits)) => {
            warn!(cause = %failure.cause, "{}; the built-in limits of {kind} are used", failure.message);
            Ok(limits)
        }
        (Err(failure), None) => {
            anyhow::bail!("the limits of instance type {kind} are not known: {}", failure.message)
        }
    }
}

/// Without EC2 nothing is ever fetched, so limits of a type that is not known do not matter.
pub fn without_ec2(store: &Store, instance: &Instance) -> anyhow::Result<Limits> {
    let known = store.limits(&instance.kind)?.or_else(|| built_in(&instance.kind));
    Ok(known.unwrap_or(Limits::UNKNOWN))
}

/// The built-in figure for a type.
fn built_in(kind: &str) -> Option<Limits> {
    let (_, enis, addresses_per_eni) = *TABLE.iter().find(|(name, ..)| *name == kind)?;
    // All of the table are Nitro types but the oldest.
    Some(Limits::of_one_card(enis, addresses_per_eni, true))
}
