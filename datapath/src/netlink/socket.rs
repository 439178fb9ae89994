//! A blocking rtnetlink socket: batches of changes, each acknowledged, and complete listings.
//!
//! Several requests travel in one datagram, as the kernel allows (netlink(7)); it answers each on its own.
//! A batch stops at its first refusal in the sense that the error is reported; later requests of the same
//! datagram have been carried out by then, so callers batch only what may stand on its own.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    RouteNetlinkMessage, address::AddressMessage, link::LinkMessage, neighbour::NeighbourMessage, route::RouteMessage,
    rule::RuleMessage,
};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use nix::errno::Errno;

use crate::{
    family::Family,
    netlink::{
        answer::Answer,
        datagram::{connected, frames, undecodable},
        error::{Error, of_code},
        listing::{LISTINGS, Listed, Proxy, ask_link},
        request::Request,
    },
};

/// Requests that travel in one datagram: it has to fit a socket's buffer.
const TOGETHER: usize = 128;

/// A socket that speaks to the namespace in which it was opened.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    received: Vec<u8>,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, Error> {
        let socket = connected(NETLINK_ROUTE).map_err(|source| Error::new("open a netlink socket", source))?;
        Ok(Netlink { socket, sequence: 0, received: Vec::new() })
    }

    /// Sends all requests, many in one datagram, and waits for every answer; the first refusal is returned.
    pub fn apply(&mut self, requests: &[Request]) -> Result<(), Error> {
        let mut refusal = None;
        for together in requests.chunks(TOGETHER) {
            if let Err(error) = self.apply_together(together) {
                refusal.get_or_insert(error);
            }
        }
        refusal.map_or(Ok(()), Err)
    }

    fn apply_together(&mut self, requests: &[Request]) -> Result<(), Error> {
        let first = self.sequence + 1;
        // The kernel takes them in order and tells every refusal; only the last has to be confirmed.
        let last = requests.len() - 1;
        let mut datagram = Vec::new();
        for (at, request) in requests.iter().enumerate() {
            let confirm = if at == last { NLM_F_ACK } else { 0 };
            datagram.extend(self.encode(request.message(confirm)));
        }
        let what = requests[0].to_string();
        self.send(&what, &datagram)?;
        let mut refusal = None;
        let mut confirmed = false;
        while !confirmed {
            for message in self.receive(&what)? {
                let NetlinkPayload::Error(answer) = message.payload else { continue };
                let at = message.header.sequence_number.checked_sub(first).and_then(|at| usize::try_from(at).ok());
                let Some((at, request)) = at.and_then(|at| Some((at, requests.get(at)?))) else { continue };
                confirmed |= at == last;
                let answered = request.answered(answer.code.map_or(0, Into::into));
                refusal = refusal.or(answered.err());
            }
        }
        refusal.map_or(Ok(()), Err)
    }

    /// Everything of one kind, as the kernel lists it. A list during which something changed may lack what was there
    /// all the time (NLM_F_DUMP_INTR, the kernel's netlink introduction): it is asked for again.
    fn dump(&mut self, what: &str, message: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, Error> {
        for _ in 0..LISTINGS {
            if let Some(found) = self.dump_once(what, message.clone())? {
                return Ok(found);
            }
        }
        let source = io::Error::other(format!("it changed during each of {LISTINGS} listings"));
        Err(Error::new(what, source))
    }

    /// `None` if something changed meanwhile.
    fn dump_once(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Option<Vec<RouteNetlinkMessage>>, Error> {
        let request = self.ask(message, NLM_F_DUMP);
        self.send(what, &request)?;
        let mut found = Vec::new();
        let mut whole = true;
        loop {
            for message in self.receive(what)? {
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                whole &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(Answer(inner)) => found.push(inner),
                    // One that did not come to its end says so here.
                    NetlinkPayload::Done(end) => return of_code(what, end.code).map(|()| whole.then_some(found)),
                    NetlinkPayload::Error(answer) => return Err(Error::new(what, answer.to_io())),
                    _ => {}
                }
            }
        }
    }

    /// All links of the namespace, without statistics.
    pub fn links(&mut self) -> Result<Vec<LinkMessage>, Error> {
        self.list(&[Family::V4])
    }

    /// All addresses of the namespace, of both families.
    pub fn addresses(&mut self) -> Result<Vec<AddressMessage>, Error> {
        self.list(&[Family::V4])
    }

    /// All routes of these families, of all tables.
    pub fn routes(&mut self, families: &[Family]) -> Result<Vec<RouteMessage>, Error> {
        self.list(families)
    }

    /// All neighbours of these families, of all links.
    pub fn neighbours(&mut self, families: &[Family]) -> Result<Vec<NeighbourMessage>, Error> {
        self.list(families)
    }

    /// The addresses that the host answers for in neighbour discovery.
    pub fn proxies(&mut self) -> Result<Vec<Proxy>, Error> {
        self.list(&[Family::V4])
    }

    /// All rules of both families.
    pub fn rules(&mut self) -> Result<Vec<RuleMessage>, Error> {
        self.list(&Family::ALL)
    }

    fn list<T: Listed>(&mut self, families: &[Family]) -> Result<Vec<T>, Error> {
        let mut found = Vec::new();
        for family in families {
            match self.dump(T::WHAT, T::ask(*family)) {
                Ok(listed) => found.extend(listed.into_iter().filter_map(T::shown_by)),
                // A kernel without IPv6 lists nothing of it.
                Err(error) if *family == Family::V6 && error.is(Errno::EAFNOSUPPORT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// The link of this name, if there is one.
    pub fn link(&mut self, name: &str) -> Result<Option<LinkMessage>, Error> {
        let what = format!("look for link {name}");
        let request = self.ask(ask_link(name), 0);
        self.send(&what, &request)?;
        loop {
            for message in self.receive(&what)? {
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(Answer(RouteNetlinkMessage::NewLink(link))) => return Ok(Some(link)),
                    NetlinkPayload::Error(answer) => {
                        let error = Error::new(&what, answer.to_io());
                        return if error.is(Errno::ENODEV) { Ok(None) } else { Err(error) };
                    }
                    _ => {}
                }
            }
        }
    }

    fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> Vec<u8> {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        self.encode(message)
    }

    fn encode(&mut self, mut message: NetlinkMessage<RouteNetlinkMessage>) -> Vec<u8> {
        self.sequence += 1;
        message.header.sequence_number = self.sequence;
        message.finalize();
        // Each message starts on a 4-byte border of the datagram (NLMSG_ALIGN).
        let mut bytes = vec![0; message.buffer_len().next_multiple_of(4)];
        message.serialize(&mut bytes);
        bytes
    }

    fn send(&mut self, what: &str, bytes: &[u8]) -> Result<(), Error> {
        self.socket.send(bytes, 0).map(drop).map_err(|source| Error::new(what, source))
    }

    fn receive(&mut self, what: &str) -> Result<Vec<NetlinkMessage<Answer>>, Error> {
        self.received.clear();
        self.received.reserve(64 * 1024);
        let size = self.socket.recv(&mut self.received, 0).map_err(|source| Error::new(what, source))?;
        let decode = |frame: NetlinkBuffer<_>| NetlinkMessage::deserialize(frame.into_inner()).map_err(undecodable);
        let messages = frames(&self.received[..size]).map(|frame| frame.and_then(decode));
        messages.collect::<io::Result<_>>().map_err(|source| Error::new(what, source))
    }
}
