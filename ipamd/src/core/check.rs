//! The invariants, checked after every step in release builds too; the price is that of what the step did, not of all
//! there is.

use std::collections::BTreeSet;

use super::Core;
use crate::{
    ec2::Call,
    event::{Effect, Write},
    invariant::Broken,
    restrictions::Restrictions,
    supply::kind,
};

impl Core {
    /// What a step from `before`, with these effects, has broken.
    pub(super) fn check(&self, before: &Core, effects: &[Effect]) -> Vec<Broken> {
        let mut broken = Vec::new();
        let mut recorded = BTreeSet::new();
        let mut intents = BTreeSet::new();
        for effect in effects {
            match effect {
                Effect::Record(Write::Lease(key, Some(_))) => drop(recorded.insert(key)),
                Effect::Record(Write::Intent(token, Some(_))) => drop(intents.insert(token)),
                Effect::Offer { key, lease, .. } => {
                    let held = before.leases.get(key);
                    let known = held.is_some_and(|held| held.addresses().eq(lease.addresses()));
                    if !known && !recorded.contains(key) {
                        broken.push(Broken::Unrecorded(key.clone()));
                    }
                    for address in lease.addresses() {
                        if self.leases.holder_of(&address) != Some(key) {
                            broken.push(Broken::TwoOwners(address));
                        }
                        if self.cooldown.contains(&address) || self.leases.is_orphan(&address) {
                            broken.push(Broken::NotAvailable(address));
                        }
                    }
                }
                Effect::Call { call, .. } => broken.extend(self.check_call(before, call, &intents)),
                _ => {}
            }
        }
        if !self.leases.is_indexed() {
            let shared = effects.iter().find_map(|effect| match effect {
                Effect::Offer { lease, .. } => Some(Broken::TwoOwners(lease.address)),
                _ => None,
            });
            broken.extend(shared);
        }
        if !self.slots.is_same(&before.slots) {
            broken.extend(self.slots.shared().map(Broken::SharedSlot));
        }
        broken
    }

    fn check_call(&self, before: &Core, call: &Call, intents: &BTreeSet<&String>) -> Option<Broken> {
        let Restrictions { releases_frozen, writes_frozen, .. } = &self.node.restrictions;
        // By what the call is, and not by the names that the plan looks at.
        if *writes_frozen && !call.reads() || *releases_frozen && call.gives_back() {
            return Some(Broken::Frozen(call.action().to_owned()));
        }
        let changed = match call {
            Call::Create { token, .. } if !intents.contains(token) && !before.creations.contains(token) => {
                return Some(Broken::NoIntent(token.clone()));
            }
            Call::Unassign { blocks, .. } => {
                let used = |net: &&ipnet::IpNet| {
                    let (first, last) = kind::ends(net);
                    self.leases.used_in(first, last)
                };
                if let Some(net) = blocks.iter().find(used) {
                    return Some(Broken::BlockInUse(*net));
                }
                call.eni()
            }
            Call::Detach { eni, .. } | Call::Delete { eni } => {
                let used = before.pool.eni(eni).is_some_and(|eni| eni.sums.assigned > 0) && self.leases.names(eni);
                return used.then(|| Broken::EniInUse(eni.clone()));
            }
            Call::Assign { eni, .. } => Some(eni),
            _ => None,
        };
        let eni = changed?;
        let ours = self.pool.eni(eni).is_none_or(|eni| eni.ours);
        (!ours).then(|| Broken::NotOurs(eni.clone()))
    }
}
