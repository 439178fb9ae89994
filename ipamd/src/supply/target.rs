//! How many addresses a node should hold: the peer's targets with the peer's formulas, or what the node's own past
//! asks for.
//!
//! Input: the settings, the limits, and how many addresses are on the node, assigned and available. Output: how many are
//! missing, and how many too many. Where they go is the plan's business. One intended difference from the peer: cooling
//! addresses are not "available", so churn cannot make an empty pool look full.

use super::{
    kind::{Kind, PREFIX_SIZE},
    policy::{Limits, Policy, Target, per_eni},
};

/// How many addresses there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// On the node, for pods.
    pub total: u64,
    /// Assigned to attachments, or used by orphaned links.
    pub assigned: u64,
    /// In their cooldown after use.
    pub cooling: u64,
    /// Can be assigned now.
    pub available: u64,
    /// Requests that wait for one.
    pub waiting: u64,
    /// Pods on their way to this node that have not asked yet.
    pub bound: u64,
    /// Prefixes.
    pub prefixes: u64,
    /// Prefixes without an assigned or cooling address.
    pub idle_prefixes: u64,
}

impl Counts {
    /// Requests and pods on their way.
    pub fn demand(&self) -> u64 {
        self.waiting.max(self.bound)
    }

    /// What would be left without this much idle supply.
    pub(crate) fn without(self, addresses: u64, prefixes: u64) -> Counts {
        Counts {
            total: self.total.saturating_sub(addresses),
            available: self.available.saturating_sub(addresses),
            prefixes: self.prefixes.saturating_sub(prefixes),
            idle_prefixes: self.idle_prefixes.saturating_sub(prefixes),
            ..self
        }
    }
}

/// What `auto` has learned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Learned {
    /// Available addresses to keep ahead of need.
    pub margin: u64,
    /// The most that was in use lately or wanted ahead of use, cooling addresses included.
    pub peak: u64,
}

impl Policy {
    /// How many addresses are missing, 0 if none. Requests that wait come on top of every target of free
    /// addresses and are served even where all targets are 0.
    pub fn missing(&self, limits: Limits, counts: Counts, learned: Learned) -> u64 {
        let unserved = counts.demand().saturating_sub(counts.available);
        let short_of = |free: u64| (free + counts.demand()).saturating_sub(counts.available);
        let prefixes = self.kind(limits) == Kind::Prefix;
        let target = match self.target {
            _ if self.kind == Kind::V6Prefix => u64::from(counts.available == 0),
            Target::Auto => short_of(learned.margin),
            Target::Warm { addresses, minimum, .. } if addresses != 0 || minimum != 0 => {
                short_of(addresses.into()).max(u64::from(minimum).saturating_sub(counts.total))
            }
            Target::Warm { prefixes: wanted, .. } if prefixes => {
                // Prefixes that waiting pods are about to use are not free any more.
                let wanted = u64::from(wanted);
                let needed = (wanted * PREFIX_SIZE + counts.demand()).div_ceil(PREFIX_SIZE);
                if short_of(wanted * PREFIX_SIZE) == 0 {
                    0
                } else {
                    needed.saturating_sub(counts.idle_prefixes) * PREFIX_SIZE
                }
            }
            Target::Warm { enis, .. } => short_of(per_eni(limits) * u64::from(enis)),
        };
        let room = self.max_pods.map_or(u64::MAX, |pods| u64::from(pods).saturating_sub(counts.total));
        target.min(room).max(unserved)
    }

    /// How many addresses are too many, whole ENIs aside; 0 if none. What waiting and bound pods will take is not: it would
    /// be ordered again at once, for as long as they are on their way.
    pub fn surplus(&self, limits: Limits, counts: Counts, learned: Learned) -> u64 {
        let Counts { total, available, .. } = counts;
        let taken = counts.assigned + counts.demand();
        let prefixes = self.kind(limits) == Kind::Prefix;
        match self.target {
            _ if self.kind == Kind::V6Prefix => 0,
            Target::Auto => total.saturating_sub(Self::kept(counts, learned)).min(available),
            Target::Warm { addresses, minimum, .. } if addresses != 0 || minimum != 0 => {
                let (warm, minimum) = (u64::from(addresses), u64::from(minimum));
                if prefixes {
                    let above = |needed: u64| counts.prefixes.saturating_sub(needed.div_ceil(PREFIX_SIZE));
                    counts.idle_prefixes.min(above(taken + warm)).min(above(minimum)) * PREFIX_SIZE
                } else {
                    available.saturating_sub(warm + counts.demand()).min(total.saturating_sub(minimum))
                }
            }
            Target::Warm { prefixes: wanted, .. } if prefixes => {
                let needed = (u64::from(wanted) * PREFIX_SIZE + counts.demand()).div_ceil(PREFIX_SIZE);
                counts.idle_prefixes.saturating_sub(needed) * PREFIX_SIZE
            }
            Target::Warm { .. } => 0,
        }
    }

    /// What `auto` keeps.
    fn kept(counts: Counts, learned: Learned) -> u64 {
        learned.peak.max(counts.assigned + counts.demand() + counts.cooling + learned.margin)
    }

    /// How far above its target `auto` lets the pool be before it gives anything back, in addresses.
    pub(crate) fn slack(&self, learned: Learned) -> u64 {
        match self.target {
            Target::Auto => (learned.peak / 4).clamp(4, PREFIX_SIZE),
            Target::Warm { .. } => 0,
        }
    }

    /// What `auto` asks for beyond what is missing, so that not every pod costs a call: a part of what is in
    /// use, what lasts for a minute if pods go on coming, and a whole ENI on a node that has nothing yet.
    pub(crate) fn portion(&self, limits: Limits, counts: Counts, learned: Learned, lately: u64) -> u64 {
        let portion = lately.min(PREFIX_SIZE).max(self.slack(learned));
        if counts.total == 0 { portion.max(per_eni(limits).min(PREFIX_SIZE)) } else { portion }
    }

    /// Whether what is left after giving up idle supply would still be enough.
    pub(crate) fn enough(&self, limits: Limits, left: Counts, learned: Learned) -> bool {
        let kept = match self.target {
            Target::Auto => left.total >= Self::kept(left, learned),
            Target::Warm { .. } => true,
        };
        kept && self.missing(limits, Counts { waiting: 0, bound: left.demand(), ..left }, learned) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supply::policy::{Placement, Provisioning, Second};

    fn policy(enis: u32, addresses: u32, minimum: u32) -> Policy {
        Policy {
            target: Target::Warm { enis, addresses, minimum, prefixes: 0 },
            kind: Kind::Single,
            second: Second::None,
            placement: Placement::Primary,
            multi_card: false,
            max_enis: None,
            max_pods: None,
            cooldown_ms: 30_000,
            manage_untagged: true,
            provisioning: Provisioning::On,
            clean_leaked: true,
            manage_cordoned: false,
        }
    }

    const M5_LARGE: Limits = Limits::of_one_card(3, 10, true);

    /// (WARM_ENI, WARM_IP, MINIMUM_IP), (total, available, waiting) -> missing.
    #[test]
    fn the_targets_are_the_peers() {
        let rows = [
            // A node without pods holds max(warm, minimum).
            ((1, 2, 0), (0, 0, 0), 2),
            ((1, 16, 0), (0, 0, 0), 16),
            ((1, 0, 2), (0, 0, 0), 2),
            ((1, 0, 16), (0, 0, 0), 16),
            ((1, 6, 10), (0, 0, 0), 10),
            ((1, 6, 10), (10, 10, 0), 0),
            // Address targets switch the ENI target off.
            ((3, 1, 0), (1, 1, 0), 0),
            // A free whole ENI: 9 addresses on this type.
            ((1, 0, 0), (9, 9, 0), 0),
            ((1, 0, 0), (9, 8, 0), 1),
            ((2, 0, 0), (9, 9, 0), 9),
            ((3, 0, 0), (0, 0, 0), 27),
            // All targets 0: nothing ahead, and still a waiting pod is served.
            ((0, 0, 0), (0, 0, 0), 0),
            ((0, 0, 0), (0, 0, 1), 1),
            ((0, 0, 0), (5, 2, 3), 1),
            // Waiting requests are demand on top of the warm target.
            ((1, 2, 0), (0, 0, 3), 5),
            ((1, 2, 0), (4, 3, 2), 1),
        ];
        for ((enis, warm, minimum), (total, available, waiting), missing) in rows {
            let counts = Counts { total, available, waiting, assigned: total - available, ..Counts::default() };
            let found = policy(enis, warm, minimum).missing(M5_LARGE, counts, Learned::default());
            assert_eq!(found, missing, "{enis} {warm} {minimum} {counts:?}");
        }
    }

    /// Prefix mode, no pods: (WARM_IP, MINIMUM_IP, WARM_PREFIX) -> /28s on the node in the end.
    #[test]
    fn prefix_targets_are_the_peers() {
        let rows = [
            ((2, 0, 0), 1),
            ((16, 0, 0), 1),
            ((0, 2, 0), 1),
            ((0, 16, 0), 1),
            ((6, 10, 0), 1),
            ((17, 0, 0), 2),
            ((0, 0, 1), 1),
            ((0, 0, 2), 2),
            // With address targets the prefix target has no effect.
            ((2, 0, 2), 1),
            ((16, 0, 1), 1),
            ((0, 16, 2), 1),
        ];
        for ((addresses, minimum, prefixes), expected) in rows {
            let target = Target::Warm { enis: 1, addresses, minimum, prefixes };
            let policy = Policy { target, kind: Kind::Prefix, ..policy(1, 0, 0) };
            let missing = policy.missing(M5_LARGE, Counts::default(), Learned::default()).div_ceil(PREFIX_SIZE);
            assert_eq!(missing, expected, "{target:?}");
            let (total, prefixes) = (expected * PREFIX_SIZE, expected);
            let there = Counts { total, available: total, prefixes, idle_prefixes: prefixes, ..Counts::default() };
            assert_eq!(policy.missing(M5_LARGE, there, Learned::default()), 0, "{target:?} is met");
            assert_eq!(policy.surplus(M5_LARGE, there, Learned::default()), 0, "{target:?} is not exceeded");
        }
    }

    /// (WARM_IP, MINIMUM_IP), (total, available) -> surplus.
    #[test]
    fn the_surplus_is_the_peers() {
        let rows = [((2, 0), (9, 9), 7), ((2, 5), (9, 9), 4), ((0, 5), (9, 1), 1), ((3, 0), (9, 2), 0)];
        for ((warm, minimum), (total, available), surplus) in rows {
            let counts = Counts { total, available, assigned: total - available, ..Counts::default() };
            assert_eq!(policy(1, warm, minimum).surplus(M5_LARGE, counts, Learned::default()), surplus);
        }
        let counts = Counts { total: 18, available: 18, ..Counts::default() };
        assert_eq!(policy(1, 0, 0).surplus(M5_LARGE, counts, Learned::default()), 0, "whole ENIs only");
    }

    #[test]
    fn max_eni_lowers_the_limit_and_zero_means_unset() {
        for (max, expected) in [(None, 3), (Some(0), 3), (Some(2), 2), (Some(9), 3)] {
            assert_eq!(Policy { max_enis: max, ..policy(1, 0, 0) }.eni_max(M5_LARGE, 0), expected);
        }
    }

    #[test]
    fn max_pods_caps_the_targets_but_never_a_waiting_pod() {
        let capped = Policy { max_pods: Some(4), ..policy(1, 16, 0) };
        let missing = |total, waiting| {
            capped.missing(
                M5_LARGE,
                Counts { total, assigned: total, waiting, ..Counts::default() },
                Learned::default(),
            )
        };
        assert_eq!((missing(0, 0), missing(4, 1)), (4, 1));
    }

    #[test]
    fn a_type_without_nitro_gets_single_addresses() {
        let policy = Policy { kind: Kind::Prefix, ..policy(1, 0, 0) };
        assert_eq!(policy.kind(Limits { prefixes: false, ..M5_LARGE }), Kind::Single);
        assert_eq!(policy.kind(M5_LARGE), Kind::Prefix);
    }
}
