//! The state as people, metrics and tests see it: always read from the core, never kept beside it.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use imbl::OrdMap;
use ipnet::IpNet;

use crate::{
    cause::Refusal,
    ec2::{Class, Pace},
    groups::List,
    ids::{AttachmentKey, EniId, Millis, SubnetId},
    lease::Lease,
    plan::Plan,
    pool::{Block, BlockState, Eni},
    restrictions::Restrictions,
    supply::{Counts, kind},
};

/// Everything at one moment. It shares what it shows with the core, so that taking one costs little.
#[derive(Clone, Debug)]
pub struct View {
    /// When it was taken.
    pub now: Millis,
    /// Addresses assigned, available, asked for.
    pub counts: Counts,
    /// What the node may have.
    pub capacity: Capacity,
    /// The ENIs.
    pub enis: OrdMap<EniId, Arc<Eni>>,
    /// The blocks on them.
    pub blocks: OrdMap<IpNet, Arc<Block>>,
    pub(crate) groups: List,
    pub(crate) leases: OrdMap<Arc<AttachmentKey>, Arc<Lease>>,
    /// Addresses that pods' links use though no lease says so.
    pub orphans: Vec<IpAddr>,
    pub(crate) holders: OrdMap<IpAddr, Arc<AttachmentKey>>,
    pub(crate) cooling: OrdMap<IpAddr, Millis>,
    /// EC2 calls in flight.
    pub in_flight: Vec<InFlight>,
    /// What is to be done, and what is waited for.
    pub plan: Plan,
    /// Why an ADD would not succeed at once; `None` if it would.
    pub blocked: Option<Refusal>,
    /// What limits EC2 calls.
    pub pacing: Pacing,
    /// Invariants that steps would have broken, in words.
    pub broken: Vec<String>,
}

/// What limits EC2 calls.
#[derive(Clone, Debug, Default)]
pub struct Pacing {
    /// What an operator restricts.
    pub restrictions: Restrictions,
    /// Actions that wait after a refusal, until when, and why.
    pub pauses: Vec<(&'static str, Millis, Refusal)>,
    /// The buckets: what they have is computed when somebody asks.
    pub(crate) pace: Pace,
}

impl View {
    /// Rate buckets that were used: action, class, calls that may be made now, and calls of a full one.
    pub fn buckets(&self) -> impl Iterator<Item = (&'static str, Class, u32, u32)> {
        self.pacing.pace.fill(self.now)
    }
}

/// What the node may have.
#[derive(Clone, Debug, Default)]
pub struct Capacity {
    /// ENIs, over all network cards; 0 if that is not known.
    pub enis: u32,
    /// Addresses for pods, over all network cards.
    pub addresses: u64,
    /// Addresses that as many pods can have, whose first interfaces are on the first card; 0 if that is not known, or not
    /// ours to get.
    pub for_pods: u64,
    /// Pods that fit on the node, as the settings or the kubelet say.
    pub max_pods: Option<u32>,
    /// The network cards that are managed.
    pub cards: Vec<u32>,
    /// Free addresses of subnets, as EC2 has said last, and when; of others it has said nothing.
    pub free: BTreeMap<SubnetId, (u64, Millis)>,
}

/// An EC2 call in flight.
#[derive(Clone, Debug)]
pub struct InFlight {
    /// EC2's name of the action.
    pub action: &'static str,
    /// The ENI that it is about, if it is about one.
    pub eni: Option<EniId>,
    /// When it was sent.
    pub since: Millis,
    /// Why, one sentence.
    pub reason: String,
}

/// One address.
#[derive(Clone, Debug)]
pub struct AddressView {
    /// The address.
    pub address: IpAddr,
    /// The block it is in.
    pub block: IpNet,
    /// The ENI's id.
    pub eni: EniId,
    /// What it does.
    pub state: AddressState,
}

/// What an address does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressState {
    /// A pod holds it.
    Assigned,
    /// It is in its cooldown until then.
    Cooling(Millis),
    /// It can be assigned.
    Available,
    /// It is neither assigned nor cooling, and not assigned to anybody: metadata does not show it, or it is being
    /// unassigned.
    Withheld,
}

impl View {
    /// All attachments of this one's container in its network.
    pub fn of_container<'a>(&'a self, key: &AttachmentKey) -> impl Iterator<Item = &'a AttachmentKey> + use<'a> {
        let first = AttachmentKey { ifname: String::new(), ..key.clone() };
        let (network, container) = (key.network.clone(), key.container.clone());
        let within = move |key: &&AttachmentKey| key.network == network && key.container == container;
        self.leases.range(first..).map(|(key, _)| key.as_ref()).take_while(within)
    }

    /// ENIs of which metadata shows something else than EC2 is known to have done: it lags, or somebody else has changed
    /// them.
    pub fn unsettled_enis(&self) -> impl Iterator<Item = &EniId> {
        let other_groups = |eni: &Eni| eni.ours && !self.groups.is_empty() && eni.facts.groups != *self.groups;
        self.enis
            .iter()
            .filter(move |(_, eni)| eni.unconfirmed || eni.is_shown_otherwise() || other_groups(eni))
            .map(|(id, _)| id)
    }

    /// The leases, with their keys.
    pub fn leases(&self) -> impl Iterator<Item = (&AttachmentKey, &Lease)> + Clone {
        self.leases.iter().map(|(key, lease)| (key.as_ref(), lease.as_ref()))
    }

    /// The block that an address is in, if it is on this node.
    pub fn block_of(&self, address: IpAddr) -> Option<&Block> {
        kind::candidates(address).iter().find_map(|net| self.blocks.get(net)).map(Arc::as_ref)
    }

    /// The lease of an attachment.
    pub fn lease(&self, key: &AttachmentKey) -> Option<&Lease> {
        self.leases.get(key).map(Arc::as_ref)
    }

    /// The lease that has an address.
    pub fn holder_of(&self, address: IpAddr) -> Option<&Lease> {
        self.lease(self.holders.get(&address)?)
    }

    /// The attachments that have a lease.
    pub fn keys(&self) -> impl Iterator<Item = &AttachmentKey> {
        self.leases().map(|(key, _)| key)
    }

    /// The IPv4 addresses for pods, one by one.
    pub fn addresses(&self) -> Vec<AddressView> {
        let blocks = self.blocks.values().map(Arc::as_ref).filter(|block| matches!(block.net(), IpNet::V4(_)));
        let each = |block: &Block| {
            let (net, eni) = (block.net(), block.eni().clone());
            let withheld = block.state() != BlockState::Usable;
            let (first, last) = kind::ends(&net);
            let (IpAddr::V4(first), IpAddr::V4(last)) = (first, last) else { return Vec::new() };
            let numbers = u32::from(first)..=u32::from(last);
            numbers
                .map(|number| {
                    let address = IpAddr::V4(number.into());
                    let state = match self.cooling.get(&address) {
                        _ if self.holders.contains_key(&address) => AddressState::Assigned,
                        Some(until) => AddressState::Cooling(*until),
                        None if withheld => AddressState::Withheld,
                        None => AddressState::Available,
                    };
                    AddressView { address, block: net, eni: eni.clone(), state }
                })
                .collect::<Vec<_>>()
        };
        blocks.flat_map(each).collect()
    }
}
