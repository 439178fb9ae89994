//! How many addresses a node should hold: the peer's targets with the peer's formulas, or what the node's
//! own past asks for.
//!
//! Input: the settings, the limits and how many addresses are held, given and free. Output: how many are
//! missing, and how many too many. Where they go is `grow`'s and `shrink`'s business. One knowing
//! difference from the peer: "available" is free *and rested*, so churn cannot make an empty pool look full.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::block::{self, Kind, PREFIX_SIZE};

/// What the instance type can carry (DescribeInstanceTypes, NetworkInfo and Hypervisor).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// ENIs on the first network card.
    pub enis: u32,
    /// Network cards beside the first.
    pub further_cards: u32,
    /// ENIs on each of those.
    pub enis_per_further_card: u32,
    /// IPv4 addresses per ENI, its primary one included; a prefix takes the place of one.
    pub addresses_per_eni: u32,
    /// Whether it takes prefixes (Nitro and bare metal).
    pub prefixes: bool,
}

impl Limits {
    /// Those of a type with one network card.
    pub const fn of_one_card(enis: u32, addresses_per_eni: u32, prefixes: bool) -> Self {
        Limits { enis, further_cards: 0, enis_per_further_card: 0, addresses_per_eni, prefixes }
    }

    /// ENIs that a card can carry.
    pub(crate) fn on_card(self, card: u32) -> u32 {
        match card {
            0 => self.enis,
            card if card <= self.further_cards => self.enis_per_further_card,
            _ => 0,
        }
    }
}

/// IPv4 addresses that only a node knows: those of Amazon's egress plugin.
pub const LOCAL_V4: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 172, 0), 22));
/// The same for IPv6.
pub const LOCAL_V6: IpNet = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0xac, 0), 118));

/// Whether only a node knows this address.
pub(crate) fn is_local(address: IpAddr) -> bool {
    LOCAL_V4.contains(&address) || LOCAL_V6.contains(&address)
}

/// What a pod gets beside its address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Beside {
    /// Nothing.
    #[default]
    Nothing,
    /// An IPv6 address out of a /80 on the same ENI.
    V6OfEni,
    /// An address of the other family that only the node knows, to leave by ([`LOCAL_V4`], [`LOCAL_V6`]).
    OfNode,
}

/// How far ahead of need the pool is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// As the node's own past asks for.
    Auto,
    /// The peer's settings: WARM_ENI_TARGET, WARM_IP_TARGET, MINIMUM_IP_TARGET, WARM_PREFIX_TARGET.
    Warm {
        /// Whole free ENIs; counts only while both address targets are 0.
        enis: u32,
        /// Free addresses.
        addresses: u32,
        /// Addresses in all, at least.
        minimum: u32,
        /// Free /28s; counts only in prefix mode while both address targets are 0.
        prefixes: u32,
    },
}

/// What may be asked of EC2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provisioning {
    /// All that is needed.
    On,
    /// Nothing is created, changed or given back (DISABLE_NETWORK_RESOURCE_PROVISIONING).
    Off,
    /// EC2 is not asked at all: metadata says what there is (ENABLE_IMDS_ONLY_MODE).
    ImdsOnly,
}

/// The settings that decide about supply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How far ahead.
    pub target: Target,
    /// The kind of block that is asked for: singles, or ENABLE_PREFIX_DELEGATION, or IPv6.
    pub kind: Kind,
    /// What pods get beside.
    pub beside: Beside,
    /// Network cards above the first are used too (ENABLE_MULTI_NIC).
    pub multi_card: bool,
    /// MAX_ENI, if at least 1.
    pub max_enis: Option<u32>,
    /// Never more addresses than pods fit on the node.
    pub max_pods: Option<u32>,
    /// IP_COOLDOWN_PERIOD, milliseconds.
    pub rest_ms: u64,
    /// MANAGE_UNTAGGED_ENI.
    pub manage_untagged: bool,
    /// What may be asked of EC2.
    pub provisioning: Provisioning,
    /// Whether ENIs that other nodes of the cluster lost are deleted (DISABLE_LEAKED_ENI_CLEANUP unset).
    pub clean_leaked: bool,
    /// Whether a cordoned node's pool grows and shrinks (AWS_MANAGE_ENIS_NON_SCHEDULABLE).
    pub manage_cordoned: bool,
}

/// How many addresses there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Held by the node for pods.
    pub total: u64,
    /// In the hands of attachments, or of links that nobody knows.
    pub held: u64,
    /// Resting after use.
    pub resting: u64,
    /// Free and rested.
    pub available: u64,
    /// Requests that wait for one.
    pub waiting: u64,
    /// Pods on their way to this node that have not asked yet.
    pub bound: u64,
    /// Prefixes.
    pub prefixes: u64,
    /// Prefixes that nobody uses any of.
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

/// What `auto` has learnt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Learnt {
    /// Free addresses to keep ahead.
    pub margin: u64,
    /// The most that was in use lately or wanted ahead of use, rest included.
    pub peak: u64,
}

impl Policy {
    /// ENIs that a card may have.
    pub fn eni_max(&self, limits: Limits, card: u32) -> u32 {
        let most = limits.on_card(card);
        match self.max_enis {
            Some(max) if max >= 1 => most.min(max),
            _ => most,
        }
    }

    /// The same for the pool of a card. The targets are the first card's; every other one holds one address ahead, as
    /// the peer's do.
    pub(crate) fn of_card(&self, card: u32) -> Policy {
        let ahead = Target::Warm { enis: 0, addresses: 1, minimum: 1, prefixes: 0 };
        match card {
            0 => self.clone(),
            _ => Policy { target: ahead, max_pods: None, ..self.clone() },
        }
    }

    /// Whether blocks of this family carry pods' first addresses.
    pub(crate) fn leads(&self, net: &IpNet) -> bool {
        (self.kind == Kind::V6Prefix) == matches!(net, IpNet::V6(_))
    }

    /// The addresses that only the node knows, if pods get one.
    pub(crate) fn local_range(&self) -> Option<IpNet> {
        match (self.beside, self.kind) {
            (Beside::OfNode, Kind::V6Prefix) => Some(LOCAL_V4),
            (Beside::OfNode, _) => Some(LOCAL_V6),
            _ => None,
        }
    }

    /// Addresses that a block brings to the pool: none if it only stands beside.
    pub(crate) fn size(&self, net: &IpNet) -> u64 {
        if self.leads(net) { block::size(net) } else { 0 }
    }

    /// The kind of block that this type can take.
    pub fn kind(&self, limits: Limits) -> Kind {
        if self.kind == Kind::Prefix && !limits.prefixes { Kind::Single } else { self.kind }
    }

    /// How many addresses are missing, 0 if none. Requests that wait come on top of every target of free
    /// addresses and are served even where all targets are 0.
    pub fn missing(&self, limits: Limits, counts: Counts, learnt: Learnt) -> u64 {
        let unserved = counts.demand().saturating_sub(counts.available);
        let short_of = |free: u64| (free + counts.demand()).saturating_sub(counts.available);
        let prefixes = self.kind(limits) == Kind::Prefix;
        let target = match self.target {
            _ if self.kind == Kind::V6Prefix => u64::from(counts.available == 0),
            Target::Auto => short_of(learnt.margin),
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

    /// How many addresses are too many, whole ENIs aside; 0 if none.
    pub fn surplus(&self, limits: Limits, counts: Counts, learnt: Learnt) -> u64 {
        let Counts { total, available, held, .. } = counts;
        let prefixes = self.kind(limits) == Kind::Prefix;
        match self.target {
            _ if self.kind == Kind::V6Prefix => 0,
            Target::Auto => total.saturating_sub(Self::kept(counts, learnt)).min(available),
            Target::Warm { addresses, minimum, .. } if addresses != 0 || minimum != 0 => {
                let (warm, minimum) = (u64::from(addresses), u64::from(minimum));
                if prefixes {
                    let above = |needed: u64| counts.prefixes.saturating_sub(needed.div_ceil(PREFIX_SIZE));
                    counts.idle_prefixes.min(above(held + warm)).min(above(minimum)) * PREFIX_SIZE
                } else {
                    available.saturating_sub(warm).min(total.saturating_sub(minimum))
                }
            }
            Target::Warm { prefixes: wanted, .. } if prefixes => {
                counts.idle_prefixes.saturating_sub(u64::from(wanted)) * PREFIX_SIZE
            }
            Target::Warm { .. } => 0,
        }
    }

    /// What `auto` keeps.
    fn kept(counts: Counts, learnt: Learnt) -> u64 {
        learnt.peak.max(counts.held + counts.resting + learnt.margin)
    }

    /// How far above its target `auto` lets the pool be before it gives anything back, in addresses.
    pub(crate) fn slack(&self, learnt: Learnt) -> u64 {
        match self.target {
            Target::Auto => (learnt.peak / 4).clamp(4, PREFIX_SIZE),
            Target::Warm { .. } => 0,
        }
    }

    /// What `auto` asks for beyond what is missing, so that not every pod costs a call: a part of what is in
    /// use, what lasts for a minute if pods go on coming, and a whole ENI on a node that has nothing yet.
    pub(crate) fn portion(&self, limits: Limits, counts: Counts, learnt: Learnt, lately: u64) -> u64 {
        let portion = lately.min(PREFIX_SIZE).max(self.slack(learnt));
        if counts.total == 0 { portion.max(per_eni(limits).min(PREFIX_SIZE)) } else { portion }
    }

    /// Whether what is left after giving up idle supply would still be enough.
    pub(crate) fn enough(&self, limits: Limits, left: Counts, learnt: Learnt) -> bool {
        let kept = match self.target {
            Target::Auto => left.total >= Self::kept(left, learnt),
            Target::Warm { .. } => true,
        };
        kept && self.missing(limits, Counts { waiting: 0, bound: left.demand(), ..left }, learnt) == 0
    }

    /// Whether growth fills whole ENIs (WARM_ENI_TARGET) instead of counting addresses.
    pub fn whole_enis(&self) -> bool {
        matches!(self.target, Target::Warm { enis: 1.., addresses: 0, minimum: 0, .. }) && self.kind == Kind::Single
    }
}

/// Addresses for pods on one ENI that has no prefixes.
pub(crate) fn per_eni(limits: Limits) -> u64 {
    u64::from(limits.addresses_per_eni.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(enis: u32, addresses: u32, minimum: u32) -> Policy {
        Policy {
            target: Target::Warm { enis, addresses, minimum, prefixes: 0 },
            kind: Kind::Single,
            beside: Beside::Nothing,
            multi_card: false,
            max_enis: None,
            max_pods: None,
            rest_ms: 30_000,
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
            let counts = Counts { total, available, waiting, held: total - available, ..Counts::default() };
            let found = policy(enis, warm, minimum).missing(M5_LARGE, counts, Learnt::default());
            assert_eq!(found, missing, "{enis} {warm} {minimum} {counts:?}");
        }
    }

    /// Prefix mode, no pods: (WARM_IP, MINIMUM_IP, WARM_PREFIX) -> /28s that are held in the end.
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
            let missing = policy.missing(M5_LARGE, Counts::default(), Learnt::default()).div_ceil(PREFIX_SIZE);
            assert_eq!(missing, expected, "{target:?}");
            let (total, prefixes) = (expected * PREFIX_SIZE, expected);
            let held = Counts { total, available: total, prefixes, idle_prefixes: prefixes, ..Counts::default() };
            assert_eq!(policy.missing(M5_LARGE, held, Learnt::default()), 0, "{target:?} is met");
            assert_eq!(policy.surplus(M5_LARGE, held, Learnt::default()), 0, "{target:?} is not exceeded");
        }
    }

    /// (WARM_IP, MINIMUM_IP), (total, available) -> surplus.
    #[test]
    fn the_surplus_is_the_peers() {
        let rows = [((2, 0), (9, 9), 7), ((2, 5), (9, 9), 4), ((0, 5), (9, 1), 1), ((3, 0), (9, 2), 0)];
        for ((warm, minimum), (total, available), surplus) in rows {
            let counts = Counts { total, available, held: total - available, ..Counts::default() };
            assert_eq!(policy(1, warm, minimum).surplus(M5_LARGE, counts, Learnt::default()), surplus);
        }
        let counts = Counts { total: 18, available: 18, ..Counts::default() };
        assert_eq!(policy(1, 0, 0).surplus(M5_LARGE, counts, Learnt::default()), 0, "whole ENIs only");
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
            capped.missing(M5_LARGE, Counts { total, held: total, waiting, ..Counts::default() }, Learnt::default())
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
