//! The way back: what Amazon's VPC CNI has in the kernel stands again, and then what is ours goes. Our rules at 1535 stay: they
//! are the other system's too.

use std::{collections::BTreeMap, net::IpAddr};

use netlink_packet_route::{link::LinkMessage, rule::RuleMessage};
use rtnetlink::LinkUnspec;

use super::{PRIORITY_FROM, PRIORITY_TO, source};
use crate::{
    family::Family,
    identity::Mac,
    marks,
    netlink::{
        link::{self, group, ifname, named},
        message::{self, TABLE_MAIN, asked_table, host_route, is_made_by_us, marked, priority, rule},
        request::Request,
    },
    node::{found::Found, uninstall},
};

/// The host end of a pod's link that is ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnLink {
    /// Its name.
    pub ifname: String,
    /// The kernel's number of it.
    pub index: u32,
    /// Its MAC.
    pub mac: Mac,
    /// The slot of the ENI that its pod's packets leave by.
    pub slot: u32,
    /// The addresses of the pod: those that main routes over it, and those that its alias names and main routes nowhere.
    pub addresses: Vec<IpAddr>,
}

/// All of them, but for those that are being deleted.
pub fn own_links(found: &Found) -> Vec<OwnLink> {
    let routes: BTreeMap<IpAddr, u32> = found.routes.iter().filter_map(host_route).collect();
    let own = |link: &LinkMessage| {
        let (index, slot) = (link.header.index, marks::slot_of_group(group(link))?);
        let routed = routes.iter().filter(|(_, over)| **over == index).map(|(address, _)| *address);
        let without_a_route = named(link).into_iter().filter(|address| !routes.contains_key(address));
        let addresses = routed.chain(without_a_route).collect();
        Some(OwnLink { ifname: ifname(link).to_owned(), index, mac: link::mac(link)?, slot, addresses })
    };
    found.links.iter().filter_map(own).collect()
}

/// The routes and rules for these pods, the rule for marked connections, and those for the ENIs' own addresses. `tables`: of
/// each slot but the primary's; `connmark`: the bits, if connections are marked at all.
pub fn put_back(links: &[OwnLink], tables: &BTreeMap<u32, u32>, connmark: Option<u32>, found: &Found) -> Vec<Request> {
    let mut requests = Vec::new();
    for link in links {
        for address in &link.addresses {
            if !found.routes.iter().any(|route| host_route(route) == Some((*address, link.index))) {
                let route = message::link_route(TABLE_MAIN, *address, link.index);
                requests.push(Request::put_route(format!("put the route {address} over {}", link.ifname), route));
            }
            let to = message::rule_to(PRIORITY_TO, *address, TABLE_MAIN);
            requests.push(Request::add_rule(format!("add the rule {PRIORITY_TO}: to {address} lookup main"), to));
            if let Some(table) = tables.get(&link.slot) {
                let from = message::rule_by_source(PRIORITY_FROM, *address, *table);
                let what = format!("add the rule {PRIORITY_FROM}: from {address} lookup {table}");
                requests.push(Request::add_rule(what, from));
            }
        }
    }
    requests.extend(connmark.map(|bits| {
        let number = marks::PRIORITY_CONNMARK;
        let of_mark = marked(rule(Family::V4, number, TABLE_MAIN), bits, bits);
        Request::add_rule(format!("add the rule {number}: fwmark {bits:#x}/{bits:#x} lookup main"), of_mark)
    }));
    let ours = found.rules.iter().filter(|rule| priority(rule) == Some(marks::PRIORITY_PRIMARY) && is_made_by_us(rule));
    for (rule, (own, table)) in ours.filter_map(|rule| Some((rule, source(rule).zip(asked_table(rule))?))) {
        let number = marks::PRIORITY_PRIMARY;
        let of_eni = format!("the rule {number}: from {own} lookup {table}");
        // The kernel takes both for the same rule: the one has to go before the other can come.
        requests.push(Request::delete_rule(format!("remove {of_eni}"), rule.clone()));
        requests.push(Request::add_rule(format!("add {of_eni}"), message::rule_by_source(number, own, table)));
    }
    requests
}

/// What removes our rules and the tables that only they lead to, in two steps ([`uninstall::requests`]).
pub fn without_ours(found: &Found) -> [Vec<Request>; 2] {
    let is_shared =
        |rule: &RuleMessage| matches!(priority(rule), Some(marks::PRIORITY_BY_MAIN | marks::PRIORITY_PRIMARY));
    uninstall::requests(found, &is_shared)
}

/// Takes a link out of our device group, and its alias away, in one step: what has neither is none of ours.
pub fn release(OwnLink { ifname, index, .. }: &OwnLink) -> Request {
    let message = LinkUnspec::new_with_index(*index).link_group(0).alias(String::new()).build();
    Request::set_link(format!("take {ifname} out of its device group, and its alias away"), message).unless_gone()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use netlink_packet_route::link::LinkAttribute;

    use super::*;
    use crate::{
        netlink::message::{default_route, link_route},
        peer::{self, Rules},
    };

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn link(index: u32, of_group: u32, alias: &str) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes = vec![
            LinkAttribute::IfName(format!("eni0000000000{index}")),
            LinkAttribute::Address(vec![0xd2, 0, 0, 0, 0, u8::try_from(index).unwrap()]),
            LinkAttribute::Group(of_group),
            LinkAttribute::IfAlias(alias.to_owned()),
        ];
        link
    }

    fn node() -> Found {
        let links = vec![
            link(7, marks::group(0), "10.0.78.4"),
            link(8, marks::group(1), "10.0.78.5 10.0.78.6 10.0.78.7"),
            link(9, marks::GROUP_DELETED, "10.0.78.9"),
            link(3, 0, ""),
        ];
        let routes = vec![
            link_route(TABLE_MAIN, ip("10.0.78.4"), 7),
            link_route(TABLE_MAIN, ip("10.0.78.5"), 8),
            link_route(TABLE_MAIN, ip("10.0.78.7"), 3),
            default_route(2, ip("10.0.64.1"), 5),
        ];
        Found::new(links, vec![], routes, vec![])
    }

    #[test]
    fn what_is_put_back_is_what_a_take_over_removes() {
        let links = own_links(&node());
        let words = |requests: &[Request]| requests.iter().map(ToString::to_string).collect::<Vec<_>>();
        let tables = BTreeMap::from([(1, 2)]);
        let put_back = put_back(&links, &tables, Some(0x80), &node());
        assert_eq!(
            words(&put_back),
            [
                "add the rule 512: to 10.0.78.4 lookup main",
                "add the rule 512: to 10.0.78.5 lookup main",
                "add the rule 1536: from 10.0.78.5 lookup 2",
                "put the route 10.0.78.6 over eni00000000008",
                "add the rule 512: to 10.0.78.6 lookup main",
                "add the rule 1536: from 10.0.78.6 lookup 2",
                "add the rule 1024: fwmark 0x80/0x80 lookup main",
            ],
            "the alias names 10.0.78.6, and 10.0.78.7 is another link's by now"
        );
        let rules = put_back.iter().filter_map(Request::rule).cloned().collect();
        let found = Found::new(vec![], vec![], vec![], rules);
        let nets = ["10.0.0.0/16".parse().unwrap()];
        let removed = [Rules::From, Rules::Rest].iter().flat_map(|which| peer::retire(*which, &nets, &found));
        let removed: BTreeSet<String> = removed.map(|request| request.to_string()).collect();
        let rules = put_back.iter().filter(|request| request.rule().is_some());
        let expected = rules.map(|request| request.to_string().replacen("add the", "remove Amazon's", 1));
        let expected: BTreeSet<String> = expected.collect();
        let short = |what: &String| what.replace("0x80/0x80", "0x80").replace(" lookup 2", "");
        assert_eq!(removed.iter().map(short).collect::<BTreeSet<_>>(), expected.iter().map(short).collect());
    }

    #[test]
    fn rules_that_both_have_stay_and_those_of_enis_become_theirs() {
        let steered = marked(rule(Family::V4, marks::PRIORITY_ENI, 2), 0x41, 0x7f);
        let of_eni = message::rule_from(marks::PRIORITY_PRIMARY, ip("10.0.80.130"), 2);
        let mut found = node();
        found.rules = vec![steered.clone(), of_eni];
        let tables = BTreeMap::from([(1, 2)]);
        let changes = put_back(&own_links(&found), &tables, Some(0x80), &found);
        let words: Vec<String> = changes.iter().map(ToString::to_string).collect();
        let of_eni = "the rule 32765: from 10.0.80.130 lookup 2";
        assert_eq!(words[words.len() - 2..], [format!("remove {of_eni}"), format!("add {of_eni}")]);
        let theirs = changes.iter().filter(|request| !request.is_rule_removal()).filter_map(Request::rule).cloned();
        found.rules = [steered].into_iter().chain(theirs).collect();
        let again = put_back(&own_links(&found), &tables, Some(0x80), &found);
        assert!(!again.iter().any(Request::is_rule_removal), "it is theirs");
        let [tables, rules] = without_ours(&found);
        assert!(tables.is_empty(), "{tables:?}");
        assert_eq!(rules.iter().map(ToString::to_string).collect::<Vec<_>>(), ["remove the rule 1536"]);
    }

    #[test]
    fn a_link_is_released_in_one_step() {
        let links = own_links(&node());
        assert_eq!(links.len(), 2);
        let message = format!("{:?}", release(&links[0]).message(0).payload);
        assert!(message.contains("Group(0)") && message.contains("IfAlias(\"\")"), "{message}");
    }
}
