//! Who else configures the node's ENIs: the traces that they leave in the kernel.

use netlink_packet_route::route::{RouteMessage, RouteProtocol};

use crate::{
    identity::Mac,
    netlink::message::{asked_table, destination, oif, table},
    node::found::Found,
};

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manager {
    /// The service.
    pub name: &'static str,
    /// What was seen of it, one sentence.
    pub why: String,
    /// It concerns an ENI that nobody but Enid is to configure; else it may be the host's own business.
    pub is_ours: bool,
}

/// Those whose rules or routes are there. `secondaries`: the ENIs that nobody but Enid is to configure.
///
/// amazon-ec2-net-utils gives each ENI of the first network card a table from 10,001 on, and rules for it;
/// NetworkManager-cloud-setup has tables 30,200 and 30,400 and those that follow. systemd-networkd and other DHCP clients mark
/// their routes.
pub fn seen(found: &Found, secondaries: &[Mac]) -> Vec<Manager> {
    let asked =
        |from: u32, to: u32| found.rules.iter().filter_map(asked_table).find(|table| (from..to).contains(table));
    let links: Vec<u32> = secondaries.iter().filter_map(|mac| Some(found.link_of(*mac)?.header.index)).collect();
    let leads_over = |asked: u32| {
        let over = |route: &RouteMessage| oif(route).is_some_and(|index| links.contains(&index));
        found.routes.iter().any(|route| table(route) == asked && over(route))
    };
    let by_rule = |name, from, to| {
        let seen = asked(from, to)?;
        let why = format!("a rule asks table {seen}, which is one of its");
        Some(Manager { name, why, is_ours: leads_over(seen) })
    };
    let is_of_dhcp = |route: &&RouteMessage| {
        route.header.protocol == RouteProtocol::Dhcp && oif(route).is_some_and(|index| links.contains(&index))
    };
    let by_dhcp = found.routes.iter().find(is_of_dhcp).map(|route| Manager {
        name: "a DHCP client, such as systemd-networkd,",
        why: format!(
            "the route {} in table {} leads over an ENI that is not the primary one",
            destination(route).map_or("default".to_owned(), |to| to.to_string()),
            table(route)
        ),
        is_ours: true,
    });
    [by_rule("amazon-ec2-net-utils", 10_001, 10_100), by_rule("NetworkManager-cloud-setup", 30_200, 30_600), by_dhcp]
        .into_iter()
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::{LinkAttribute, LinkMessage};

    use super::*;
    use crate::{
        family::Family,
        netlink::message::{default_route, rule},
    };

    #[test]
    fn their_tables_betray_them() {
        let with = |table| Found { rules: vec![rule(Family::V4, 10_000, table)], ..Found::default() };
        let names = |table| seen(&with(table), &[]).into_iter().map(|manager| manager.name).collect::<Vec<_>>();
        assert_eq!(names(10_001), ["amazon-ec2-net-utils"]);
        assert_eq!(names(30_400), ["NetworkManager-cloud-setup"]);
        assert!(names(2).is_empty() && names(10_101).is_empty(), "those are Enid's");
        assert!(!seen(&with(10_001), &[])[0].is_ours, "it may be the primary's");
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        let mut link = LinkMessage::default();
        (link.header.index, link.attributes) = (3, vec![LinkAttribute::Address(mac.0.to_vec())]);
        let routes = vec![default_route(10_001, "10.0.1.1".parse().unwrap(), 3)];
        let of_secondary = Found { links: vec![link], routes, ..with(10_001) };
        assert!(seen(&of_secondary, &[mac])[0].is_ours);
    }
}
