//! What Amazon's VPC CNI has in the kernel of a node that it has served: its pods' links, and the rules for them. Names,
//! priorities and tables are those of its v1.23.1, as it leaves them on a node.

pub mod handback;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use netlink_packet_route::{link::LinkMessage, route::RouteMessage, rule::RuleAttribute, rule::RuleMessage};
use rtnetlink::LinkUnspec;
use sha2::{Digest, Sha512};

use crate::{
    family::Family,
    identity::Mac,
    marks,
    netlink::{
        link::{self, alias_of, group, ifname, named, other_end},
        message::{self, TABLE_MAIN, asked_table, destination, host_route, is_made_by_us, mark, oif, priority, table},
        request::Request,
    },
    node::{found::Found, rules},
};

/// What it calls its network.
pub const NETWORK: &str = "aws-cni";
/// Where it has the rule that leads to a pod.
const PRIORITY_TO: u32 = 512;
/// Where it has the rule by which a pod on a secondary ENI asks that ENI's table.
const PRIORITY_FROM: u32 = 1536;
/// First letters of the host links of pods with an ENI of their own (security groups for pods).
const BRANCH: &str = "vlan";
/// First letters of the host links by which pods leave in another family, and how many digits follow.
const EGRESS: &str = "veth";
const EGRESS_DIGITS: usize = 8;
/// Digits behind the first letters of a pod's host link.
const DIGITS: usize = 11;

/// The host end of one of its pods, which is not ours yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLink {
    /// Its name.
    pub ifname: String,
    /// The kernel's number of it.
    pub index: u32,
    /// Its MAC, which the pod has as a permanent neighbour.
    pub mac: Mac,
    /// Where the pod's end is: the namespace, by the id that the host knows it by, and its number there.
    pub inside: Option<(i32, u32)>,
    /// The addresses that main routes over it, and those that its pod is known to have.
    pub addresses: Vec<IpAddr>,
}

/// Links of pods that it has wired: called as it calls a pod's (the prefix and eleven digits), of no device group of ours
/// and without an alias of ours. Over some of them no route may lead.
pub fn pod_links(prefix: &str, found: &Found) -> Vec<PodLink> {
    wired(&|link| is_named_after_a_pod(prefix, link), found)
}

fn wired(is_named: &dyn Fn(&LinkMessage) -> bool, found: &Found) -> Vec<PodLink> {
    let mut routed: BTreeMap<u32, Vec<IpAddr>> = BTreeMap::new();
    for (address, index) in found.routes.iter().filter_map(host_route) {
        routed.entry(index).or_default().push(address);
    }
    let is_ours = |link: &LinkMessage| marks::is_of_a_pod(group(link)) || !named(link).is_empty();
    let pod = |link: &LinkMessage| {
        let index = link.header.index;
        let addresses = routed.get(&index).cloned().unwrap_or_default();
        let (ifname, mac) = (ifname(link).to_owned(), link::mac(link)?);
        Some(PodLink { ifname, index, mac, inside: other_end(link), addresses })
    };
    found.links.iter().filter(|link| is_named(link) && !is_ours(link)).filter_map(pod).collect()
}

/// All addresses to which a route of main leads over a link.
pub fn routed(found: &Found) -> BTreeSet<IpAddr> {
    found.routes.iter().filter_map(host_route).map(|(address, _)| address).collect()
}

fn is_named_after_a_pod(prefix: &str, link: &LinkMessage) -> bool {
    let digits = ifname(link).strip_prefix(prefix);
    digits.is_some_and(|rest| rest.len() == DIGITS && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Links of pods with ENIs of their own: they have rules and tables that are theirs alone, and are left as they are.
pub fn branch_links(found: &Found) -> Vec<String> {
    found.links.iter().filter(|link| is_named_after_a_pod(BRANCH, link)).map(|link| ifname(link).to_owned()).collect()
}

/// The host ends of the links by which its pods leave in the family in which they have no address of the VPC: called `veth` and
/// eight digits, with an address of these ranges behind them.
pub fn egress_links(ranges: &[IpNet], found: &Found) -> Vec<PodLink> {
    let is_in = |address: &IpAddr| ranges.iter().any(|range| range.contains(address));
    let links = wired(&is_named_after_egress, found).into_iter();
    links.filter(|link| !link.addresses.is_empty() && link.addresses.iter().all(is_in)).collect()
}

fn is_named_after_egress(link: &LinkMessage) -> bool {
    let digits = ifname(link).strip_prefix(EGRESS);
    digits.is_some_and(|rest| rest.len() == EGRESS_DIGITS && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// The chain of iptables by which the plugin for that translates what a pod sends: `CNI-E4-` or `CNI-E6-`, and 21 digits of the
/// SHA-512 of the network's name and the container's id.
pub fn egress_chain(family: Family, container: &str) -> String {
    let number = match family {
        Family::V4 => '4',
        Family::V6 => '6',
    };
    let digest = Sha512::digest(format!("{NETWORK}{container}"));
    let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("CNI-E{number}-{}", &digits[..21])
}

/// The MACs of all links.
pub fn macs(found: &Found) -> BTreeSet<Mac> {
    found.links.iter().filter_map(link::mac).collect()
}

/// By which ENI the packets of pods leave that have a rule for it: the MAC of the link of the default route in the table that
/// is asked.
pub fn ways_out(found: &Found) -> BTreeMap<IpAddr, Mac> {
    let way = |rule: &RuleMessage| {
        let (from, asked) = (of_pod_from(rule)?, asked_table(rule)?);
        let is_way = |route: &&RouteMessage| {
            table(route) == asked && destination(route).is_none() && route.header.address_family == rule.header.family
        };
        let index = found.routes.iter().find(is_way).and_then(oif)?;
        let link = found.links.iter().find(|link| link.header.index == index)?;
        Some((from, link::mac(link)?))
    };
    found.rules.iter().filter_map(way).collect()
}

/// Marks of rules at the priority of its connmark that are not this one: of a node whose settings name other bits.
pub fn foreign_connmarks(connmark: u32, found: &Found) -> Vec<u32> {
    let at_connmark = |rule: &&RuleMessage| priority(rule) == Some(marks::PRIORITY_CONNMARK);
    let marks = found.rules.iter().filter(at_connmark).map(|rule| mark(rule).0);
    marks.filter(|mark| *mark != 0 && *mark != connmark).collect::<BTreeSet<_>>().into_iter().collect()
}

/// What makes these links ours: device group and alias in one step, since a link with the one and without the other would be
/// taken for one that is half made; and each pod as a permanent neighbour. `pod_mac`: of the pod's end, where it is known.
pub fn adoption(link: &PodLink, slot: u32, pod_mac: Option<Mac>) -> Vec<Request> {
    let PodLink { ifname: name, index, addresses, .. } = link;
    let index = *index;
    let alias = alias_of(addresses.iter().copied());
    let what = format!("put {name} into the device group {:#x}, and name {alias} in its alias", marks::group(slot));
    let message = LinkUnspec::new_with_index(index).link_group(marks::group(slot)).alias(alias).build();
    let neighbour = |(address, mac): (&IpAddr, Mac)| {
        let message = message::neighbour(index, *address, mac);
        Request::put_neighbour(format!("put the neighbour {address} on {name}"), message)
    };
    let neighbours = addresses.iter().filter_map(|address| Some(neighbour((address, pod_mac?))));
    [Request::set_link(what, message)].into_iter().chain(neighbours).map(Request::unless_gone).collect()
}

/// Which of its rules go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// Those by which pods ask their ENIs' tables. They stand before ours, and are right as long as its mark is set.
    From,
    /// Those that lead to pods, and those for the ENIs' own addresses, which are ours from then on.
    Rest,
}

/// The requests that remove rules of its own. `nets`: where pods and ENIs have their addresses; a rule for another address is
/// somebody else's.
pub fn retire(which: Rules, nets: &[IpNet], found: &Found) -> Vec<Request> {
    let is_in = |address: &IpAddr| nets.iter().any(|net| net.contains(address));
    let mut requests = Vec::new();
    let mut remove = |rule: &RuleMessage, what: String| {
        let number = priority(rule).unwrap_or_default();
        requests.push(Request::delete_rule(format!("remove Amazon's rule {number}: {what}"), rule.clone()));
    };
    for rule in &found.rules {
        match which {
            Rules::From => {
                if let Some(from) = of_pod_from(rule).filter(is_in) {
                    remove(rule, format!("from {from}"));
                }
            }
            Rules::Rest => {
                if let Some(to) = of_pod_to(rule).filter(is_in) {
                    remove(rule, format!("to {to} lookup main"));
                }
                if is_connmark(rule) {
                    remove(rule, format!("fwmark {:#x} lookup main", mark(rule).0));
                }
                if let Some((from, table)) = of_eni(rule).filter(|(from, _)| is_in(from)) {
                    remove(rule, format!("from {from} lookup {table}"));
                }
            }
        }
    }
    // The kernel takes both for the same rule: the one has to go before the other can come.
    let of_enis = found.rules.iter().filter_map(of_eni).filter(|(from, _)| which == Rules::Rest && is_in(from));
    requests.extend(of_enis.map(|(from, table)| {
        let what = format!("add the rule {}: from {from} lookup {table}", marks::PRIORITY_PRIMARY);
        Request::add_rule(what, message::rule_from(marks::PRIORITY_PRIMARY, from, table))
    }));
    requests
}

/// What the kernel has without its rules, and without the routes over these links of its pods: what is left may catch packets
/// of pods before ours do.
#[must_use]
pub fn without_its_own(mut found: Found, pods: &[u32], nets: &[IpNet]) -> Found {
    let is_its = |rule: &RuleMessage| {
        let of = of_pod_from(rule).or(of_pod_to(rule)).or(of_eni(rule).map(|(from, _)| from));
        let is_in = of.is_some_and(|of| nets.iter().any(|net| net.contains(&of)));
        is_in || is_connmark(rule) || rules::is_of_enid(rule)
    };
    found.rules.retain(|rule| !is_its(rule));
    found.routes.retain(|route| !oif(route).is_some_and(|index| pods.contains(&index)));
    found
}

/// The address of a pod that leaves by an ENI's table.
fn of_pod_from(rule: &RuleMessage) -> Option<IpAddr> {
    let is_plain =
        priority(rule) == Some(PRIORITY_FROM) && mark(rule) == (0, 0) && asked_table(rule) != Some(TABLE_MAIN);
    source(rule).filter(|_| is_plain)
}

/// The address of a pod that main leads to.
fn of_pod_to(rule: &RuleMessage) -> Option<IpAddr> {
    let is_plain =
        priority(rule) == Some(PRIORITY_TO) && asked_table(rule) == Some(TABLE_MAIN) && rule.header.src_len == 0;
    let to = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Destination(to) => Some(*to),
        _ => None,
    });
    to.filter(|to| is_plain && mark(rule) == (0, 0) && rule.header.dst_len == Family::of(*to).host_len())
}

/// What is marked goes by main: ours leaves out main's default route.
fn is_connmark(rule: &RuleMessage) -> bool {
    let (mark, mask) = mark(rule);
    let is_plain = !rule.attributes.contains(&RuleAttribute::SuppressPrefixLen(0)) && mark != 0 && mark == mask;
    is_plain && priority(rule) == Some(marks::PRIORITY_CONNMARK) && asked_table(rule) == Some(TABLE_MAIN)
}

/// The address of a secondary ENI, and its table.
fn of_eni(rule: &RuleMessage) -> Option<(IpAddr, u32)> {
    let is_its = priority(rule) == Some(marks::PRIORITY_PRIMARY) && !is_made_by_us(rule) && rule.header.dst_len == 0;
    let table = asked_table(rule).filter(|table| rules::is_of_a_secondary(*table))?;
    Some((source(rule).filter(|_| is_its)?, table))
}

/// The one address that a rule is for.
fn source(rule: &RuleMessage) -> Option<IpAddr> {
    let from = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Source(from) => Some(*from),
        _ => None,
    });
    from.filter(|from| rule.header.src_len == Family::of(*from).host_len())
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::LinkAttribute;

    use super::*;
    use crate::netlink::message::{default_route, link_route, marked, rule};

    const ENI1: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn link(index: u32, name: &str, mac: Mac, of_group: u32, alias: Option<&str>) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(mac.0.to_vec()),
            LinkAttribute::Group(of_group),
            LinkAttribute::LinkNetNsId(3),
            LinkAttribute::Link(2),
        ];
        link.attributes.extend(alias.map(|alias| LinkAttribute::IfAlias(alias.to_owned())));
        link
    }

    fn of_peer(priority: u32, from: Option<&str>, to: Option<&str>, table: u32) -> RuleMessage {
        let mut rule = rule(Family::V4, priority, table);
        if let Some(from) = from {
            rule.header.src_len = 32;
            rule.attributes.push(RuleAttribute::Source(ip(from)));
        }
        if let Some(to) = to {
            rule.header.dst_len = 32;
            rule.attributes.push(RuleAttribute::Destination(ip(to)));
        }
        rule
    }

    fn words(requests: &[Request]) -> Vec<String> {
        requests.iter().map(ToString::to_string).collect()
    }

    /// The kind: with our tables the pods of the plugin that was there before get no packet any more.
    #[test]
    fn its_pods_are_told_from_ours_and_from_others() {
        let of = |name: &str, of_group: u32, alias: Option<&str>| {
            let routes = vec![link_route(TABLE_MAIN, ip("10.0.78.4"), 7)];
            let found = Found::new(vec![link(7, name, ENI1, of_group, alias)], vec![], routes, vec![]);
            pod_links("eni", &found).len()
        };
        assert_eq!(of("enicfc3c3b88c9", 0, None), 1);
        assert_eq!(of("enicfc3c3b88c9", marks::group(0), None), 0, "ours");
        assert_eq!(of("enicfc3c3b88c9", 0, Some("10.0.78.4")), 0, "ours, whose group somebody has taken");
        assert_eq!(of("eni1", 0, None) + of("calicfc3c3b88c", 0, None), 0, "others'");
        let found = Found::new(vec![link(7, "enicfc3c3b88c9", ENI1, 0, None)], vec![], vec![], vec![]);
        assert!(pod_links("eni", &found)[0].addresses.is_empty(), "no route leads over it");
    }

    #[test]
    fn ways_out_in_the_other_family_are_told_by_name_and_address() {
        let of = |name: &str, address: &str| {
            let routes = vec![link_route(TABLE_MAIN, ip(address), 7)];
            let found = Found::new(vec![link(7, name, ENI1, 0, None)], vec![], routes, vec![]);
            egress_links(&["169.254.172.0/22".parse().unwrap()], &found).len()
        };
        assert_eq!(of("veth4ae9443a", "169.254.172.2"), 1);
        assert_eq!(
            of("veth4ae9443a", "10.0.78.4") + of("veth0", "169.254.172.2") + of("eni4ae9443a00", "169.254.172.2"),
            0
        );
    }

    // As it was seen on a node with aws-vpc-cni 1.23.1.
    #[test]
    fn a_chain_is_called_after_the_container() {
        assert_eq!(egress_chain(Family::V4, "sandbox-pod-0"), "CNI-E4-7d33c36ee843d69b2cecb");
        assert_eq!(egress_chain(Family::V6, "sandbox-pod-1"), "CNI-E6-98203bc2ef9714fe1cdf2");
    }

    #[test]
    fn a_pod_leaves_by_the_eni_whose_table_its_rule_asks() {
        let links = vec![link(5, "eth1", ENI1, 0, None), link(7, "enicfc3c3b88c9", Mac([0xd2; 6]), 0, None)];
        let routes = vec![link_route(TABLE_MAIN, ip("10.0.78.4"), 7), default_route(2, ip("10.0.64.1"), 5)];
        let rules = vec![
            of_peer(1536, Some("10.0.78.4"), None, 2),
            of_peer(1536, Some("10.0.78.9"), None, 9),
            of_peer(512, None, Some("10.0.78.4"), TABLE_MAIN),
        ];
        let found = Found::new(links, vec![], routes, rules);
        assert_eq!(ways_out(&found), BTreeMap::from([(ip("10.0.78.4"), ENI1)]));
        let pod = pod_links("eni", &found).remove(0);
        assert_eq!((pod.addresses.as_slice(), pod.inside), ([ip("10.0.78.4")].as_slice(), Some((3, 2))));
    }

    #[test]
    fn only_rules_of_its_own_for_addresses_of_ours_go_and_in_their_order() {
        let ours = marked(rule(Family::V4, marks::PRIORITY_ENI, 2), 0x41, 0x7f);
        let rules = vec![
            of_peer(512, None, Some("10.0.78.4"), TABLE_MAIN),
            of_peer(512, None, Some("192.168.0.9"), TABLE_MAIN),
            of_peer(1536, Some("10.0.78.4"), None, 2),
            of_peer(1536, Some("10.0.78.4"), Some("10.1.0.0"), 2),
            of_peer(1536, Some("192.168.0.9"), None, 2),
            marked(rule(Family::V4, marks::PRIORITY_CONNMARK, TABLE_MAIN), 0x80, 0x80),
            ours,
            of_peer(32765, Some("10.0.80.130"), None, 2),
        ];
        let found = Found::new(vec![], vec![], vec![], rules);
        let nets = ["10.0.0.0/16".parse().unwrap()];
        let from = words(&retire(Rules::From, &nets, &found));
        assert_eq!(from, ["remove Amazon's rule 1536: from 10.0.78.4"; 2], "those of old releases name a CIDR, too");
        let rest = words(&retire(Rules::Rest, &nets, &found));
        let of_eni = "rule 32765: from 10.0.80.130 lookup 2";
        assert_eq!(rest[0], "remove Amazon's rule 512: to 10.0.78.4 lookup main");
        assert_eq!(rest[1], "remove Amazon's rule 1024: fwmark 0x80 lookup main");
        assert_eq!(rest[2..], [format!("remove Amazon's {of_eni}"), format!("add the {of_eni}")]);
        let mut again = found;
        again.rules.retain(|rule| priority(rule) != Some(marks::PRIORITY_PRIMARY));
        again.rules.push(message::rule_from(marks::PRIORITY_PRIMARY, ip("10.0.80.130"), 2));
        assert_eq!(retire(Rules::Rest, &nets, &again).len(), 2, "that one is ours");
    }

    #[test]
    fn marks_of_another_setting_are_named() {
        let at_connmark = |bits| marked(rule(Family::V4, marks::PRIORITY_CONNMARK, TABLE_MAIN), bits, bits);
        let found = Found::new(vec![], vec![], vec![], vec![at_connmark(0x80), at_connmark(0x100)]);
        assert_eq!(foreign_connmarks(0x80, &found), [0x100]);
    }
}
