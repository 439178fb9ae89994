//! The node's routing policy rules: a handful for all ENIs, none for a pod.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use netlink_packet_route::{
    route::RouteMessage,
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
};

use crate::{
    family::Family,
    identity::Mac,
    marks::{self, Marks},
    netlink::{
        link,
        message::{
            OURS, TABLE_DEFAULT, TABLE_MAIN, asked_table, destination, is_made_by_us, mark, marked, oif, priority,
            rule, rule_from, same_rule, table,
        },
        request::Request,
    },
    node::{eni::EniNet, found::Found},
    policy::{NodePorts, Policy},
};

/// Where the kernel has the rules for main and default at boot (ip-rule(8)); IPv6 has none for default.
pub(crate) const PRIORITY_MAIN: u32 = 32766;
const PRIORITY_DEFAULT: u32 = 32767;
const BEHIND_CONNMARK: u32 = marks::PRIORITY_CONNMARK + marks::BEHIND;
const BEHIND_ENI: u32 = marks::PRIORITY_ENI + marks::BEHIND;

/// The rules of spared slots stay as they are: pods stand behind an ENI that cannot be looked at.
pub(crate) fn changes(enis: &[EniNet], spared: &BTreeSet<u32>, policy: &Policy, found: &Found) -> Vec<Request> {
    let of_spared = found.rules.iter().filter(|rule| slot_of(rule, policy).is_some_and(|slot| spared.contains(&slot)));
    let spared: BTreeSet<u32> = of_spared.filter_map(asked_table).collect();
    let of_an_eni = |rule: &RuleMessage| matches!(priority(rule), Some(marks::PRIORITY_ENI | marks::PRIORITY_PRIMARY));
    let stays = |rule: &RuleMessage| of_an_eni(rule) && asked_table(rule).is_some_and(|table| spared.contains(&table));
    let wanted = rules(enis, policy);
    let mut requests = Vec::new();
    // A flush takes these along, and with them the host's own way out.
    let kernels = [
        (Family::V4, "main", TABLE_MAIN, PRIORITY_MAIN),
        (Family::V4, "default", TABLE_DEFAULT, PRIORITY_DEFAULT),
        (Family::V6, "main", TABLE_MAIN, PRIORITY_MAIN),
    ];
    for (family, name, table, priority) in kernels.into_iter().filter(|(family, ..)| policy.knows(*family)) {
        if !found.rules.iter().any(|there| is_plain(there, family, table)) {
            let what = format!("add the {} rule {priority}: lookup {name}", family.word());
            requests.push(Request::add_rule(what, rule(family, priority, table)));
        }
    }
    for (what, rule) in &wanted {
        if !found.rules.iter().any(|there| same_rule(there, rule)) {
            requests.push(Request::add_rule(format!("add the rule {what}"), rule.clone()));
        }
    }
    for there in found.rules.iter().filter(|rule| is_ours(rule) && !stays(rule)) {
        if !wanted.values().any(|rule| same_rule(there, rule)) {
            requests.push(Request::delete_rule("remove a rule of ours that is not wanted any more", there.clone()));
        }
    }
    requests
}

/// The kinds of rule, by their text. None of them is a pod's.
pub fn rules(enis: &[EniNet], policy: &Policy) -> BTreeMap<String, RuleMessage> {
    let mut rules = BTreeMap::new();
    for family in policy.families() {
        for (what, rule) in of_family(family, enis, policy) {
            rules.insert(format!("{} {what}", family.word()), rule);
        }
    }
    rules
}

fn of_family(family: Family, enis: &[EniNet], policy: &Policy) -> Vec<(String, RuleMessage)> {
    let (marks, mask) = (policy.marks, policy.marks.eni_mask());
    let mut pods = rule(family, marks::PRIORITY_PODS, TABLE_MAIN);
    pods.attributes.push(RuleAttribute::SuppressIfGroup(0));
    let mut rules = vec![(format!("{}: lookup main suppress_ifgroup 0", marks::PRIORITY_PODS), pods)];
    for primary in enis.iter().filter(|eni| eni.slot == 0) {
        if policy.node_ports == NodePorts::SameWayBack {
            let bits = marks.connmark();
            rules.extend(by_primary(family, marks::PRIORITY_CONNMARK, (bits, bits), primary.table));
        }
        rules.extend(by_primary(family, marks::PRIORITY_ENI, (marks.eni(0), mask), primary.table));
        if family == Family::V4 {
            let mut last = rule(family, marks::PRIORITY_LAST, primary.table);
            last.attributes.extend([RuleAttribute::Iifname("lo".to_owned()), RuleAttribute::Protocol(OURS)]);
            last.header.flags = RuleFlags::Invert;
            rules.push((format!("{}: not from all iif lo lookup {}", marks::PRIORITY_LAST, primary.table), last));
        }
    }
    for net in policy.by_main.iter().filter(|_| family == Family::V4) {
        let mut by_main = rule(family, marks::PRIORITY_BY_MAIN, TABLE_MAIN);
        by_main.header.dst_len = net.prefix_len();
        by_main.attributes.push(RuleAttribute::Destination(net.addr().into()));
        rules.push((format!("{}: to {net} lookup main", marks::PRIORITY_BY_MAIN), by_main));
    }
    for eni in enis.iter().filter(|eni| eni.slot != 0 && policy.is_steered(family)) {
        let (mark, table) = (marks.eni(eni.slot), eni.table);
        let steered = marked(rule(family, marks::PRIORITY_ENI, table), mark, mask);
        rules.push((format!("{}: fwmark {mark:#x}/{mask:#x} lookup {table}", marks::PRIORITY_ENI), steered));
        for own in eni.own().filter(|own| Family::of(*own) == family) {
            let from = rule_from(marks::PRIORITY_PRIMARY, own, table);
            rules.push((format!("{}: from {own} lookup {table}", marks::PRIORITY_PRIMARY), from));
        }
    }
    rules
}

/// What carries this mark goes by main, but for its default route, which the host may have changed; then by the
/// primary ENI's table.
fn by_primary(family: Family, priority: u32, (mark, mask): (u32, u32), table: u32) -> [(String, RuleMessage); 2] {
    let behind = priority + marks::BEHIND;
    let mut main = marked(rule(family, priority, TABLE_MAIN), mark, mask);
    main.attributes.push(RuleAttribute::SuppressPrefixLen(0));
    let mut own_table = marked(rule(family, behind, table), mark, mask);
    own_table.attributes.push(RuleAttribute::Protocol(OURS));
    let named = format!("fwmark {mark:#x}/{mask:#x} lookup");
    [
        (format!("{priority}: {named} main suppress_prefixlength 0"), main),
        (format!("{behind}: {named} {table}"), own_table),
    ]
}

/// Rules at our numbers that look like ours, whatever the settings were when they were made.
fn is_ours(rule: &RuleMessage) -> bool {
    let (mark, mask) = mark(rule);
    let Some(family) = Family::ALL.into_iter().find(|family| family.netlink() == rule.header.family) else {
        return false;
    };
    match priority(rule) {
        // IPv4's is always wanted.
        Some(marks::PRIORITY_PODS) => {
            family == Family::V6 && rule.attributes.contains(&RuleAttribute::SuppressIfGroup(0))
        }
        // One that does not leave out main's default route is that of Amazon's VPC CNI, which goes last when a node is taken over.
        Some(marks::PRIORITY_CONNMARK) => {
            let leaves_out = rule.attributes.contains(&RuleAttribute::SuppressPrefixLen(0));
            leaves_out && asked_table(rule) == Some(TABLE_MAIN) && mark != 0 && mark == mask
        }
        Some(marks::PRIORITY_BY_MAIN) => {
            asked_table(rule) == Some(TABLE_MAIN) && rule.header.dst_len > 0 && rule.header.src_len == 0 && mark == 0
        }
        Some(marks::PRIORITY_ENI) => Marks::names_an_eni(mark, mask),
        Some(BEHIND_CONNMARK | BEHIND_ENI | marks::PRIORITY_LAST) => is_made_by_us(rule),
        Some(marks::PRIORITY_PRIMARY) => {
            // The kernel gives this number to the first rule that somebody adds without one (ip-rule(8)).
            is_made_by_us(rule)
                && asked_table(rule).is_some_and(is_of_a_secondary)
                && rule.header.src_len == family.host_len()
        }
        _ => false,
    }
}

/// Whether a table's number is a secondary ENI's.
pub(crate) fn is_of_a_secondary(table: u32) -> bool {
    (2..=64).contains(&table) || (10_100..20_000).contains(&table)
}

/// The same, and the rule for pods' own addresses, which is wanted as long as there is a daemon.
pub(crate) fn is_of_enid(rule: &RuleMessage) -> bool {
    let of_pods = priority(rule) == Some(marks::PRIORITY_PODS);
    is_ours(rule) || of_pods && rule.attributes.contains(&RuleAttribute::SuppressIfGroup(0))
}

/// It sends everything of the family to that table.
fn is_plain(there: &RuleMessage, family: Family, to: u32) -> bool {
    use RuleAttribute::{Priority, Protocol, SuppressPrefixLen, Table};
    // The kernel lists "suppress nothing" with every rule.
    let says_nothing = |attribute: &RuleAttribute| {
        matches!(attribute, Priority(_) | Protocol(_) | Table(_) | SuppressPrefixLen(u32::MAX))
    };
    there.header.family == family.netlink()
        && there.header.action == RuleAction::ToTable
        && there.header.tos == 0
        && !there.header.flags.contains(RuleFlags::Invert)
        && asked_table(there) == Some(to)
        && there.attributes.iter().all(says_nothing)
}

/// The slot whose mark a rule sends to a table.
fn slot_of(rule: &RuleMessage, policy: &Policy) -> Option<u32> {
    let (mark, mask) = mark(rule);
    let named = priority(rule) == Some(marks::PRIORITY_ENI) && mask == policy.marks.eni_mask();
    (1..marks::SLOTS).find(|slot| policy.marks.eni(*slot) == mark).filter(|_| named)
}

/// The links that rules and tables give to slots, as an earlier run of the daemon has left them.
pub fn links(policy: &Policy, found: &Found) -> BTreeMap<u32, u32> {
    let of_rule = |rule: &RuleMessage| {
        let of_table = |route: &&RouteMessage| Some(table(route)) == asked_table(rule) && destination(route).is_none();
        Some((slot_of(rule, policy)?, found.routes.iter().find(of_table).and_then(oif)?))
    };
    found.rules.iter().filter_map(of_rule).collect()
}

/// The slots of links by MAC, as an earlier run of the daemon has left them.
pub fn slots(policy: &Policy, found: &Found) -> BTreeMap<Mac, u32> {
    let of_link = |(slot, index): (u32, u32)| {
        let link = found.links.iter().find(|link| link.header.index == index)?;
        Some((link::mac(link)?, slot))
    };
    links(policy, found).into_iter().filter_map(of_link).collect()
}

/// The links of ENIs that have lost their MAC while no daemon ran: those that rules and tables give to their slots.
pub fn links_without_mac(found: &Found, enis: &[EniNet], policy: &Policy) -> BTreeMap<Mac, u32> {
    let links = links(policy, found);
    let known: BTreeSet<u32> = found.indices(enis).into_values().collect();
    let lost = enis.iter().filter(|eni| found.link_of(eni.mac).is_none());
    let left = lost.filter_map(|eni| Some((eni.mac, *links.get(&eni.slot)?)));
    left.filter(|(_, index)| !known.contains(index)).collect()
}

/// Whether it is our rule for what an ENI's own address sends.
pub(crate) fn asks_for(rule: &RuleMessage, address: IpAddr, table: u32) -> bool {
    same_rule(rule, &rule_from(marks::PRIORITY_PRIMARY, address, table))
}
