//! All that is ours in a host's rules, tables and neighbours, taken away: for a node that Enid leaves.

use std::collections::BTreeSet;

use netlink_packet_route::{route::RouteMessage, rule::RuleMessage};

use crate::{
    family::GATEWAY,
    netlink::{
        listing::Proxy,
        message::{self, TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN, asked_table, destination, priority, table},
        request::Request,
    },
    node::{found::Found, rules},
};

/// What has to be deleted, in two steps: first the tables that only our rules lead to, and the entry by which the pods' gateway
/// is found; then the rules, which tell which tables those are: whoever is interrupted in between finds them again. ENI links
/// and their addresses stay: they go with the ENIs. `stays`: which of our rules are left.
pub fn requests(found: &Found, stays: &dyn Fn(&RuleMessage) -> bool) -> [Vec<Request>; 2] {
    let goes = |rule: &&RuleMessage| rules::is_of_enid(rule) && !stays(rule);
    let (ours, foreign): (Vec<_>, Vec<_>) = found.rules.iter().partition(goes);
    let asked = |rules: &[&RuleMessage]| -> BTreeSet<(u8, u32)> {
        rules.iter().filter_map(|rule| Some((rule.header.family.into(), asked_table(rule)?))).collect()
    };
    let is_ours = |(_, table): &&(u8, u32)| ![TABLE_DEFAULT, TABLE_MAIN, TABLE_LOCAL].contains(table);
    let tables: BTreeSet<_> = asked(&ours).difference(&asked(&foreign)).filter(is_ours).copied().collect();
    let in_them = |route: &&RouteMessage| tables.contains(&(route.header.address_family.into(), table(route)));
    let mut first = Vec::new();
    for route in found.routes.iter().filter(in_them) {
        let to = destination(route).map_or_else(|| "default".to_owned(), |address| address.to_string());
        let what = format!("remove the route {to} from table {}", table(route));
        first.push(Request::delete_route(what, route.clone()));
    }
    for Proxy(entry) in found.proxies.iter().filter(|Proxy(there)| message::is_proxy(there, GATEWAY)) {
        let what = format!("answer for {GATEWAY} in neighbour discovery no more");
        first.push(Request::delete_neighbour(what, entry.clone()));
    }
    let of_rule = |rule: &&RuleMessage| {
        let number = priority(rule).unwrap_or_default();
        Request::delete_rule(format!("remove the rule {number}"), (*rule).clone())
    };
    [first, ours.iter().map(of_rule).collect()]
}
