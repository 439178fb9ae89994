//! Rules in their order, tables, longest prefixes: what fib_rules and fib_trie do (kernel, net/core/fib_rules.c).

use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use netlink_packet_route::{
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteType},
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
};

use crate::{
    family::Family,
    netlink::{
        link::{group, ifname},
        message::{asked_table, destination, mark, oif, priority, table},
    },
    node::found::Found,
};

/// What a lookup goes by.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Where from.
    pub source: IpAddr,
    /// Where to.
    pub destination: IpAddr,
    /// The packet's mark.
    pub mark: u32,
    /// The link that it came in by; `None`: the host sends it itself.
    pub iif: Option<u32>,
}

/// A rule that the packet matches, and what its table said.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The rule, as ip-rule(8) writes it.
    pub rule: String,
    /// The table that it names.
    pub table: u32,
    /// What came of it.
    pub answer: Answer,
}

/// What a rule's table said.
#[derive(Clone, Debug)]
pub enum Answer {
    /// It has no route: the next rule is asked.
    Nothing,
    /// It has one, and the rule does not take it: the next rule is asked.
    Suppressed(Way),
    /// The packet goes so.
    Takes(Way),
    /// The packet is refused, or dropped.
    Refused(String),
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// Where it leads to, as ip-route(8) writes it.
    pub to: String,
    /// Its link's number.
    pub link: Option<u32>,
    /// Its link's name.
    pub ifname: String,
    /// The next hop; `None`: the destination is on the link.
    pub next_hop: Option<IpAddr>,
    /// The packet is for the host itself.
    pub is_local: bool,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_local {
            return write!(f, "local {}", self.to);
        }
        write!(f, "{}", self.to)?;
        if let Some(next_hop) = self.next_hop {
            write!(f, " via {next_hop}")?;
        }
        write!(f, " dev {}", self.ifname)
    }
}

/// The rules that the packet matches, in their order; the last one decides. Empty, or ending with [`Answer::Nothing`]: it is
/// unreachable.
pub fn lookup(found: &Found, packet: &Packet) -> Vec<Asked> {
    let family = Family::of(packet.destination);
    let mut rules: Vec<&RuleMessage> =
        found.rules.iter().filter(|rule| rule.header.family == family.netlink()).collect();
    rules.sort_by_key(|rule| priority(rule).unwrap_or(0));
    let mut asked = Vec::new();
    // A rule may send on to a later one.
    let mut from = 0;
    for rule in rules {
        let at = priority(rule).unwrap_or(0);
        if at < from || !matches(rule, packet, found) {
            continue;
        }
        let table = asked_table(rule).unwrap_or_else(|| rule.header.table.into());
        let mut say = |answer| asked.push(Asked { rule: words(rule, table), table, answer });
        match rule.header.action {
            RuleAction::ToTable => {}
            RuleAction::Goto => {
                from = rule.attributes.iter().find_map(to_rule).unwrap_or(at);
                continue;
            }
            RuleAction::Nop => continue,
            other => {
                say(Answer::Refused(format!("{other:?}").to_lowercase()));
                break;
            }
        }
        let Some(route) = best(found, family, table, packet.destination) else {
            say(Answer::Nothing);
            continue;
        };
        match route.header.kind {
            RouteType::Throw => {
                say(Answer::Nothing);
                continue;
            }
            RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit => {
                say(Answer::Refused(format!("{:?}", route.header.kind).to_lowercase()));
                break;
            }
            _ => {}
        }
        let way = way(found, route, packet.destination);
        if is_suppressed(rule, route, &way, found) {
            say(Answer::Suppressed(way));
            continue;
        }
        say(Answer::Takes(way));
        break;
    }
    asked
}

/// The way that a lookup has come to.
pub fn taken(asked: &[Asked]) -> Option<&Way> {
    match &asked.last()?.answer {
        Answer::Takes(way) => Some(way),
        _ => None,
    }
}

/// The kernel's own lookup (RTM_GETROUTE, with the table in its answer): the way, and the table.
pub fn question(packet: &Packet) -> RouteMessage {
    let mut question = RouteMessage::default();
    let family = Family::of(packet.destination);
    question.header.address_family = family.netlink();
    (question.header.source_prefix_length, question.header.destination_prefix_length) =
        (family.host_len(), family.host_len());
    // RTM_F_LOOKUP_TABLE (linux/rtnetlink.h).
    question.header.flags = RouteFlags::from_bits_retain(0x1000);
    let address = |address: IpAddr| match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    };
    question.attributes =
        vec![RouteAttribute::Source(address(packet.source)), RouteAttribute::Destination(address(packet.destination))];
    question.attributes.extend(packet.iif.map(RouteAttribute::Iif));
    if packet.mark != 0 {
        question.attributes.push(RouteAttribute::Mark(packet.mark));
    }
    question
}

/// What its answer says: link, next hop and table.
pub fn answered(found: &Found, answer: &RouteMessage, to: IpAddr) -> (Way, u32) {
    (way(found, answer, to), table(answer))
}

fn to_rule(attribute: &RuleAttribute) -> Option<u32> {
    if let RuleAttribute::Goto(to) = attribute { Some(*to) } else { None }
}

fn matches(rule: &RuleMessage, packet: &Packet, found: &Found) -> bool {
    let (value, mask) = mark(rule);
    let name = |index: u32| found.links.iter().find(|link| link.header.index == index).map(ifname);
    // What the host sends itself comes in by lo.
    let came_by = packet.iif.map_or(Some("lo"), name);
    let within =
        |address: &IpAddr, length: u8, of: IpAddr| IpNet::new(*address, length).is_ok_and(|net| net.contains(&of));
    let selects = |attribute: &RuleAttribute| match attribute {
        RuleAttribute::Source(from) => within(from, rule.header.src_len, packet.source),
        RuleAttribute::Destination(to) => within(to, rule.header.dst_len, packet.destination),
        RuleAttribute::Iifname(name) => came_by == Some(name),
        // What is forwarded is bound to no link, belongs to no user and is in no tunnel.
        RuleAttribute::Oifname(_) | RuleAttribute::UidRange(_) | RuleAttribute::TunId(_) => false,
        RuleAttribute::L3MDev(is) => !*is,
        _ => true,
    };
    let selected = packet.mark & mask == value && rule.attributes.iter().all(selects);
    selected != rule.header.flags.contains(RuleFlags::Invert)
}

/// The longest prefix, and of those the lowest metric.
fn best(found: &Found, family: Family, asked: u32, to: IpAddr) -> Option<&RouteMessage> {
    let contains = |route: &&RouteMessage| {
        let length = route.header.destination_prefix_length;
        destination(route).is_none_or(|net| IpNet::new(net, length).is_ok_and(|net| net.contains(&to)))
    };
    let of_table = |route: &&RouteMessage| {
        route.header.address_family == family.netlink() && table(route) == asked && route.header.tos == 0
    };
    let metric = |route: &RouteMessage| {
        let of = |attribute: &RouteAttribute| match attribute {
            RouteAttribute::Priority(metric) => Some(*metric),
            _ => None,
        };
        route.attributes.iter().find_map(of).unwrap_or(0)
    };
    let routes = found.routes.iter().filter(of_table).filter(contains);
    routes.min_by_key(|route| (std::cmp::Reverse(route.header.destination_prefix_length), metric(route)))
}

pub(super) fn way(found: &Found, route: &RouteMessage, to: IpAddr) -> Way {
    let length = route.header.destination_prefix_length;
    let whole = Family::of(to).host_len();
    let link = oif(route);
    let ifname = link.and_then(|index| found.links.iter().find(|link| link.header.index == index)).map(ifname);
    let next_hop = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Gateway(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    });
    Way {
        to: match destination(route) {
            None => "default".to_owned(),
            Some(net) if length == whole => net.to_string(),
            Some(net) => format!("{net}/{length}"),
        },
        link,
        ifname: ifname.unwrap_or_default().to_owned(),
        next_hop,
        is_local: route.header.kind == RouteType::Local,
    }
}

fn is_suppressed(rule: &RuleMessage, route: &RouteMessage, way: &Way, found: &Found) -> bool {
    rule.attributes.iter().any(|attribute| match attribute {
        RuleAttribute::SuppressPrefixLen(length) => {
            *length != u32::MAX && u32::from(route.header.destination_prefix_length) <= *length
        }
        RuleAttribute::SuppressIfGroup(unwanted) => {
            let of_link = found.links.iter().find(|link| Some(link.header.index) == way.link).map(group);
            *unwanted != u32::MAX && of_link == Some(*unwanted)
        }
        _ => false,
    })
}

/// A rule as ip-rule(8) writes it.
pub(super) fn words(rule: &RuleMessage, table: u32) -> String {
    let mut text = format!("{}:", priority(rule).unwrap_or(0));
    if rule.header.flags.contains(RuleFlags::Invert) {
        text.push_str(" not");
    }
    let mut source = " from all".to_owned();
    let mut more = String::new();
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::Source(from) => source = format!(" from {from}/{}", rule.header.src_len),
            RuleAttribute::Destination(to) => more.push_str(&format!(" to {to}/{}", rule.header.dst_len)),
            RuleAttribute::Iifname(name) => more.push_str(&format!(" iif {name}")),
            RuleAttribute::Oifname(name) => more.push_str(&format!(" oif {name}")),
            _ => {}
        }
    }
    text.push_str(&source);
    text.push_str(&more);
    if let (value, mask @ 1..) = mark(rule) {
        text.push_str(&format!(" fwmark {value:#x}/{mask:#x}"));
    }
    let table = match table {
        253 => "default".to_owned(),
        254 => "main".to_owned(),
        255 => "local".to_owned(),
        other => other.to_string(),
    };
    if rule.header.action == RuleAction::ToTable {
        text.push_str(&format!(" lookup {table}"));
    }
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::SuppressPrefixLen(length) if *length != u32::MAX => {
                text.push_str(&format!(" suppress_prefixlength {length}"));
            }
            RuleAttribute::SuppressIfGroup(group) if *group != u32::MAX => {
                text.push_str(&format!(" suppress_ifgroup {group}"));
            }
            _ => {}
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::{LinkAttribute, LinkMessage};

    use super::*;
    use crate::netlink::message::{self, TABLE_MAIN, default_route, link_route, marked, rule_from};

    fn link(index: u32, name: &str, group: u32) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes = vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::Group(group)];
        link
    }

    fn packet(to: &str, mark: u32) -> Packet {
        Packet { source: "10.0.1.7".parse().unwrap(), destination: to.parse().unwrap(), mark, iif: Some(9) }
    }

    fn found() -> Found {
        let gateway = "10.0.1.1".parse().unwrap();
        let mut pods = message::rule(Family::V4, 512, TABLE_MAIN);
        pods.attributes.push(RuleAttribute::SuppressIfGroup(0));
        let mut main = marked(message::rule(Family::V4, 1536, TABLE_MAIN), 0x40, 0x7f);
        main.attributes.push(RuleAttribute::SuppressPrefixLen(0));
        Found {
            links: vec![link(1, "lo", 0), link(2, "eth0", 0), link(3, "eth1", 0), link(9, "eniabc", 7)],
            rules: vec![
                message::rule(Family::V4, 32766, TABLE_MAIN),
                pods,
                main,
                marked(message::rule(Family::V4, 1536, 3), 0x41, 0x7f),
                rule_from(32765, "10.0.2.4".parse().unwrap(), 3),
            ],
            routes: vec![
                default_route(TABLE_MAIN, gateway, 2),
                default_route(3, gateway, 3),
                link_route(TABLE_MAIN, "10.0.1.7".parse().unwrap(), 9),
            ],
            ..Found::default()
        }
    }

    #[test]
    fn the_first_rule_whose_table_has_a_route_decides() {
        let by_eni = lookup(&found(), &packet("10.9.0.1", 0x41));
        let words: Vec<&str> = by_eni.iter().map(|asked| asked.rule.as_str()).collect();
        assert_eq!(
            words,
            ["512: from all lookup main suppress_ifgroup 0", "1536: from all fwmark 0x41/0x7f lookup 3"],
            "main's default leads over a link of group 0"
        );
        assert!(matches!(by_eni[0].answer, Answer::Suppressed(_)));
        assert_eq!(taken(&by_eni).unwrap().to_string(), "default via 10.0.1.1 dev eth1");
        let by_main = lookup(&found(), &packet("10.9.0.1", 0x40));
        assert_eq!(taken(&by_main).unwrap().ifname, "eth0");
        assert_eq!(by_main.last().unwrap().rule, "32766: from all lookup main");
        let to_pod = lookup(&found(), &packet("10.0.1.7", 0));
        assert_eq!((to_pod.len(), taken(&to_pod).unwrap().to_string().as_str()), (1, "10.0.1.7 dev eniabc"));
    }

    #[test]
    fn a_foreign_rule_before_ours_decides() {
        let mut found = found();
        let mut refuse = message::rule(Family::V4, 100, 0);
        refuse.header.action = RuleAction::Prohibit;
        found.rules.push(refuse);
        let asked = lookup(&found, &packet("10.9.0.1", 0x41));
        assert!(asked.len() == 1 && taken(&asked).is_none(), "{asked:?}");
        assert!(lookup(&Found::default(), &packet("10.9.0.1", 0)).is_empty());
    }
}
