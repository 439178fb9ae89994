//! What nftables notifies of: transactions that touch the tables called `enid`, and base chains of anybody.
//!
//! Numbers: linux/netfilter/nfnetlink.h and nf_tables.h.

use netlink_packet_core::NlasIterator;

use crate::{
    kind::Kind,
    netfilter::socket::{GENERIC, NFTABLES},
    notification::{Author, Notification, Urgency},
};

/// NFNLGRP_NFTABLES.
pub const GROUP: u32 = 7;
/// NFT_MSG_NEWGEN: the end of a transaction, and whose it was.
const NFT_NEWGEN: u16 = 15;
const NFT_NEWCHAIN: u16 = 3;
const NFT_DELCHAIN: u16 = 5;
/// Only base chains have one.
const NFTA_CHAIN_HOOK: u16 = 4;
/// The table's name, in the messages of all that a table holds.
const NFTA_TABLE: u16 = 1;
const NFTA_GEN_PROC_PID: u16 = 2;
const NFTA_GEN_PROC_NAME: u16 = 3;

/// Turns nftables' messages into notifications, of which one transaction has many.
#[derive(Debug, Default)]
pub struct TableNotifications {
    /// Something of our tables was in the transaction so far.
    touched: bool,
}

impl TableNotifications {
    /// Nothing of a transaction has been seen.
    pub fn new() -> Self {
        TableNotifications::default()
    }

    /// What this message means for us: its type and what follows its header.
    pub fn of(&mut self, kind: u16, payload: &[u8]) -> Option<Notification> {
        let attributes = || NlasIterator::new(payload.get(GENERIC..).unwrap_or_default()).flatten();
        if kind & 0xff00 != NFTABLES {
            return None;
        }
        if kind & 0xff != NFT_NEWGEN {
            let ours = |value: &[u8]| value.strip_suffix(&[0]).unwrap_or(value) == b"enid";
            self.touched |= attributes().any(|attribute| attribute.kind() == NFTA_TABLE && ours(attribute.value()));
            let of_a_hook = matches!(kind & 0xff, NFT_NEWCHAIN | NFT_DELCHAIN)
                && attributes().any(|attribute| attribute.kind() == NFTA_CHAIN_HOOK);
            return of_a_hook.then_some(Notification::Hooks);
        }
        if !std::mem::take(&mut self.touched) {
            return None;
        }
        let (mut pid, mut name) = (None, None);
        for attribute in attributes() {
            let value = attribute.value();
            match attribute.kind() {
                NFTA_GEN_PROC_PID => pid = value.try_into().ok().map(u32::from_be_bytes),
                NFTA_GEN_PROC_NAME => {
                    let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
                    name = Some(String::from_utf8_lossy(text).into_owned());
                }
                _ => {}
            }
        }
        let author = pid.map_or(Author::Unknown, |pid| Author::Process(pid, name));
        Some(Notification::Changed(Kind::Table, Urgency::Soon, author))
    }
}
