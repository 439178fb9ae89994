//! All that a listing of the kernel found, a line for each thing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressMessage},
    link::LinkMessage,
};

use super::lookup::{way, words};
use crate::{
    family::Family,
    netlink::{
        link::{group, ifname, mac},
        message::{asked_table, destination, priority, table},
    },
    node::found::Found,
};

/// Rules, as ip-rule(8) writes them, in their order.
pub fn rules(found: &Found) -> Vec<String> {
    let mut rules: Vec<_> = found.rules.iter().collect();
    rules.sort_by_key(|rule| (family_name(rule.header.family), priority(rule).unwrap_or(0)));
    let line = |rule: &&netlink_packet_route::rule::RuleMessage| {
        let table = asked_table(rule).unwrap_or_else(|| rule.header.table.into());
        format!("{} {}", family_name(rule.header.family), words(rule, table))
    };
    rules.iter().map(line).collect()
}

/// Routes, by family and table.
pub fn routes(found: &Found) -> Vec<String> {
    let mut routes: Vec<_> = found.routes.iter().collect();
    routes.sort_by_key(|route| (family_name(route.header.address_family), table(route)));
    let line = |route: &&netlink_packet_route::route::RouteMessage| {
        let family = family_name(route.header.address_family);
        let any: IpAddr = match route.header.address_family {
            AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
            _ => Ipv4Addr::UNSPECIFIED.into(),
        };
        let kind = format!("{:?}", route.header.kind).to_lowercase();
        let way = way(found, route, destination(route).unwrap_or(any));
        format!("{family} table {} {kind} {way}", table(route))
    };
    routes.iter().map(line).collect()
}

/// Links.
pub fn links(found: &Found) -> Vec<String> {
    let line = |link: &LinkMessage| {
        let mac = mac(link).map(|mac| format!(" {mac}")).unwrap_or_default();
        let flags = format!("{:?}", link.header.flags);
        format!("{}: {}{mac} group {} {flags}", link.header.index, ifname(link), group(link))
    };
    found.links.iter().map(line).collect()
}

/// Addresses.
pub fn addresses(found: &Found) -> Vec<String> {
    let line = |message: &AddressMessage| {
        let address = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(address.to_string()),
            _ => None,
        });
        let name = found.name_of(message.header.index).unwrap_or_default();
        format!("{name} {}/{}", address.unwrap_or_default(), message.header.prefix_len)
    };
    found.addresses.iter().map(line).collect()
}

fn family_name(family: AddressFamily) -> &'static str {
    if family == Family::V6.netlink() { "ipv6" } else { "ipv4" }
}
