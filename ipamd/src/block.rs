//! What EC2 puts on an ENI: a block of addresses. A single address is a block of one, a /28 has sixteen,
//! an IPv6 /80 more than can be counted out; all are handled alike, and none is ever listed out.

use std::{
    cmp::Reverse,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use imbl::OrdSet;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{EniId, LOCAL_V4, LOCAL_V6, Millis};

/// Addresses in a /28.
pub const PREFIX_SIZE: u64 = 16;
/// A /80 counts as this many addresses: more than any node has pods.
const V6_SIZE: u64 = 1 << 32;

/// Which kind of block is asked of EC2.
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
    /// Addresses in one block.
    pub fn size(self) -> u64 {
        match self {
            Kind::Single => 1,
            Kind::Prefix => PREFIX_SIZE,
            Kind::V6Prefix => V6_SIZE,
        }
    }
}

/// What a block may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockState {
    /// Its free addresses may be given.
    Open,
    /// Metadata does not show it any more. Withheld until metadata or EC2 says that it is there.
    Doubted,
    /// It is being given back; withheld from then on. The moment is when that was decided.
    Leaving(Millis),
}

/// One block on an ENI.
#[derive(Clone, Debug)]
pub struct Block {
    /// The addresses.
    pub net: IpNet,
    /// The ENI that carries it.
    pub eni: EniId,
    /// What it may be used for.
    pub state: BlockState,
    /// Pods' first addresses are out of it; others only stand beside.
    pub leads: bool,
    /// Its absence from metadata means something from then on: at once where metadata has shown it, a while later
    /// where EC2 vouched for it.
    pub(crate) excused: Millis,
    /// Addresses that attachments hold, or links that nobody knows.
    pub held: u64,
    /// Addresses that rest.
    pub resting: u64,
    /// Offsets from here on were never given in this life.
    fresh: u64,
    /// Addresses that are given to nobody, at its beginning and at its end.
    kept: (u64, u64),
    /// Addresses below `fresh` that are free, the longest free first.
    returned: OrdSet<(Millis, IpAddr)>,
}

/// So many returned addresses are kept before one is given again although others were never in use: enough that each
/// has long been free, and a block that is never counted out does not remember every address that it ever gave.
const KEPT: usize = 1024;

/// A place in the order of giving: the fullest block first, in it the address that was free longest.
pub(crate) type Rank = (Reverse<u64>, Millis, IpNet);

impl Block {
    pub(crate) fn new(net: IpNet, eni: EniId, leads: bool) -> Self {
        // The first address of an IPv6 block may be every router's (RFC 4291, 2.6.1); a range's ends are its own.
        let range = net == LOCAL_V4 || net == LOCAL_V6;
        let kept = (u64::from(net.addr().is_ipv6() || range), u64::from(range));
        Block {
            net,
            eni,
            state: BlockState::Open,
            leads,
            excused: Millis(0),
            held: 0,
            resting: 0,
            fresh: kept.0,
            kept,
            returned: OrdSet::new(),
        }
    }

    /// Addresses in it.
    pub fn size(&self) -> u64 {
        size(&self.net)
    }

    /// Addresses that may be given now.
    pub fn free(&self) -> u64 {
        let kept = self.kept.0 + self.kept.1;
        if self.state == BlockState::Open { (self.size() - kept).saturating_sub(self.held + self.resting) } else { 0 }
    }

    /// Nobody uses or remembers any of it.
    pub fn is_idle(&self) -> bool {
        self.held == 0 && self.resting == 0
    }

    /// Its place in the order of giving, if it has anything to give.
    pub(crate) fn rank(&self) -> Option<Rank> {
        if !self.leads || self.free() == 0 {
            return None;
        }
        let since = if self.fresh < self.size() - self.kept.1 { Millis(0) } else { self.returned.get_min()?.0 };
        Some((Reverse(self.held), since, self.net))
    }

    /// Takes the address that was free longest; `taken` tells addresses that are in use.
    pub(crate) fn take(&mut self, taken: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        while self.fresh < self.size() - self.kept.1 && self.returned.len() < KEPT {
            let address = nth(&self.net, self.fresh);
            self.fresh += 1;
            if !taken(address) {
                return Some(address);
            }
        }
        let (since, address) = *self.returned.get_min()?;
        self.returned.remove(&(since, address));
        Some(address)
    }

    /// An address is free from now on.
    pub(crate) fn give_back(&mut self, address: IpAddr, now: Millis) {
        if offset(&self.net, address) < self.fresh {
            self.returned.insert((now.max(Millis(1)), address));
        }
    }

    /// An address that was thought to be free is in use after all.
    pub(crate) fn withhold(&mut self, address: IpAddr) {
        let found = self.returned.iter().find(|(_, free)| *free == address).copied();
        if let Some(entry) = found {
            self.returned.remove(&entry);
        }
    }
}

/// Addresses in a block.
pub fn size(net: &IpNet) -> u64 {
    let bits = net.max_prefix_len() - net.prefix_len();
    if bits >= 32 { V6_SIZE } else { 1 << bits }
}

/// The kind of a block.
pub fn kind(net: &IpNet) -> Kind {
    match net {
        IpNet::V4(net) if net.prefix_len() == 32 => Kind::Single,
        IpNet::V4(_) => Kind::Prefix,
        IpNet::V6(_) => Kind::V6Prefix,
    }
}

/// The blocks an address can be in: alone, or in a prefix of EC2's sizes.
pub(crate) fn candidates(address: IpAddr) -> [IpNet; 2] {
    let alone = IpNet::from(address);
    let length = if address.is_ipv4() { 28 } else { 80 };
    [alone, IpNet::new(address, length).map_or(alone, |net| net.trunc())]
}

/// First and last address.
pub(crate) fn ends(net: &IpNet) -> (IpAddr, IpAddr) {
    (net.network(), net.broadcast())
}

fn nth(net: &IpNet, offset: u64) -> IpAddr {
    match net.network() {
        IpAddr::V4(first) => IpAddr::V4(Ipv4Addr::from(u32::from(first) + u32::try_from(offset).unwrap_or(0))),
        IpAddr::V6(first) => IpAddr::V6(Ipv6Addr::from(u128::from(first) + u128::from(offset))),
    }
}

fn offset(net: &IpNet, address: IpAddr) -> u64 {
    let distance = match (net.network(), address) {
        (IpAddr::V4(first), IpAddr::V4(address)) => u128::from(u32::from(address).saturating_sub(u32::from(first))),
        (IpAddr::V6(first), IpAddr::V6(address)) => u128::from(address).saturating_sub(u128::from(first)),
        _ => u128::MAX,
    };
    u64::try_from(distance).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(net: &str) -> Block {
        Block::new(net.parse().unwrap(), EniId("eni-1".into()), true)
    }

    #[test]
    fn sizes_and_candidates() {
        for (net, addresses, of) in [
            ("10.0.1.7/32", 1, Kind::Single),
            ("10.0.1.16/28", 16, Kind::Prefix),
            ("fd00::/80", V6_SIZE, Kind::V6Prefix),
        ] {
            let net: IpNet = net.parse().unwrap();
            assert_eq!((size(&net), kind(&net)), (addresses, of));
            let (first, last) = ends(&net);
            assert!(candidates(first).contains(&net) && candidates(last).contains(&net));
        }
    }

    #[test]
    fn the_longest_free_address_goes_first() {
        let mut block = block("10.0.1.16/28");
        let taken: IpAddr = "10.0.1.17".parse().unwrap();
        let order: Vec<IpAddr> = (0..15).map(|_| block.take(|address| address == taken).unwrap()).collect();
        assert!(!order.contains(&taken) && order.is_sorted());
        assert_eq!(block.take(|_| false), None);
        block.give_back(order[3], Millis(20));
        block.give_back(order[1], Millis(30));
        assert_eq!(block.take(|_| false), Some(order[3]));
        block.withhold(order[1]);
        assert_eq!(block.take(|_| false), None);
    }

    #[test]
    fn a_range_of_the_node_is_given_to_its_end_and_no_further() {
        let mut block = Block::new(LOCAL_V4, EniId(String::new()), false);
        let given: Vec<IpAddr> = std::iter::from_fn(|| {
            let address = (block.free() > 0).then(|| block.take(|_| false))??;
            block.held += 1;
            Some(address)
        })
        .collect();
        assert_eq!(given.len(), 1022);
        assert_eq!(given.first(), Some(&"169.254.172.1".parse().unwrap()));
        assert_eq!(given.last(), Some(&"169.254.175.254".parse().unwrap()));
    }

    #[test]
    fn an_ipv6_prefix_is_never_counted_out() {
        let mut block = block("fd00:0:0:1::/80");
        assert_eq!(block.take(|_| false), Some("fd00:0:0:1::1".parse().unwrap()));
        assert!(block.rank().is_some());
    }

    #[test]
    fn an_ipv6_prefix_does_not_remember_all_that_it_ever_gave() {
        let mut block = block("fd00:0:0:1::/80");
        for now in 1..=u64::try_from(3 * KEPT).unwrap() {
            let address = block.take(|_| false).unwrap();
            block.give_back(address, Millis(now));
        }
        assert_eq!(block.returned.len(), KEPT);
    }
}
