//! The invariants, looked at after every step in release builds too; the price is that of what the step
//! did, not of all there is.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use ipnet::IpNet;

use crate::{AttachmentKey, Call, Core, Effect, EniId, Write, block};

/// An invariant that a step would have broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Two attachments would hold one address.
    TwoOwners(IpAddr),
    /// An address would be given that rests, or that a link unknown to us carries.
    NotFree(IpAddr),
    /// An offer without a record.
    Unrecorded(AttachmentKey),
    /// A creation without an intent.
    NoIntent(String),
    /// A change to an ENI that is not ours.
    NotOurs(EniId),
    /// A block would be given back while somebody uses it.
    BlockInUse(IpNet),
    /// An ENI would be given back while somebody uses it.
    EniInUse(EniId),
    /// Two ENIs would share a slot.
    SharedSlot(u32),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::TwoOwners(address) => write!(f, "two attachments would hold {address}"),
            Broken::NotFree(address) => write!(f, "{address} would be given, though it is not free"),
            Broken::Unrecorded(key) => write!(f, "{}/{} would be offered without a record", key.container, key.ifname),
            Broken::NoIntent(token) => write!(f, "an ENI would be created without an intent ({token})"),
            Broken::NotOurs(eni) => write!(f, "{eni} would be changed, though it is not ours"),
            Broken::BlockInUse(net) => write!(f, "{net} would be given back, though it is in use"),
            Broken::EniInUse(eni) => write!(f, "{eni} would be given back, though it is in use"),
            Broken::SharedSlot(slot) => write!(f, "two ENIs would share slot {slot}"),
        }
    }
}

impl Core {
    /// What a step from `before`, with these effects, has broken.
    pub(crate) fn check(&self, before: &Core, effects: &[Effect]) -> Vec<Broken> {
        let mut broken = Vec::new();
        let mut recorded = BTreeSet::new();
        let mut intents = BTreeSet::new();
        for effect in effects {
            match effect {
                Effect::Record(Write::Lease(key, Some(_))) => drop(recorded.insert(key)),
                Effect::Record(Write::Intent(token, Some(_))) => drop(intents.insert(token)),
                Effect::Offer { key, lease, .. } => {
                    let known = before.leases.get(key).is_some_and(|held| held.addresses().eq(lease.addresses()));
                    if !known && !recorded.contains(key) {
                        broken.push(Broken::Unrecorded(key.clone()));
                    }
                    for address in lease.addresses() {
                        if self.holders.get(&address) != Some(key) {
                            broken.push(Broken::TwoOwners(address));
                        }
                        if self.resting.contains_key(&address) || self.strangers.contains(&address) {
                            broken.push(Broken::NotFree(address));
                        }
                    }
                }
                Effect::Call { call, .. } => broken.extend(self.check_call(before, call, &intents)),
                _ => {}
            }
        }
        if self.leases.len() + self.seconds != self.holders.len() {
            let shared = effects.iter().find_map(|effect| match effect {
                Effect::Offer { lease, .. } => Some(Broken::TwoOwners(lease.address)),
                _ => None,
            });
            broken.extend(shared);
        }
        if !self.slots.ptr_eq(&before.slots) {
            let mut seen = BTreeSet::new();
            broken
                .extend(self.slots.values().filter(|slot| !seen.insert(**slot)).map(|slot| Broken::SharedSlot(*slot)));
        }
        broken
    }

    fn check_call(&self, before: &Core, call: &Call, intents: &BTreeSet<&String>) -> Option<Broken> {
        let changed = match call {
            Call::Create { token, .. } if !intents.contains(token) && !before.builds.contains_key(token) => {
                return Some(Broken::NoIntent(token.clone()));
            }
            Call::Unassign { blocks, .. } => {
                let used = |net: &&IpNet| {
                    let (first, last) = block::ends(net);
                    self.holders.range(first..=last).next().is_some()
                        || self.strangers.range(first..=last).next().is_some()
                };
                if let Some(net) = blocks.iter().find(used) {
                    return Some(Broken::BlockInUse(*net));
                }
                call.eni()
            }
            Call::Detach { eni, .. } | Call::Delete { eni } => {
                let used = before.enis.get(eni).is_some_and(|eni| eni.sums.held > 0)
                    && self.leases.values().any(|lease| lease.eni == *eni);
                return used.then(|| Broken::EniInUse(eni.clone()));
            }
            Call::Assign { eni, .. } => Some(eni),
            _ => None,
        };
        let eni = changed?;
        let ours = self.enis.get(eni).is_none_or(|eni| eni.ours);
        (!ours).then(|| Broken::NotOurs(eni.clone()))
    }
}
