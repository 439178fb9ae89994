//! What stands before our rules and routes and is not ours to remove: it is told.

use ipnet::Ipv4Net;
use netlink_packet_route::{
    address::AddressMessage,
    route::RouteMessage,
    rule::{RuleAttribute, RuleMessage},
};

use crate::{
    marks,
    node::{self, EniNet, Found},
    pod,
    policy::Policy,
};

/// So many are told one by one: another network plugin leaves two rules for each pod.
const MOST: usize = 20;

/// What catches packets of these pods' addresses before our rules do, or stands in an ENI's table, one sentence each.
pub fn shadows(enis: &[EniNet], pool: &[Ipv4Net], policy: &Policy, found: &Found) -> Vec<String> {
    let wanted = node::rules(enis, policy);
    let slots = enis.iter().map(|eni| eni.slot);
    let marks: Vec<u32> = slots.map(|slot| policy.marks.eni(slot)).chain([policy.marks.connmark()]).collect();
    let foreign = |rule: &&RuleMessage| !wanted.values().any(|ours| node::same_rule(rule, ours));
    let rules = found.rules.iter().filter(foreign).filter(|rule| catches(rule, pool, &marks)).map(|rule| {
        let (priority, table) = (node::priority(rule).unwrap_or(0), node::table(rule).unwrap_or(0));
        format!("the rule {priority}: {}lookup {table} catches packets of pods before our rules do", selectors(rule))
    });
    let routes = enis.iter().filter(|eni| eni.slot != 0).flat_map(|eni| {
        let index = found.link_of(eni.mac).map(|link| link.header.index);
        let foreign = move |route: &&RouteMessage| {
            let ours = index.is_some_and(|index| {
                node::eni_routes(eni, index).iter().any(|(_, wanted)| node::same_route(route, wanted))
            });
            pod::table(route) == eni.table && !ours
        };
        let tell = |route: &RouteMessage| {
            let length = route.header.destination_prefix_length;
            let to = node::destination(route).map_or("default".to_owned(), |to| format!("{to}/{length}"));
            format!("the route {to} in table {}, which is the ENI {}'s, is not ours", eni.table, eni.mac)
        };
        found.routes.iter().filter(foreign).map(tell).collect::<Vec<_>>()
    });
    let addresses = found.addresses.iter().filter_map(|message| elsewhere(message, enis, pool, found));
    let mut all: Vec<String> = rules.chain(routes).chain(addresses).collect();
    if let Some(more) = all.len().checked_sub(MOST).filter(|more| *more > 0) {
        all.truncate(MOST);
        all.push(format!("and {more} more of the kind"));
    }
    all
}

/// A rule that picks by our addresses, or one before ours that picks by our marks or by nothing at all.
fn catches(rule: &RuleMessage, pool: &[Ipv4Net], marks: &[u32]) -> bool {
    let by_something_else = |attribute: &RuleAttribute| {
        matches!(
            attribute,
            RuleAttribute::Iifname(_)
                | RuleAttribute::Oifname(_)
                | RuleAttribute::TunId(_)
                | RuleAttribute::UidRange(_)
                | RuleAttribute::IpProtocol(_)
                | RuleAttribute::SourcePortRange(_)
                | RuleAttribute::DestinationPortRange(_)
                | RuleAttribute::L3MDev(_)
        )
    };
    if rule.attributes.iter().any(by_something_else) || node::table(rule) == Some(node::TABLE_LOCAL) {
        return false;
    }
    let priority = node::priority(rule).unwrap_or(0);
    let (mark, mask) = node::mark(rule);
    if mask != 0 {
        return priority < marks::PRIORITY_ENI && marks.iter().any(|ours| ours & mask == mark);
    }
    let (source, destination) = nets(rule);
    let in_pool = |net: Ipv4Net| pool.iter().any(|block| block.contains(&net) || net.contains(block));
    match (source, destination) {
        (None, None) => priority < marks::PRIORITY_ENI,
        (source, destination) => {
            priority < node::PRIORITY_MAIN && source.is_none_or(in_pool) && destination.is_none_or(in_pool)
        }
    }
}

fn nets(rule: &RuleMessage) -> (Option<Ipv4Net>, Option<Ipv4Net>) {
    let mut nets = (None, None);
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::Source(std::net::IpAddr::V4(from)) => nets.0 = Ipv4Net::new(*from, rule.header.src_len).ok(),
            RuleAttribute::Destination(std::net::IpAddr::V4(to)) => {
                nets.1 = Ipv4Net::new(*to, rule.header.dst_len).ok();
            }
            _ => {}
        }
    }
    nets
}

fn selectors(rule: &RuleMessage) -> String {
    let (source, destination) = nets(rule);
    let from = source.map_or("from all ".to_owned(), |net| format!("from {net} "));
    let marked = match node::mark(rule) {
        (_, 0) => String::new(),
        (mark, mask) => format!("fwmark {mark:#x}/{mask:#x} "),
    };
    from + &destination.map_or(String::new(), |net| format!("to {net} ")) + &marked
}

/// A pod's address on a link that is no ENI's makes it the host's own.
fn elsewhere(message: &AddressMessage, enis: &[EniNet], pool: &[Ipv4Net], found: &Found) -> Option<String> {
    let address = node::local_ipv4(message)?;
    let index = message.header.index;
    let of_an_eni = enis.iter().any(|eni| found.link_of(eni.mac).is_some_and(|link| link.header.index == index));
    if of_an_eni || !pool.iter().any(|block| block.contains(&address)) {
        return None;
    }
    let name = found.links.iter().find(|link| link.header.index == index).map_or("?", pod::ifname);
    Some(format!("{address}, an address for pods, is an address of the host's link {name}"))
}
