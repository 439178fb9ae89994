//! ENIs and the addresses on them: what is held, what is free, which one is given next.

use std::{collections::BTreeSet, net::Ipv4Addr};

use ipnet::Ipv4Net;

use crate::{Core, Counts, Effect, EniId, Millis, Write};

/// Slots 1…63 name secondary ENIs; 0 is the primary.
const SLOT_MAX: u32 = 63;

/// An address is offered once instance metadata shows it, or when it has not for so long after EC2
/// confirmed it.
pub(crate) const IMDS_LAG_MS: u64 = 10_000;

/// One ENI as instance metadata shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EniFacts {
    /// EC2's id.
    pub id: EniId,
    /// From IMDS, never from EC2's answer.
    pub mac: [u8; 6],
    /// Device index on its card.
    pub device_index: u32,
    /// Network card.
    pub card: u32,
    /// Its own address, with the subnet's prefix length.
    pub primary: Ipv4Net,
    /// The subnet's id.
    pub subnet_id: String,
    /// Addresses for pods.
    pub addresses: BTreeSet<Ipv4Addr>,
}

/// How far an ENI has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EniState {
    /// Attached; whether it is ours is not known yet.
    Unknown,
    /// Ours; the host does not carry it yet.
    Joining,
    /// Its addresses may be given.
    Ready,
    /// Somebody else's: left alone.
    Foreign,
}

/// One ENI of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eni {
    /// What IMDS shows. Addresses are only ever added by it.
    pub facts: EniFacts,
    /// Slot in marks and device groups.
    pub slot: Option<u32>,
    /// How far it has come.
    pub state: EniState,
    /// EC2 confirmed our tag in this life, so it may be changed.
    pub ours: bool,
}

impl Core {
    pub(crate) fn imds(&mut self, enis: Vec<EniFacts>, effects: &mut Vec<Effect>) {
        for facts in enis {
            match self.enis.get_mut(&facts.id) {
                Some(eni) => {
                    // IMDS alone can only add: what it no longer shows may be stale news.
                    let mut addresses = std::mem::take(&mut eni.facts.addresses);
                    addresses.extend(&facts.addresses);
                    eni.facts = EniFacts { addresses, ..facts };
                }
                None => self.meet(facts, effects),
            }
        }
    }

    fn meet(&mut self, facts: EniFacts, effects: &mut Vec<Effect>) {
        let id = facts.id.clone();
        let primary = facts.device_index == 0 && facts.card == 0;
        // A slot on record says that an earlier life confirmed tag and delete-on-termination.
        let known = self.slots.get(&id).copied();
        let slot = if primary { Some(0) } else { known };
        let state = if slot.is_some() { EniState::Joining } else { EniState::Unknown };
        if primary && known.is_none() {
            self.give_slot(&id, 0, effects);
        }
        self.enis.insert(id, Eni { facts, slot, state, ours: false });
    }

    /// Drops expectations that metadata has met, and takes EC2's word where it has not for long.
    pub(crate) fn take_expected(&mut self, now: Millis) {
        let enis = &mut self.enis;
        self.expected.retain(|id, expected| {
            let Some(eni) = enis.get_mut(id) else { return true };
            if now.since(expected.since) >= IMDS_LAG_MS {
                let primary = eni.facts.primary.addr();
                eni.facts.addresses.extend(expected.addresses.iter().filter(|address| **address != primary));
            }
            !expected
                .addresses
                .iter()
                .all(|address| eni.facts.addresses.contains(address) || *address == eni.facts.primary.addr())
        });
    }

    pub(crate) fn give_slot(&mut self, id: &EniId, slot: u32, effects: &mut Vec<Effect>) {
        self.slots.insert(id.clone(), slot);
        effects.push(Effect::Record(Write::Slot(id.clone(), Some(slot))));
    }

    pub(crate) fn free_slot(&self) -> Option<u32> {
        let taken: BTreeSet<u32> =
            self.slots.values().copied().chain(self.leases.values().map(|lease| lease.slot)).collect();
        (1..=SLOT_MAX).find(|slot| !taken.contains(slot))
    }

    pub(crate) fn eni_up(&mut self, id: &EniId) {
        if let Some(eni) = self.enis.get_mut(id)
            && eni.state == EniState::Joining
        {
            eni.state = EniState::Ready;
        }
    }

    /// ENIs that host and table must carry: all that have a slot.
    pub fn carried(&self) -> impl Iterator<Item = (&Eni, u32)> {
        self.enis.values().filter_map(|eni| Some((eni, eni.slot?)))
    }

    /// The address to give next: from the ENI that has given most, so that others can empty; there the
    /// one that was never given, then the one that has rested longest.
    pub(crate) fn pick(&self, now: Millis) -> Option<(EniId, u32, Ipv4Addr)> {
        let mut ready: Vec<&Eni> = self.enis.values().filter(|eni| eni.state == EniState::Ready).collect();
        ready.sort_by_key(|eni| std::cmp::Reverse(self.given(eni)));
        ready.into_iter().find_map(|eni| {
            let free = eni.facts.addresses.iter().filter(|address| self.is_free(**address, now));
            let address = free.min_by_key(|address| self.resting.get(address))?;
            Some((eni.facts.id.clone(), eni.slot?, *address))
        })
    }

    pub(crate) fn given(&self, eni: &Eni) -> usize {
        eni.facts.addresses.iter().filter(|address| self.holders.contains_key(address)).count()
    }

    pub(crate) fn is_free(&self, address: Ipv4Addr, now: Millis) -> bool {
        !self.holders.contains_key(&address) && self.resting.get(&address).is_none_or(|until| *until <= now)
    }

    /// Addresses held, free and asked for.
    pub fn counts(&self, now: Millis) -> Counts {
        let mut counts = Counts { waiting: count(self.waiters.len()), ..Counts::default() };
        for eni in self.enis.values().filter(|eni| !matches!(eni.state, EniState::Unknown | EniState::Foreign)) {
            counts.total += count(eni.facts.addresses.len());
            let free = eni.facts.addresses.iter().filter(|address| self.is_free(**address, now)).count();
            counts.available += count(free);
        }
        counts
    }

    /// When the next address has rested, if one rests.
    pub(crate) fn next_rested(&self, now: Millis) -> Option<Millis> {
        self.resting
            .iter()
            .filter(|(address, until)| **until > now && !self.holders.contains_key(address))
            .map(|(_, until)| *until)
            .min()
    }
}

/// Lengths here are bounded by EC2's limits, far below 2^32.
pub(crate) fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
