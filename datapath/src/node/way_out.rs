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

#[cfg(test)]
mod tests {
    use netlink_packet_route::address::{AddressAttribute, AddressMessage};

    use super::*;
    use crate::{identity::Mac, netlink::message::default_route};

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn link(index: u32, name: &str, more: Vec<LinkAttribute>) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        link.attributes.extend(more);
        link
    }

    fn address(index: u32, text: &str) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.attributes = vec![AddressAttribute::Local(text.parse().unwrap())];
        message
    }

    /// The kind: what is needed of the host, and nobody looks at.
    #[test]
    fn what_the_host_lacks_is_told() {
        let primary = EniNet {
            slot: 0,
            mac: Mac(MAC),
            primary: "10.0.1.10/24".parse().unwrap(),
            own_v6: None,
            table: 1,
            mtu: 9001,
        };
        let own =
            |more: Vec<LinkAttribute>| link(2, "eth0", [vec![LinkAttribute::Address(MAC.to_vec())], more].concat());
        let gateway = "10.0.1.1".parse().unwrap();
        let faults = |links: Vec<LinkMessage>, on: u32, by: u32| {
            let routes = vec![default_route(TABLE_MAIN, gateway, by)];
            let found = Found::new(links, vec![address(on, "10.0.1.10")], routes, Vec::new());
            super::faults(std::slice::from_ref(&primary), &Policy::default(), &found)
        };
        let eth1 = || link(3, "eth1", Vec::new());
        assert_eq!(faults(vec![own(Vec::new()), eth1()], 2, 2), [""; 0]);
        let other = faults(vec![own(Vec::new()), eth1()], 2, 3);
        assert!(other.len() == 1 && other[0].contains("leads over eth1 and not over eth0"), "{other:?}");
        let vrf = link(7, "blue", vec![LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vrf)])]);
        let in_vrf = faults(vec![own(vec![LinkAttribute::Controller(7)]), vrf], 2, 2);
        assert!(
            in_vrf.len() == 1 && in_vrf[0].contains("eth0, which has the primary ENI's address, is in the VRF blue")
        );
        // A bridge is no VRF, and has the address by then.
        let bridge = link(7, "br-ex", vec![LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)])]);
        assert_eq!(faults(vec![own(vec![LinkAttribute::Controller(7)]), bridge], 7, 7), [""; 0]);
        let found = Found::new(vec![own(Vec::new())], Vec::new(), Vec::new(), Vec::new());
        let none = super::faults(std::slice::from_ref(&primary), &Policy::default(), &found);
        assert!(none.len() == 2 && none[0].contains("no link of this host has 10.0.1.10"), "{none:?}");
        assert!(none[1].contains("main has no default route of IPv4"), "{none:?}");
    }
}
