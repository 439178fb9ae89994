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

/// What has to change so that these pods are reachable. `mtus` remembers what each link was seen with first, which is
/// what ADD gave it: the setting may be another by now.
pub fn changes(pods: &[PodNet], mtus: &mut BTreeMap<Mac, u32>, found: &Found) -> Vec<Request> {
    let links = by_mac(&found.links);
    let routed: BTreeSet<(Ipv4Addr, u32)> = found.routes.iter().filter_map(host_route).collect();
    let neighbours: BTreeMap<(u32, Ipv4Addr), Option<Mac>> = found.neighbours.iter().filter_map(permanent).collect();
    let wanted: BTreeSet<Mac> = pods.iter().map(|pod| pod.host_mac).collect();
    mtus.retain(|mac, _| wanted.contains(mac));
    let mut requests = Vec::new();
    for pod in pods {
        let link = links.get(&pod.host_mac).copied().or_else(|| renamed(pod, &wanted, &found.links));
        // Without a link there is nothing to repair: its lease ends, or its DEL is under way.
        let Some(link) = link.filter(|link| node::group(link) != marks::GROUP_GOING) else { continue };
        let index = link.header.index;
        let before = requests.len();
        link_changes(pod, link, mtus, &mut requests);
        // Down, or with another MAC, the kernel has dropped both.
        let fresh = requests.len() > before;
        if fresh || !routed.contains(&(pod.address, index)) {
            let route = pod::link_route(node::TABLE_MAIN, pod.address, index);
            if !routed.contains(&(pod.address, index)) {
                requests.push(Request::put_route(format!("route {} over {}", pod.address, ifname(link)), route));
            }
        }
        if fresh || neighbours.get(&(index, pod.address)) != Some(&Some(pod.pod_mac)) {
            let neighbour = pod::neighbour(index, pod.address, pod.pod_mac);
            let what = format!("put the neighbour {} on {}", pod.address, ifname(link));
            requests.push(Request::put_neighbour(what, neighbour));
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

fn link_changes(pod: &PodNet, link: &LinkMessage, mtus: &mut BTreeMap<Mac, u32>, requests: &mut Vec<Request>) {
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
    if let Some(mtu) = node::mtu(link) {
        let first = *mtus.entry(pod.host_mac).or_insert(mtu);
        if mtu != first {
            set(format!("set the MTU of {name} to {first}"), LinkAttribute::Mtu(first));
        }
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
