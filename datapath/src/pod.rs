//! One pod's link: a veth, one host route in main and one permanent neighbour at each end.
//!
//! All of it vanishes with the link, so taking it down is one deletion and nothing can be left behind.
//! The pair is made from inside the pod's namespace with the host end directly in the host's: moving it
//! later would cost an RCU barrier. MACs are explicit, because udev rewrites those that are not, and the
//! permanent neighbours depend on them.

use std::{collections::BTreeSet, net::Ipv4Addr, os::fd::AsRawFd};

use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressMessage},
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use nix::errno::Errno;

use crate::{
    identity::{self, Mac},
    marks,
    netlink::{Error, Netlink, Request},
    netns::Netns,
    node,
};

/// The next hop that every pod sees; nobody owns it, the permanent neighbour answers for it.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

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
    /// The pod's address, always /32.
    pub address: Ipv4Addr,
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
    AddressRouted(Ipv4Addr),
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
            pod.apply(&link.own_routes(index)).map(|()| Routes::Own(own_table(index)))
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
        // A daemon that found the link without its route may have been faster.
        Err(_) if is_routed_over(link.address, pair.host_index, host).unwrap_or(false) => return Ok(()),
        Err(_) => WireError::AddressRouted(link.address),
    };
    undo(link, host);
    Err(error)
}

fn is_routed_over(address: Ipv4Addr, index: u32, host: &mut Netlink) -> Result<bool, Error> {
    let to = RouteAttribute::Destination(RouteAddress::Inet(address));
    let leads = |route: &RouteMessage| {
        route.header.destination_prefix_length == 32
            && route.attributes.contains(&to)
            && table(route) == node::TABLE_MAIN
            && oif(route) == Some(index)
    };
    Ok(host.routes()?.iter().any(leads))
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
    let rename = || {
        let mut message = by_index(found.header.index);
        message.attributes.push(LinkAttribute::IfName(aside.clone()));
        [Request::set_link(format!("rename {name} to {aside}"), message)]
    };
    if let Err(error) = host.apply(&rename()) {
        if !error.is(Errno::EBUSY) {
            return Err(error);
        }
        host.apply(&[Request::set_link(format!("take {name} down"), updown(found.header.index, false))])?;
        host.apply(&rename())?;
        host.apply(&[Request::set_link(format!("take {aside} up"), updown(found.header.index, true))])?;
    }
    Ok(Some(aside))
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
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(self.host_ifname.clone()),
            LinkAttribute::Address(self.host_mac.0.to_vec()),
            LinkAttribute::Mtu(self.mtu),
            LinkAttribute::Group(self.group),
            LinkAttribute::NetNsFd(host_ns.file().as_raw_fd()),
        ];
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(self.pod_ifname.clone()),
            LinkAttribute::Address(self.pod_mac.0.to_vec()),
            LinkAttribute::Mtu(self.mtu),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        message
    }

    fn pod_requests(&self, index: u32) -> Vec<Request> {
        let name = &self.pod_ifname;
        let mut address = AddressMessage::default();
        address.header.family = AddressFamily::Inet;
        address.header.prefix_len = 32;
        address.header.index = index;
        address.attributes =
            vec![AddressAttribute::Local(self.address.into()), AddressAttribute::Address(self.address.into())];
        vec![
            Request::set_link(format!("take {name} up"), updown(index, true)),
            Request::put_address(format!("put {}/32 on {name}", self.address), address),
            Request::put_neighbour(
                format!("put the neighbour {GATEWAY} on {name}"),
                neighbour(index, GATEWAY, self.host_mac),
            ),
            Request::add_route(format!("route {GATEWAY} over {name}"), link_route(node::TABLE_MAIN, GATEWAY, index)),
            Request::add_route(format!("route default over {name}"), default_route(node::TABLE_MAIN, index)),
        ]
    }

    fn own_routes(&self, index: u32) -> [Request; 3] {
        let (name, address, table) = (&self.pod_ifname, self.address, own_table(index));
        [
            Request::put_route(
                format!("route {GATEWAY} over {name} in table {table}"),
                link_route(table, GATEWAY, index),
            ),
            Request::put_route(format!("route default over {name} in table {table}"), default_route(table, index)),
            Request::add_rule(format!("add the rule from {address} lookup {table}"), node::rule_from(address, table)),
        ]
    }

    fn host_requests(&self, index: u32) -> Vec<Request> {
        let (name, address) = (&self.host_ifname, self.address);
        // The alias tells whose address it is even when every route is gone.
        let mut up = updown(index, true);
        up.attributes.push(LinkAttribute::IfAlias(address.to_string()));
        vec![
            Request::set_link(format!("take {name} up"), up),
            Request::put_neighbour(
                format!("put the neighbour {address} on {name}"),
                neighbour(index, address, self.pod_mac),
            ),
            Request::add_route(format!("route {address} over {name}"), link_route(node::TABLE_MAIN, address, index)),
        ]
    }
}

/// Deletes the host link with this MAC, wherever its name; true if there was one. The link of a
/// successor, with the same name and another MAC, is left alone.
pub fn remove_by_mac(wanted: Mac, likely_name: &str, host: &mut Netlink) -> Result<bool, Error> {
    let Some(found) = find_by_mac(wanted, likely_name, host)? else { return Ok(false) };
    delete(wanted, &found, host).map(|()| true)
}

/// Deletes the host links with these MACs as one act of the kernel; the likely name is where each is looked for first.
/// Alone, every deletion waits for grace periods with all of the node's link changes waiting behind it.
pub fn remove_together(wanted: &[(Mac, String)], host: &mut Netlink) -> Result<(), Error> {
    let mut going = Vec::new();
    let mut strays = BTreeSet::new();
    for (wanted, name) in wanted {
        match host.link(name)?.filter(|link| mac(link) == Some(*wanted)) {
            Some(link) => going.push((*wanted, link)),
            None => drop(strays.insert(*wanted)),
        }
    }
    if !strays.is_empty() {
        let listed = host.links()?.into_iter().filter_map(|link| Some((mac(&link)?, link)));
        going.extend(listed.filter(|(mac, _)| strays.contains(mac)));
    }
    match going.as_slice() {
        [] => Ok(()),
        [(mac, link)] => delete(*mac, link, host),
        several => {
            let gather = |(mac, link): &(Mac, LinkMessage)| {
                let mut message = by_index(link.header.index);
                message.attributes.push(LinkAttribute::Group(marks::GROUP_GOING));
                Request::set_going_link(format!("gather the link with MAC {mac} for its deletion"), message)
            };
            let mut all = LinkMessage::default();
            all.attributes.push(LinkAttribute::Group(marks::GROUP_GOING));
            let delete = Request::delete_link(format!("delete {} links together", several.len()), all);
            host.apply(&several.iter().map(gather).chain([delete]).collect::<Vec<_>>())
        }
    }
}

fn delete(mac: Mac, link: &LinkMessage, host: &mut Netlink) -> Result<(), Error> {
    host.apply(&[Request::delete_link(format!("delete the link with MAC {mac}"), by_index(link.header.index))])
}

/// The host link with this MAC: under its likely name, or else among all links.
pub fn find_by_mac(wanted: Mac, likely_name: &str, host: &mut Netlink) -> Result<Option<LinkMessage>, Error> {
    if let Some(link) = host.link(likely_name)?
        && mac(&link) == Some(wanted)
    {
        return Ok(Some(link));
    }
    Ok(host.links()?.into_iter().find(|link| mac(link) == Some(wanted)))
}

/// The Ethernet address of a link, if it has one.
pub fn mac(link: &LinkMessage) -> Option<Mac> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(bytes) => Mac::try_from(bytes.as_slice()).ok(),
        _ => None,
    })
}

/// The name of a link; the kernel gives every link one.
pub fn ifname(link: &LinkMessage) -> &str {
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    });
    name.unwrap_or_default()
}

pub(crate) fn by_index(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

pub(crate) fn updown(index: u32, up: bool) -> LinkMessage {
    let mut message = by_index(index);
    message.header.change_mask = LinkFlags::Up;
    message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
    message
}

pub(crate) fn neighbour(index: u32, address: Ipv4Addr, mac: Mac) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)),
        NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
    ];
    message
}

pub(crate) fn route_in(table: u32, protocol: RouteProtocol) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.protocol = protocol;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    // Numbers above 255 do not fit the header; RTA_TABLE carries all of them.
    message.header.table = u8::try_from(table).unwrap_or(0);
    message.attributes.push(RouteAttribute::Table(table));
    message
}

pub(crate) fn link_route(table: u32, to: Ipv4Addr, index: u32) -> RouteMessage {
    let mut message = route_in(table, RouteProtocol::Static);
    message.header.scope = RouteScope::Link;
    message.header.destination_prefix_length = 32;
    message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(to)));
    message.attributes.push(RouteAttribute::Oif(index));
    message
}

fn default_route(table: u32, index: u32) -> RouteMessage {
    let mut message = route_in(table, RouteProtocol::Static);
    message.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(GATEWAY)));
    message.attributes.push(RouteAttribute::Oif(index));
    message
}

/// The table that a route is in.
pub(crate) fn table(route: &RouteMessage) -> u32 {
    let named = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    named.unwrap_or(route.header.table.into())
}

/// The link that a route leads over.
pub(crate) fn oif(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}
