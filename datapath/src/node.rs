//! What belongs to the node and its ENIs: link state, addresses, route tables, rules.
//!
//! [`changes`] compares what is wanted with what a listing found and returns only what differs, so a
//! restart with nothing changed writes nothing, and repair is the same act as set-up.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net};
use netlink_packet_route::{
    address::AddressMessage,
    link::{LinkFlags, LinkMessage},
    neighbour::NeighbourMessage,
    route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope},
    rule::RuleMessage,
};

use crate::{
    family::{Family, ROUTER_V6},
    identity::Mac,
    link::{self, group, ifname},
    message::{TABLE_MAIN, default_route, link_route, own_address, route_in, same_route},
    netlink::{Error, Netlink, Request},
    pods,
    policy::Policy,
    rules,
};

/// An ENI as the kernel should know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EniNet {
    /// Slot in marks and device groups; 0 is the primary ENI.
    pub slot: u32,
    /// Tells which link it is.
    pub mac: Mac,
    /// Its own primary address, with the subnet's prefix length.
    pub primary: Ipv4Net,
    /// Its own IPv6 address, if EC2 gave it one.
    pub own_v6: Option<Ipv6Addr>,
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

    fn gateway_of(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.gateway().into(),
            Family::V6 => ROUTER_V6.into(),
        }
    }

    /// Its own addresses, which the host uses itself.
    pub(crate) fn own(&self) -> impl Iterator<Item = IpAddr> {
        [Some(IpAddr::from(self.primary.addr())), self.own_v6.map(IpAddr::from)].into_iter().flatten()
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
    /// Lists links, addresses and rules of the namespace, and the routes of these families.
    pub fn read(netlink: &mut Netlink, families: &[Family]) -> Result<Self, Error> {
        Ok(Found {
            links: netlink.links()?,
            addresses: netlink.addresses()?,
            routes: netlink.routes(families)?,
            rules: netlink.rules()?,
            ..Found::default()
        })
    }

    /// Lists the neighbours too: pods need them, ENIs do not.
    pub fn with_neighbours(mut self, netlink: &mut Netlink, families: &[Family]) -> Result<Self, Error> {
        self.neighbours = netlink.neighbours(families)?;
        Ok(self)
    }

    /// Takes what an earlier reading had remembered, so that an ENI's link is known when it has lost its MAC.
    pub fn remember(mut self, before: &BTreeMap<Mac, u32>) -> Self {
        self.before = before.clone();
        self
    }

    /// The links of ENIs that have lost their MAC while nobody looked: those that rules and tables give to their slots.
    pub fn left_to(&self, enis: &[EniNet], policy: &Policy) -> BTreeMap<Mac, u32> {
        let links = rules::links(policy, self);
        let known: BTreeSet<u32> = self.indices(enis).into_values().collect();
        let lost = enis.iter().filter(|eni| self.link_of(eni.mac).is_none());
        let left = lost.filter_map(|eni| Some((eni.mac, *links.get(&eni.slot)?)));
        left.filter(|(_, index)| !known.contains(index)).collect()
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
        let nobodys = |link: &&LinkMessage| !pods::is_of_a_pod(group(link));
        // A VLAN or an ipvlan link on an ENI has its MAC, and came later. Kernels before 6.9 list links in no such order.
        let of_mac = self.links.iter().filter(nobodys).filter(|link| link::mac(link) == Some(mac));
        let by_mac = of_mac.min_by_key(|link| link.header.index);
        let before = self.before.get(&mac);
        by_mac.or_else(|| self.links.iter().filter(nobodys).find(|link| Some(&link.header.index) == before))
    }
}

/// What has to change so that the kernel carries these ENIs, which hold `pool` for pods, and leaves what it has of the
/// spared slots. A link that is not there yet is an error of its own: the caller waits for it.
pub fn changes(
    enis: &[EniNet],
    spared: &BTreeSet<u32>,
    pool: &[IpNet],
    policy: &Policy,
    found: &Found,
) -> Result<Vec<Request>, MissingLink> {
    let mut requests = rules::changes(enis, spared, policy, found);
    for eni in enis {
        let link = found.link_of(eni.mac).ok_or(MissingLink(eni.mac))?;
        // In a device group the rule for pods would take the routes over it for theirs.
        let wanted = link::Wanted { mac: eni.mac, group: 0, mtu: Some(eni.mtu), addresses: None };
        requests.extend(wanted.changes(link));
        address_changes(eni, link.header.index, pool, policy, found, &mut requests);
        if eni.slot != 0 {
            for family in policy.steered() {
                table_changes(eni, link, family, found, &mut requests);
            }
            subnet_changes(eni, link.header.index, found, &mut requests);
        }
    }
    Ok(requests)
}

/// EC2 says "attached" before the kernel shows the link.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("no link with MAC {0} on this node yet")]
pub struct MissingLink(pub Mac);

/// Pod addresses live in pods: a DHCP client's or cloud-setup's copy on the ENI would make them local. The primary's
/// other addresses are the host's own business.
fn address_changes(
    eni: &EniNet,
    index: u32,
    pool: &[IpNet],
    policy: &Policy,
    found: &Found,
    requests: &mut Vec<Request>,
) {
    let is_extra = |address: IpAddr| match (eni.slot, address) {
        (0, _) => !eni.own().any(|own| own == address) && pool.iter().any(|block| block.contains(&address)),
        (_, IpAddr::V4(address)) => !address.is_link_local(),
        (_, IpAddr::V6(address)) => policy.is_steered(Family::V6) && !address.is_unicast_link_local(),
    };
    // With its subnet's length in IPv4; IPv6 learns from the router what is on the link.
    let mut wanted = vec![(IpAddr::from(eni.primary.addr()), eni.primary.prefix_len())];
    wanted.extend(eni.own_v6.filter(|_| policy.is_steered(Family::V6)).map(|own| (IpAddr::from(own), 128)));
    for message in found.addresses.iter().filter(|message| message.header.index == index) {
        let Some(address) = own_address(message) else { continue };
        if wanted.contains(&(address, message.header.prefix_len)) {
            wanted.retain(|(there, _)| *there != address);
        } else if is_extra(address) {
            requests.push(Request::delete_address(format!("remove {address} from ENI link {index}"), message.clone()));
        }
    }
    if eni.slot != 0 {
        let put = |(address, length): (IpAddr, u8)| {
            let message = crate::message::address(index, address, length);
            Request::put_address(format!("put {address}/{length} on ENI link {index}"), message)
        };
        requests.extend(wanted.into_iter().map(put));
    }
}

/// The routes of an ENI's table.
pub(crate) fn eni_routes(eni: &EniNet, family: Family, index: u32) -> [(String, RouteMessage); 2] {
    let gateway = eni.gateway_of(family);
    let default = default_route(eni.table, gateway, index);
    [(gateway.to_string(), link_route(eni.table, gateway, index)), (family.default_net().to_owned(), default)]
}

fn table_changes(eni: &EniNet, link: &LinkMessage, family: Family, found: &Found, requests: &mut Vec<Request>) {
    let down = !link.header.flags.contains(LinkFlags::Up);
    for (what, route) in eni_routes(eni, family, link.header.index) {
        // A link that goes up has lost its routes, whatever was listed before.
        if down || !found.routes.iter().any(|there| same_route(there, &route)) {
            requests.push(Request::put_route(format!("route {what} in table {}", eni.table), route));
        }
    }
}

/// Main's answer for the subnet stays the primary's: two connected routes would compete. When the address is only being
/// added now, the kernel makes this route with it; so it is looked for either way.
fn subnet_changes(eni: &EniNet, index: u32, found: &Found, requests: &mut Vec<Request>) {
    let mut connected = route_in(Family::V4, TABLE_MAIN, RouteProtocol::Kernel);
    connected.header.scope = RouteScope::Link;
    connected.header.destination_prefix_length = eni.primary.prefix_len();
    connected.attributes.push(RouteAttribute::Destination(IpAddr::from(eni.primary.network()).into()));
    connected.attributes.push(RouteAttribute::Oif(index));
    let address_there = found
        .addresses
        .iter()
        .any(|message| message.header.index == index && own_address(message) == Some(eni.primary.addr().into()));
    if !address_there || found.routes.iter().any(|there| same_route(there, &connected)) {
        requests.push(Request::delete_route(format!("remove ENI link {index}'s subnet route from main"), connected));
    }
}
