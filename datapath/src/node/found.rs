//! What the kernel has, as one reading shows it.

use std::collections::{BTreeMap, BTreeSet};

use netlink_packet_route::{
    address::AddressMessage, link::LinkMessage, neighbour::NeighbourMessage, route::RouteMessage, rule::RuleMessage,
};

use crate::{
    identity::Mac,
    marks,
    netlink::{
        link::{self, group, ifname},
        listing::Proxy,
        message::own_address,
    },
    node::eni::EniNet,
};

/// The kernel's answer to its listings.
#[derive(Debug, Default)]
pub struct Found {
    pub(crate) links: Vec<LinkMessage>,
    pub(crate) addresses: Vec<AddressMessage>,
    pub(crate) routes: Vec<RouteMessage>,
    pub(crate) rules: Vec<RuleMessage>,
    pub(crate) neighbours: Vec<NeighbourMessage>,
    /// What the host answers for in neighbour discovery.
    pub(crate) proxies: Vec<Proxy>,
    /// Which link had which MAC before.
    pub(crate) before: BTreeMap<Mac, u32>,
}

impl Found {
    /// What a namespace's listings show.
    pub fn new(
        links: Vec<LinkMessage>,
        addresses: Vec<AddressMessage>,
        routes: Vec<RouteMessage>,
        rules: Vec<RuleMessage>,
    ) -> Self {
        Found { links, addresses, routes, rules, ..Found::default() }
    }

    /// The neighbours too: pods need them, ENIs do not.
    pub fn with_neighbours(self, neighbours: Vec<NeighbourMessage>) -> Self {
        Found { neighbours, ..self }
    }

    /// What the host answers for, too.
    pub fn with_proxies(self, proxies: Vec<Proxy>) -> Self {
        Found { proxies, ..self }
    }

    /// Takes what an earlier reading had remembered, so that an ENI's link is known when it has lost its MAC.
    pub fn remember(mut self, before: &BTreeMap<Mac, u32>) -> Self {
        self.before = before.clone();
        self
    }

    /// Which links these ENIs have.
    pub fn indices(&self, enis: &[EniNet]) -> BTreeMap<Mac, u32> {
        enis.iter().filter_map(|eni| Some((eni.mac, self.link_of(eni.mac)?.header.index))).collect()
    }

    /// Index of the link of this name.
    pub fn index_of(&self, name: &str) -> Option<u32> {
        self.links.iter().find(|link| ifname(link) == name).map(|link| link.header.index)
    }

    /// Name of the link of this number.
    pub fn name_of(&self, index: u32) -> Option<&str> {
        self.links.iter().find(|link| link.header.index == index).map(ifname)
    }

    /// Number of the link with this MAC, whoever's it is.
    pub fn index_of_mac(&self, mac: Mac) -> Option<u32> {
        self.links.iter().find(|link| link::mac(link) == Some(mac)).map(|link| link.header.index)
    }

    /// Whether there is a link of this name.
    pub fn has_link(&self, name: &str) -> bool {
        self.index_of(name).is_some()
    }

    /// Name of the link with this MAC that no device group marks as a pod's.
    pub fn ifname_of(&self, mac: Mac) -> Option<&str> {
        self.link_of(mac).map(ifname)
    }

    /// The link that carries the ENI's address: its own, or the bridge or bond that the host made it a port of, which
    /// the primary's packets come and go by then.
    pub fn carrier_of(&self, eni: &EniNet) -> Option<&LinkMessage> {
        let own = self.link_of(eni.mac)?;
        let has_address = |message: &&AddressMessage| own_address(message) == Some(eni.primary.addr().into());
        let carriers: BTreeSet<u32> =
            self.addresses.iter().filter(has_address).map(|message| message.header.index).collect();
        if eni.slot != 0 || carriers.contains(&own.header.index) {
            return Some(own);
        }
        let carries = |link: &&LinkMessage| carriers.contains(&link.header.index) && !marks::is_of_a_pod(group(link));
        Some(self.links.iter().find(carries).unwrap_or(own))
    }

    /// Name of the link that carries the ENI's address.
    pub fn carrier_name(&self, eni: &EniNet) -> Option<&str> {
        self.carrier_of(eni).map(ifname)
    }

    pub(crate) fn link_of(&self, mac: Mac) -> Option<&LinkMessage> {
        let is_no_pods = |link: &&LinkMessage| !marks::is_of_a_pod(group(link));
        // A VLAN or an ipvlan link on an ENI has its MAC, and came later. Kernels before 6.9 list links in no such order.
        let of_mac = self.links.iter().filter(is_no_pods).filter(|link| link::mac(link) == Some(mac));
        let by_mac = of_mac.min_by_key(|link| link.header.index);
        let before = self.before.get(&mac);
        by_mac.or_else(|| self.links.iter().filter(is_no_pods).find(|link| Some(&link.header.index) == before))
    }
}
