//! Slots: the numbers by which marks, device groups and chain names tell ENIs apart.

use std::collections::{BTreeMap, BTreeSet};

use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use crate::ids::EniId;

/// Slots 1…63 name secondary ENIs; 0 is the primary.
const SLOT_MAX: u32 = 63;

/// The slots of ENIs, on record and in the kernel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Slots {
    recorded: OrdMap<EniId, u32>,
    /// Slots that the kernel gives to links, by MAC: running pods depend on them, whatever has become of the record.
    #[serde(with = "crate::serial")]
    in_kernel: OrdMap<[u8; 6], u32>,
}

impl Slots {
    /// What the store and the kernel say. A slot that the record gives to several ENIs is none's: the kernel and EC2 tell
    /// whose it is.
    pub(crate) fn new(recorded: BTreeMap<EniId, u32>, in_kernel: BTreeMap<[u8; 6], u32>) -> Self {
        let is_shared = |slot: u32| recorded.values().filter(|other| **other == slot).count() > 1;
        let of_one = recorded.iter().filter(|(_, slot)| **slot <= SLOT_MAX && !is_shared(**slot));
        Slots {
            recorded: of_one.map(|(eni, slot)| (eni.clone(), *slot)).collect(),
            in_kernel: in_kernel.into_iter().collect(),
        }
    }

    pub(crate) fn of(&self, eni: &EniId) -> Option<u32> {
        self.recorded.get(eni).copied()
    }

    /// ENIs that have a slot on record.
    pub(crate) fn enis(&self) -> impl Iterator<Item = &EniId> {
        self.recorded.keys()
    }

    /// Gives a slot; whoever had it on record has it no more, and is returned.
    pub(crate) fn give(&mut self, eni: EniId, slot: u32) -> Option<EniId> {
        let had = self.recorded.iter().find(|(other, held)| **held == slot && **other != eni);
        let had = had.map(|(other, _)| other.clone());
        if let Some(other) = &had {
            self.recorded.remove(other);
        }
        self.recorded.insert(eni, slot);
        had
    }

    /// Takes a slot off the record; whether there was one.
    pub(crate) fn free(&mut self, eni: &EniId) -> bool {
        self.recorded.remove(eni).is_some()
    }

    /// A slot for the ENI with this MAC: the one that it has in the kernel, or one that nobody has there or on record;
    /// `leased` are the slots that leases name.
    pub(crate) fn free_for(&self, mac: [u8; 6], leased: impl Iterator<Item = u32>) -> Option<u32> {
        let recorded: BTreeSet<u32> = self.recorded.values().copied().chain(leased).collect();
        let known = self.in_kernel.get(&mac).copied().filter(|slot| !recorded.contains(slot));
        let in_kernel: BTreeSet<u32> = self.in_kernel.values().copied().collect();
        let free = |slot: &u32| !recorded.contains(slot) && !in_kernel.contains(slot);
        known.or_else(|| (1..=SLOT_MAX).find(free)).or_else(|| (1..=SLOT_MAX).find(|slot| !recorded.contains(slot)))
    }

    /// The slot that the kernel gives to the link with this MAC, unless another ENI has it on record.
    pub(crate) fn in_kernel(&self, mac: [u8; 6]) -> Option<u32> {
        let slot = self.in_kernel.get(&mac).copied()?;
        (!self.recorded.values().any(|recorded| *recorded == slot)).then_some(slot)
    }

    /// Whether both have the same record, found without comparing it.
    pub(crate) fn is_same(&self, other: &Slots) -> bool {
        self.recorded.ptr_eq(&other.recorded)
    }

    /// Slots that two ENIs share.
    pub(crate) fn shared(&self) -> impl Iterator<Item = u32> {
        let mut seen = BTreeSet::new();
        self.recorded.values().copied().filter(move |slot| !seen.insert(*slot))
    }
}
