//! What a link's message says, and messages that change a link.

use std::net::IpAddr;

use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};

use crate::{identity::Mac, netlink::Request};

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

/// A link as it should be, and up.
pub(crate) struct Wanted<'a> {
    pub(crate) mac: Mac,
    /// Device group.
    pub(crate) group: u32,
    /// Bytes; `None`: whatever it has.
    pub(crate) mtu: Option<u32>,
    /// What its alias should name; `None`: whatever it names.
    pub(crate) addresses: Option<&'a [IpAddr]>,
}

impl Wanted<'_> {
    /// What has to change so that the link is so.
    pub(crate) fn changes(&self, link: &LinkMessage) -> Vec<Request> {
        let (index, name) = (link.header.index, ifname(link));
        let mut requests = Vec::new();
        let mut set = |what: String, attribute: LinkAttribute| {
            let mut message = by_index(index);
            message.attributes.push(attribute);
            requests.push(Request::set_link(what, message));
        };
        if mac(link) != Some(self.mac) {
            set(format!("set the MAC of {name} to {}", self.mac), LinkAttribute::Address(self.mac.0.to_vec()));
        }
        if group(link) != self.group {
            let what = format!("put {name} into the device group {:#x}", self.group);
            set(what, LinkAttribute::Group(self.group));
        }
        if let Some(addresses) = self.addresses.filter(|addresses| named(link) != **addresses) {
            let alias = alias_of(addresses.iter().copied());
            set(format!("name {alias} in the alias of {name}"), LinkAttribute::IfAlias(alias));
        }
        if let Some(wanted) = self.mtu.filter(|wanted| mtu(link) != Some(*wanted)) {
            set(format!("set the MTU of {name} to {wanted}"), LinkAttribute::Mtu(wanted));
        }
        if !link.header.flags.contains(LinkFlags::Up) {
            requests.push(Request::set_link(format!("take {name} up"), updown(index, true)));
        }
        requests
    }
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
