//! What the kernel answers to this crate's questions: five kinds of messages.
//!
//! `netlink_packet_route` can read all of rtnetlink, traffic control and statistics included, and of a link all that any
//! driver says. A program that names none of that does not carry it: the plugin is a fifth smaller, and of a link only
//! those attributes are read that this crate looks at.

use netlink_packet_core::{
    DecodeError, Emitable, NetlinkDeserializable, NetlinkHeader, NlasIterator, Parseable, parse_i32, parse_string,
    parse_u32,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::AddressMessage,
    link::{LinkAttribute, LinkHeader, LinkMessage},
    neighbour::NeighbourMessage,
    route::RouteMessage,
    rule::RuleMessage,
};
use nix::libc::{
    IFLA_ADDRESS, IFLA_GROUP, IFLA_IFALIAS, IFLA_IFNAME, IFLA_LINK, IFLA_LINK_NETNSID, IFLA_MTU, RTM_NEWADDR,
    RTM_NEWLINK, RTM_NEWNEIGH, RTM_NEWROUTE, RTM_NEWRULE,
};

/// An entry of a listing, or the thing that was asked for.
pub(crate) struct Answer(pub(crate) RouteNetlinkMessage);

impl NetlinkDeserializable for Answer {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        use RouteNetlinkMessage::{NewAddress, NewLink, NewNeighbour, NewRoute, NewRule};
        Ok(Answer(match header.message_type {
            RTM_NEWLINK => NewLink(link(payload)?),
            RTM_NEWADDR => NewAddress(AddressMessage::parse(payload)?),
            RTM_NEWROUTE => NewRoute(RouteMessage::parse(payload)?),
            RTM_NEWNEIGH => NewNeighbour(NeighbourMessage::parse(payload)?),
            RTM_NEWRULE => NewRule(RuleMessage::parse(payload)?),
            other => return Err(format!("a message of type {other} answers no question of ours").into()),
        }))
    }
}

/// A link as both programs keep it: of some fifty attributes the seven that this crate looks at. A node's listing has
/// hundreds of links, and the daemon reads it again and again.
pub fn link(payload: &[u8]) -> Result<LinkMessage, DecodeError> {
    let mut link = LinkMessage::default();
    link.header = LinkHeader::parse(payload)?;
    for attribute in NlasIterator::new(payload.get(link.header.buffer_len()..).unwrap_or_default()) {
        let attribute = attribute?;
        let value = attribute.value();
        link.attributes.push(match attribute.kind() {
            IFLA_ADDRESS => LinkAttribute::Address(value.to_vec()),
            IFLA_IFNAME => LinkAttribute::IfName(parse_string(value)?),
            IFLA_MTU => LinkAttribute::Mtu(parse_u32(value)?),
            IFLA_LINK => LinkAttribute::Link(parse_u32(value)?),
            IFLA_LINK_NETNSID => LinkAttribute::LinkNetNsId(parse_i32(value)?),
            IFLA_IFALIAS => LinkAttribute::IfAlias(parse_string(value)?),
            IFLA_GROUP => LinkAttribute::Group(parse_u32(value)?),
            _ => continue,
        });
    }
    Ok(link)
}
