//! What belongs to the node and its ENIs: link state, addresses, route tables, rules.
//!
//! [`changes`] compares what is wanted with what a listing found and returns only what differs, so a
//! restart with nothing changed writes nothing, and repair is the same act as set-up.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use ipnet::Ipv4Net;
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressMessage},
    link::{LinkAttribute, LinkFlags, LinkMessage},
    neighbour::NeighbourMessage,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};

use crate::{
    identity::Mac,
    marks::{self, Marks},
    netlink::{Error, Netlink, Request},
    pod::{self, ifname, route_in, updown},
    policy::{NodePorts, Policy},
};

/// RT_TABLE_DEFAULT, RT_TABLE_MAIN and RT_TABLE_LOCAL (linux/rtnetlink.h).
const TABLE_DEFAULT: u32 = 253;
pub(crate) const TABLE_MAIN: u32 = 254;
pub(crate) const TABLE_LOCAL: u32 = 255;
/// Where the kernel has the rules for main and default at boot (ip-rule(8)).
pub(crate) const PRIORITY_MAIN: u32 = 32766;
const PRIORITY_DEFAULT: u32 = 32767;

/// An ENI as the kernel should know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EniNet {
    /// Slot in marks and device groups; 0 is the primary ENI.
    pub slot: u32,
    /// Tells which link it is.
    pub mac: Mac,
    /// Its own primary address, with the subnet's prefix length.
    pub primary: Ipv4Net,
    /// Its route table; the primary uses main.
    pub table: u32,
    /// Bytes.
    pub mtu: u32,
}

impl EniNet {
    /// The subnet's gateway: its first address (Amazon VPC User Guide, subnet CIDR blocks).
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.primary.network()) + 1)
    }
}

/// The kernel's answer to its listings.
#[derive(Debug, Default)]
pub struct Found {
    pub(crate) links: Vec<LinkMessage>,
    pub(crate) addresses: Vec<AddressMessage>,
    pub(crate) routes: Vec<RouteMessage>,
    pub(crate) rules: Vec<RuleMessage>,
    pub(crate) neighbours: Vec<NeighbourMessage>,
    /// Which link had which MAC before.
    pub(crate) before: BTreeMap<Mac, u32>,
}

impl Found {
    /// Lists links, addresses, routes and rules of the namespace.
    pub fn read(netlink: &mut Netlink) -> Result<Self, Error> {
        Ok(Found {
            links: netlink.links()?,
            addresses: netlink.addresses()?,
            routes: netlink.routes()?,
            rules: netlink.rules()?,
            ..Found::default()
        })
    }

    /// Lists the neighbours too: pods need them, ENIs do not.
    pub fn with_neighbours(mut self, netlink: &mut Netlink) -> Result<Self, Error> {
        self.neighbours = netlink.neighbours()?;
        Ok(self)
    }

    /// Takes what an earlier reading had remembered, so that an ENI's link is known when it has lost its MAC.
    pub fn remember(mut self, before: &BTreeMap<Mac, u32>) -> Self {
        self.before = before.clone();
        self
    }

    /// Which links these ENIs have.
    pub fn indices(&self, enis: &[EniNet]) -> BTreeMap<Mac, u32> {
        enis.iter().filter_map(|eni| Some((eni.mac, self.link_of(eni.mac)?.header.index))).collect()
    }

    /// Name of the link with this MAC that no device group marks as a pod's.
    pub fn ifname_of(&self, mac: Mac) -> Option<&str> {
        self.link_of(mac).map(ifname)
    }

    pub(crate) fn link_of(&self, mac: Mac) -> Option<&LinkMessage> {
        let nobodys = |link: &&LinkMessage| !is_of_a_pod(group(link));
        let by_mac = self.links.iter().filter(nobodys).find(|link| pod::mac(link) == Some(mac));
        let before = self.before.get(&mac);
        by_mac.or_else(|| self.links.iter().filter(nobodys).find(|link| Some(&link.header.index) == before))
    }
}

/// The host end of a pod's link.
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
    /// The address that its alias names, once it is wired.
    pub address: Option<IpAddr>,
}

/// Every link of a device group of ours, those that are being deleted among them.
pub fn pod_links(links: &[LinkMessage]) -> Vec<PodEnd> {
    let ours = links.iter().filter(|link| is_of_a_pod(group(link)));
    let end = |link: &LinkMessage| {
        let (index, group) = (link.header.index, group(link));
        Some(PodEnd { mac: pod::mac(link)?, ifname: ifname(link).to_owned(), index, group, address: alias(link) })
    };
    ours.filter_map(end).collect()
}

fn is_of_a_pod(group: u32) -> bool {
    marks::slot_of_group(group).is_some() || group == marks::GROUP_GOING
}

/// The address that a link's alias names.
pub(crate) fn alias(link: &LinkMessage) -> Option<IpAddr> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfAlias(text) => text.parse().ok(),
        _ => None,
    })
}

/// Bytes.
pub(crate) fn mtu(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

/// The addresses that main routes over these links, and those that the links' aliases name, one by one: what their
/// pods use.
pub fn used_over(ends: &[PodEnd], routes: &[RouteMessage]) -> Vec<IpAddr> {
    let indices: BTreeSet<u32> = ends.iter().map(|end| end.index).collect();
    let over = |route: &RouteMessage| {
        let mut found = (None, None);
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Oif(index) => found.0 = Some(*index),
                RouteAttribute::Destination(RouteAddress::Inet(address)) => found.1 = Some(IpAddr::V4(*address)),
                _ => {}
            }
        }
        let (index, address) = (found.0?, found.1?);
        let host_route = route.header.destination_prefix_length == 32;
        (host_route && indices.contains(&index)).then_some(address)
    };
    let routed: BTreeSet<IpAddr> = routes.iter().filter_map(over).collect();
    routed.into_iter().chain(ends.iter().filter_map(|end| end.address)).collect::<BTreeSet<_>>().into_iter().collect()
}

/// The device group of a link; links that say none are in 0.
pub(crate) fn group(link: &LinkMessage) -> u32 {
    let found = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Group(group) => Some(*group),
        _ => None,
    });
    found.unwrap_or(0)
}

/// What has to change so that the kernel carries these ENIs, which hold `pool` for pods. A link that is not there yet
/// is an error of its own: the caller waits for it.
pub fn changes(enis: &[EniNet], pool: &[Ipv4Net], policy: &Policy, found: &Found) -> Result<Vec<Request>, MissingLink> {
    let mut requests = rule_changes(enis, policy, found);
    for eni in enis {
        let link = found.link_of(eni.mac).ok_or(MissingLink(eni.mac))?;
        link_changes(eni, link, &mut requests);
        address_changes(eni, link.header.index, pool, found, &mut requests);
        if eni.slot != 0 {
            route_changes(eni, link, found, &mut requests);
        }
    }
    Ok(requests)
}

/// EC2 says "attached" before the kernel shows the link.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("no link with MAC {0} on this node yet")]
pub struct MissingLink(pub Mac);

fn link_changes(eni: &EniNet, link: &LinkMessage, requests: &mut Vec<Request>) {
    let (index, name) = (link.header.index, ifname(link));
    let mut set = |what: String, attribute: LinkAttribute| {
        let mut message = pod::by_index(index);
        message.attributes.push(attribute);
        requests.push(Request::set_link(what, message));
    };
    if pod::mac(link) != Some(eni.mac) {
        set(format!("set the MAC of {name} to {}", eni.mac), LinkAttribute::Address(eni.mac.0.to_vec()));
    }
    if group(link) != 0 {
        // The rule for pods would take the routes over it for theirs.
        set(format!("take {name} out of the device group {:#x}", group(link)), LinkAttribute::Group(0));
    }
    if mtu(link) != Some(eni.mtu) {
        set(format!("set the MTU of {name} to {}", eni.mtu), LinkAttribute::Mtu(eni.mtu));
    }
    if !link.header.flags.contains(LinkFlags::Up) {
        requests.push(Request::set_link(format!("take {name} up"), updown(index, true)));
    }
}

/// Pod addresses live in pods: a DHCP client's or cloud-setup's copy on the ENI would make them local. The primary's
/// other addresses are the host's own business.
fn address_changes(eni: &EniNet, index: u32, pool: &[Ipv4Net], found: &Found, requests: &mut Vec<Request>) {
    let is_extra = |address: Ipv4Addr| match eni.slot {
        0 => address != eni.primary.addr() && pool.iter().any(|block| block.contains(&address)),
        _ => !address.is_link_local(),
    };
    let mut there = false;
    for message in &found.addresses {
        let Some(address) = local_ipv4(message).filter(|_| message.header.index == index) else { continue };
        if address == eni.primary.addr() && message.header.prefix_len == eni.primary.prefix_len() {
            there = true;
        } else if is_extra(address) {
            requests.push(Request::delete_address(format!("remove {address} from ENI link {index}"), message.clone()));
        }
    }
    if !there && eni.slot != 0 {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = eni.primary.prefix_len();
        message.header.index = index;
        message.attributes = vec![
            AddressAttribute::Local(eni.primary.addr().into()),
            AddressAttribute::Address(eni.primary.addr().into()),
        ];
        requests.push(Request::put_address(format!("put {} on ENI link {index}", eni.primary), message));
    }
}

/// The routes of an ENI's table.
pub(crate) fn eni_routes(eni: &EniNet, index: u32) -> [(String, RouteMessage); 2] {
    let gateway = eni.gateway();
    let mut to_gateway = route_in(eni.table, RouteProtocol::Static);
    to_gateway.header.scope = RouteScope::Link;
    to_gateway.header.destination_prefix_length = 32;
    to_gateway.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(gateway)));
    to_gateway.attributes.push(RouteAttribute::Oif(index));
    let mut default = route_in(eni.table, RouteProtocol::Static);
    default.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)));
    default.attributes.push(RouteAttribute::Oif(index));
    [(format!("{gateway}"), to_gateway), ("default".to_owned(), default)]
}

fn route_changes(eni: &EniNet, link: &LinkMessage, found: &Found, requests: &mut Vec<Request>) {
    let index = link.header.index;
    let down = !link.header.flags.contains(LinkFlags::Up);
    for (what, route) in eni_routes(eni, index) {
        // A link that goes up has lost its routes, whatever was listed before.
        if down || !found.routes.iter().any(|there| same_route(there, &route)) {
            requests.push(Request::put_route(format!("route {what} in table {}", eni.table), route));
        }
    }
    // Main's answer for the subnet stays the primary's: two connected routes would compete. When the
    // address is only being added now, the kernel makes this route with it; so it is looked for either way.
    let mut connected = route_in(TABLE_MAIN, RouteProtocol::Kernel);
    connected.header.scope = RouteScope::Link;
    connected.header.destination_prefix_length = eni.primary.prefix_len();
    connected.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(eni.primary.network())));
    connected.attributes.push(RouteAttribute::Oif(index));
    let address_there = found
        .addresses
        .iter()
        .any(|message| message.header.index == index && local_ipv4(message) == Some(eni.primary.addr()));
    if !address_there || found.routes.iter().any(|there| same_route(there, &connected)) {
        requests.push(Request::delete_route(format!("remove ENI link {index}'s subnet route from main"), connected));
    }
}

fn rule_changes(enis: &[EniNet], policy: &Policy, found: &Found) -> Vec<Request> {
    let wanted = rules(enis, policy);
    let mut requests = Vec::new();
    // A flush takes these two along, and with them the host's own way out.
    for (name, table, priority) in [("main", TABLE_MAIN, PRIORITY_MAIN), ("default", TABLE_DEFAULT, PRIORITY_DEFAULT)] {
        if !found.rules.iter().any(|there| is_plain(there, table)) {
            requests.push(Request::add_rule(format!("add the rule {priority}: lookup {name}"), rule(priority, table)));
        }
    }
    for (what, rule) in &wanted {
        if !found.rules.iter().any(|there| same_rule(there, rule)) {
            requests.push(Request::add_rule(format!("add the rule {what}"), rule.clone()));
        }
    }
    for there in found.rules.iter().filter(|rule| is_ours(rule)) {
        if !wanted.values().any(|rule| same_rule(there, rule)) {
            requests.push(Request::delete_rule("remove a rule of ours that is not wanted any more", there.clone()));
        }
    }
    requests
}

/// The kinds of rule, by their text. None of them is a pod's.
pub fn rules(enis: &[EniNet], policy: &Policy) -> BTreeMap<String, RuleMessage> {
    let mut rules = BTreeMap::new();
    let (marks, mask) = (policy.marks, policy.marks.eni_mask());
    let mut pods = rule(marks::PRIORITY_PODS, TABLE_MAIN);
    pods.attributes.push(RuleAttribute::SuppressIfGroup(0));
    rules.insert(format!("{}: lookup main suppress_ifgroup 0", marks::PRIORITY_PODS), pods);
    if policy.node_ports == NodePorts::SameWayBack {
        let bits = marks.connmark();
        let connmark = marked(rule(marks::PRIORITY_CONNMARK, TABLE_MAIN), bits, bits);
        rules.insert(format!("{}: fwmark {bits:#x}/{bits:#x} lookup main", marks::PRIORITY_CONNMARK), connmark);
    }
    for net in &policy.by_main {
        let mut by_main = rule(marks::PRIORITY_BY_MAIN, TABLE_MAIN);
        by_main.header.dst_len = net.prefix_len();
        by_main.attributes.push(RuleAttribute::Destination(net.addr().into()));
        rules.insert(format!("{}: to {net} lookup main", marks::PRIORITY_BY_MAIN), by_main);
    }
    for eni in enis.iter().filter(|eni| eni.slot != 0) {
        let mark = marks.eni(eni.slot);
        let steered = marked(rule(marks::PRIORITY_ENI, eni.table), mark, mask);
        rules.insert(format!("{}: fwmark {mark:#x}/{mask:#x} lookup {}", marks::PRIORITY_ENI, eni.table), steered);
        let own = rule_from(eni.primary.addr(), eni.table);
        rules.insert(format!("{}: from {} lookup {}", marks::PRIORITY_PRIMARY, eni.primary.addr(), eni.table), own);
    }
    rules
}

fn rule(priority: u32, table: u32) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.action = RuleAction::ToTable;
    message.header.table = u8::try_from(table).unwrap_or(0);
    message.attributes = vec![RuleAttribute::Priority(priority), RuleAttribute::Table(table)];
    message
}

/// What comes from this address asks that table.
pub(crate) fn rule_from(address: Ipv4Addr, table: u32) -> RuleMessage {
    let mut message = rule(marks::PRIORITY_PRIMARY, table);
    message.header.src_len = 32;
    message.attributes.push(RuleAttribute::Source(address.into()));
    message
}

fn marked(mut rule: RuleMessage, mark: u32, mask: u32) -> RuleMessage {
    rule.attributes.push(RuleAttribute::FwMark(mark));
    rule.attributes.push(RuleAttribute::FwMask(mask));
    rule
}

/// Rules at our numbers that look like ours, whatever the settings were when they were made.
fn is_ours(rule: &RuleMessage) -> bool {
    let (mark, mask) = mark(rule);
    match priority(rule) {
        Some(marks::PRIORITY_CONNMARK) => table(rule) == Some(TABLE_MAIN) && mark != 0 && mark == mask,
        Some(marks::PRIORITY_BY_MAIN) => {
            table(rule) == Some(TABLE_MAIN) && rule.header.dst_len > 0 && rule.header.src_len == 0 && mark == 0
        }
        Some(marks::PRIORITY_ENI) => Marks::names_an_eni(mark, mask),
        Some(marks::PRIORITY_PRIMARY) => {
            let secondary = |table: u32| (2..=64).contains(&table) || (10_100..20_000).contains(&table);
            table(rule).is_some_and(secondary) && rule.header.src_len == 32
        }
        _ => false,
    }
}

/// A rule's mark and mask; a mask of 0: it has none.
pub(crate) fn mark(rule: &RuleMessage) -> (u32, u32) {
    let mut found = (0, 0);
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::FwMark(mark) => found.0 = *mark,
            RuleAttribute::FwMask(mask) => found.1 = *mask,
            _ => {}
        }
    }
    found
}

/// It sends everything to that table.
fn is_plain(there: &RuleMessage, to: u32) -> bool {
    use RuleAttribute::{Priority, Protocol, SuppressPrefixLen, Table};
    // The kernel lists "suppress nothing" with every rule.
    let says_nothing = |attribute: &RuleAttribute| {
        matches!(attribute, Priority(_) | Protocol(_) | Table(_) | SuppressPrefixLen(u32::MAX))
    };
    table(there) == Some(to) && there.attributes.iter().all(says_nothing)
}

pub(crate) fn priority(rule: &RuleMessage) -> Option<u32> {
    rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    })
}

pub(crate) fn table(rule: &RuleMessage) -> Option<u32> {
    rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    })
}

/// The kernel lists more attributes than we set; ours must all be among them.
pub(crate) fn same_rule(there: &RuleMessage, wanted: &RuleMessage) -> bool {
    there.header.src_len == wanted.header.src_len
        && there.header.dst_len == wanted.header.dst_len
        && wanted.attributes.iter().all(|attribute| there.attributes.contains(attribute))
}

/// Where a route leads to; `None` for default.
pub(crate) fn destination(route: &RouteMessage) -> Option<Ipv4Addr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    })
}

pub(crate) fn same_route(there: &RouteMessage, wanted: &RouteMessage) -> bool {
    there.header.destination_prefix_length == wanted.header.destination_prefix_length
        && wanted.attributes.iter().all(|attribute| there.attributes.contains(attribute))
}

pub(crate) fn local_ipv4(message: &AddressMessage) -> Option<Ipv4Addr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(std::net::IpAddr::V4(address)) => Some(*address),
        _ => None,
    })
}
