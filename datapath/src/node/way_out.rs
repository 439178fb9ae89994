//! What this host itself needs, and only its owner can put right: its way out over the primary ENI. Pods have theirs; the
//! daemon asks EC2 by the host's.

use netlink_packet_route::{
    link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
    route::{RouteAttribute, RouteMessage, RouteType},
};

use crate::{
    family::Family,
    netlink::{
        link::ifname,
        message::{TABLE_MAIN, oif, own_address, table},
    },
    node::{eni::EniNet, found::Found},
    policy::Policy,
};

/// What is wrong with it, one sentence each.
pub fn faults(enis: &[EniNet], policy: &Policy, found: &Found) -> Vec<String> {
    let Some((primary, carrier)) =
        enis.iter().find(|eni| eni.slot == 0).and_then(|eni| Some((eni, found.carrier_of(eni)?)))
    else {
        return Vec::new();
    };
    let address = primary.primary.addr();
    let is_there = found.addresses.iter().any(|message| own_address(message) == Some(address.into()));
    let gone = (!is_there).then(|| format!("no link of this host has {address}, the primary ENI's address"));
    let vrf = vrf_of(carrier, found).map(|vrf| {
        let name = ifname(carrier);
        format!("{name}, which has the primary ENI's address, is in the VRF {vrf}: pods' routes are in none")
    });
    let families = Family::ALL.into_iter().filter(|family| policy.is_steered(*family));
    let routes = families.filter_map(|family| default_route(family, carrier, found));
    gone.into_iter().chain(vrf).chain(routes).collect()
}

/// The VRF that a link is in.
fn vrf_of<'a>(link: &LinkMessage, found: &'a Found) -> Option<&'a str> {
    let master = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Controller(index) => Some(*index),
        _ => None,
    })?;
    let is_vrf = |link: &&LinkMessage| {
        link.attributes.iter().any(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => infos.contains(&LinkInfo::Kind(InfoKind::Vrf)),
            _ => false,
        })
    };
    found.links.iter().find(|link| link.header.index == master).filter(is_vrf).map(ifname)
}

/// What is wrong with the default route of a family in main.
fn default_route(family: Family, carrier: &LinkMessage, found: &Found) -> Option<String> {
    let of_main = |route: &&RouteMessage| {
        table(route) == TABLE_MAIN
            && route.header.address_family == family.netlink()
            && route.header.destination_prefix_length == 0
            && route.header.kind == RouteType::Unicast
    };
    let metric = |route: &&RouteMessage| {
        let of_route = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Priority(metric) => Some(*metric),
            _ => None,
        });
        of_route.unwrap_or(0)
    };
    let word = if family == Family::V4 { "IPv4" } else { "IPv6" };
    let Some(best) = found.routes.iter().filter(of_main).min_by_key(metric) else {
        // Many a host has no use for IPv6 of its own.
        let told =
            format!("main has no default route of {word}: this host itself reaches neither EC2 nor the Internet");
        return Some(told).filter(|_| family == Family::V4);
    };
    let other = oif(best).filter(|index| *index != carrier.header.index)?;
    let name = found.links.iter().find(|link| link.header.index == other).map_or("?", ifname);
    Some(format!(
        "the default route of {word} in main leads over {name} and not over {}, which has the primary ENI's address: \
         this host's own packets leave by it",
        ifname(carrier)
    ))
}
