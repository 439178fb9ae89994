//! What differs between the ENIs as the kernel should carry them and what it has: links, addresses, tables, rules.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use netlink_packet_route::link::{LinkFlags, LinkMessage};

use crate::{
    family::{Family, GATEWAY},
    identity::Mac,
    netlink::{
        link,
        listing::Proxy,
        message::{self, connected_route, own_address, same_route},
        request::Request,
    },
    node::{eni::EniNet, found::Found, rules},
    policy::Policy,
};

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
    // A guest behind a pod's link, or a pod that has flushed its neighbours, asks for its gateway.
    if !found.proxies.iter().any(|Proxy(there)| message::is_proxy(there, GATEWAY)) {
        let what = format!("answer for {GATEWAY} in neighbour discovery");
        requests.push(Request::put_neighbour(what, message::proxy(GATEWAY)));
    }
    for eni in enis {
        let link = found.link_of(eni.mac).ok_or(MissingLink(eni.mac))?;
        // In a device group the rule for pods would take the routes over it for theirs.
        let wanted = link::Wanted { mac: eni.mac, group: 0, mtu: Some(eni.mtu), addresses: None };
        requests.extend(wanted.changes(link));
        let carrier = found.carrier_of(eni).unwrap_or(link);
        address_changes(eni, carrier.header.index, pool, policy, found, &mut requests);
        let is_needed = |family: &Family| eni.slot == 0 || policy.is_steered(*family);
        for family in policy.families().into_iter().filter(is_needed) {
            table_changes(eni, carrier, family, found, &mut requests);
        }
        if eni.slot != 0 {
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
            let wanted = message::address_of_link(index, address, length);
            Request::put_address(format!("put {address}/{length} on ENI link {index}"), wanted)
        };
        requests.extend(wanted.into_iter().map(put));
    }
}

fn table_changes(eni: &EniNet, link: &LinkMessage, family: Family, found: &Found, requests: &mut Vec<Request>) {
    let down = !link.header.flags.contains(LinkFlags::Up);
    for (what, route) in eni.routes(family, link.header.index) {
        // A link that goes up has lost its routes, whatever was listed before.
        if down || !found.routes.iter().any(|there| same_route(there, &route)) {
            requests.push(Request::put_route(format!("route {what} in table {}", eni.table), route));
        }
    }
}

/// Main's answer for the subnet stays the primary's: two connected routes would compete. When the address is only being
/// added now, the kernel makes this route with it; so it is looked for either way.
fn subnet_changes(eni: &EniNet, index: u32, found: &Found, requests: &mut Vec<Request>) {
    let connected = connected_route(eni.primary, index);
    let address_there = found
        .addresses
        .iter()
        .any(|message| message.header.index == index && own_address(message) == Some(eni.primary.addr().into()));
    if !address_there || found.routes.iter().any(|there| same_route(there, &connected)) {
        requests.push(Request::delete_route(format!("remove ENI link {index}'s subnet route from main"), connected));
    }
}
