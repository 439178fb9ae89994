//! What connection tracking remembers of an address, and how it is made to forget (ctnetlink).
//!
//! An address that is given to another pod must not meet its predecessor's connections: their NAT and their
//! marks would be its own. Kernels before 6.8 delete only by whole tuple, so the table is listed once for all
//! addresses, and each entry that has one of them at any of its four ends is deleted by its own tuple, zone
//! and id, as the kernel had listed them. The tuple goes back byte by byte: there is no kind of entry that
//! this file would have to know.
//!
//! A listing of 240,000 entries takes 0.65 s. Turned down: four listings per address that the kernel filters
//! (CTA_FILTER, since 5.8), 0.2 s; more code, and slower again from the fourth address on.
//!
//! Numbers: linux/netfilter/nfnetlink_conntrack.h.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netlink_packet_core::{NlaBuffer, NlasIterator};
use nix::{errno::Errno, libc};

use crate::{
    netfilter::socket::{CONNTRACK, Netfilter, generic},
    netlink::error::Error,
};

const GET: u16 = CONNTRACK | 1; // IPCTNL_MSG_CT_GET
const DELETE: u16 = CONNTRACK | 2; // IPCTNL_MSG_CT_DELETE

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_IP_ENDS: std::ops::RangeInclusive<u16> = 1..=4; // v4 source, v4 destination, v6 source, v6 destination

/// A socket that speaks to connection tracking of the namespace in which it was opened.
pub struct Conntrack {
    netfilter: Netfilter,
}

impl Conntrack {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, Error> {
        Ok(Conntrack { netfilter: Netfilter::open()? })
    }

    /// Drops every entry that has one of the addresses as a source or a destination, in its original or its
    /// reply direction; how many have gone. The first refusal is returned, after all have been tried.
    pub fn forget(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<usize, Error> {
        let mut entries = Vec::new();
        for family in addresses.iter().map(family).collect::<BTreeSet<u8>>() {
            // What comes or goes meanwhile has come after the address was given back, or is gone.
            let see = |_: u8, attributes: &[u8]| entries.extend(deletion_of(family, attributes, addresses));
            self.netfilter.list("list connection tracking", GET, family, see)?;
        }
        let mut gone = 0;
        let mut refusal = None;
        for entry in entries {
            match self.delete(&entry) {
                Ok(deleted) => gone += usize::from(deleted),
                Err(error) => refusal = refusal.or(Some(error)),
            }
        }
        refusal.map_or(Ok(gone), Err)
    }

    /// Deletes one entry; whether it was still there.
    fn delete(&mut self, body: &[u8]) -> Result<bool, Error> {
        match self.netfilter.ask("delete an entry of connection tracking", DELETE, body) {
            Ok(()) => Ok(true),
            Err(error) if error.is(Errno::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The body of the request that deletes this entry, if it has one of the addresses at any end.
fn deletion_of(family: u8, attributes: &[u8], addresses: &BTreeSet<IpAddr>) -> Option<Vec<u8>> {
    let mut touches = false;
    let mut body = generic(family).to_vec();
    for attribute in NlasIterator::new(attributes).flatten() {
        let kind = attribute.kind();
        if matches!(kind, CTA_TUPLE_ORIG | CTA_TUPLE_REPLY) {
            touches = touches || has_end_in(&attribute, addresses);
        }
        if matches!(kind, CTA_TUPLE_ORIG | CTA_ZONE | CTA_ID) {
            let whole = attribute.into_inner();
            body.extend(&whole[..usize::from(attribute.length())]);
            body.resize(body.len().next_multiple_of(4), 0);
        }
    }
    touches.then_some(body)
}

/// Whether one of the addresses is an end of a tuple.
fn has_end_in(tuple: &NlaBuffer<&[u8]>, addresses: &BTreeSet<IpAddr>) -> bool {
    NlasIterator::new(tuple.value()).flatten().filter(|part| part.kind() == CTA_TUPLE_IP).any(|ends| {
        NlasIterator::new(ends.value())
            .flatten()
            .filter(|end| CTA_IP_ENDS.contains(&end.kind()))
            .filter_map(|end| address(end.value()))
            .any(|end| addresses.contains(&end))
    })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(bytes).map(Ipv4Addr::from).map(IpAddr::from);
    let v6 = || <[u8; 16]>::try_from(bytes).map(Ipv6Addr::from).map(IpAddr::from);
    v4().or_else(|_| v6()).ok()
}

fn family(address: &IpAddr) -> u8 {
    u8::try_from(if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }).unwrap_or_default()
}
