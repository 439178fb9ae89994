//! The host ends of pods that run, and what differs from them as ADD made them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use netlink_packet_route::{
    link::{LinkAttribute, LinkFlags, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage},
};

use crate::{
    identity::Mac,
    marks,
    netlink::Request,
    node::{self, Found},
    pod::{self, ifname, updown},
};

/// The host end of a pod's link as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNet {
    /// Tells whose link it is.
    pub host_mac: Mac,
    /// MAC of the pod's end.
    pub pod_mac: Mac,
    /// The pod's address.
    pub address: Ipv4Addr,
    /// Device group: names the ENI.
    pub group: u32,
}

/// A pod's link as it was last seen whole, or first of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    index: u32,
    address: Ipv4Addr,
    /// What ADD gave it, bytes: the setting may be another by now.
    mtu: Option<u32>,
}

/// What has to change so that these pods are reachable; `seen` is what earlier readings remember.
///
/// The list of pods may be older than the links: an attachment that has come again has the same MAC, and perhaps another
/// address, while its former one is somebody else's by now. So a link is a pod's only if it says so itself: its alias
/// names the pod's address, or the pod's route leads over it, or it is the very link that did so before.
pub fn changes(pods: &[PodNet], seen: &mut BTreeMap<Mac, Seen>, found: &Found) -> Vec<Request> {
    let links = by_mac(&found.links);
    let routed: BTreeSet<(Ipv4Addr, u32)> = found.routes.iter().filter_map(host_route).collect();
    let neighbours: BTreeMap<(u32, Ipv4Addr), Option<Mac>> = found.neighbours.iter().filter_map(permanent).collect();
    let wanted: BTreeSet<Mac> = pods.iter().map(|pod| pod.host_mac).collect();
    seen.retain(|mac, _| wanted.contains(mac));
    let mut requests = Vec::new();
    for pod in pods {
        let link = links.get(&pod.host_mac).copied().or_else(|| renamed(pod, &wanted, &found.links));
        // Without a link there is nothing to repair: its lease ends, or its DEL is under way.
        let Some(link) = link.filter(|link| node::group(link) != marks::GROUP_GOING) else { continue };
        let (index, address) = (link.header.index, pod.address);
        let is_routed = routed.contains(&(address, index));
        let before = seen.get(&pod.host_mac).filter(|seen| (seen.index, seen.address) == (index, address)).copied();
        let is_the_pods = match node::alias(link) {
            Some(named) => named == address,
            None => is_routed || before.is_some(),
        };
        if !is_the_pods {
            continue;
        }
        let seen = *seen
            .entry(pod.host_mac)
            .insert_entry(before.unwrap_or(Seen { index, address, mtu: node::mtu(link) }))
            .get();
        let so_far = requests.len();
        link_changes(pod, link, seen.mtu, &mut requests);
        if !is_routed {
            let route = pod::link_route(node::TABLE_MAIN, address, index);
            requests.push(Request::put_route(format!("route {address} over {}", ifname(link)), route));
        }
        // Down, or with another MAC, the kernel has dropped it.
        if requests.len() > so_far || neighbours.get(&(index, address)) != Some(&Some(pod.pod_mac)) {
            let neighbour = pod::neighbour(index, address, pod.pod_mac);
            requests
                .push(Request::put_neighbour(format!("put the neighbour {address} on {}", ifname(link)), neighbour));
        }
    }
    requests.into_iter().map(Request::unless_gone).collect()
}

fn by_mac(links: &[LinkMessage]) -> BTreeMap<Mac, &LinkMessage> {
    links.iter().filter_map(|link| Some((pod::mac(link)?, link))).collect()
}

/// The link that has lost its MAC: of a group of ours, of nobody else's MAC, and its alias names the pod's address.
fn renamed<'a>(pod: &PodNet, wanted: &BTreeSet<Mac>, links: &'a [LinkMessage]) -> Option<&'a LinkMessage> {
    links.iter().find(|link| {
        marks::slot_of_group(node::group(link)).is_some()
            && pod::mac(link).is_none_or(|mac| !wanted.contains(&mac))
            && node::alias(link) == Some(pod.address.into())
    })
}

fn link_changes(pod: &PodNet, link: &LinkMessage, first_mtu: Option<u32>, requests: &mut Vec<Request>) {
    let (index, name) = (link.header.index, ifname(link));
    let mut set = |what: String, attribute: LinkAttribute| {
        let mut message = pod::by_index(index);
        message.attributes.push(attribute);
        requests.push(Request::set_link(what, message));
    };
    if pod::mac(link) != Some(pod.host_mac) {
        let address = LinkAttribute::Address(pod.host_mac.0.to_vec());
        set(format!("set the MAC of {name} to {}", pod.host_mac), address);
    }
    if node::group(link) != pod.group {
        set(format!("put {name} into its ENI's device group, {:#x}", pod.group), LinkAttribute::Group(pod.group));
    }
    if node::alias(link) != Some(pod.address.into()) {
        set(format!("name {} in the alias of {name}", pod.address), LinkAttribute::IfAlias(pod.address.to_string()));
    }
    if let Some(mtu) = first_mtu.filter(|mtu| node::mtu(link) != Some(*mtu)) {
        set(format!("set the MTU of {name} to {mtu}"), LinkAttribute::Mtu(mtu));
    }
    if !link.header.flags.contains(LinkFlags::Up) {
        requests.push(Request::set_link(format!("take {name} up"), updown(index, true)));
    }
}

fn host_route(route: &RouteMessage) -> Option<(Ipv4Addr, u32)> {
    if route.header.destination_prefix_length != 32 || pod::table(route) != node::TABLE_MAIN {
        return None;
    }
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    });
    Some((address?, pod::oif(route)?))
}

fn permanent(neighbour: &NeighbourMessage) -> Option<((u32, Ipv4Addr), Option<Mac>)> {
    let mut entry = (None, None);
    for attribute in &neighbour.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => entry.0 = Some(*address),
            NeighbourAttribute::LinkLayerAddress(bytes) => entry.1 = Mac::try_from(bytes.as_slice()).ok(),
            _ => {}
        }
    }
    let address = entry.0.filter(|_| neighbour.header.state == NeighbourState::Permanent)?;
    Some(((neighbour.header.ifindex, address), entry.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(address: &str) -> PodNet {
        PodNet {
            host_mac: Mac([0x0a, 0, 0, 0, 0, 1]),
            pod_mac: Mac([0x0e, 0, 0, 0, 0, 1]),
            address: address.parse().unwrap(),
            group: marks::group(0),
        }
    }

    fn link(index: u32, alias: Option<&str>) -> LinkMessage {
        let mut link = pod::by_index(index);
        link.header.flags = LinkFlags::Up;
        link.attributes = vec![
            LinkAttribute::IfName("eni1".to_owned()),
            LinkAttribute::Address(vec![0x0a, 0, 0, 0, 0, 1]),
            LinkAttribute::Group(marks::group(0)),
            LinkAttribute::Mtu(9001),
        ];
        link.attributes.extend(alias.map(|alias| LinkAttribute::IfAlias(alias.to_owned())));
        link
    }

    fn words(pods: &[PodNet], seen: &mut BTreeMap<Mac, Seen>, links: Vec<LinkMessage>) -> Vec<String> {
        let found = Found { links, ..Found::default() };
        changes(pods, seen, &found).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_attachment_that_came_again_does_not_get_its_former_address() {
        let mut seen = BTreeMap::new();
        let former = [pod("10.0.1.20")];
        assert_eq!(words(&former, &mut seen, vec![link(7, Some("10.0.1.20"))]).len(), 2, "route and neighbour");
        // Not wired yet, and wired with another address: the list of pods is older than either link.
        assert!(words(&former, &mut seen, vec![link(8, None)]).is_empty());
        assert!(words(&former, &mut seen, vec![link(8, Some("10.0.1.21"))]).is_empty());
        // The link that was the pod's has lost its alias.
        let named = words(&former, &mut seen, vec![link(7, None)]);
        assert!(named.iter().any(|words| words.contains("in the alias of eni1")), "{named:?}");
        assert!(words(&former, &mut BTreeMap::new(), vec![link(7, None)]).is_empty(), "nothing says that it is");
    }

    #[test]
    fn what_is_being_deleted_is_left_alone() {
        let mut going = link(7, Some("10.0.1.20"));
        going.attributes.retain(|attribute| !matches!(attribute, LinkAttribute::Group(_)));
        going.attributes.push(LinkAttribute::Group(marks::GROUP_GOING));
        assert!(words(&[pod("10.0.1.20")], &mut BTreeMap::new(), vec![going]).is_empty());
    }
}
