//! What the kernel lists, and how it is asked.

use netlink_packet_route::{
    RouteNetlinkMessage,
    address::AddressMessage,
    link::{LinkAttribute, LinkExtentMask, LinkMessage},
    neighbour::{NeighbourFlags, NeighbourMessage},
    route::RouteMessage,
    rule::RuleMessage,
};
use rtnetlink::LinkUnspec;

use crate::family::Family;

/// How often a listing is asked for, when something changes during each.
pub const LISTINGS: u32 = 50;

/// A kind of thing that the kernel lists.
pub trait Listed: Sized {
    /// What is asked, for people.
    const WHAT: &'static str;

    /// The question, for one family. Links and addresses are listed for all families at once.
    fn ask(family: Family) -> RouteNetlinkMessage;

    /// What a message of the answer shows.
    fn shown_by(message: RouteNetlinkMessage) -> Option<Self>;
}

/// Without statistics, which are most of a link's message.
impl Listed for LinkMessage {
    const WHAT: &'static str = "list links";

    fn ask(_: Family) -> RouteNetlinkMessage {
        let mut ask = LinkMessage::default();
        ask.attributes.push(without_statistics());
        RouteNetlinkMessage::GetLink(ask)
    }

    fn shown_by(message: RouteNetlinkMessage) -> Option<Self> {
        if let RouteNetlinkMessage::NewLink(link) = message { Some(link) } else { None }
    }
}

impl Listed for AddressMessage {
    const WHAT: &'static str = "list addresses";

    fn ask(_: Family) -> RouteNetlinkMessage {
        RouteNetlinkMessage::GetAddress(AddressMessage::default())
    }

    fn shown_by(message: RouteNetlinkMessage) -> Option<Self> {
        if let RouteNetlinkMessage::NewAddress(address) = message { Some(address) } else { None }
    }
}

/// Of all tables.
impl Listed for RouteMessage {
    const WHAT: &'static str = "list routes";

    fn ask(family: Family) -> RouteNetlinkMessage {
        let mut ask = RouteMessage::default();
        ask.header.address_family = family.netlink();
        RouteNetlinkMessage::GetRoute(ask)
    }

    fn shown_by(message: RouteNetlinkMessage) -> Option<Self> {
        if let RouteNetlinkMessage::NewRoute(route) = message { Some(route) } else { None }
    }
}

/// Of all links.
impl Listed for NeighbourMessage {
    const WHAT: &'static str = "list neighbours";

    fn ask(family: Family) -> RouteNetlinkMessage {
        let mut ask = NeighbourMessage::default();
        ask.header.family = family.netlink();
        RouteNetlinkMessage::GetNeighbour(ask)
    }

    fn shown_by(message: RouteNetlinkMessage) -> Option<Self> {
        if let RouteNetlinkMessage::NewNeighbour(neighbour) = message { Some(neighbour) } else { None }
    }
}

/// An address that the host answers for in neighbour discovery, on a link or on all of them.
#[derive(Clone, Debug)]
pub struct Proxy(pub(crate) NeighbourMessage);

impl Listed for Proxy {
    const WHAT: &'static str = "list proxy neighbours";

    fn ask(family: Family) -> RouteNetlinkMessage {
        let mut ask = NeighbourMessage::default();
        ask.header.family = family.netlink();
        ask.header.flags = NeighbourFlags::Proxy;
        RouteNetlinkMessage::GetNeighbour(ask)
    }

    fn shown_by(message: RouteNetlinkMessage) -> Option<Self> {
        NeighbourMessage::shown_by(message).map(Proxy)
    }
}

impl Listed for RuleMessage {
    const WHAT: &'static str = "list rules";

    fn ask(family: Family) -> RouteNetlinkMessage {
        let mut ask = RuleMessage::default();
        ask.header.family = family.netlink();
        RouteNetlinkMessage::GetRule(ask)
    }

    fn shown_by(message: RouteNetlinkMessage) -> Option<Self> {
        if let RouteNetlinkMessage::NewRule(rule) = message { Some(rule) } else { None }
    }
}

/// The question for the link of this name.
pub fn ask_link(name: &str) -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetLink(LinkUnspec::new_with_name(name).append_extra_attribute(without_statistics()).build())
}

/// The question for the other end of a pair: the namespace that it is in, by the id that this one knows it by
/// (IFLA_LINK_NETNSID), and its number there. For it CAP_NET_ADMIN in that namespace is needed.
pub fn ask_link_in(netns: i32, index: u32) -> RouteNetlinkMessage {
    // IFLA_TARGET_NETNSID, which was called IFLA_IF_NETNSID first (linux/if_link.h).
    let link = LinkUnspec::new_with_index(index).append_extra_attribute(LinkAttribute::IfNetnsId(netns));
    RouteNetlinkMessage::GetLink(link.append_extra_attribute(without_statistics()).build())
}

fn without_statistics() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}
