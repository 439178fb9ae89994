//! What CHECK finds wrong with a pod's link.

use std::net::IpAddr;

use netlink_packet_route::{
    address::AddressMessage,
    link::LinkFlags,
    neighbour::NeighbourMessage,
    route::{RouteAttribute, RouteMessage},
};

use crate::{
    family::Family,
    netlink::{
        error::Error,
        link::{group, ifname, mac},
        message::{TABLE_MAIN, destination, oif, own_address, permanent, table},
        socket::Netlink,
    },
    node::rules,
    pod::{PodLink, own_table, removal::find_by_mac},
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
    let untuned = mac(&found) == Some(link.pod_mac);
    faults.extend(outside(link, untuned, host)?);
    let (name, index) = (&link.pod_ifname, found.header.index);
    if !found.header.flags.contains(LinkFlags::Up) {
        faults.push(format!("interface {name} is down"));
    }
    let families = link.families();
    let (addresses, routes) = (inside.addresses()?, inside.routes(&families)?);
    let (neighbours, rules) = (inside.neighbours(&families)?, inside.rules()?);
    for address in link.addresses() {
        let gateway = Family::of(address).gateway();
        let held = |message: &AddressMessage| message.header.index == index && own_address(message) == Some(address);
        if !addresses.iter().any(held) {
            faults.push(format!("interface {name} lacks the address {address}"));
        }
        if untuned && !has_neighbour(&neighbours, index, gateway) {
            faults.push(format!("interface {name} lacks the neighbour {gateway}"));
        }
        let is_default = |route: &&RouteMessage| is_default(route, gateway, index);
        if !routes.iter().any(|route| is_default(&route)) {
            faults.push(format!("no default route via {gateway} over {name}"));
        } else if !routes.iter().any(|route| is_default(&route) && table(route) == TABLE_MAIN)
            && !rules.iter().any(|rule| rules::asks_for(rule, address, own_table(index)))
        {
            faults.push(format!("no rule sends what comes from {address} over {name}"));
        }
        if !has_route(&routes, gateway, index) {
            faults.push(format!("no route to {gateway} over {name}"));
        }
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
    if group(&found) != link.group {
        faults.push(format!("host link {name} is not in the device group of its ENI, {:#x}", link.group));
    }
    let families = link.families();
    let (routes, neighbours) = (host.routes(&families)?, host.neighbours(&families)?);
    for address in link.addresses() {
        if !has_route(&routes, address, index) {
            faults.push(format!("no host route to {address} over {name}"));
        }
        if untuned && !has_neighbour(&neighbours, index, address) {
            faults.push(format!("host link {name} lacks the neighbour {address}"));
        }
    }
    Ok(faults)
}

/// A permanent entry; which MAC it names is the business of whoever tuned that.
fn has_neighbour(neighbours: &[NeighbourMessage], index: u32, address: IpAddr) -> bool {
    neighbours.iter().any(|there| permanent(there).is_some_and(|(whose, _)| whose == (index, address)))
}

fn is_default(route: &RouteMessage, gateway: IpAddr, index: u32) -> bool {
    route.header.destination_prefix_length == 0
        && route.attributes.contains(&RouteAttribute::Gateway(gateway.into()))
        && oif(route) == Some(index)
}

fn has_route(routes: &[RouteMessage], to: IpAddr, index: u32) -> bool {
    routes.iter().any(|route| {
        route.header.destination_prefix_length == Family::of(to).host_len()
            && destination(route) == Some(to)
            && oif(route) == Some(index)
    })
}
