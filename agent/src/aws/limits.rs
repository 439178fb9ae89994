//! What an instance type can carry: from EC2, kept on disk; a small table for a first boot without EC2.

use std::time::Instant;

use enid_ipamd::{Class, Limits};
use tracing::warn;

use crate::{
    aws::{ec2::Ec2, imds::Instance},
    metrics::Counters,
    store::Store,
};

/// A line per instance type; what the figures are is said at its head.
const TABLE: &str = include_str!("limits.txt");

/// Disk, then EC2, then the built-in table.
pub async fn read(ec2: &Ec2, store: &Store, instance: &Instance, counters: &Counters) -> anyhow::Result<Limits> {
    let kind = &instance.kind;
    if let Some(limits) = store.limits(kind)? {
        return Ok(limits);
    }
    let asked = Instant::now();
    let answer = ec2.limits().await;
    counters.ec2("DescribeInstanceTypes", Class::Background.name(), asked.elapsed(), answer.as_ref().err());
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

/// The built-in figures of an instance type; `None` for one that EC2 has had for a shorter time than this version.
pub fn built_in(kind: &str) -> Option<Limits> {
    let figures = TABLE.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
    let figures: Vec<&str> = figures.split(' ').collect();
    let number = |at: usize| figures.get(at).and_then(|figure| figure.parse().ok());
    let of_first = Limits::of_one_card(number(0)?, number(1)?, figures.get(2) == Some(&"p"));
    let (further_cards, enis_per_further_card) = (number(3).unwrap_or_default(), number(4).unwrap_or_default());
    Some(Limits { further_cards, enis_per_further_card, ..of_first })
}

/// Those of the same family, for whoever has misspelt one.
pub fn of_family(kind: &str) -> Vec<&'static str> {
    let family = kind.split('.').next().unwrap_or_default();
    let kinds = TABLE.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split(' ').next());
    kinds.filter(|known| known.split('.').next() == Some(family)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_is_read() {
        let lines: Vec<&str> = TABLE.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(lines.len() > 1_000);
        for line in lines {
            let kind = line.split(' ').next().unwrap();
            let limits = built_in(kind).unwrap_or_else(|| panic!("{line}"));
            assert!(limits.enis > 0 && limits.addresses_per_eni > 1, "{line}");
            let said = format!("{kind} {} {}", limits.enis, limits.addresses_per_eni);
            assert!(line.starts_with(&said), "{line}: {limits:?}");
        }
        assert_eq!(built_in("m5.large"), Some(Limits::of_one_card(3, 10, true)));
        assert_eq!(built_in("m4.large").map(|limits| limits.prefixes), Some(false), "Xen");
        assert_eq!(built_in("m5.larg"), None);
        assert!(of_family("m5.huge").contains(&"m5.large"));
    }
}
