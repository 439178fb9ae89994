//! What a link's message says, and messages that change a link.

use std::net::IpAddr;

use netlink_packet_route::link::{AfSpecInet, AfSpecUnspec, InetDevConf, LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

use crate::{identity::Mac, netlink::request::Request};

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

/// Where the other end of a pair is: the namespace, by the id that this one knows it by, and its number there. `None` where
/// both are in the same one.
pub(crate) fn other_end(link: &LinkMessage) -> Option<(i32, u32)> {
    let mut found = (None, None);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::LinkNetNsId(netns) => found.0 = Some(*netns),
            LinkAttribute::Link(index) => found.1 = Some(*index),
            _ => {}
        }
    }
    found.0.zip(found.1)
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

/// What `/proc/sys/net/ipv4/conf` holds of a link can be set by a message too (IFLA_INET_CONF, linux/if_link.h), for which
/// CAP_NET_ADMIN is enough where /proc/sys is read-only. `None`: a value that is not set here. Zero cannot be set so.
pub fn set_ipv4_conf(link: u32, ifname: &str, name: &str, value: i32) -> Option<Request> {
    let mut conf = InetDevConf::default();
    match name {
        "forwarding" => conf.forwarding = value,
        "rp_filter" => conf.rp_filter = value,
        _ => return None,
    }
    let mut message = LinkMessage::default();
    message.header.index = link;
    let of_ipv4 = AfSpecUnspec::Inet(vec![AfSpecInet::DevConfRequest(conf)]);
    message.attributes.push(LinkAttribute::AfSpecUnspec(vec![of_ipv4]));
    Some(Request::set_link(format!("set net.ipv4.conf.{ifname}.{name} to {value}"), message))
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
        let name = ifname(link);
        let change = || LinkUnspec::new_with_index(link.header.index);
        let mut requests = Vec::new();
        let mut set = |what: String, message: LinkMessageBuilder<LinkUnspec>| {
            requests.push(Request::set_link(what, message.build()));
        };
        if mac(link) != Some(self.mac) {
            set(format!("set the MAC of {name} to {}", self.mac), change().address(self.mac.0.to_vec()));
        }
        if group(link) != self.group {
            set(format!("put {name} into the device group {:#x}", self.group), change().link_group(self.group));
        }
        if let Some(addresses) = self.addresses.filter(|addresses| named(link) != **addresses) {
            let alias = alias_of(addresses.iter().copied());
            set(format!("name {alias} in the alias of {name}"), change().alias(alias));
        }
        if let Some(wanted) = self.mtu.filter(|wanted| mtu(link) != Some(*wanted)) {
            set(format!("set the MTU of {name} to {wanted}"), change().mtu(wanted));
        }
        if !link.header.flags.contains(LinkFlags::Up) {
            set(format!("take {name} up"), change().up());
        }
        requests
    }
}
