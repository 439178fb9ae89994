//! One change, as a message, and how to speak of it.

use std::fmt;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage};
use netlink_packet_route::{
    RouteNetlinkMessage, address::AddressMessage, link::LinkMessage, neighbour::NeighbourMessage, route::RouteMessage,
    rule::RuleMessage,
};
use nix::errno::Errno;

use crate::{
    kind::Kind,
    netlink::error::{Error, of_code},
};

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

    /// The rule that it adds or deletes.
    #[cfg(test)]
    pub(crate) fn rule(&self) -> Option<&RuleMessage> {
        match &self.message {
            RouteNetlinkMessage::NewRule(rule) | RouteNetlinkMessage::DelRule(rule) => Some(rule),
            _ => None,
        }
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

    /// The message that asks for it; `flags` are those of the one who sends it, such as NLM_F_ACK.
    pub fn message(&self, flags: u16) -> NetlinkMessage<RouteNetlinkMessage> {
        let mut message = NetlinkMessage::from(self.message.clone());
        message.header.flags = NLM_F_REQUEST | self.flags | flags;
        message
    }

    /// What an answer means that carries this number, 0 or an error number below it: an error, unless it says that
    /// the kernel is as asked already.
    pub fn answered(&self, code: i32) -> Result<(), Error> {
        match of_code(&self.what, code) {
            Err(error) if self.already.is_some_and(|errno| error.is(errno)) => Ok(()),
            answer => answer,
        }
    }

    /// The same, and fine if its link has gone meanwhile.
    pub fn unless_gone(self) -> Self {
        self.unless(Errno::ENODEV)
    }

    /// The same, and fine if the kernel answers so.
    pub(crate) fn unless(self, errno: Errno) -> Self {
        Request { already: Some(errno), ..self }
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

    /// Delete a neighbour entry; one that is gone is fine.
    pub fn delete_neighbour(what: impl fmt::Display, neighbour: NeighbourMessage) -> Self {
        Self::new(what, RouteNetlinkMessage::DelNeighbour(neighbour), 0, Some(Errno::ENOENT))
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
