//! The state as people, metrics and tests see it: always read from the core, never kept beside it.

use std::net::IpAddr;

use imbl::OrdMap;
use ipnet::IpNet;

use crate::{
    AttachmentKey, Block, BlockState, Cause, Core, Counts, Eni, EniId, Learnt, Lease, Millis, Refusal, block, supply,
};

/// Everything at one moment. It shares what it shows with the core, so that taking one costs little.
#[derive(Clone, Debug)]
pub struct View {
    /// When it was taken.
    pub now: Millis,
    /// Addresses held, free, asked for.
    pub counts: Counts,
    /// What `auto` goes by.
    pub learnt: Learnt,
    /// ENIs this node may have.
    pub eni_max: u32,
    /// The network cards that are managed.
    pub cards: Vec<u32>,
    /// Addresses for pods that this node could hold.
    pub address_max: u64,
    /// The ENIs.
    pub enis: OrdMap<EniId, Eni>,
    /// The blocks on them.
    pub blocks: OrdMap<IpNet, Block>,
    /// The leases.
    pub leases: OrdMap<AttachmentKey, Lease>,
    holders: OrdMap<IpAddr, AttachmentKey>,
    resting: OrdMap<IpAddr, Millis>,
    /// EC2 actions on their way.
    pub calls: Vec<&'static str>,
    /// Why an ADD would not succeed at once; `None` if it would.
    pub obstacle: Option<Refusal>,
    /// Actions that wait after a refusal, until when, and why.
    pub pauses: Vec<(&'static str, Millis, Refusal)>,
    /// Invariants that steps would have broken, in words.
    pub broken: Vec<String>,
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
    /// It was given back and rests until then.
    Resting(Millis),
    /// It can be given.
    Available,
    /// It is free, and not given: metadata does not show it, or it is going back to EC2.
    Withheld,
}

impl View {
    /// All attachments of this one's container in its network.
    pub fn of_container<'a>(&'a self, key: &AttachmentKey) -> impl Iterator<Item = &'a AttachmentKey> + use<'a> {
        let first = AttachmentKey { ifname: String::new(), ..key.clone() };
        let (network, container) = (key.network.clone(), key.container.clone());
        let within = move |key: &&AttachmentKey| key.network == network && key.container == container;
        self.leases.range(first..).map(|(key, _)| key).take_while(within)
    }

    /// The IPv4 addresses for pods, one by one.
    pub fn addresses(&self) -> Vec<AddressView> {
        let blocks = self.blocks.values().filter(|block| matches!(block.net, IpNet::V4(_)));
        let each = |block: &Block| {
            let (net, eni) = (block.net, block.eni.clone());
            let withheld = block.state != BlockState::Open;
            let (first, last) = block::ends(&net);
            let (IpAddr::V4(first), IpAddr::V4(last)) = (first, last) else { return Vec::new() };
            let numbers = u32::from(first)..=u32::from(last);
            numbers
                .map(|number| {
                    let address = IpAddr::V4(number.into());
                    let state = match self.resting.get(&address) {
                        _ if self.holders.contains_key(&address) => AddressState::Assigned,
                        Some(until) => AddressState::Resting(*until),
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

impl Core {
    /// The state at this moment.
    pub fn view(&self, now: Millis) -> View {
        let eni_max = self.cards().into_iter().map(|card| self.node.policy.eni_max(self.node.limits, card)).sum();
        let size = self.node.policy.kind(self.node.limits).size();
        View {
            now,
            counts: self.counts(),
            learnt: self.learnt(now),
            eni_max,
            cards: self.cards(),
            address_max: u64::from(eni_max) * supply::per_eni(self.node.limits) * size,
            enis: self.enis.clone(),
            blocks: self.blocks.clone(),
            leases: self.leases.clone(),
            holders: self.holders.clone(),
            resting: self.resting.clone(),
            calls: self.calls.values().map(|flight| flight.call.action()).collect(),
            obstacle: self.obstacle(now),
            pauses: self.pace.pauses().map(|(action, pause)| (action, pause.until, pause.refusal.clone())).collect(),
            broken: self.broken.iter().map(ToString::to_string).collect(),
        }
    }

    /// Why an ADD would not succeed at once; `None` if it would.
    pub fn obstacle(&self, now: Millis) -> Option<Refusal> {
        if let Some(broken) = self.broken.front() {
            let message = format!("a step would have broken an invariant, and nothing is given back since: {broken}");
            return Some(Refusal::new(Cause::Internal, message));
        }
        let ready = self.hindrance.is_none() && self.links_listed.is_some() && self.pick(None).is_some();
        (!ready).then(|| self.why_waiting(now, 0))
    }

    /// Why pods that run may have lost their network; `None` as far as is known they have not.
    pub fn risk(&self) -> Option<Refusal> {
        let eni = self.lost.get_min()?;
        let message = format!("{eni} is not attached to this instance any more, and pods live on its addresses");
        Some(Refusal::new(Cause::EniLost, message))
    }

    /// The lease of an attachment.
    pub fn lease(&self, key: &AttachmentKey) -> Option<&Lease> {
        self.leases.get(key)
    }

    /// What is wrong with the ENI or the address under a lease, one sentence; `None` as far as is known nothing is.
    pub fn fault_under(&self, lease: &Lease) -> Option<String> {
        let Some(carrier) = self.enis.get(&lease.eni) else {
            return Some(format!("{} is not attached to this instance", lease.eni));
        };
        let eni = &lease.eni;
        if carrier.doubted {
            return Some(format!("instance metadata does not show {eni} any more"));
        }
        let shown = |address: &IpAddr| {
            let block = carrier.blocks.iter().find(|net| net.contains(address)).and_then(|net| self.blocks.get(net));
            block.is_some_and(|block| block.state != BlockState::Doubted)
        };
        let mut of_vpc = [Some(lease.address), lease.second_of_vpc()].into_iter().flatten();
        of_vpc.find(|address| !shown(address)).map(|address| format!("EC2 does not show {address} on {eni} any more"))
    }

    /// All leases, for matching them with the kernel's links.
    pub fn leases(&self) -> OrdMap<AttachmentKey, Lease> {
        self.leases.clone()
    }

    /// Whether something is on its way that instance metadata will show.
    pub fn expects_imds(&self) -> bool {
        self.expected.values().any(|expected| expected.since.is_some()) || self.enis.is_empty()
    }

    /// Whether a listing of the kernel's links is waited for: the first of all, the second without a link, one after the
    /// decision to give something back; and the next, which says how old a young ENI is.
    pub fn awaits_listing(&self) -> bool {
        let young = |at: Millis| self.enis.values().any(|eni| at.since(eni.since) < crate::shrink::ENI_AGE_MS);
        self.links_listed.is_none_or(young)
            || self.is_giving_back()
            || self.leases.values().any(|lease| lease.missing_since.is_some())
    }
}
