//! What others change under us, as the kernel tells it: rtnetlink's and nftables' multicast groups.
//!
//! A notice says what kind of thing was changed and, where the kernel tells, by whom; what the change was is found by
//! reading. So a lost notice costs nothing but the reading of all.
//!
//! Numbers: linux/rtnetlink.h, linux/netfilter/nfnetlink.h and nf_tables.h.

use std::{collections::BTreeSet, fmt, fs, io, net::IpAddr, os::fd::AsFd, path::Path, sync::LazyLock};

use netlink_packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload, NlasIterator};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::AddressMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteMessage, RouteType},
};
use netlink_sys::{
    Socket,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::{
    link,
    message::{self, TABLE_LOCAL, TABLE_MAIN},
    netfilter::{GENERIC, NFTABLES},
    netlink::{Error, Netlink, frames},
    pods,
};

/// RTNLGRP_LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV4_NETCONF.
const ROUTE_GROUPS: [u32; 6] = [1, 3, 5, 7, 8, 24];
/// RTNLGRP_IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE, IPV6_NETCONF.
const V6_GROUPS: [u32; 4] = [9, 11, 19, 25];
/// NFNLGRP_NFTABLES.
const TABLE_GROUPS: [u32; 1] = [7];
/// RTM_NEWNETCONF and RTM_DELNETCONF: a sysctl of a link.
const NETCONF: std::ops::RangeInclusive<u16> = 80..=81;
/// NFT_MSG_NEWGEN: the end of a transaction, and whose it was.
const NFT_NEWGEN: u16 = 15;
const NFT_NEWCHAIN: u16 = 3;
const NFT_DELCHAIN: u16 = 5;
/// Only base chains have one.
const NFTA_CHAIN_HOOK: u16 = 4;
/// The table's name, in the messages of all that a table holds.
const NFTA_TABLE: u16 = 1;
const NFTA_GEN_PROC_PID: u16 = 2;
const NFTA_GEN_PROC_NAME: u16 = 3;
/// Bytes that may wait to be read; a firewall that is loaded anew tells of every rule.
const BUFFER: i32 = 1 << 20;
const DATAGRAM: usize = 64 * 1024;

/// Kinds of thing that are ours in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A routing policy rule.
    Rule,
    /// A route.
    Route,
    /// A neighbour entry.
    Neighbour,
    /// An address of a link.
    Address,
    /// An attribute of a link: up, MTU, MAC, device group, alias.
    Link,
    /// A sysctl.
    Sysctl,
    /// The nftables table.
    Table,
}

impl Kind {
    /// The name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Rule => "rule",
            Kind::Route => "route",
            Kind::Neighbour => "neighbour",
            Kind::Address => "address",
            Kind::Link => "link",
            Kind::Sysctl => "sysctl",
            Kind::Table => "table",
        }
    }
}

/// How soon it is to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Pods come and go with such changes all the time.
    Later,
    /// Nobody but a stranger makes such a change.
    Soon,
}

/// Who made a change, as far as the kernel tells; not we ourselves.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum By {
    /// The kernel itself, or it does not tell.
    Unknown,
    /// A process, by its number and name; the name is unknown when it had ended before it could be looked at.
    Process(u32, Option<String>),
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            By::Unknown => f.write_str("unknown"),
            By::Process(pid, Some(name)) => write!(f, "{name} (process {pid})"),
            By::Process(pid, None) => write!(f, "process {pid}, of which no more is known"),
        }
    }
}

/// Somebody changed something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A thing of this kind.
    Changed(Kind, Urgency, By),
    /// A chain at a hook, whoever's it is.
    Hooks,
    /// More was changed than could be told.
    Overrun,
}

/// Hears of changes in the namespace in which it was opened.
pub struct Watch {
    routes: Ear,
    table: Ear,
}

impl Watch {
    /// Hears of links, neighbours, addresses, routes, rules and links' sysctls, of both families if asked, and of the
    /// tables called `enid`.
    pub fn open(v6: bool) -> Result<Self, Error> {
        let groups = ROUTE_GROUPS.into_iter().chain(V6_GROUPS.into_iter().filter(|_| v6));
        let routes = Ear::open(NETLINK_ROUTE, &groups.collect::<Vec<_>>(), false)?;
        Ok(Watch { routes, table: Ear::open(NETLINK_NETFILTER, &TABLE_GROUPS, true)? })
    }

    /// Waits until something is told that may concern us.
    pub fn wait(&mut self) -> Result<Vec<Notice>, Error> {
        loop {
            let mut either = [&self.routes, &self.table].map(|ear| PollFd::new(ear.socket.as_fd(), PollFlags::POLLIN));
            match poll(&mut either, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::new("wait for changes", errno.into())),
            }
            let mut notices = self.routes.read()?;
            notices.extend(self.table.read()?);
            if !notices.is_empty() {
                return Ok(notices);
            }
        }
    }
}

/// A socket of one family. It does not block.
struct Ear {
    socket: Socket,
    received: Vec<u8>,
    of_tables: bool,
    /// Links that are pods'.
    pods: BTreeSet<u32>,
    /// Something of our table was told since the last end of a transaction.
    touched: bool,
    /// A chain at a hook was told of.
    hooks: bool,
}

impl Ear {
    fn open(protocol: isize, groups: &[u32], of_tables: bool) -> Result<Self, Error> {
        let open = || {
            let mut socket = Socket::new(protocol)?;
            socket.bind_auto()?;
            socket.set_non_blocking(true)?;
            socket.set_rx_buf_sz(BUFFER)?;
            groups.iter().try_for_each(|group| socket.add_membership(*group))?;
            Ok(socket)
        };
        let socket = open().map_err(|source| Error::new("watch the kernel's tables", source))?;
        let mut ear = Ear {
            socket,
            received: Vec::with_capacity(DATAGRAM),
            of_tables,
            pods: BTreeSet::new(),
            touched: false,
            hooks: false,
        };
        ear.know_pods()?;
        Ok(ear)
    }

    fn know_pods(&mut self) -> Result<(), Error> {
        if !self.of_tables {
            self.pods = pods::pod_links(&Netlink::open()?.links()?).into_iter().map(|end| end.index).collect();
        }
        Ok(())
    }

    /// What has been told since the last call.
    fn read(&mut self) -> Result<Vec<Notice>, Error> {
        let mut notices = Vec::new();
        loop {
            self.received.clear();
            match self.socket.recv(&mut self.received, 0) {
                Ok(size) => {
                    let datagram = std::mem::take(&mut self.received);
                    self.take(datagram.get(..size).unwrap_or_default(), &mut notices);
                    self.received = datagram;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(notices),
                Err(error) if error.raw_os_error().map(Errno::from_raw) == Some(Errno::ENOBUFS) => {
                    self.touched = false;
                    self.know_pods()?;
                    notices.push(Notice::Overrun);
                }
                Err(source) => return Err(Error::new("read what was changed", source)),
            }
        }
    }

    fn take(&mut self, datagram: &[u8], notices: &mut Vec<Notice>) {
        for message in frames(datagram) {
            let Ok(message) = message else {
                notices.push(Notice::Overrun); // what it told is not known
                continue;
            };
            let notice = if self.of_tables {
                self.of_table(message.message_type(), message.payload())
            } else {
                self.of_route(message)
            };
            notices.extend(notice);
            notices.extend(std::mem::take(&mut self.hooks).then_some(Notice::Hooks));
        }
    }

    fn of_route(&mut self, message: NetlinkBuffer<&[u8]>) -> Option<Notice> {
        let port = message.port_number();
        if NETCONF.contains(&message.message_type()) {
            return Some(Notice::Changed(Kind::Sysctl, Urgency::Later, by(port))); // every link that comes tells of its own
        }
        let told = match NetlinkMessage::<RouteNetlinkMessage>::deserialize(message.into_inner()) {
            Ok(NetlinkMessage { payload: NetlinkPayload::InnerMessage(told), .. }) => told,
            Ok(_) => return None,
            Err(_) => return Some(Notice::Overrun), // what it told is not known
        };
        match &told {
            RouteNetlinkMessage::NewLink(link) if pods::is_of_a_pod(link::group(link)) => {
                self.pods.insert(link.header.index);
            }
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
                self.pods.remove(&link.header.index);
            }
            _ => {}
        }
        let (kind, urgency) = concern(&told, &self.pods)?;
        Some(Notice::Changed(kind, urgency, by(port)))
    }

    fn of_table(&mut self, kind: u16, payload: &[u8]) -> Option<Notice> {
        let attributes = || NlasIterator::new(payload.get(GENERIC..).unwrap_or_default()).flatten();
        if kind & 0xff00 != NFTABLES {
            return None;
        }
        if kind & 0xff != NFT_NEWGEN {
            if matches!(kind & 0xff, NFT_NEWCHAIN | NFT_DELCHAIN) {
                self.hooks |= attributes().any(|attribute| attribute.kind() == NFTA_CHAIN_HOOK);
            }
            let ours = |value: &[u8]| value.strip_suffix(&[0]).unwrap_or(value) == b"enid";
            self.touched |= attributes().any(|attribute| attribute.kind() == NFTA_TABLE && ours(attribute.value()));
            return None;
        }
        if !std::mem::take(&mut self.touched) {
            return None;
        }
        let (mut pid, mut name) = (None, None);
        for attribute in attributes() {
            let value = attribute.value();
            match attribute.kind() {
                NFTA_GEN_PROC_PID => pid = value.try_into().ok().map(u32::from_be_bytes),
                NFTA_GEN_PROC_NAME => {
                    let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
                    name = Some(String::from_utf8_lossy(text).into_owned());
                }
                _ => {}
            }
        }
        let by = pid.map_or(By::Unknown, |pid| By::Process(pid, name));
        Some(Notice::Changed(Kind::Table, Urgency::Soon, by))
    }
}

/// Whether such a change can concern us, and how soon; `pods` are the links that are pods'.
fn concern(told: &RouteNetlinkMessage, pods: &BTreeSet<u32>) -> Option<(Kind, Urgency)> {
    use RouteNetlinkMessage::{
        DelAddress, DelLink, DelNeighbour, DelRoute, DelRule, NewAddress, NewLink, NewNeighbour, NewRoute, NewRule,
    };
    Some(match told {
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
        // Pods' neighbours are permanent: whatever else one of their links tells is somebody's doing.
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
fn by(port: u32) -> By {
    if port == 0 || port == std::process::id() || i32::try_from(port).is_err() {
        return By::Unknown;
    }
    // In a process namespace of our own that number would be another process's.
    if !*IN_HOSTS_PROCESS_NAMESPACE {
        return By::Process(port, None);
    }
    let name = fs::read_to_string(format!("/proc/{port}/comm")).ok().map(|name| name.trim().to_owned());
    By::Process(port, name)
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::{
        link::LinkAttribute, link::LinkMessage, neighbour::NeighbourMessage, rule::RuleMessage,
    };

    use super::*;
    use crate::marks;

    #[test]
    fn what_pods_do_all_the_time_is_looked_at_later() {
        let concern = |told: &RouteNetlinkMessage| super::concern(told, &BTreeSet::from([7]));
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
}
