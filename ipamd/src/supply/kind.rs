//! Kinds of block, their sizes, and the ranges that only the node knows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// Addresses in a /28.
pub const PREFIX_SIZE: u64 = 16;
/// A /80 counts as this many addresses: more than any node has pods.
pub const V6_SIZE: u64 = 1 << 32;

/// IPv4 addresses that only a node knows: those of Amazon's egress plugin.
pub const LOCAL_V4: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 172, 0), 22));
/// The same for IPv6.
pub const LOCAL_V6: IpNet = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0xac, 0), 118));

/// Both.
pub const LOCAL: [IpNet; 2] = [LOCAL_V4, LOCAL_V6];

/// Whether only its node knows this address.
pub fn is_local(address: IpAddr) -> bool {
    LOCAL.iter().any(|range| range.contains(&address))
}

/// Which kind of block EC2 is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// One IPv4 address.
    Single,
    /// An IPv4 /28.
    Prefix,
    /// An IPv6 /80.
    V6Prefix,
}

impl Kind {
    /// The kind of a block.
    pub fn of(net: &IpNet) -> Kind {
        match net {
            IpNet::V4(net) if net.prefix_len() == 32 => Kind::Single,
            IpNet::V4(_) => Kind::Prefix,
            IpNet::V6(_) => Kind::V6Prefix,
        }
    }

    /// Addresses in one block.
    pub fn size(self) -> u64 {
        match self {
            Kind::Single => 1,
            Kind::Prefix => PREFIX_SIZE,
            Kind::V6Prefix => V6_SIZE,
        }
    }
}

/// Addresses in a block.
pub fn size(net: &IpNet) -> u64 {
    let bits = net.max_prefix_len() - net.prefix_len();
    if bits >= 32 { V6_SIZE } else { 1 << bits }
}

/// First and last address.
pub(crate) fn ends(net: &IpNet) -> (IpAddr, IpAddr) {
    (net.network(), net.broadcast())
}

/// The blocks an address can be in: alone, or in a prefix of EC2's sizes.
pub(crate) fn candidates(address: IpAddr) -> [IpNet; 2] {
    let alone = IpNet::from(address);
    let length = if address.is_ipv4() { 28 } else { 80 };
    [alone, IpNet::new(address, length).map_or(alone, |net| net.trunc())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_candidates() {
        for (net, addresses, of) in [
            ("10.0.1.7/32", 1, Kind::Single),
            ("10.0.1.16/28", 16, Kind::Prefix),
            ("fd00::/80", V6_SIZE, Kind::V6Prefix),
        ] {
            let net: IpNet = net.parse().unwrap();
            assert_eq!((size(&net), Kind::of(&net)), (addresses, of));
            let (first, last) = ends(&net);
            assert!(candidates(first).contains(&net) && candidates(last).contains(&net));
        }
    }
}
