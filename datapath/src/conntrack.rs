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
//! Numbers: linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NlaBuffer, NlasIterator};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::{errno::Errno, libc};

use crate::netlink::Error;

const CONNTRACK: u16 = 1 << 8; // NFNL_SUBSYS_CTNETLINK
const GET: u16 = CONNTRACK | 1; // IPCTNL_MSG_CT_GET
const DELETE: u16 = CONNTRACK | 2; // IPCTNL_MSG_CT_DELETE
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
/// Family, version and resource id stand before the attributes (struct nfgenmsg).
const GENERIC: usize = 4;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_IP_ENDS: std::ops::RangeInclusive<u16> = 1..=4; // v4 source, v4 destination, v6 source, v6 destination

/// The most that the kernel puts into one datagram of a listing.
const DATAGRAM: usize = 64 * 1024;

/// A socket that speaks to connection tracking of the namespace in which it was opened.
pub struct Conntrack {
    socket: Socket,
    sequence: u32,
    received: Vec<u8>,
}

impl Conntrack {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, Error> {
        let open = || {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let socket = open().map_err(|source| Error::new("open a netfilter socket", source))?;
        Ok(Conntrack { socket, sequence: 0, received: Vec::with_capacity(DATAGRAM) })
    }

    /// Drops every entry that has one of the addresses as a source or a destination, in its original or its
    /// reply direction; how many have gone. The first refusal is returned, after all have been tried.
    pub fn forget(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<usize, Error> {
        let mut entries = Vec::new();
        for family in addresses.iter().map(family).collect::<BTreeSet<u8>>() {
            self.list(family, |attributes| entries.extend(doomed(family, attributes, addresses)))?;
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

    /// Shows the attributes of every entry of a family.
    fn list(&mut self, family: u8, mut each: impl FnMut(&[u8])) -> Result<(), Error> {
        let what = "list connection tracking";
        self.send(what, GET, NLM_F_DUMP, &generic(family))?;
        loop {
            let mut ended = None;
            self.receive(what, |kind, payload| match kind {
                NLMSG_DONE | NLMSG_ERROR => ended = Some(code(payload)),
                _ => each(payload.get(GENERIC..).unwrap_or_default()),
            })?;
            if let Some(code) = ended {
                return refused(what, code);
            }
        }
    }

    /// Deletes one entry; whether it was still there.
    fn delete(&mut self, body: &[u8]) -> Result<bool, Error> {
        let what = "delete an entry of connection tracking";
        self.send(what, DELETE, NLM_F_ACK, body)?;
        let mut answer = None;
        while answer.is_none() {
            self.receive(what, |kind, payload| {
                if kind == NLMSG_ERROR {
                    answer = Some(code(payload));
                }
            })?;
        }
        match refused(what, answer.unwrap_or_default()) {
            Ok(()) => Ok(true),
            Err(error) if error.is(Errno::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn send(&mut self, what: &str, kind: u16, flags: u16, body: &[u8]) -> Result<(), Error> {
        self.sequence += 1;
        let length = HEADER + body.len();
        let mut message = vec![0; HEADER];
        let mut header = NetlinkBuffer::new(&mut message);
        header.set_length(u32::try_from(length).unwrap_or(u32::MAX));
        header.set_message_type(kind);
        header.set_flags(NLM_F_REQUEST | flags);
        header.set_sequence_number(self.sequence);
        message.extend(body);
        self.socket.send(&message, 0).map(drop).map_err(|source| Error::new(what, source))
    }

    /// Shows the messages of one datagram, type and payload; those that answer something else are left out.
    fn receive(&mut self, what: &str, mut each: impl FnMut(u16, &[u8])) -> Result<(), Error> {
        self.received.clear();
        let size = self.socket.recv(&mut self.received, 0).map_err(|source| Error::new(what, source))?;
        let mut rest = self.received.get(..size).unwrap_or_default();
        while !rest.is_empty() {
            let message = NetlinkBuffer::new_checked(rest)
                .map_err(|error| Error::new(what, io::Error::new(io::ErrorKind::InvalidData, error.to_string())))?;
            if message.sequence_number() == self.sequence {
                each(message.message_type(), message.payload());
            }
            let length = usize::try_from(message.length()).unwrap_or(usize::MAX).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
        }
        Ok(())
    }
}

/// The body that deletes this entry, if it has one of the addresses at any end.
fn doomed(family: u8, attributes: &[u8], addresses: &BTreeSet<IpAddr>) -> Option<Vec<u8>> {
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

fn generic(family: u8) -> [u8; GENERIC] {
    [family, 0, 0, 0]
}

/// The number that an answer or the end of a listing begins with: 0, or an error number below it.
fn code(payload: &[u8]) -> i32 {
    payload.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes)
}

fn refused(what: &str, code: i32) -> Result<(), Error> {
    if code < 0 { Err(Error::new(what, Errno::from_raw(-code).into())) } else { Ok(()) }
}
