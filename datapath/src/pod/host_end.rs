//! The host ends of pods that run: what they are, what they use, and what differs from them as ADD made them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use netlink_packet_route::{address::AddressMessage, link::LinkMessage, route::RouteMessage};

use crate::{
    family::GATEWAY_V6,
    identity::Mac,
    marks,
    netlink::{
        link::{self, group, ifname, mac, mtu, named},
        message::{self, TABLE_MAIN, host_route, own_address, same_route},
        request::Request,
    },
    node::found::Found,
    pod::answers_for_gateway,
};

/// The host end of a pod's link, as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodEnd {
    /// Tells whose it is.
    pub mac: Mac,
    /// Its name.
    pub ifname: String,
    /// The kernel's number of it.
    pub index: u32,
    /// Names the ENI.
    pub group: u32,
    /// The addresses that its alias names, once it is wired.
    pub addresses: Vec<IpAddr>,
}

/// Every link of a device group of ours, those that are being deleted among them.
pub fn pod_links(links: &[LinkMessage]) -> Vec<PodEnd> {
    let ours = links.iter().filter(|link| marks::is_of_a_pod(group(link)));
    let end = |link: &LinkMessage| {
        let (index, group) = (link.header.index, group(link));
        Some(PodEnd { mac: mac(link)?, ifname: ifname(link).to_owned(), index, group, addresses: named(link) })
    };
    ours.filter_map(end).collect()
}

/// The addresses that main routes over these links, and those that the links' aliases name, one by one: what their
/// pods use.
pub fn used_over(ends: &[PodEnd], routes: &[RouteMessage]) -> Vec<IpAddr> {
    let indices: BTreeSet<u32> = ends.iter().map(|end| end.index).collect();
    let over = |(address, index): (IpAddr, u32)| indices.contains(&index).then_some(address);
    let routed = routes.iter().filter_map(host_route).filter_map(over);
    let named = ends.iter().flat_map(|end| end.addresses.iter().copied());
    routed.chain(named).collect::<BTreeSet<_>>().into_iter().collect()
}

/// The host end of a pod's link as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNet {
    /// Tells whose link it is.
    pub host_mac: Mac,
    /// MAC of the pod's end.
    pub pod_mac: Mac,
    /// The pod's addresses, the one that names it first.
    pub addresses: Vec<IpAddr>,
    /// Device group: names the ENI.
    pub group: u32,
}

impl PodNet {
    /// The sysctl that its IPv6 depends on, if it has IPv6 and a link.
    pub fn sysctl(&self, found: &Found) -> Option<(String, &'static str)> {
        let link = found.links.iter().find(|link| mac(link) == Some(self.host_mac))?;
        let v6 = self.addresses.iter().any(|address| address.is_ipv6());
        v6.then(|| (format!("net/ipv6/conf/{}/disable_ipv6", ifname(link)), "0"))
    }
}

/// A pod's link as it was last seen whole, or first of all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    index: u32,
    addresses: Vec<IpAddr>,
    /// What ADD gave it, bytes: the setting may be another by now.
    mtu: Option<u32>,
    /// Something was wrong with it at the last reading.
    wrong: bool,
}

/// What has to change, and what is looked at again first.
#[derive(Debug, Default)]
pub struct Changes {
    /// What is still wrong at a second look.
    pub requests: Vec<Request>,
    /// Something looks wrong for the first time. A link that is being deleted while all is read looks so as well.
    pub again: bool,
}

/// What has to change so that these pods are reachable; `seen` is what earlier readings remember.
///
/// The list of pods may be older than the links: an attachment that has come again has the same MAC, and perhaps another
/// address, while its former one is somebody else's by now. So a link is a pod's only if it says so itself: its alias
/// names the pod's addresses, or the pod's route leads over it, or it is the very link that did so before.
pub fn changes(pods: &[PodNet], seen: &mut BTreeMap<Mac, Seen>, found: &Found) -> Changes {
    let as_ours = |route: &RouteMessage| {
        let (to, index) = host_route(route)?;
        same_route(route, &message::link_route(TABLE_MAIN, to, index)).then_some((to, index))
    };
    let routed: BTreeSet<(IpAddr, u32)> = found.routes.iter().filter_map(as_ours).collect();
    let neighbours: BTreeMap<(u32, IpAddr), Option<Mac>> =
        found.neighbours.iter().filter_map(message::permanent).collect();
    let has_gateway = |message: &&AddressMessage| own_address(message) == Some(GATEWAY_V6.into());
    let answering: BTreeSet<u32> =
        found.addresses.iter().filter(has_gateway).map(|message| message.header.index).collect();
    let wanted: BTreeSet<Mac> = pods.iter().map(|pod| pod.host_mac).collect();
    seen.retain(|mac, _| wanted.contains(mac));
    let (mut requests, mut again) = (Vec::new(), false);
    for (pod, link) in pods.iter().zip(links_of(pods, &found.links)) {
        // Without a link there is nothing to repair: its lease ends, or its DEL is under way.
        let Some(link) = link.filter(|link| group(link) != marks::GROUP_DELETED) else { continue };
        let index = link.header.index;
        let is_routed = |address: &IpAddr| routed.contains(&(*address, index));
        let before =
            seen.get(&pod.host_mac).filter(|seen| seen.index == index && seen.addresses == pod.addresses).cloned();
        let named = named(link);
        let is_the_pods = match named.is_empty() {
            false => named == pod.addresses,
            true => pod.addresses.iter().any(is_routed) || before.is_some(),
        };
        if !is_the_pods {
            continue;
        }
        let first =
            before.unwrap_or_else(|| Seen { index, addresses: pod.addresses.clone(), mtu: mtu(link), wrong: false });
        let addresses = Some(pod.addresses.as_slice());
        let wanted = link::Wanted { mac: pod.host_mac, group: pod.group, mtu: first.mtu, addresses };
        let mut changed = wanted.changes(link);
        let was_wrong = first.wrong;
        let link_changed = !changed.is_empty();
        for address in &pod.addresses {
            let lost_route = !is_routed(address);
            if lost_route {
                let route = message::link_route(TABLE_MAIN, *address, index);
                changed.push(Request::put_route(format!("route {address} over {}", ifname(link)), route));
            }
            // Down, or with another MAC, the kernel has dropped it.
            if link_changed || lost_route || neighbours.get(&(index, *address)) != Some(&Some(pod.pod_mac)) {
                let neighbour = message::neighbour(index, *address, pod.pod_mac);
                let what = format!("put the neighbour {address} on {}", ifname(link));
                changed.push(Request::put_neighbour(what, neighbour));
            }
        }
        let v6 = pod.addresses.iter().any(|address| address.is_ipv6());
        if v6 && (link_changed || !answering.contains(&index)) {
            changed.push(answers_for_gateway(ifname(link), index));
        }
        seen.insert(pod.host_mac, Seen { wrong: !changed.is_empty(), ..first });
        if was_wrong {
            requests.extend(changed);
        } else {
            again |= !changed.is_empty();
        }
    }
    Changes { requests: requests.into_iter().map(Request::unless_gone).collect(), again }
}

/// The link of each of these pods, in their order. The MAC says whose a link is, whatever has become of its device group;
/// where it has lost that (systemd-networkd gives links MACs of its own when it starts), a link of a group of ours that is
/// of nobody else's MAC and whose alias names the pod's addresses.
pub fn links_of<'a>(pods: &[PodNet], links: &'a [LinkMessage]) -> Vec<Option<&'a LinkMessage>> {
    let by_mac: BTreeMap<Mac, &LinkMessage> = links.iter().filter_map(|link| Some((mac(link)?, link))).collect();
    let wanted: BTreeSet<Mac> = pods.iter().map(|pod| pod.host_mac).collect();
    let has_no_pods_mac = |link: &LinkMessage| mac(link).is_none_or(|mac| !wanted.contains(&mac));
    let is_ours = |link: &LinkMessage| marks::slot_of_group(group(link)).is_some();
    let lost: Vec<(Vec<IpAddr>, &LinkMessage)> =
        links.iter().filter(|link| is_ours(link) && has_no_pods_mac(link)).map(|link| (named(link), link)).collect();
    let by_alias = |pod: &PodNet| lost.iter().find(|(named, _)| *named == pod.addresses).map(|(_, link)| *link);
    pods.iter().map(|pod| by_mac.get(&pod.host_mac).copied().or_else(|| by_alias(pod))).collect()
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::{LinkAttribute, LinkFlags};

    use super::*;

    fn pod(address: &str) -> PodNet {
        PodNet {
            host_mac: Mac([0x0a, 0, 0, 0, 0, 1]),
            pod_mac: Mac([0x0e, 0, 0, 0, 0, 1]),
            addresses: vec![address.parse().unwrap()],
            group: marks::group(0),
        }
    }

    fn link(index: u32, alias: Option<&str>) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = index;
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
        let first = changes(pods, seen, &found);
        let second = changes(pods, seen, &found);
        assert!(first.again != second.requests.is_empty() || !first.requests.is_empty(), "looked at twice");
        second.requests.iter().map(ToString::to_string).collect()
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
    fn a_link_that_lost_its_mac_is_known_by_its_alias_unless_it_is_anothers() {
        let with_mac = |index: u32, last: u8, alias| {
            let mut link = link(index, Some(alias));
            link.attributes[1] = LinkAttribute::Address(vec![0x0a, 0, 0, 0, 0, last]);
            link
        };
        let of = |links: &[LinkMessage]| {
            let other = PodNet { host_mac: Mac([0x0a, 0, 0, 0, 0, 2]), ..pod("10.0.1.21") };
            links_of(&[pod("10.0.1.20"), other], links)
                .iter()
                .map(|link| link.map(|link| link.header.index))
                .collect::<Vec<_>>()
        };
        assert_eq!(of(&[with_mac(7, 9, "10.0.1.20")]), [Some(7), None]);
        assert_eq!(of(&[with_mac(7, 9, "10.0.1.20"), with_mac(8, 1, "10.0.1.20")]), [Some(8), None]);
        assert_eq!(of(&[with_mac(7, 2, "10.0.1.20")]), [None, Some(7)], "the MAC says whose it is");
        assert_eq!(of(&[with_mac(7, 9, "10.0.1.29")]), [None, None]);
    }

    /// The kind: something that is under way is taken for drift.
    #[test]
    fn what_is_wrong_once_is_looked_at_again() {
        let (pods, mut seen) = ([pod("10.0.1.20")], BTreeMap::new());
        let wrong = Found { links: vec![link(7, Some("10.0.1.20"))], ..Found::default() };
        let first = changes(&pods, &mut seen, &wrong);
        assert!(first.requests.is_empty() && first.again);
        // Its link was being deleted.
        let gone = changes(&pods, &mut seen, &Found::default());
        assert!(gone.requests.is_empty() && !gone.again);
        assert!(!changes(&pods, &mut seen, &wrong).requests.is_empty(), "it is still wrong");
    }

    #[test]
    fn what_is_being_deleted_is_left_alone() {
        let mut deleted = link(7, Some("10.0.1.20"));
        deleted.attributes.retain(|attribute| !matches!(attribute, LinkAttribute::Group(_)));
        deleted.attributes.push(LinkAttribute::Group(marks::GROUP_DELETED));
        assert!(words(&[pod("10.0.1.20")], &mut BTreeMap::new(), vec![deleted]).is_empty());
    }
}
