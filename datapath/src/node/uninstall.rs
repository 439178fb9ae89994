//! All that is ours in a host's rules, tables and neighbours, taken away: for a node that Enid leaves.

use std::collections::BTreeSet;

use crate::{
    family::GATEWAY,
    netlink::{
        listing::Proxy,
        message::{self, TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN, asked_table, destination, priority, table},
        request::Request,
    },
    node::{found::Found, rules},
};

/// What has to be deleted: our rules, the tables that only they lead to, and the entry by which the pods' gateway is found. ENI
/// links and their addresses stay: they go with the ENIs.
pub fn requests(found: &Found) -> Vec<Request> {
    let ours: Vec<_> = found.rules.iter().filter(|rule| rules::is_of_enid(rule)).collect();
    let of_the_host = [TABLE_DEFAULT, TABLE_MAIN, TABLE_LOCAL];
    let tables: BTreeSet<u32> =
        ours.iter().filter_map(|rule| asked_table(rule)).filter(|table| !of_the_host.contains(table)).collect();
    let mut requests = Vec::new();
    for rule in ours {
        let number = priority(rule).unwrap_or_default();
        requests.push(Request::delete_rule(format!("remove the rule {number}"), rule.clone()));
    }
    for route in found.routes.iter().filter(|route| tables.contains(&table(route))) {
        let to = destination(route).map_or_else(|| "default".to_owned(), |address| address.to_string());
        let what = format!("remove the route {to} from table {}", table(route));
        requests.push(Request::delete_route(what, route.clone()));
    }
    for Proxy(entry) in found.proxies.iter().filter(|Proxy(there)| message::is_proxy(there, GATEWAY)) {
        let what = format!("answer for {GATEWAY} in neighbour discovery no more");
        requests.push(Request::delete_neighbour(what, entry.clone()));
    }
    requests
}
