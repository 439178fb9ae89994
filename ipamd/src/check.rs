//! The invariants, looked at after every step in release builds too.

use std::{collections::BTreeSet, fmt, net::Ipv4Addr};

use crate::{AttachmentKey, Core};

/// An invariant that a step would have broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Two attachments would hold one address.
    TwoOwners(Ipv4Addr),
    /// The two sides of the book differ.
    BookDiffers(AttachmentKey),
    /// Two ENIs would share a slot.
    SharedSlot(u32),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::TwoOwners(address) => write!(f, "two attachments would hold {address}"),
            Broken::BookDiffers(key) => write!(f, "the book differs on {}/{}", key.container, key.ifname),
            Broken::SharedSlot(slot) => write!(f, "two ENIs would share slot {slot}"),
        }
    }
}

impl Core {
    pub(crate) fn check(&self) -> Vec<Broken> {
        let mut broken = Vec::new();
        let mut seen = BTreeSet::new();
        for (key, lease) in &self.leases {
            if !seen.insert(lease.address) {
                broken.push(Broken::TwoOwners(lease.address));
            } else if self.holders.get(&lease.address) != Some(key) {
                broken.push(Broken::BookDiffers(key.clone()));
            }
        }
        let mut slots = BTreeSet::new();
        for slot in self.enis.values().filter_map(|eni| eni.slot) {
            if !slots.insert(slot) {
                broken.push(Broken::SharedSlot(slot));
            }
        }
        broken
    }
}
