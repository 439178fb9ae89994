//! An ENI as the kernel should know it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::Ipv4Net;
use netlink_packet_route::route::RouteMessage;

use crate::{
    family::{Family, ROUTER_V6},
    identity::Mac,
    netlink::message::{default_route, link_route},
};

/// An ENI as the kernel should know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EniNet {
    /// Slot in marks and device groups; 0 is the primary ENI.
    pub slot: u32,
    /// Tells which link it is.
    pub mac: Mac,
    /// Its own primary address, with the subnet's prefix length.
    pub primary: Ipv4Net,
    /// Its own IPv6 address, if EC2 gave it one.
    pub own_v6: Option<Ipv6Addr>,
    /// Its route table; the primary uses main.
    pub table: u32,
    /// Bytes.
    pub mtu: u32,
}

impl EniNet {
    /// The subnet's gateway: its first address (Amazon VPC User Guide, subnet CIDR blocks).
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.primary.network()) + 1)
    }

    fn gateway_of(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.gateway().into(),
            Family::V6 => ROUTER_V6.into(),
        }
    }

    /// Its own addresses, which the host uses itself.
    pub(crate) fn own(&self) -> impl Iterator<Item = IpAddr> {
        [Some(IpAddr::from(self.primary.addr())), self.own_v6.map(IpAddr::from)].into_iter().flatten()
    }

    /// The routes of its table, by their destination.
    pub(crate) fn routes(&self, family: Family, index: u32) -> [(String, RouteMessage); 2] {
        let gateway = self.gateway_of(family);
        let default = default_route(self.table, gateway, index);
        [(gateway.to_string(), link_route(self.table, gateway, index)), (family.default_net().to_owned(), default)]
    }
}
