//! A blocking rtnetlink socket: batches of changes, each acknowledged, and complete listings.
//!
//! Several requests travel in one datagram, as the kernel allows (netlink(7)); it answers each on its own.
//! A batch stops at its first refusal in the sense that the error is reported; later requests of the same
//! datagram have been carried out by then, so callers batch only what may stand on its own.

use std::{fmt, io};

use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::AddressMessage,
    link::{LinkAttribute, LinkExtentMask, LinkMessage},
    neighbour::NeighbourMessage,
    route::RouteMessage,
    rule::RuleMessage,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;

use crate::{answer::Answer, family::Family, watch::Kind};

/// One refusal of the kernel, with what was asked.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct Error {
    /// What was asked, for people.
    pub what: String,
    /// The kernel's answer.
    pub source: io::Error,
}

impl Error {
    pub(crate) fn new(what: impl Into<String>, source: io::Error) -> Self {
        Error { what: what.into(), source }
    }

    /// Whether the kernel answered with this error number.
    pub fn is(&self, errno: Errno) -> bool {
        self.source.raw_os_error().map(Errno::from_raw) == Some(errno)
    }
}

/// Requests that travel in one datagram: it has to fit a socket's buffer.
const TOGETHER: usize = 128;
/// How often a listing is asked for, when something changes during each.
pub(crate) const DUMPS: u32 = 50;

/// One change, and how to speak of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    what: String,
    message: RouteNetlinkMessage,
    flags: u16,
    /// An answer that means "already so".
    already: Option<Errno>,
}

impl Request {
    /// It deletes a rule, which nobody lacks.
    pub fn is_rule_removal(&self) -> bool {
        matches!(self.message, RouteNetlinkMessage::DelRule(_))
    }

    /// What kind of thing it changes.
    pub fn kind(&self) -> Kind {
        use RouteNetlinkMessage::{
            DelAddress, DelNeighbour, DelRoute, DelRule, NewAddress, NewNeighbour, NewRoute, NewRule,
        };
        match &self.message {
            NewRule(_) | DelRule(_) => Kind::Rule,
            NewRoute(_) | DelRoute(_) => Kind::Route,
            NewAddress(_) | DelAddress(_) => Kind::Address,
            NewNeighbour(_) | DelNeighbour(_) => Kind::Neighbour,
            _ => Kind::Link,
        }
    }

    /// The same, and fine if its link has gone meanwhile.
    pub fn unless_gone(self) -> Self {
        Request { already: Some(Errno::ENODEV), ..self }
    }

    fn new(what: impl fmt::Display, message: RouteNetlinkMessage, flags: u16, already: Option<Errno>) -> Self {
        Request { what: what.to_string(), message, flags, already }
    }

    /// Create a link that does not exist yet.
    pub fn create_link(what: impl fmt::Display, link: LinkMessage) -> Self {
        Self::new(what, RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL, None)
    }

    /// Change an existing link.
    pub fn set_link(what: impl fmt::Display, link: LinkMessage) -> Self {
        Self::new(what, RouteNetlinkMessage::SetLink(link), 0, None)
    }

    /// Change a link before its deletion; one that is gone is fine.
    pub fn set_going_link(what: impl fmt::Display, link: LinkMessage) -> Self {
        Self::new(what, RouteNetlinkMessage::SetLink(link), 0, Some(Errno::ENODEV))
    }

    /// Delete a link; one that is gone is fine.
    pub fn delete_link(what: impl fmt::Display, link: LinkMessage) -> Self {
        Self::new(what, RouteNetlinkMessage::DelLink(link), 0, Some(Errno::ENODEV))
    }

    /// Put an address on a link, or leave it there.
    pub fn put_address(what: impl fmt::Display, address: AddressMessage) -> Self {
        Self::new(what, RouteNetlinkMessage::NewAddress(address), NLM_F_CREATE | NLM_F_REPLACE, None)
    }

    /// Take an address from a link; one that is gone is fine.
    pub fn delete_address(what: impl fmt::Display, address: AddressMessage) -> Self {
        Self::new(what, RouteNetlinkMessage::DelAddress(address), 0, Some(Errno::EADDRNOTAVAIL))
    }

    /// Put a route in place of any other to the same destination in its table.
    pub fn put_route(what: impl fmt::Display, route: RouteMessage) -> Self {
        Self::new(what, RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_REPLACE, None)
    }

    /// Add a route where none leads to the same destination yet.
    pub fn add_route(what: impl fmt::Display, route: RouteMessage) -> Self {
        Self::new(what, RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_EXCL, None)
    }

    /// Delete a route; one that is gone is fine.
    pub fn delete_route(what: impl fmt::Display, route: RouteMessage) -> Self {
        Self::new(what, RouteNetlinkMessage::DelRoute(route), 0, Some(Errno::ESRCH))
    }

    /// Put a neighbour entry in place.
    pub fn put_neighbour(what: impl fmt::Display, neighbour: NeighbourMessage) -> Self {
        Self::new(what, RouteNetlinkMessage::NewNeighbour(neighbour), NLM_F_CREATE | NLM_F_REPLACE, None)
    }

    /// Add a rule; one that is there is fine.
    pub fn add_rule(what: impl fmt::Display, rule: RuleMessage) -> Self {
        Self::new(what, RouteNetlinkMessage::NewRule(rule), NLM_F_CREATE | NLM_F_EXCL, Some(Errno::EEXIST))
    }

    /// Delete a rule; one that is gone is fine.
    pub fn delete_rule(what: impl fmt::Display, rule: RuleMessage) -> Self {
        Self::new(what, RouteNetlinkMessage::DelRule(rule), 0, Some(Errno::ENOENT))
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

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
            datagram.extend(self.encode(request.message.clone(), NLM_F_REQUEST | confirm | request.flags));
        }
        self.send(&requests[0].what, &datagram)?;
        let mut refusal = None;
        let mut confirmed = false;
        while !confirmed {
            for message in self.receive(&requests[0].what)? {
                let NetlinkPayload::Error(answer) = message.payload else { continue };
                let at = message.header.sequence_number.checked_sub(first).and_then(|at| usize::try_from(at).ok());
                let Some((at, request)) = at.and_then(|at| Some((at, requests.get(at)?))) else { continue };
                confirmed |= at == last;
                if let Some(code) = answer.code {
                    let errno = Errno::from_raw(-code.get());
                    if request.already != Some(errno) && refusal.is_none() {
                        refusal = Some(Error::new(&request.what, errno.into()));
                    }
                }
            }
        }
        refusal.map_or(Ok(()), Err)
    }

    /// Everything of one kind, as the kernel lists it. A list during which something changed may lack what was there
    /// all the time (NLM_F_DUMP_INTR, the kernel's netlink introduction): it is asked for again.
    fn dump(&mut self, what: &str, message: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, Error> {
        for _ in 0..DUMPS {
            if let Some(found) = self.dump_once(what, message.clone())? {
                return Ok(found);
            }
        }
        let source = io::Error::other(format!("it changed during each of {DUMPS} listings"));
        Err(Error::new(what, source))
    }

    /// `None` if something changed meanwhile.
    fn dump_once(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Option<Vec<RouteNetlinkMessage>>, Error> {
        let request = self.encode(message, NLM_F_REQUEST | NLM_F_DUMP);
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
        let mut ask = LinkMessage::default();
        ask.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        Ok(keep(self.dump("list links", RouteNetlinkMessage::GetLink(ask))?, |message| match message {
            RouteNetlinkMessage::NewLink(link) => Some(link),
            _ => None,
        }))
    }

    /// All addresses of the namespace, of both families.
    pub fn addresses(&mut self) -> Result<Vec<AddressMessage>, Error> {
        let found = self.dump("list addresses", RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        Ok(keep(found, |message| match message {
            RouteNetlinkMessage::NewAddress(address) => Some(address),
            _ => None,
        }))
    }

    /// All routes of these families, of all tables.
    pub fn routes(&mut self, families: &[Family]) -> Result<Vec<RouteMessage>, Error> {
        let ask = |family: Family| {
            let mut ask = RouteMessage::default();
            ask.header.address_family = family.netlink();
            RouteNetlinkMessage::GetRoute(ask)
        };
        Ok(keep(self.dump_each("list routes", families, ask)?, |message| match message {
            RouteNetlinkMessage::NewRoute(route) => Some(route),
            _ => None,
        }))
    }

    /// All neighbours of these families, of all links.
    pub fn neighbours(&mut self, families: &[Family]) -> Result<Vec<NeighbourMessage>, Error> {
        let ask = |family: Family| {
            let mut ask = NeighbourMessage::default();
            ask.header.family = family.netlink();
            RouteNetlinkMessage::GetNeighbour(ask)
        };
        Ok(keep(self.dump_each("list neighbours", families, ask)?, |message| match message {
            RouteNetlinkMessage::NewNeighbour(neighbour) => Some(neighbour),
            _ => None,
        }))
    }

    /// All rules of both families.
    pub fn rules(&mut self) -> Result<Vec<RuleMessage>, Error> {
        let ask = |family: Family| {
            let mut ask = RuleMessage::default();
            ask.header.family = family.netlink();
            RouteNetlinkMessage::GetRule(ask)
        };
        Ok(keep(self.dump_each("list rules", &Family::ALL, ask)?, |message| match message {
            RouteNetlinkMessage::NewRule(rule) => Some(rule),
            _ => None,
        }))
    }

    fn dump_each(
        &mut self,
        what: &str,
        families: &[Family],
        ask: impl Fn(Family) -> RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        let mut found = Vec::new();
        for family in families {
            match self.dump(what, ask(*family)) {
                Ok(listed) => found.extend(listed),
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
        let mut ask = LinkMessage::default();
        ask.attributes.push(LinkAttribute::IfName(name.to_owned()));
        ask.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let request = self.encode(RouteNetlinkMessage::GetLink(ask), NLM_F_REQUEST);
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

    fn encode(&mut self, message: RouteNetlinkMessage, flags: u16) -> Vec<u8> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
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

/// A socket that speaks to the kernel alone, in the calling thread's network namespace.
pub(crate) fn connected(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// The messages of one datagram, one after the other; the last may be one that is cut.
pub(crate) fn frames(datagram: &[u8]) -> impl Iterator<Item = io::Result<NetlinkBuffer<&[u8]>>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let message = NetlinkBuffer::new_checked(rest).map_err(undecodable);
        let length =
            message.as_ref().map_or(rest.len(), |message| usize::try_from(message.length()).unwrap_or(usize::MAX));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

fn undecodable(error: DecodeError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

/// What an answer's number says, or that at the end of a listing: 0, or an error number below it.
pub(crate) fn of_code(what: &str, code: i32) -> Result<(), Error> {
    if code < 0 { Err(Error::new(what, Errno::from_raw(-code).into())) } else { Ok(()) }
}

fn keep<T>(found: Vec<RouteNetlinkMessage>, pick: impl Fn(RouteNetlinkMessage) -> Option<T>) -> Vec<T> {
    found.into_iter().filter_map(pick).collect()
}
