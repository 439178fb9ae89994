//! A blocking socket to one of netfilter's subsystems: listings, and requests that are acknowledged. What the
//! attributes mean is the callers' business.
//!
//! Numbers: linux/netlink.h and linux/netfilter/nfnetlink.h.

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer};
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};

use crate::netlink::{
    datagram::{connected, frames},
    error::{Error, of_code},
};

/// NFNL_SUBSYS_CTNETLINK, as the upper byte of a message's type.
pub(crate) const CONNTRACK: u16 = 1 << 8;
/// NFNL_SUBSYS_NFTABLES.
pub(crate) const NFTABLES: u16 = 10 << 8;
/// Family, version and resource id stand before the attributes (struct nfgenmsg).
pub(crate) const GENERIC: usize = 4;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
/// The most that the kernel puts into one datagram of a listing.
const DATAGRAM: usize = 64 * 1024;

/// A socket that speaks to the namespace in which it was opened.
pub(crate) struct Netfilter {
    socket: Socket,
    sequence: u32,
    received: Vec<u8>,
}

impl Netfilter {
    pub(crate) fn open() -> Result<Self, Error> {
        let socket = connected(NETLINK_NETFILTER).map_err(|source| Error::new("open a netfilter socket", source))?;
        Ok(Netfilter { socket, sequence: 0, received: Vec::with_capacity(DATAGRAM) })
    }

    /// Shows family and attributes of everything of one kind; whether nothing has changed meanwhile.
    pub(crate) fn list(
        &mut self,
        what: &str,
        kind: u16,
        family: u8,
        mut each: impl FnMut(u8, &[u8]),
    ) -> Result<bool, Error> {
        self.send(what, kind, NLM_F_DUMP, &generic(family))?;
        let (mut whole, mut ended) = (true, None);
        while ended.is_none() {
            self.receive(what, |message| {
                whole &= message.flags() & NLM_F_DUMP_INTR == 0;
                let payload = message.payload();
                match message.message_type() {
                    NLMSG_DONE | NLMSG_ERROR => ended = Some(code(payload)),
                    _ => each(payload.first().copied().unwrap_or(0), payload.get(GENERIC..).unwrap_or_default()),
                }
            })?;
        }
        of_code(what, ended.unwrap_or_default()).map(|()| whole)
    }

    /// Asks one question of no family, and shows the attributes of the answer.
    pub(crate) fn get(&mut self, what: &str, kind: u16, mut show: impl FnMut(&[u8])) -> Result<(), Error> {
        self.send(what, kind, 0, &generic(0))?;
        let mut answer = None;
        while answer.is_none() {
            self.receive(what, |message| {
                let payload = message.payload();
                if message.message_type() == NLMSG_ERROR {
                    answer = Some(code(payload));
                } else {
                    show(payload.get(GENERIC..).unwrap_or_default());
                    answer = Some(0);
                }
            })?;
        }
        of_code(what, answer.unwrap_or_default())
    }

    /// Asks for one change, and waits for the answer.
    pub(crate) fn ask(&mut self, what: &str, kind: u16, body: &[u8]) -> Result<(), Error> {
        self.send(what, kind, NLM_F_ACK, body)?;
        let mut answer = None;
        while answer.is_none() {
            self.receive(what, |message| {
                if message.message_type() == NLMSG_ERROR {
                    answer = Some(code(message.payload()));
                }
            })?;
        }
        of_code(what, answer.unwrap_or_default())
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

    /// Shows the messages of one datagram; those that answer something else are left out.
    fn receive(&mut self, what: &str, mut each: impl FnMut(NetlinkBuffer<&[u8]>)) -> Result<(), Error> {
        self.received.clear();
        let size = self.socket.recv(&mut self.received, 0).map_err(|source| Error::new(what, source))?;
        for message in frames(self.received.get(..size).unwrap_or_default()) {
            let message = message.map_err(|source| Error::new(what, source))?;
            if message.sequence_number() == self.sequence {
                each(message);
            }
        }
        Ok(())
    }
}

/// What stands before the attributes of a request.
pub(crate) fn generic(family: u8) -> [u8; GENERIC] {
    [family, 0, 0, 0]
}

/// The number that an answer or the end of a listing begins with: 0, or an error number below it.
fn code(payload: &[u8]) -> i32 {
    payload.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes)
}
