//! The invariants that a step may not break, each by what it would have broken.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::ids::{AttachmentKey, EniId};

/// An invariant that a step would have broken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Broken {
    /// Two attachments would hold one address.
    TwoOwners(IpAddr),
    /// An address would be assigned that is cooling, or that an orphaned link uses.
    NotAvailable(IpAddr),
    /// An offer without a record.
    Unrecorded(AttachmentKey),
    /// A creation without an intent.
    NoIntent(String),
    /// A change to an ENI that is not ours.
    NotOurs(EniId),
    /// A block would be unassigned while somebody uses it.
    BlockInUse(IpNet),
    /// An ENI would be detached or deleted while somebody uses it.
    EniInUse(EniId),
    /// EC2 would be called with an action that an operator has frozen.
    Frozen(String),
    /// Two ENIs would share a slot.
    SharedSlot(u32),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::TwoOwners(address) => write!(f, "two attachments would hold {address}"),
            Broken::NotAvailable(address) => write!(f, "{address} would be assigned, though it is not available"),
            Broken::Unrecorded(key) => write!(f, "{}/{} would be offered without a record", key.container, key.ifname),
            Broken::NoIntent(token) => write!(f, "an ENI would be created without an intent ({token})"),
            Broken::NotOurs(eni) => write!(f, "{eni} would be changed, though it is not ours"),
            Broken::BlockInUse(net) => write!(f, "{net} would be unassigned, though it is in use"),
            Broken::EniInUse(eni) => write!(f, "{eni} would be detached or deleted, though it is in use"),
            Broken::Frozen(action) => write!(f, "{action} would be called, though an operator has frozen it"),
            Broken::SharedSlot(slot) => write!(f, "two ENIs would share slot {slot}"),
        }
    }
}
