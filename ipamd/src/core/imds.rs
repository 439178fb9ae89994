//! What instance metadata shows. It adds and withholds; by itself it takes nothing away.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::Core;
use crate::{
    ec2::{Intent, Scope},
    event::{Effect, Write},
    groups::SPREAD_MS,
    ids::{EniId, Millis, Place},
    mutation::Mutation,
    pool::{AddresslessEni, Eni, EniFacts, EniState, STALE_MS},
};

/// The token of [`Intent::Discover`].
pub(super) const DISCOVER: &str = "discover";
/// The first audit of a run comes after so long, and up to half as long again: it finds what an earlier run lost together
/// with its store, and a rollout of the daemon does not ask on all nodes at once.
const FIRST_AUDIT_MS: u64 = 4 * 60_000;

impl Core {
    pub(super) fn imds(
        &mut self,
        now: Millis,
        shown: Vec<EniFacts>,
        ids: &BTreeSet<EniId>,
        addressless: Vec<AddresslessEni>,
        effects: &mut Vec<Effect>,
    ) {
        self.pool.set_addressless(addressless);
        let first = self.observed.read_imds(now);
        if first {
            let at = now.plus(FIRST_AUDIT_MS + self.calls.jitter(FIRST_AUDIT_MS / 2));
            self.audits.plan_slow(at);
        }
        // What metadata does not show any more cannot come back by it.
        let read: BTreeSet<&EniId> = shown.iter().map(|facts| &facts.id).collect();
        let as_before = self.pool.enis().filter(|eni| ids.contains(eni.id()) && !read.contains(eni.id()));
        let facts: Vec<&EniFacts> = shown.iter().chain(as_before.map(|eni| &eni.facts)).collect();
        let is_shown = |net: &IpNet| facts.iter().any(|facts| facts.blocks.contains(net));
        for net in self.unassigned.settled(now, is_shown) {
            self.forget_unassigned(net, effects);
        }
        for facts in shown {
            self.eni_shown(now, facts, effects);
        }
        if first {
            // What an earlier run has fetched it had reasons for.
            let total = self.pool.enis().map(|eni| eni.sums.total).sum();
            self.demand.fetched(now, total);
            if self.slots.enis().any(|id| !ids.contains(id)) {
                self.audits.want(Scope::Ours); // an earlier run had it: where is it?
            }
        }
        if !self.audits.lost().is_empty() {
            let lost = self.audits.lost().iter();
            let lost = lost.filter(|id| self.leases.names(id) && !ids.contains(*id)).cloned().collect();
            self.audits.set_lost(lost);
        }
        let pool = &self.pool;
        self.observed.groups_mut().retain(|eni| pool.eni(eni).is_some());
        let missing: Vec<EniId> = self.pool.enis().map(Eni::id).filter(|id| !ids.contains(*id)).cloned().collect();
        for id in missing {
            if self.integrity.is_mutated(Mutation::TrustMetadata) {
                self.pool.forget_eni(&id);
            } else {
                self.pool.not_shown(now, &id);
            }
        }
    }

    /// The primary's security groups: what they are now, ENIs follow, each node in its own moment.
    pub(super) fn groups_read(&mut self, now: Millis, groups: &BTreeSet<String>) {
        if self.observed.groups_mut().read(now, groups) {
            let differs = self.pool.enis().any(|eni| eni.ours && eni.facts.groups != *groups);
            let wait = if differs { self.calls.jitter(SPREAD_MS) } else { 0 };
            self.observed.groups_mut().follow_from(now.plus(wait));
        }
    }

    fn eni_shown(&mut self, now: Millis, facts: EniFacts, effects: &mut Vec<Effect>) {
        let (id, blocks) = (facts.id.clone(), facts.blocks.clone());
        if self.deletions.set_place(&id, facts.place) {
            return;
        }
        if !self.pool.update(now, &facts) {
            self.adopt(now, facts, effects);
        }
        for net in self.pool.update_blocks(now, &id, &blocks) {
            if self.pool.is_expected_elsewhere(&id, &net) {
                continue; // it was unassigned here, and EC2 has given it to another ENI since
            }
            match self.unassigned.since(&net) {
                None => self.add_block(&id, net, now),
                Some(at) if now.since(at) < STALE_MS => {}
                Some(_) => self.audits.want(Scope::Attached),
            }
        }
        if self.integrity.is_mutated(Mutation::TrustMetadata) {
            let known = self.pool.eni(&id).map(|eni| eni.blocks.clone()).unwrap_or_default();
            known.into_iter().filter(|net| !blocks.contains(net)).for_each(|net| self.pool.forget_block(net));
        }
    }

    /// Metadata shows an ENI for the first time in this run.
    fn adopt(&mut self, now: Millis, facts: EniFacts, effects: &mut Vec<Effect>) {
        let id = facts.id.clone();
        let primary = facts.place == Place::default();
        // A slot on record says that an earlier run confirmed tag and delete-on-termination.
        let mut known = self.slots.of(&id);
        if !primary && known == Some(0) {
            // Slot 0 is the primary's, whatever the record says.
            self.slots.free(&id);
            effects.push(Effect::Record(Write::Slot(id.clone(), None)));
            known = None;
        }
        let slot = if primary { Some(0) } else { known };
        let trusted = slot.is_some() || !self.node.asks_ec2();
        // An ENI with addresses makes its card one that is managed.
        let state = match (slot.is_some() || self.node.may_use_card(facts.place.card), trusted) {
            (false, _) => EniState::Unmanaged,
            (true, true) => EniState::Configuring,
            (true, false) => EniState::Unknown,
        };
        let trusted = trusted && state == EniState::Configuring;
        let slot = slot.or_else(|| if trusted { self.free_slot(facts.mac) } else { None });
        if primary && known.is_none() && self.audits.begin_discovery() {
            effects.push(Effect::Record(Write::Intent(DISCOVER.to_owned(), Some(Intent::Discover))));
        }
        if let Some(slot) = slot
            && known != Some(slot)
        {
            self.give_slot(&id, slot, effects);
        }
        self.pool.add_eni(Eni::new(now, facts, state, slot));
    }

    /// A slot for the ENI with this MAC.
    pub(super) fn free_slot(&self, mac: [u8; 6]) -> Option<u32> {
        self.slots.free_for(mac, self.leases.values().map(|lease| lease.slot))
    }

    pub(super) fn give_slot(&mut self, id: &EniId, slot: u32, effects: &mut Vec<Effect>) {
        if let Some(other) = self.slots.give(id.clone(), slot) {
            effects.push(Effect::Record(Write::Slot(other, None)));
        }
        effects.push(Effect::Record(Write::Slot(id.clone(), Some(slot))));
    }

    /// The ENI is ours and EC2 deletes it with the instance: it gets its slot, the host is to carry it.
    pub(super) fn configure(&mut self, id: &EniId, effects: &mut Vec<Effect>) {
        let known = self.slots.of(id);
        let mac = self.pool.eni(id).map(|eni| eni.facts.mac).unwrap_or_default();
        let Some(slot) = known.or_else(|| self.free_slot(mac)) else { return };
        if known.is_none() {
            self.give_slot(id, slot, effects);
        }
        self.pool.configure(id, slot);
    }

    /// A block is on an ENI, and metadata may fail to show it until `confirmed_until`.
    pub(super) fn add_block(&mut self, id: &EniId, net: IpNet, confirmed_until: Millis) {
        let (leads, in_use) = (self.node.policy.leads(&net), self.in_use(&net));
        self.pool.add_block(id, net, leads, in_use, confirmed_until);
    }

    /// An unassigned block is out of memory, or is here again; its intent is closed with the last one under it.
    pub(super) fn forget_unassigned(&mut self, net: IpNet, effects: &mut Vec<Effect>) {
        if let Some(token) = self.unassigned.remove(&net) {
            effects.push(Effect::Record(Write::Intent(token, None)));
        }
    }
}
