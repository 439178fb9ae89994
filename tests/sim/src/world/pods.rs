//! Plugins that carry out an ADD, and the pods and links that they make.

use std::net::IpAddr;

use enid_ipamd::{AttachmentKey, EniId, Lease, Ticket};

/// What a plugin does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It waits for an offer.
    Waits,
    /// It has an offer and makes the pair.
    Creates,
    /// The pair is there; it tells so.
    Tells,
    /// It waits for the verdict.
    Awaits,
    /// The verdict is good: it makes the address reachable and prints.
    Prints,
}

/// A plugin that carries out an ADD.
#[derive(Clone, Debug)]
pub(super) struct Plugin {
    pub(super) ticket: Ticket,
    pub(super) key: AttachmentKey,
    pub(super) step: Step,
    pub(super) lease: Option<Lease>,
    /// It does nothing before that.
    pub(super) at: u64,
    /// Its connection to the daemon; a daemon that ends closes it.
    pub(super) connected: bool,
}

/// A pod's link in the kernel.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) addresses: Vec<IpAddr>,
    /// The host routes the addresses over it.
    pub(super) routed: bool,
}

/// A pod whose ADD has been answered.
#[derive(Clone, Debug)]
pub(super) struct Pod {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) eni: EniId,
}
