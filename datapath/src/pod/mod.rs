//! One pod's link: a veth, one host route in main and one permanent neighbour at each end.
//!
//! All of it vanishes with the link, so taking it down is one deletion and nothing can be left behind.
//! The pair is made from inside the pod's namespace with the host end directly in the host's: moving it
//! later would cost an RCU barrier. MACs are explicit, because udev rewrites those that are not, and the
//! permanent neighbours depend on them.

use std::{net::IpAddr, os::fd::AsRawFd};

use netlink_packet_route::{
    address::{AddressAttribute, AddressFlags},
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkMessage},
    rule::{RuleAttribute, RuleMessage},
};
use nix::errno::Errno;
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth};

use crate::{
    family::{Family, GATEWAY_V6},
    identity::{self, Mac},
    marks,
    netlink::{
        error::Error,
        link::{alias_of, mac},
        message::{self, TABLE_MAIN},
        request::Request,
        socket::Netlink,
    },
    netns::Netns,
    pod::removal::remove_by_mac,
};

pub mod faults;
pub mod host_end;
pub mod removal;

/// Tables of further interfaces of a pod begin here; the interface's number in the pod is added.
const OWN_TABLES: u32 = 100_000;

/// A pod's link as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLink {
    /// Name of the end in the host's namespace.
    pub host_ifname: String,
    /// Tells whose link it is: [`identity::host_mac`].
    pub host_mac: Mac,
    /// Name of the pod's end (CNI_IFNAME).
    pub pod_ifname: String,
    /// MAC of the pod's end.
    pub pod_mac: Mac,
    /// The pod's address, always alone: /32 or /128.
    pub address: IpAddr,
    /// One of the other family, out of the same ENI's blocks.
    pub second: Option<IpAddr>,
    /// One of the other family that only this node knows: what leaves with it is translated.
    pub local: Option<IpAddr>,
    /// Bytes, both ends.
    pub mtu: u32,
    /// Device group of the host end: names the ENI ([`crate::marks::group`]).
    pub group: u32,
}

/// Why a pod's link could not be wired.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The pod has an interface of that name that is not ours.
    #[error("the container already has an interface named {0}; it was left as it is")]
    InterfaceExists(String),
    /// The host sends packets for the address to another link.
    #[error("the host routes {0} over another link already; the address was left to that one")]
    AddressRouted(IpAddr),
    /// The kernel refused a step.
    #[error(transparent)]
    Kernel(#[from] Error),
}

/// A pair that has just been made: both ends down, nothing on them.
#[derive(Debug)]
pub struct Pair {
    host_index: u32,
    pod_index: u32,
    /// A link of another attachment that held the name, and what it is called now.
    pub moved_aside: Option<String>,
}

/// Makes the pair. What an earlier, unanswered try of the same attachment left behind is replaced.
pub fn create(link: &PodLink, host: &mut Netlink, host_ns: &Netns, pod: &mut Netlink) -> Result<Pair, WireError> {
    let moved_aside = make_room_and_create(link, host, host_ns, pod)?;
    let found = ends(link, pod);
    let (pod_index, host_index) = found.inspect_err(|_| undo(link, host))?;
    Ok(Pair { host_index, pod_index, moved_aside })
}

/// Configures the pod's end. Nothing outside the pod can be reached by it yet.
pub fn configure_inside(
    link: &PodLink,
    pair: &Pair,
    host: &mut Netlink,
    pod: &mut Netlink,
) -> Result<Routes, WireError> {
    let index = pair.pod_index;
    let applied = match pod.apply(&link.pod_requests(index)) {
        // Only the routes can be in the way of something: another interface is the pod's way out already, and this
        // one answers for its own address.
        Err(error) if error.is(Errno::EEXIST) => {
            let rules = pod.rules().inspect_err(|_| undo(link, host))?;
            let of_earlier_tries = link.stale_rules(&rules);
            let requests: Vec<Request> = of_earlier_tries.chain(link.own_routes(index)).collect();
            pod.apply(&requests).map(|()| Routes::Own(own_table(index)))
        }
        answer => answer.map(|()| Routes::Main),
    };
    Ok(applied.inspect_err(|_| undo(link, host))?)
}

/// Where the routes of a pod's interface are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routes {
    /// In main: it is the pod's first interface.
    Main,
    /// In a table of its own, which a rule asks for packets from its address.
    Own(u32),
}

/// The table of an interface that is not the pod's first.
pub(crate) fn own_table(index: u32) -> u32 {
    OWN_TABLES + index
}

/// Configures the host's end, which makes the address reachable. A route that another link holds stays
/// there: an address has one owner.
pub fn configure_outside(link: &PodLink, pair: &Pair, host: &mut Netlink) -> Result<(), WireError> {
    let error = match host.apply(&link.host_requests(pair.host_index)) {
        Ok(()) => return Ok(()),
        Err(error) if !error.is(Errno::EEXIST) => WireError::from(error),
        Err(error) => match routed_elsewhere(link, pair.host_index, host) {
            // A daemon that found the link without its route may have been faster.
            Ok(None) => return Ok(()),
            Ok(Some(address)) => WireError::AddressRouted(address),
            Err(_) => WireError::from(error),
        },
    };
    undo(link, host);
    Err(error)
}

/// The first of the link's addresses that the host does not send over it.
fn routed_elsewhere(link: &PodLink, index: u32, host: &mut Netlink) -> Result<Option<IpAddr>, Error> {
    let routes = host.routes(&link.families())?;
    let over = |address: &IpAddr| routes.iter().any(|route| message::host_route(route) == Some((*address, index)));
    Ok(link.addresses().find(|address| !over(address)))
}

/// Takes away what was made. The first error is the one to tell; a link that stays is found by DEL, by
/// its MAC.
pub fn undo(link: &PodLink, host: &mut Netlink) {
    let _ = remove_by_mac(link.host_mac, &link.host_ifname, host);
}

fn make_room_and_create(
    link: &PodLink,
    host: &mut Netlink,
    host_ns: &Netns,
    pod: &mut Netlink,
) -> Result<Option<String>, WireError> {
    let request = [Request::create_link(
        format!("create the pair {} / {}", link.pod_ifname, link.host_ifname),
        link.pair(host_ns),
    )];
    let mut moved_aside = None;
    // At most two things can stand in the way, each of them once: a link of ours, a link with our name.
    for _ in 0..3 {
        match pod.apply(&request) {
            Err(error) if error.is(Errno::EEXIST) => {
                if remove_by_mac(link.host_mac, &link.host_ifname, host)? {
                    continue;
                }
                if pod.link(&link.pod_ifname)?.is_some() {
                    break;
                }
                moved_aside = move_aside(&link.host_ifname, host)?.or(moved_aside);
            }
            answer => return answer.map(|()| moved_aside).map_err(WireError::from),
        }
    }
    Err(WireError::InterfaceExists(link.pod_ifname.clone()))
}

/// Renames the link that holds a name which is not its own to keep. Kernels before 6.2 rename only links
/// that are down, so it goes down for that moment.
fn move_aside(name: &str, host: &mut Netlink) -> Result<Option<String>, Error> {
    let Some(found) = host.link(name)? else { return Ok(None) };
    let aside = identity::ifname_aside(mac(&found).unwrap_or(Mac([0; 6])));
    let change = || LinkUnspec::new_with_index(found.header.index);
    let rename = || [Request::set_link(format!("rename {name} to {aside}"), change().name(aside.clone()).build())];
    let mut set_aside = || match host.apply(&rename()) {
        Err(error) if error.is(Errno::EBUSY) => {
            host.apply(&[Request::set_link(format!("take {name} down"), change().down().build())])?;
            host.apply(&rename())?;
            host.apply(&[Request::set_link(format!("take {aside} up"), change().up().build())])
        }
        answer => answer,
    };
    match set_aside() {
        // Its own DEL was quicker.
        Err(error) if error.is(Errno::ENODEV) => Ok(None),
        answer => answer.map(|()| Some(aside)),
    }
}

/// The indices of both ends: the pod's, the host's.
fn ends(link: &PodLink, pod: &mut Netlink) -> Result<(u32, u32), Error> {
    let gone = |name: &str| Error::new(format!("look for link {name}"), Errno::ENODEV.into());
    let pod_end = pod.link(&link.pod_ifname)?.ok_or_else(|| gone(&link.pod_ifname))?;
    // IFLA_LINK of one end is the index of the other.
    let host_index = pod_end.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(index) => Some(*index),
        _ => None,
    });
    Ok((pod_end.header.index, host_index.ok_or_else(|| gone(&link.host_ifname))?))
}

impl PodLink {
    fn pair(&self, host_ns: &Netns) -> LinkMessage {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(self.host_ifname.clone())
            .address(self.host_mac.0.to_vec())
            .mtu(self.mtu)
            .link_group(self.group)
            .setns_by_fd(host_ns.file().as_raw_fd())
            .build();
        LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(self.pod_ifname.clone())
            .address(self.pod_mac.0.to_vec())
            .mtu(self.mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build()
    }

    /// All of its addresses, the one that names it first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        [Some(self.address), self.second, self.local].into_iter().flatten()
    }

    /// Its addresses of the VPC, which the result names.
    pub fn vpc_addresses(&self) -> impl Iterator<Item = IpAddr> {
        [Some(self.address), self.second].into_iter().flatten()
    }

    /// The families of its addresses.
    pub fn families(&self) -> Vec<Family> {
        self.addresses().map(Family::of).collect()
    }

    fn pod_requests(&self, index: u32) -> Vec<Request> {
        let name = &self.pod_ifname;
        let up = LinkUnspec::new_with_index(index).up().build();
        let mut requests = vec![Request::set_link(format!("take {name} up"), up)];
        for address in self.addresses() {
            let family = Family::of(address);
            let (gateway, length) = (family.gateway(), family.host_len());
            requests.extend([
                Request::put_address(
                    format!("put {address}/{length} on {name}"),
                    message::address(index, address, length),
                ),
                Request::put_neighbour(
                    format!("put the neighbour {gateway} on {name}"),
                    message::neighbour(index, gateway, self.host_mac),
                ),
                Request::add_route(
                    format!("route {gateway} over {name}"),
                    message::link_route(TABLE_MAIN, gateway, index),
                ),
                Request::add_route(
                    format!("route {} over {name}", family.default_net()),
                    message::default_route(TABLE_MAIN, gateway, index),
                ),
            ]);
        }
        requests
    }

    /// Rules for its addresses that an earlier interface of this pod has left: a link takes its rules not along.
    fn stale_rules(&self, rules: &[RuleMessage]) -> impl Iterator<Item = Request> + use<> {
        let ours = |rule: &&RuleMessage| {
            let from = |attribute: &RuleAttribute| matches!(attribute, RuleAttribute::Source(from) if self.addresses().any(|address| address == *from));
            message::asked_table(rule).is_some_and(|table| table >= OWN_TABLES) && rule.attributes.iter().any(from)
        };
        let stale: Vec<RuleMessage> = rules.iter().filter(ours).cloned().collect();
        stale.into_iter().map(|rule| Request::delete_rule("remove a rule that an earlier interface has left", rule))
    }

    fn own_routes(&self, index: u32) -> Vec<Request> {
        let (name, table) = (&self.pod_ifname, own_table(index));
        let of = |address: IpAddr| {
            let family = Family::of(address);
            let gateway = family.gateway();
            [
                Request::put_route(
                    format!("route {gateway} over {name} in table {table}"),
                    message::link_route(table, gateway, index),
                ),
                Request::put_route(
                    format!("route {} over {name} in table {table}", family.default_net()),
                    message::default_route(table, gateway, index),
                ),
                Request::add_rule(
                    format!("add the rule from {address} lookup {table}"),
                    message::rule_from(marks::PRIORITY_PRIMARY, address, table),
                ),
            ]
        };
        self.addresses().flat_map(of).collect()
    }

    fn host_requests(&self, index: u32) -> Vec<Request> {
        let name = &self.host_ifname;
        // The alias tells whose addresses they are even when every route is gone.
        let up = LinkUnspec::new_with_index(index).up().alias(alias_of(self.addresses())).build();
        let mut requests = vec![Request::set_link(format!("take {name} up"), up)];
        requests.extend(self.addresses().any(|address| address.is_ipv6()).then(|| answers_for_gateway(name, index)));
        for address in self.addresses() {
            requests.extend([
                Request::put_neighbour(
                    format!("put the neighbour {address} on {name}"),
                    message::neighbour(index, address, self.pod_mac),
                ),
                Request::add_route(
                    format!("route {address} over {name}"),
                    message::link_route(TABLE_MAIN, address, index),
                ),
            ]);
        }
        requests
    }
}

/// Whoever is behind a pod's link finds its IPv6 gateway by neighbour discovery: it is an address of the host end. In
/// IPv4 the host has one entry for all links. A host end that has IPv6 off gets it when the daemon has put it on.
pub(crate) fn answers_for_gateway(name: &str, index: u32) -> Request {
    let mut address = message::address(index, GATEWAY_V6.into(), Family::V6.host_len());
    // And leaves no route to it in main.
    address.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Noprefixroute));
    Request::put_address(format!("put {GATEWAY_V6} on {name}"), address).unless(Errno::EACCES)
}
