//! Messages about addresses, neighbours, routes and rules, of either family, and what they say.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::Ipv4Net;
use netlink_packet_route::{
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage, CacheInfo},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope},
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
};
use rtnetlink::{AddressMessageBuilder, RouteMessageBuilder};

use crate::{
    family::{Family, GATEWAY_V6},
    identity::Mac,
};

/// RT_TABLE_DEFAULT, RT_TABLE_MAIN and RT_TABLE_LOCAL (linux/rtnetlink.h).
pub(crate) const TABLE_DEFAULT: u32 = 253;
pub(crate) const TABLE_MAIN: u32 = 254;
pub(crate) const TABLE_LOCAL: u32 = 255;

/// An address on a link. IPv6 looks for no double: EC2 gives each address once, and a pod does not wait for it.
pub(crate) fn address(index: u32, address: IpAddr, prefix_len: u8) -> AddressMessage {
    match address {
        IpAddr::V4(address) => {
            AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(address, prefix_len).build()
        }
        IpAddr::V6(address) => {
            let builder = AddressMessageBuilder::<Ipv6Addr>::new().index(index).address(address, prefix_len);
            let mut message = builder.build();
            message.header.flags = AddressHeaderFlags::Nodad;
            message
        }
    }
}

/// An address that the host does not choose for what it sends by other links: deprecated, in IPv6 (RFC 6724, rule 3).
/// Its link prefers it all the same where only addresses of the link are asked (`use_oif_addrs_only`).
pub(crate) fn address_of_link(index: u32, own: IpAddr, prefix_len: u8) -> AddressMessage {
    let mut message = address(index, own, prefix_len);
    if own.is_ipv6() {
        let mut lifetimes = CacheInfo::default();
        (lifetimes.ifa_preferred, lifetimes.ifa_valid) = (0, u32::MAX);
        message.attributes.push(AddressAttribute::CacheInfo(lifetimes));
    }
    message
}

/// The address itself; IPv6 tells it as the far end's.
pub(crate) fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}

/// A permanent entry: no ARP and no neighbour discovery, not even for the first packet.
pub(crate) fn neighbour(index: u32, address: IpAddr, mac: Mac) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = Family::of(address).netlink();
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(neighbour_address(address)),
        NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
    ];
    message
}

/// The host answers for this address on whichever link it is asked, if it would send there by another link: a proxy entry
/// without a link (arp(7), "Proxy ARP"; the kernel takes such an entry for IPv4 only).
pub(crate) fn proxy(address: Ipv4Addr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = Family::V4.netlink();
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Proxy;
    message.attributes = vec![NeighbourAttribute::Destination(NeighbourAddress::Inet(address))];
    message
}

/// Whether the proxy entry is of this address, and of no link.
pub(crate) fn is_proxy(neighbour: &NeighbourMessage, address: Ipv4Addr) -> bool {
    let destination = NeighbourAttribute::Destination(NeighbourAddress::Inet(address));
    neighbour.header.ifindex == 0 && neighbour.attributes.contains(&destination)
}

fn neighbour_address(address: IpAddr) -> NeighbourAddress {
    match address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    }
}

/// Whose permanent entry it is, and which MAC it names.
pub(crate) fn permanent(neighbour: &NeighbourMessage) -> Option<((u32, IpAddr), Option<Mac>)> {
    let mut entry = (None, None);
    for attribute in &neighbour.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => entry.0 = Some(IpAddr::V4(*address)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => entry.0 = Some(IpAddr::V6(*address)),
            NeighbourAttribute::LinkLayerAddress(bytes) => entry.1 = Mac::try_from(bytes.as_slice()).ok(),
            _ => {}
        }
    }
    let address = entry.0.filter(|_| neighbour.header.state == NeighbourState::Permanent)?;
    Some(((neighbour.header.ifindex, address), entry.1))
}

/// To one address, over a link.
pub(crate) fn link_route(table: u32, to: IpAddr, index: u32) -> RouteMessage {
    let length = Family::of(to).host_len();
    match to {
        IpAddr::V4(to) => {
            let builder = RouteMessageBuilder::<Ipv4Addr>::new().table_id(table).scope(RouteScope::Link);
            builder.destination_prefix(to, length).output_interface(index).build()
        }
        // IPv6 knows no scope of routes.
        IpAddr::V6(to) => {
            let builder = RouteMessageBuilder::<Ipv6Addr>::new().table_id(table);
            builder.destination_prefix(to, length).output_interface(index).build()
        }
    }
}

/// To everything, over a link by this next hop.
pub(crate) fn default_route(table: u32, gateway: IpAddr, index: u32) -> RouteMessage {
    match gateway {
        IpAddr::V4(gateway) => {
            let builder = RouteMessageBuilder::<Ipv4Addr>::new().table_id(table);
            builder.gateway(gateway).output_interface(index).build()
        }
        IpAddr::V6(gateway) => {
            let builder = RouteMessageBuilder::<Ipv6Addr>::new().table_id(table);
            builder.gateway(gateway).output_interface(index).build()
        }
    }
}

/// To a link's own subnet, in main, as the kernel makes it with the link's address.
pub(crate) fn connected_route(subnet: Ipv4Net, index: u32) -> RouteMessage {
    let builder = RouteMessageBuilder::<Ipv4Addr>::new().protocol(RouteProtocol::Kernel).scope(RouteScope::Link);
    builder.destination_prefix(subnet.network(), subnet.prefix_len()).output_interface(index).build()
}

/// The table that a route is in.
pub(crate) fn table(route: &RouteMessage) -> u32 {
    let named = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    named.unwrap_or(route.header.table.into())
}

/// The link that a route leads over.
pub(crate) fn oif(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

/// Where a route leads to; `None` for default.
pub(crate) fn destination(route: &RouteMessage) -> Option<IpAddr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    })
}

/// The one address that a route in main leads to, and over which link.
pub(crate) fn host_route(route: &RouteMessage) -> Option<(IpAddr, u32)> {
    // A host end answers at the gateway's address, which is no pod's.
    let address = destination(route).filter(|address| *address != IpAddr::from(GATEWAY_V6))?;
    let whole = route.header.destination_prefix_length == Family::of(address).host_len();
    (whole && table(route) == TABLE_MAIN).then_some((address, oif(route)?))
}

/// The kernel lists more attributes than we set; ours must all be among them, and no metric: an MTU is one. It lists a
/// table as an attribute, and is asked for one by the header where the number fits.
pub(crate) fn same_route(there: &RouteMessage, wanted: &RouteMessage) -> bool {
    let metric = |attribute: &RouteAttribute| matches!(attribute, RouteAttribute::Metrics(list) if !list.is_empty());
    let is_table = |attribute: &RouteAttribute| matches!(attribute, RouteAttribute::Table(_));
    there.header.address_family == wanted.header.address_family
        && table(there) == table(wanted)
        && there.header.destination_prefix_length == wanted.header.destination_prefix_length
        && there.header.kind == wanted.header.kind
        && there.header.tos == wanted.header.tos
        && wanted
            .attributes
            .iter()
            .filter(|attribute| !is_table(attribute))
            .all(|attribute| there.attributes.contains(attribute))
        && !there.attributes.iter().any(metric)
}

pub(crate) fn rule(family: Family, priority: u32, table: u32) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family.netlink();
    message.header.action = RuleAction::ToTable;
    message.header.table = u8::try_from(table).unwrap_or(0);
    message.attributes = vec![RuleAttribute::Priority(priority), RuleAttribute::Table(table)];
    message
}

/// What comes from this address asks that table; a rule of ours.
pub(crate) fn rule_from(priority: u32, address: IpAddr, table: u32) -> RuleMessage {
    let mut message = rule_by_source(priority, address, table);
    message.attributes.push(RuleAttribute::Protocol(OURS));
    message
}

/// The same, and it is not said whose.
pub(crate) fn rule_by_source(priority: u32, address: IpAddr, table: u32) -> RuleMessage {
    let family = Family::of(address);
    let mut message = rule(family, priority, table);
    message.header.src_len = family.host_len();
    message.attributes.push(RuleAttribute::Source(address));
    message
}

/// What goes to this address asks that table.
pub(crate) fn rule_to(priority: u32, address: IpAddr, table: u32) -> RuleMessage {
    let family = Family::of(address);
    let mut message = rule(family, priority, table);
    message.header.dst_len = family.host_len();
    message.attributes.push(RuleAttribute::Destination(address));
    message
}

/// Who made a rule that nothing else tells from a host's own ("e" in ASCII; iproute2's rt_protos names no such number).
pub(crate) const OURS: RouteProtocol = RouteProtocol::Other(b'e');

pub(crate) fn is_made_by_us(rule: &RuleMessage) -> bool {
    rule.attributes.contains(&RuleAttribute::Protocol(OURS))
}

pub(crate) fn marked(mut rule: RuleMessage, mark: u32, mask: u32) -> RuleMessage {
    rule.attributes.push(RuleAttribute::FwMark(mark));
    rule.attributes.push(RuleAttribute::FwMask(mask));
    rule
}

/// A rule's mark and mask; a mask of 0: it has none.
pub(crate) fn mark(rule: &RuleMessage) -> (u32, u32) {
    let mut found = (0, 0);
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::FwMark(mark) => found.0 = *mark,
            RuleAttribute::FwMask(mask) => found.1 = *mask,
            _ => {}
        }
    }
    found
}

pub(crate) fn priority(rule: &RuleMessage) -> Option<u32> {
    rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    })
}

/// The table that a rule asks.
pub(crate) fn asked_table(rule: &RuleMessage) -> Option<u32> {
    rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    })
}

/// A rule with more selectors than ours catches less, and an inverted one the rest.
pub(crate) fn same_rule(there: &RuleMessage, wanted: &RuleMessage) -> bool {
    // Who made it, and "suppress nothing", which the kernel lists with every rule.
    let says_nothing = |attribute: &RuleAttribute| {
        matches!(attribute, RuleAttribute::Protocol(_) | RuleAttribute::SuppressPrefixLen(u32::MAX))
    };
    there.header.family == wanted.header.family
        && there.header.src_len == wanted.header.src_len
        && there.header.dst_len == wanted.header.dst_len
        && there.header.tos == wanted.header.tos
        && there.header.action == wanted.header.action
        && there.header.flags.contains(RuleFlags::Invert) == wanted.header.flags.contains(RuleFlags::Invert)
        && wanted.attributes.iter().all(|attribute| there.attributes.contains(attribute) || says_nothing(attribute))
        && there.attributes.iter().all(|attribute| wanted.attributes.contains(attribute) || says_nothing(attribute))
}
