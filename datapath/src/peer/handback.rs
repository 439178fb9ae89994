//! The way back: what Amazon's VPC CNI has in the kernel stands again, and then what is ours goes. Our rules at 1535 stay: they
//! are the other system's too.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use netlink_packet_route::{link::LinkMessage, rule::RuleMessage};
use rtnetlink::LinkUnspec;

use super::{
    PRIORITY_FROM, PRIORITY_TO, is_named_after_a_pod, is_named_after_egress, of_pod_from, of_pod_to, routed, source,
};
use crate::{
    family::Family,
    identity::Mac,
    marks,
    netlink::{
        link::{self, group, ifname, named, other_end},
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

/// The addresses of this range, which only this node knows, that are routed over pods' links, ours or of this prefix; with each,
/// the other addresses of the same pod: those over the same link, and those over links to the same namespace.
pub fn egress_addresses(range: IpNet, prefix: &str, found: &Found) -> Vec<(IpAddr, BTreeSet<IpAddr>)> {
    let link = |index: u32| found.links.iter().find(|link| link.header.index == index);
    let is_pods = |index: u32| {
        link(index).is_some_and(|link| {
            marks::is_of_a_pod(group(link)) || is_named_after_a_pod(prefix, link) || is_named_after_egress(link)
        })
    };
    let netns = |index: u32| link(index).and_then(other_end).map(|(netns, _)| netns);
    let routed = || found.routes.iter().filter_map(host_route);
    let of_pod = |over: u32| {
        let inside = netns(over);
        let is_same = move |index: u32| index == over || inside.is_some() && netns(index) == inside;
        let others = routed().filter(move |(address, index)| !range.contains(address) && is_same(*index));
        others.map(|(address, _)| address).collect()
    };
    let egress = routed().filter(|(address, over)| range.contains(address) && is_pods(*over));
    egress.map(|(address, over)| (address, of_pod(over))).collect()
}

/// The removal of the rules for pods whose addresses, of these nets, no route leads to any more: pods that ended while their node
/// was being given back.
pub fn rules_of_ended(nets: &[IpNet], found: &Found) -> Vec<Request> {
    let routed = routed(found);
    let is_ended = |address: &IpAddr| !routed.contains(address) && nets.iter().any(|net| net.contains(address));
    let of_ended = found.rules.iter().filter_map(|rule| {
        let address = of_pod_from(rule).or(of_pod_to(rule)).filter(is_ended)?;
        let number = priority(rule).unwrap_or_default();
        Some(Request::delete_rule(format!("remove the rule {number} of {address}, whose pod has ended"), rule.clone()))
    });
    of_ended.collect()
}

/// What the routes and rules of a node depend on.
#[derive(Clone, Debug)]
pub struct Ways<'a> {
    /// The table of each slot but the primary's.
    pub tables: &'a BTreeMap<u32, u32>,
    /// The bits by which connections are marked, if they are, and the family of pods' addresses.
    pub connmark: Option<(Family, u32)>,
    /// Ranges that only this node knows: there are routes to their addresses, and no rules.
    pub ranges: &'a [IpNet],
}

/// The routes and rules for these pods, the rule for marked connections, and those for the ENIs' own addresses.
pub fn restore(links: &[OwnLink], ways: &Ways<'_>, found: &Found) -> Vec<Request> {
    let Ways { tables, connmark, ranges } = ways;
    let mut requests = Vec::new();
    for link in links {
        for address in &link.addresses {
            if !found.routes.iter().any(|route| host_route(route) == Some((*address, link.index))) {
                let route = message::link_route(TABLE_MAIN, *address, link.index);
                let what = format!("put the route {address} over {}", link.ifname);
                requests.push(Request::put_route(what, route).unless_gone());
            }
            if ranges.iter().any(|range| range.contains(address)) {
                continue;
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
    requests.extend(connmark.map(|(family, bits)| {
        let number = marks::PRIORITY_CONNMARK;
        let of_mark = marked(rule(family, number, TABLE_MAIN), bits, bits);
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
        let ways = Ways { tables: &tables, connmark: Some((Family::V4, 0x80)), ranges: &[] };
        let restored = restore(&links, &ways, &node());
        assert_eq!(
            words(&restored),
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
        let rules = restored.iter().filter_map(Request::rule).cloned().collect();
        let found = Found::new(vec![], vec![], vec![], rules);
        let nets = ["10.0.0.0/16".parse().unwrap()];
        let removed = [Rules::From, Rules::Rest].iter().flat_map(|which| peer::retire(*which, &nets, &found));
        let removed: BTreeSet<String> = removed.map(|request| request.to_string()).collect();
        let rules = restored.iter().filter(|request| request.rule().is_some());
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
        let ways = Ways { tables: &tables, connmark: Some((Family::V4, 0x80)), ranges: &[] };
        let changes = restore(&own_links(&found), &ways, &found);
        let words: Vec<String> = changes.iter().map(ToString::to_string).collect();
        let of_eni = "the rule 32765: from 10.0.80.130 lookup 2";
        assert_eq!(words[words.len() - 2..], [format!("remove {of_eni}"), format!("add {of_eni}")]);
        let theirs = changes.iter().filter(|request| !request.is_rule_removal()).filter_map(Request::rule).cloned();
        found.rules = [steered].into_iter().chain(theirs).collect();
        let again = restore(&own_links(&found), &ways, &found);
        assert!(!again.iter().any(Request::is_rule_removal), "it is theirs");
        let [tables, rules] = without_ours(&found);
        assert!(tables.is_empty(), "{tables:?}");
        assert_eq!(rules.iter().map(ToString::to_string).collect::<Vec<_>>(), ["remove the rule 1536"]);
    }

    /// A pod of the other system's has a link of its own for that, and one of ours the same for both.
    #[test]
    fn whose_an_egress_address_is_can_be_seen_from_the_namespace_that_its_link_leads_to() {
        let ranges = ["169.254.172.0/22".parse().unwrap()];
        let to = |mut link: LinkMessage, netns: Option<i32>| {
            link.attributes.extend(
                netns.into_iter().flat_map(|netns| [LinkAttribute::LinkNetNsId(netns), LinkAttribute::Link(2)]),
            );
            link
        };
        let group = marks::group(0);
        let links = vec![
            to(link(7, group, ""), Some(3)),
            to(link(8, group, ""), Some(3)),
            to(link(9, group, ""), Some(4)),
            to(link(10, group, ""), None),
            to(link(11, group, ""), None),
        ];
        let routes = [
            ("2001:db8::4", 7),
            ("169.254.172.2", 8),
            ("2001:db8::5", 9),
            ("169.254.172.3", 9),
            ("2001:db8::6", 10),
            ("169.254.172.4", 11),
        ];
        let routes = routes.map(|(address, over)| link_route(TABLE_MAIN, ip(address), over)).to_vec();
        let found = Found::new(links, vec![], routes, vec![]);
        let expected =
            [("169.254.172.2", vec!["2001:db8::4"]), ("169.254.172.3", vec!["2001:db8::5"]), ("169.254.172.4", vec![])];
        let expected = expected.map(|(way, pods)| (ip(way), pods.into_iter().map(ip).collect()));
        assert_eq!(egress_addresses(ranges[0], "eni", &found), expected);
        let ways = Ways { tables: &BTreeMap::new(), connmark: None, ranges: &ranges };
        let restored = restore(&own_links(&found), &ways, &found);
        assert_eq!(restored.len(), 3, "a rule for each pod, and none for its way out: {restored:?}");
    }

    #[test]
    fn rules_of_a_pod_that_ended_meanwhile_go_and_no_others() {
        let mut found = node();
        let to = |address: &str| message::rule_to(PRIORITY_TO, ip(address), TABLE_MAIN);
        let from = message::rule_by_source(PRIORITY_FROM, ip("10.0.78.9"), 2);
        let steered = marked(rule(Family::V4, marks::PRIORITY_ENI, 2), 0x41, 0x7f);
        found.rules = vec![to("10.0.78.4"), to("10.0.78.9"), from, to("192.168.0.9"), steered];
        let gone = rules_of_ended(&["10.0.0.0/16".parse().unwrap()], &found);
        let words: Vec<String> = gone.iter().map(ToString::to_string).collect();
        let of = |number: u32| format!("remove the rule {number} of 10.0.78.9, whose pod has ended");
        assert_eq!(words, [of(512), of(1536)]);
    }

    #[test]
    fn a_link_is_released_in_one_step() {
        let links = own_links(&node());
        assert_eq!(links.len(), 2);
        let message = format!("{:?}", release(&links[0]).message(0).payload);
        assert!(message.contains("Group(0)") && message.contains("IfAlias(\"\")"), "{message}");
    }
}
