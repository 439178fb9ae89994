//! Conflicts: foreign rules, routes and addresses that take precedence over ours and are not ours to remove. They are
//! reported.

use std::collections::BTreeSet;

use ipnet::IpNet;
use netlink_packet_route::{
    address::AddressMessage,
    route::{RouteMessage, RouteType},
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
};

use crate::{
    family::Family,
    marks,
    netlink::{
        link::{group, ifname},
        message::{
            TABLE_LOCAL, TABLE_MAIN, asked_table, destination, mark, oif, own_address, priority, same_route, same_rule,
            table,
        },
    },
    node::{eni::EniNet, found::Found, rules},
    policy::Policy,
};

/// So many are reported one by one: another network plugin leaves two rules for each pod.
const MOST: usize = 20;

/// What catches packets of these pods' addresses before our rules do, or stands in an ENI's table, one sentence each.
pub fn conflicts(enis: &[EniNet], pool: &[IpNet], policy: &Policy, found: &Found) -> Vec<String> {
    let wanted = rules::rules(enis, policy);
    let slots = enis.iter().map(|eni| eni.slot);
    let marks: Vec<u32> = slots.map(|slot| policy.marks.eni(slot)).chain([policy.marks.connmark()]).collect();
    let concerns = |rule: &&RuleMessage| {
        Family::ALL.into_iter().any(|family| family.netlink() == rule.header.family && policy.is_steered(family))
    };
    let of_pods: BTreeSet<u32> =
        found.links.iter().filter(|link| group(link) != 0).map(|link| link.header.index).collect();
    let foreign = |rule: &&RuleMessage| concerns(rule) && !wanted.values().any(|ours| same_rule(rule, ours));
    let rules = found.rules.iter().filter(foreign).filter(|rule| catches(rule, pool, &marks)).map(|rule| {
        let (priority, table) = (priority(rule).unwrap_or(0), asked_table(rule).unwrap_or(0));
        let what = match rule.header.action {
            RuleAction::ToTable => format!("lookup {table}"),
            other => format!("{other:?}").to_lowercase(),
        };
        format!("the rule {priority}: {}{what} catches packets of pods before our rules do", selectors(rule))
    });
    let routes = enis.iter().flat_map(|eni| {
        let index = found.carrier_of(eni).map(|link| link.header.index);
        let foreign = move |route: &&RouteMessage| {
            let ours = index.is_some_and(|index| {
                let wanted = Family::ALL.into_iter().flat_map(|family| eni.routes(family, index));
                wanted.into_iter().any(|(_, wanted)| same_route(route, &wanted))
            });
            table(route) == eni.table && !ours
        };
        let report = |route: &RouteMessage| {
            let length = route.header.destination_prefix_length;
            let to = destination(route).map_or("default".to_owned(), |to| format!("{to}/{length}"));
            format!("the route {to} in table {}, which is the ENI {}'s, is not ours", eni.table, eni.mac)
        };
        found.routes.iter().filter(foreign).map(report).collect::<Vec<_>>()
    });
    // A longer or better route in main that leads past a pod's link.
    let past = found.routes.iter().filter(|route| table(route) == TABLE_MAIN).filter_map(|route| {
        let to = destination(route)?;
        let whole = route.header.destination_prefix_length == Family::of(to).host_len();
        let ours = oif(route).is_some_and(|index| of_pods.contains(&index)) && route.header.kind == RouteType::Unicast;
        // The kernel's own, for the address that a secondary ENI keeps out of its block; no pod has it.
        let kept = enis.iter().any(|eni| eni.own().any(|own| own == to));
        let caught = whole && !ours && !kept && pool.iter().any(|block| block.contains(&to));
        caught.then(|| format!("the route {to} in main, whose kind is {:?}, leads past its pod", route.header.kind))
    });
    let of_enis: BTreeSet<u32> = found.indices(enis).into_values().collect();
    let addresses = found.addresses.iter().filter_map(|message| on_foreign_link(message, &of_enis, pool, found));
    let mut all: Vec<String> = rules.chain(routes).chain(past).chain(addresses).collect();
    if let Some(more) = all.len().checked_sub(MOST).filter(|more| *more > 0) {
        all.truncate(MOST);
        all.push(format!("and {more} more of the kind"));
    }
    all
}

/// A rule that picks by our addresses, or one before ours that picks by our marks or by nothing at all.
fn catches(rule: &RuleMessage, pool: &[IpNet], marks: &[u32]) -> bool {
    let by_something_else = |attribute: &RuleAttribute| {
        matches!(
            attribute,
            RuleAttribute::Iifname(_)
                | RuleAttribute::Oifname(_)
                | RuleAttribute::TunId(_)
                | RuleAttribute::UidRange(_)
                | RuleAttribute::L3MDev(_)
        )
    };
    if rule.attributes.iter().any(by_something_else) || asked_table(rule) == Some(TABLE_LOCAL) {
        return false;
    }
    let priority = priority(rule).unwrap_or(0);
    let (mark, mask) = mark(rule);
    let inverted = rule.header.flags.contains(RuleFlags::Invert);
    if mask != 0 {
        return priority < marks::PRIORITY_ENI && marks.iter().any(|ours| (ours & mask == mark) != inverted);
    }
    let (source, destination) = nets(rule);
    if inverted {
        // It spares only what is within both.
        let spared = |block: &IpNet| source.into_iter().chain(destination).all(|net| net.contains(block));
        return priority < marks::PRIORITY_ENI && !pool.iter().all(spared);
    }
    let in_pool = |net: IpNet| pool.iter().any(|block| block.contains(&net) || net.contains(block));
    match (source, destination) {
        (None, None) => priority < marks::PRIORITY_ENI,
        (source, destination) => {
            priority < rules::PRIORITY_MAIN && source.is_none_or(in_pool) && destination.is_none_or(in_pool)
        }
    }
}

fn nets(rule: &RuleMessage) -> (Option<IpNet>, Option<IpNet>) {
    let mut nets = (None, None);
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::Source(from) => nets.0 = IpNet::new(*from, rule.header.src_len).ok(),
            RuleAttribute::Destination(to) => nets.1 = IpNet::new(*to, rule.header.dst_len).ok(),
            _ => {}
        }
    }
    nets
}

fn selectors(rule: &RuleMessage) -> String {
    let (source, destination) = nets(rule);
    let from = source.map_or("from all ".to_owned(), |net| format!("from {net} "));
    let marked = match mark(rule) {
        (_, 0) => String::new(),
        (mark, mask) => format!("fwmark {mark:#x}/{mask:#x} "),
    };
    let not = if rule.header.flags.contains(RuleFlags::Invert) { "not " } else { "" };
    not.to_owned() + &from + &destination.map_or(String::new(), |net| format!("to {net} ")) + &marked
}

/// A pod's address on a link that is no ENI's makes it the host's own.
fn on_foreign_link(message: &AddressMessage, of_enis: &BTreeSet<u32>, pool: &[IpNet], found: &Found) -> Option<String> {
    let address = own_address(message)?;
    let index = message.header.index;
    if of_enis.contains(&index) || !pool.iter().any(|block| block.contains(&address)) {
        return None;
    }
    let name = found.links.iter().find(|link| link.header.index == index).map_or("?", ifname);
    Some(format!("{address}, an address for pods, is an address of the host's link {name}"))
}
