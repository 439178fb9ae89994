//! What the instance type can carry, and the settings that decide about supply.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::kind::{self, Kind, LOCAL_V4, LOCAL_V6};

/// What the instance type can carry (DescribeInstanceTypes, NetworkInfo and Hypervisor).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// What the type carries is not known, and does not matter, since EC2 is not asked for anything.
    pub const UNKNOWN: Limits = Limits::of_one_card(1, 1, false);

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

/// The second address of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Second {
    /// It has none.
    #[default]
    None,
    /// An IPv6 address out of a /80 on the same ENI.
    V6OfEni,
    /// An address of the other family that only the node knows, to leave by ([`LOCAL_V4`], [`LOCAL_V6`]).
    NodeLocal,
}

/// How far ahead of need the pool is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Provisioning {
    /// All that is needed.
    On,
    /// Nothing is created, changed or given back (DISABLE_NETWORK_RESOURCE_PROVISIONING).
    Off,
    /// EC2 is not asked at all: metadata says what there is (ENABLE_IMDS_ONLY_MODE).
    ImdsOnly,
}

/// How the subnet of a new ENI is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Placement {
    /// It is the primary ENI's (ENABLE_SUBNET_DISCOVERY is false).
    #[default]
    Primary,
    /// It is one that is tagged for it; `cluster`: CLUSTER_NAME.
    Tagged {
        /// The cluster that subnets may be kept for.
        cluster: Option<String>,
    },
    /// The node's ENIConfig names it (AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG).
    EniConfig,
}

/// The settings that decide about supply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// How far ahead.
    pub target: Target,
    /// The kind of block that is asked for: singles, or ENABLE_PREFIX_DELEGATION, or IPv6.
    pub kind: Kind,
    /// The second address of each pod.
    pub second: Second,
    /// How the subnet of a new ENI is chosen.
    pub placement: Placement,
    /// Network cards above the first are used too (ENABLE_MULTI_NIC).
    pub multi_card: bool,
    /// MAX_ENI, if at least 1.
    pub max_enis: Option<u32>,
    /// Never more addresses than pods fit on the node.
    pub max_pods: Option<u32>,
    /// IP_COOLDOWN_PERIOD, milliseconds.
    pub cooldown_ms: u64,
    /// MANAGE_UNTAGGED_ENI.
    pub manage_untagged: bool,
    /// What may be asked of EC2.
    pub provisioning: Provisioning,
    /// Whether ENIs that other nodes of the cluster lost are deleted (DISABLE_LEAKED_ENI_CLEANUP unset).
    pub clean_leaked: bool,
    /// Whether a cordoned node's pool grows and shrinks (AWS_MANAGE_ENIS_NON_SCHEDULABLE).
    pub manage_cordoned: bool,
}

impl Policy {
    /// The same with what of `other` can be changed while pods run and the daemon goes on.
    #[must_use]
    pub fn with_live(&self, other: &Policy) -> Policy {
        Policy {
            target: other.target,
            max_enis: other.max_enis,
            max_pods: other.max_pods,
            cooldown_ms: other.cooldown_ms,
            provisioning: other.provisioning,
            clean_leaked: other.clean_leaked,
            manage_cordoned: other.manage_cordoned,
            ..self.clone()
        }
    }

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

    /// Whether pods' first addresses are of this block's family.
    pub(crate) fn leads(&self, net: &IpNet) -> bool {
        (self.kind == Kind::V6Prefix) == matches!(net, IpNet::V6(_))
    }

    /// The addresses that only the node knows, if pods get one.
    pub(crate) fn local_range(&self) -> Option<IpNet> {
        match (self.second, self.kind) {
            (Second::NodeLocal, Kind::V6Prefix) => Some(LOCAL_V4),
            (Second::NodeLocal, _) => Some(LOCAL_V6),
            _ => None,
        }
    }

    /// Addresses that a block brings to the pool: none if it carries second addresses only.
    pub(crate) fn size(&self, net: &IpNet) -> u64 {
        if self.leads(net) { kind::size(net) } else { 0 }
    }

    /// The kind of block that this type can take.
    pub fn kind(&self, limits: Limits) -> Kind {
        if self.kind == Kind::Prefix && !limits.prefixes { Kind::Single } else { self.kind }
    }

    /// What a node without foreign ENIs has for pods whose first interfaces are on the first card: ENIs, and addresses.
    pub fn for_pods(&self, limits: Limits) -> (u32, u64) {
        let of_primary = u32::from(self.placement == Placement::EniConfig);
        let enis = self.eni_max(limits, 0).saturating_sub(of_primary);
        (enis, self.capacity(limits, enis))
    }

    /// Addresses for pods on so many ENIs.
    pub(crate) fn capacity(&self, limits: Limits, enis: u32) -> u64 {
        u64::from(enis) * per_eni(limits) * self.kind(limits).size()
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
