//! What a link's message says, and messages that change a link.

use std::net::IpAddr;

use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};

use crate::identity::Mac;

/// The Ethernet address of a link, if it has one.
pub fn mac(link: &LinkMessage) -> Option<Mac> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(bytes) => Mac::try_from(bytes.as_slice()).ok(),
        _ => None,
    })
}

/// The name of a link; the kernel gives every link one.
pub fn ifname(link: &LinkMessage) -> &str {
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    });
    name.unwrap_or_default()
}

/// The device group of a link; links that say none are in 0.
pub(crate) fn group(link: &LinkMessage) -> u32 {
    let found = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Group(group) => Some(*group),
        _ => None,
    });
    found.unwrap_or(0)
}

/// Bytes.
pub(crate) fn mtu(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

/// The alias of a pod's link: its addresses, which it tells even when every route is gone.
pub(crate) fn alias_of(addresses: impl Iterator<Item = IpAddr>) -> String {
    addresses.map(|address| address.to_string()).collect::<Vec<_>>().join(" ")
}

/// The addresses that a link's alias names; none if it is not one of ours.
pub(crate) fn named(link: &LinkMessage) -> Vec<IpAddr> {
    let alias = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfAlias(text) => Some(text),
        _ => None,
    });
    let all: Option<Vec<IpAddr>> =
        alias.and_then(|text| text.split(' ').map(str::parse).collect::<Result<_, _>>().ok());
    all.unwrap_or_default()
}

pub(crate) fn by_index(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

pub(crate) fn updown(index: u32, up: bool) -> LinkMessage {
    let mut message = by_index(index);
    message.header.change_mask = LinkFlags::Up;
    message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
    message
}
