//! What CHECK finds wrong with a pod's link.

use std::net::Ipv4Addr;

use netlink_packet_route::{
    address::AddressAttribute,
    link::LinkFlags,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage},
    rule::{RuleAttribute, RuleMessage},
};

use crate::{
    netlink::{Error, Netlink},
    node,
    pod::{self, GATEWAY, PodLink, find_by_mac, ifname, oif, own_table, table},
};

/// What differs from the link as ADD made it, one sentence each. MAC and MTU of the pod's end may have been tuned
/// by plugins behind us, and others may have added what they like.
pub fn faults(link: &PodLink, host: &mut Netlink, inside: &mut Netlink) -> Result<Vec<String>, Error> {
    let mut faults = Vec::new();
    let Some(found) = inside.link(&link.pod_ifname)? else {
        faults.push(format!("the container has no interface {}", link.pod_ifname));
        faults.extend(outside(link, true, host)?);
        return Ok(faults);
    };
    // With another MAC the kernel has dropped the neighbours: whoever tuned it owns them.
    let untuned = pod::mac(&found) == Some(link.pod_mac);
    faults.extend(outside(link, untuned, host)?);
    let (name, index) = (&link.pod_ifname, found.header.index);
    if !found.header.flags.contains(LinkFlags::Up) {
        faults.push(format!("interface {name} is down"));
    }
    let held = |message: &netlink_packet_route::address::AddressMessage| {
        message.header.index == index && message.attributes.contains(&AddressAttribute::Local(link.address.into()))
    };
    if !inside.addresses()?.iter().any(held) {
        faults.push(format!("interface {name} lacks the address {}", link.address));
    }
    if untuned && !has_neighbour(&inside.neighbours()?, index, GATEWAY) {
        faults.push(format!("interface {name} lacks the neighbour {GATEWAY}"));
    }
    let routes = inside.routes()?;
    if !routes.iter().any(|route| is_default(route, index)) {
        faults.push(format!("no default route via {GATEWAY} over {name}"));
    } else if !routes.iter().any(|route| is_default(route, index) && table(route) == node::TABLE_MAIN)
        && !inside.rules()?.iter().any(|rule| asks_own_table(rule, link.address, index))
    {
        faults.push(format!("no rule sends what comes from {} over {name}", link.address));
    }
    if !has_route(&routes, GATEWAY, index) {
        faults.push(format!("no route to {GATEWAY} over {name}"));
    }
    Ok(faults)
}

fn outside(link: &PodLink, untuned: bool, host: &mut Netlink) -> Result<Vec<String>, Error> {
    let Some(found) = find_by_mac(link.host_mac, &link.host_ifname, host)? else {
        return Ok(vec![format!("no host link with MAC {}", link.host_mac)]);
    };
    let (name, index) = (ifname(&found).to_owned(), found.header.index);
    let mut faults = Vec::new();
    if !found.header.flags.contains(LinkFlags::Up) {
        faults.push(format!("host link {name} is down"));
    }
    if node::group(&found) != link.group {
        faults.push(format!("host link {name} is not in the device group of its ENI, {:#x}", link.group));
    }
    if !has_route(&host.routes()?, link.address, index) {
        faults.push(format!("no host route to {} over {name}", link.address));
    }
    if untuned && !has_neighbour(&host.neighbours()?, index, link.address) {
        faults.push(format!("host link {name} lacks the neighbour {}", link.address));
    }
    Ok(faults)
}

/// A permanent entry; which MAC it names is the business of whoever tuned that.
fn has_neighbour(neighbours: &[NeighbourMessage], index: u32, address: Ipv4Addr) -> bool {
    let wanted = NeighbourAttribute::Destination(NeighbourAddress::Inet(address));
    neighbours.iter().any(|there| {
        there.header.ifindex == index
            && there.header.state == NeighbourState::Permanent
            && there.attributes.contains(&wanted)
    })
}

fn is_default(route: &RouteMessage, index: u32) -> bool {
    route.header.destination_prefix_length == 0
        && route.attributes.contains(&RouteAttribute::Gateway(RouteAddress::Inet(GATEWAY)))
        && oif(route) == Some(index)
}

fn asks_own_table(rule: &RuleMessage, address: Ipv4Addr, index: u32) -> bool {
    rule.header.src_len == 32
        && rule.attributes.contains(&RuleAttribute::Source(address.into()))
        && rule.attributes.contains(&RuleAttribute::Table(own_table(index)))
}

fn has_route(routes: &[RouteMessage], to: Ipv4Addr, index: u32) -> bool {
    routes.iter().any(|route| {
        route.header.destination_prefix_length == 32
            && route.attributes.contains(&RouteAttribute::Destination(RouteAddress::Inet(to)))
            && oif(route) == Some(index)
    })
}
