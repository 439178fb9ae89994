//! The state as people, metrics and tests see it: always read from the core, never kept beside it.

use std::net::Ipv4Addr;

use crate::{AttachmentKey, Core, Counts, Eni, EniState, Lease, Millis, Refusal, pool::count};

/// Everything at one moment.
#[derive(Clone, Debug)]
pub struct View {
    /// When it was taken.
    pub now: Millis,
    /// Addresses held, free, asked for.
    pub counts: Counts,
    /// Given to attachments.
    pub assigned: u32,
    /// Not given, not rested.
    pub resting: u32,
    /// ENIs this node may have.
    pub eni_max: u32,
    /// Addresses for pods that this node could hold.
    pub address_max: u32,
    /// The ENIs.
    pub enis: Vec<EniView>,
    /// The addresses for pods.
    pub addresses: Vec<AddressView>,
    /// The leases.
    pub leases: Vec<LeaseView>,
    /// EC2 actions on their way.
    pub calls: Vec<&'static str>,
    /// Why an ADD would not succeed at once; `None` if it would.
    pub obstacle: Option<Refusal>,
    /// Until when growth pauses, and why.
    pub pause: Option<(Millis, Refusal)>,
    /// Invariants that steps would have broken, in words.
    pub broken: Vec<String>,
}

/// One ENI.
#[derive(Clone, Debug)]
pub struct EniView {
    /// The ENI itself.
    pub eni: Eni,
    /// Addresses of it in the hands of pods.
    pub assigned: u32,
}

/// One address.
#[derive(Clone, Debug)]
pub struct AddressView {
    /// The address.
    pub address: Ipv4Addr,
    /// The ENI's id.
    pub eni: String,
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
}

/// One lease.
#[derive(Clone, Debug)]
pub struct LeaseView {
    /// Whose it is.
    pub key: AttachmentKey,
    /// What it is.
    pub lease: Lease,
}

impl Core {
    /// The state at this moment.
    pub fn view(&self, now: Millis) -> View {
        let mut addresses = Vec::new();
        for eni in self.enis.values().filter(|eni| !matches!(eni.state, EniState::Unknown | EniState::Foreign)) {
            for address in &eni.facts.addresses {
                let state = match self.resting.get(address) {
                    _ if self.holders.contains_key(address) => AddressState::Assigned,
                    Some(until) if *until > now => AddressState::Resting(*until),
                    _ => AddressState::Available,
                };
                addresses.push(AddressView { address: *address, eni: eni.facts.id.0.clone(), state });
            }
        }
        let counts = self.counts(now);
        let of = |wanted: fn(&AddressState) -> bool| count(addresses.iter().filter(|seen| wanted(&seen.state)).count());
        let eni_max = self.node.policy.eni_max(self.node.limits);
        View {
            now,
            counts,
            assigned: of(|state| *state == AddressState::Assigned),
            resting: of(|state| matches!(state, AddressState::Resting(_))),
            eni_max,
            address_max: eni_max * self.node.limits.addresses_per_eni.saturating_sub(1),
            enis: self
                .enis
                .values()
                .map(|eni| EniView { assigned: count(self.given(eni)), eni: eni.clone() })
                .collect(),
            addresses,
            leases: self
                .leases
                .iter()
                .map(|(key, lease)| LeaseView { key: key.clone(), lease: lease.clone() })
                .collect(),
            calls: self.calls.values().map(crate::Call::action).collect(),
            obstacle: self.obstacle(now),
            pause: self.pause.clone(),
            broken: self.broken.iter().map(ToString::to_string).collect(),
        }
    }

    /// Why an ADD would not succeed at once; `None` if it would.
    pub fn obstacle(&self, now: Millis) -> Option<Refusal> {
        let ready = self.links_listed && self.pick(now).is_some();
        (!ready).then(|| self.why_waiting(now))
    }

    /// The lease of an attachment.
    pub fn lease(&self, key: &AttachmentKey) -> Option<&Lease> {
        self.leases.get(key)
    }

    /// All leases, for matching them with the kernel's links.
    pub fn leases(&self) -> impl Iterator<Item = (&AttachmentKey, &Lease)> {
        self.leases.iter()
    }

    /// Whether something is on its way that instance metadata will show.
    pub fn expects_imds(&self) -> bool {
        !self.expected.is_empty() || self.enis.is_empty()
    }
}
