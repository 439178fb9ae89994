//! What rtnetlink's messages mean for us.
//!
//! Numbers: linux/rtnetlink.h.

use std::{collections::BTreeSet, fs, net::IpAddr, path::Path, sync::LazyLock};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::AddressMessage,
    link::LinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteMessage, RouteType},
};

use crate::{
    kind::Kind,
    marks,
    netlink::{
        link,
        message::{self, TABLE_LOCAL, TABLE_MAIN},
    },
    notification::{Author, Notification, Urgency},
    pod::host_end,
};

/// RTNLGRP_LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV4_NETCONF.
const GROUPS: [u32; 6] = [1, 3, 5, 7, 8, 24];
/// RTNLGRP_IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE, IPV6_NETCONF.
const V6_GROUPS: [u32; 4] = [9, 11, 19, 25];
/// RTM_NEWNETCONF: a sysctl of a link.
const NETCONF: u16 = 80;
/// RTM_DELNETCONF: a link goes, and its sysctls with it.
const GONE_NETCONF: u16 = 81;

/// rtnetlink's multicast groups of what is ours: links, neighbours, addresses, routes, rules and links' sysctls, of both
/// families if asked.
pub fn groups(v6: bool) -> Vec<u32> {
    GROUPS.into_iter().chain(V6_GROUPS.into_iter().filter(|_| v6)).collect()
}

/// Turns rtnetlink's messages into notifications. It remembers which links are pods'.
#[derive(Debug, Default)]
pub struct RouteNotifications {
    pods: BTreeSet<u32>,
}

impl RouteNotifications {
    /// With the links that there are now.
    pub fn new(links: &[LinkMessage]) -> Self {
        RouteNotifications { pods: host_end::pod_links(links).into_iter().map(|end| end.index).collect() }
    }

    /// What this message means for us; `port` is the one in its header.
    pub fn of(&mut self, port: u32, message: &RouteNetlinkMessage) -> Option<Notification> {
        match message {
            RouteNetlinkMessage::NewLink(link) if marks::is_of_a_pod(link::group(link)) => {
                self.pods.insert(link.header.index);
            }
            RouteNetlinkMessage::DelLink(link) if self.pods.remove(&link.header.index) => {
                return Some(Notification::PodGone(link.header.index));
            }
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
                self.pods.remove(&link.header.index);
            }
            _ => {}
        }
        let (kind, urgency) = concern(message, &self.pods)?;
        let of_pod = index(message).filter(|index| urgency == Urgency::Later && self.pods.contains(index));
        Some(match of_pod {
            Some(index) => Notification::OfPod(kind, index, author(port)),
            None => Notification::Changed(kind, urgency, author(port)),
        })
    }

    /// What a message means that the library has no type for, or cannot read; `kind` is the type in its header.
    pub fn of_unknown(port: u32, kind: u16) -> Option<Notification> {
        match kind {
            // Every link that comes notifies of its own.
            NETCONF => Some(Notification::Changed(Kind::Sysctl, Urgency::Later, author(port))),
            GONE_NETCONF => None,
            _ => Some(Notification::Lost),
        }
    }
}

/// The link that a message is about.
fn index(message: &RouteNetlinkMessage) -> Option<u32> {
    use RouteNetlinkMessage::{
        DelAddress, DelLink, DelNeighbour, DelRoute, NewAddress, NewLink, NewNeighbour, NewRoute,
    };
    match message {
        NewLink(link) | DelLink(link) => Some(link.header.index),
        NewAddress(address) | DelAddress(address) => Some(address.header.index),
        NewNeighbour(there) | DelNeighbour(there) => Some(there.header.ifindex),
        NewRoute(route) | DelRoute(route) => message::oif(route),
        _ => None,
    }
}

/// Whether such a change can concern us, and how soon; `pods` are the links that are pods'.
fn concern(message: &RouteNetlinkMessage, pods: &BTreeSet<u32>) -> Option<(Kind, Urgency)> {
    use RouteNetlinkMessage::{
        DelAddress, DelLink, DelNeighbour, DelRoute, DelRule, NewAddress, NewLink, NewNeighbour, NewRoute, NewRule,
    };
    Some(match message {
        NewRule(_) | DelRule(_) => (Kind::Rule, Urgency::Soon),
        // Every link that comes gives itself one.
        NewAddress(address) | DelAddress(address) if is_link_local(address) => return None,
        NewAddress(_) | DelAddress(_) => (Kind::Address, Urgency::Soon),
        // A pod's own IPv4 routes go with its link, without a word; those of IPv6 do not.
        DelRoute(route) if leads(route) => {
            let of_a_pod = route.header.address_family == AddressFamily::Inet6 && message::table(route) == TABLE_MAIN;
            (Kind::Route, if of_a_pod { Urgency::Later } else { Urgency::Soon })
        }
        NewRoute(route) if leads(route) => {
            let of_a_pod = message::table(route) == TABLE_MAIN;
            (Kind::Route, if of_a_pod { Urgency::Later } else { Urgency::Soon })
        }
        NewLink(link) | DelLink(link) => {
            let of_a_pod = link::group(link) != 0;
            (Kind::Link, if of_a_pod { Urgency::Later } else { Urgency::Soon })
        }
        DelNeighbour(there) if is_ip(there.header.family) => (Kind::Neighbour, Urgency::Later),
        // Pods' neighbours are permanent: whatever else is notified of one of their links is another process's doing.
        NewNeighbour(there)
            if is_ip(there.header.family)
                && (matches!(there.header.state, NeighbourState::Permanent | NeighbourState::Failed)
                    || pods.contains(&there.header.ifindex) && !is_of_link_local(there)) =>
        {
            (Kind::Neighbour, Urgency::Later)
        }
        _ => return None,
    })
}

fn is_ip(family: AddressFamily) -> bool {
    matches!(family, AddressFamily::Inet | AddressFamily::Inet6)
}

fn is_link_local(address: &AddressMessage) -> bool {
    let own = message::own_address(address);
    own.is_some_and(|own| matches!(own, IpAddr::V6(own) if own.is_unicast_link_local()))
}

fn is_of_link_local(there: &NeighbourMessage) -> bool {
    there.attributes.iter().any(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => address.is_unicast_link_local(),
        _ => false,
    })
}

/// It leads packets somewhere, or nowhere.
fn leads(route: &RouteMessage) -> bool {
    use RouteType::{BlackHole, Prohibit, Throw, Unicast, Unreachable};
    message::table(route) != TABLE_LOCAL
        && matches!(route.header.kind, Unicast | BlackHole | Unreachable | Prohibit | Throw)
}

/// The first of all has a number of its own (PROC_PID_INIT_INO, linux/proc_ns.h).
static IN_HOSTS_PROCESS_NAMESPACE: LazyLock<bool> =
    LazyLock::new(|| fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link == Path::new("pid:[4026531836]")));

/// A netlink socket's port is the number of its process (netlink(7)); that of a second socket is a number from above.
fn author(port: u32) -> Author {
    if port == 0 || port == std::process::id() || i32::try_from(port).is_err() {
        return Author::Unknown;
    }
    // In a process namespace of our own that number would be another process's.
    if !*IN_HOSTS_PROCESS_NAMESPACE {
        return Author::Process(port, None);
    }
    let name = fs::read_to_string(format!("/proc/{port}/comm")).ok().map(|name| name.trim().to_owned());
    Author::Process(port, name)
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::{link::LinkAttribute, rule::RuleMessage};

    use super::*;

    #[test]
    fn what_pods_do_all_the_time_is_looked_at_later() {
        let concern = |message: &RouteNetlinkMessage| super::concern(message, &BTreeSet::from([7]));
        let mut link = LinkMessage::default();
        assert_eq!(concern(&RouteNetlinkMessage::NewLink(link.clone())), Some((Kind::Link, Urgency::Soon)));
        link.attributes.push(LinkAttribute::Group(marks::group(1)));
        assert_eq!(concern(&RouteNetlinkMessage::NewLink(link)), Some((Kind::Link, Urgency::Later)));
        let rule = RouteNetlinkMessage::DelRule(RuleMessage::default());
        assert_eq!(concern(&rule), Some((Kind::Rule, Urgency::Soon)));
        let mut reachable = NeighbourMessage::default();
        reachable.header.family = AddressFamily::Inet;
        reachable.header.state = NeighbourState::Reachable;
        assert_eq!(concern(&RouteNetlinkMessage::NewNeighbour(reachable.clone())), None);
        reachable.header.ifindex = 7;
        let of_a_pod = concern(&RouteNetlinkMessage::NewNeighbour(reachable));
        assert_eq!(of_a_pod, Some((Kind::Neighbour, Urgency::Later)));
    }

    #[test]
    fn what_cannot_be_read_is_a_sysctl_or_lost() {
        let sysctl = Notification::Changed(Kind::Sysctl, Urgency::Later, Author::Unknown);
        assert_eq!(RouteNotifications::of_unknown(0, 80), Some(sysctl));
        assert_eq!(RouteNotifications::of_unknown(0, 81), None);
        assert_eq!(RouteNotifications::of_unknown(0, 24), Some(Notification::Lost));
    }

    #[test]
    fn what_goes_with_a_pods_link_is_the_links() {
        let (mut link, mut neighbour) = (LinkMessage::default(), NeighbourMessage::default());
        link.header.index = 7;
        link.attributes.push(LinkAttribute::Group(marks::group(1)));
        (neighbour.header.family, neighbour.header.ifindex) = (AddressFamily::Inet, 7);
        let gone = RouteNetlinkMessage::DelNeighbour(neighbour);
        let mut notifications = RouteNotifications::new(std::slice::from_ref(&link));
        let of_pod = |kind| Some(Notification::OfPod(kind, 7, Author::Unknown));
        assert_eq!(notifications.of(0, &RouteNetlinkMessage::NewLink(link.clone())), of_pod(Kind::Link));
        assert_eq!(notifications.of(0, &gone), of_pod(Kind::Neighbour));
        let end = notifications.of(0, &RouteNetlinkMessage::DelLink(link));
        assert_eq!(end, Some(Notification::PodGone(7)));
        let later = Notification::Changed(Kind::Neighbour, Urgency::Later, Author::Unknown);
        assert_eq!(notifications.of(0, &gone), Some(later), "of whichever link has that index now");
    }
}
