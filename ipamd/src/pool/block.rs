//! What EC2 puts on an ENI: a block of addresses. A single address is a block of one, a /28 has sixteen,
//! an IPv6 /80 more than can be listed; all are handled alike, and none is ever listed out.

use std::{
    cmp::Reverse,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use imbl::OrdSet;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    ids::{EniId, Millis},
    supply::{LOCAL_V4, LOCAL_V6, kind},
};

/// What a block may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlockState {
    /// Its available addresses may be assigned.
    Usable,
    /// Metadata does not show it any more. Withheld until metadata or EC2 says that it is there.
    Unconfirmed,
    /// It is being unassigned; withheld from then on. The moment is when that was decided.
    Unassigning(Millis),
}

/// How many addresses of a block are in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InUse {
    /// By leases and orphaned links.
    pub(crate) assigned: u64,
    /// In their cooldown.
    pub(crate) cooling: u64,
}

/// One block on an ENI, or the range that only the node knows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Block {
    net: IpNet,
    eni: EniId,
    state: BlockState,
    /// Pods' first addresses are out of it; otherwise it holds second addresses.
    leads: bool,
    /// Its absence from metadata means something from then on: at once where metadata has shown it, a while later
    /// where EC2 confirmed it.
    confirmed_until: Millis,
    in_use: InUse,
    /// Offsets from here on were never assigned in this run.
    fresh: u64,
    /// Addresses that are assigned to nobody, at its beginning and at its end.
    reserved: (u64, u64),
    /// Addresses below `fresh` that are available, the longest available first.
    returned: OrdSet<(Millis, IpAddr)>,
}

/// So many returned addresses are kept before one is assigned again although others were never in use: enough that each
/// has long been available, and a block that is never used up does not remember every address that it ever assigned.
const KEPT: usize = 1024;

/// The last addresses of an IPv6 prefix, which no pod gets: a probe's, and the ENI's own.
const RESERVED_AT_END: u64 = 2;

/// The address of an IPv6 prefix that the ENI which has the prefix keeps for itself: EC2 gives a secondary ENI no other
/// one, and what the host sends by that ENI in its own name (kube-proxy's masquerading) needs one that the VPC accepts
/// there. `None` for what is no IPv6 prefix.
pub fn own_of_eni(net: &IpNet) -> Option<Ipv6Addr> {
    match net {
        IpNet::V6(net) if net.prefix_len() < 128 => Some(Ipv6Addr::from(u128::from(net.broadcast()) - 1)),
        _ => None,
    }
}

/// A place in the order of assigning: the fullest block first, in it the address that was available longest.
pub(crate) type Rank = (Reverse<u64>, Millis, IpNet);

impl Block {
    pub(crate) fn new(net: IpNet, eni: EniId, leads: bool, in_use: InUse) -> Self {
        // The first address of an IPv6 block may be every router's (RFC 4291, 2.6.1); a range's ends are its own, and its
        // second address may be a gateway's on this node: that of pods which Amazon's egress plugin has wired.
        let range = net == LOCAL_V4 || net == LOCAL_V6;
        let at_end = if own_of_eni(&net).is_some() && !range { RESERVED_AT_END } else { u64::from(range) };
        let at_begin = if range { 2 } else { u64::from(net.addr().is_ipv6()) };
        let reserved = (at_begin, at_end);
        Block {
            net,
            eni,
            state: BlockState::Usable,
            leads,
            confirmed_until: Millis(0),
            in_use,
            fresh: reserved.0,
            reserved,
            returned: OrdSet::new(),
        }
    }

    /// Its addresses.
    pub fn net(&self) -> IpNet {
        self.net
    }

    /// The ENI that carries it.
    pub fn eni(&self) -> &EniId {
        &self.eni
    }

    /// What it may be used for.
    pub fn state(&self) -> BlockState {
        self.state
    }

    /// Whether pods' first addresses are out of it.
    pub(crate) fn leads(&self) -> bool {
        self.leads
    }

    /// Until when its absence from metadata means nothing.
    pub(crate) fn confirmed_until(&self) -> Millis {
        self.confirmed_until
    }

    /// How many of its addresses pods hold.
    pub fn assigned(&self) -> u64 {
        self.in_use.assigned
    }

    /// How many of its addresses are in use.
    pub(crate) fn in_use(&self) -> InUse {
        self.in_use
    }

    /// Addresses that may be assigned now.
    pub fn available(&self) -> u64 {
        let InUse { assigned, cooling } = self.in_use;
        let reserved = self.reserved.0 + self.reserved.1;
        match self.state {
            BlockState::Usable => (kind::size(&self.net) - reserved).saturating_sub(assigned + cooling),
            BlockState::Unconfirmed | BlockState::Unassigning(_) => 0,
        }
    }

    /// No address of it is assigned or cooling.
    pub fn is_idle(&self) -> bool {
        self.in_use == InUse::default()
    }

    /// Its place in the order of assigning, if it has anything to assign.
    pub(crate) fn rank(&self) -> Option<Rank> {
        if !self.leads || self.available() == 0 {
            return None;
        }
        let since = if self.has_fresh() { Millis(0) } else { self.returned.get_min()?.0 };
        Some((Reverse(self.in_use.assigned), since, self.net))
    }

    fn has_fresh(&self) -> bool {
        self.fresh < kind::size(&self.net) - self.reserved.1
    }

    pub(crate) fn set_state(&mut self, state: BlockState) {
        self.state = state;
    }

    pub(crate) fn confirm(&mut self, until: Millis) {
        self.confirmed_until = until;
    }

    /// Assigns the address that was available longest; `taken` tells addresses that are in use.
    pub(crate) fn assign(&mut self, taken: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        let address = self.next(taken)?;
        self.in_use.assigned += 1;
        Some(address)
    }

    fn next(&mut self, taken: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        while self.has_fresh() && self.returned.len() < KEPT {
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

    /// An assigned address was never handed out: it is available again.
    pub(crate) fn put_back(&mut self, address: IpAddr, now: Millis) {
        self.in_use.assigned -= 1;
        self.make_available(address, now);
    }

    /// An assigned address begins its cooldown.
    pub(crate) fn cool(&mut self) {
        self.in_use.assigned -= 1;
        self.in_use.cooling += 1;
    }

    /// The cooldown of an address is over.
    pub(crate) fn cooled(&mut self, address: IpAddr, now: Millis) {
        self.in_use.cooling -= 1;
        self.make_available(address, now);
    }

    /// An address that was available, or cooling, is in use by an orphaned link.
    pub(crate) fn occupy(&mut self, address: IpAddr, was_cooling: bool) {
        let found = self.returned.iter().find(|(_, free)| *free == address).copied();
        if let Some(entry) = found {
            self.returned.remove(&entry);
        }
        self.in_use.assigned += 1;
        self.in_use.cooling -= u64::from(was_cooling);
    }

    fn make_available(&mut self, address: IpAddr, now: Millis) {
        if offset(&self.net, address) < self.fresh {
            self.returned.insert((now.max(Millis(1)), address));
        }
    }
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
        Block::new(net.parse().unwrap(), EniId("eni-1".into()), true, InUse::default())
    }

    #[test]
    fn the_longest_available_address_goes_first() {
        let mut block = block("10.0.1.16/28");
        let taken: IpAddr = "10.0.1.17".parse().unwrap();
        let order: Vec<IpAddr> = (0..15).map(|_| block.assign(|address| address == taken).unwrap()).collect();
        assert!(!order.contains(&taken) && order.is_sorted());
        assert_eq!(block.assign(|_| false), None);
        for (address, at) in [(order[3], 20), (order[1], 30)] {
            block.cool();
            block.cooled(address, Millis(at));
        }
        assert_eq!(block.assign(|_| false), Some(order[3]));
        block.occupy(order[1], false);
        assert_eq!(block.assign(|_| false), None);
    }

    #[test]
    fn a_range_of_the_node_is_assigned_to_its_end_and_no_further() {
        let mut block = Block::new(LOCAL_V4, EniId("".into()), false, InUse::default());
        let assigned: Vec<IpAddr> =
            std::iter::from_fn(|| (block.available() > 0).then(|| block.assign(|_| false))?).collect();
        assert_eq!(assigned.len(), 1021);
        assert_eq!(assigned.first(), Some(&"169.254.172.2".parse().unwrap()));
        assert_eq!(assigned.last(), Some(&"169.254.175.254".parse().unwrap()));
    }

    #[test]
    fn an_ipv6_prefix_is_never_used_up() {
        let mut block = block("fd00:0:0:1::/80");
        assert_eq!(block.assign(|_| false), Some("fd00:0:0:1::1".parse().unwrap()));
        assert!(block.rank().is_some());
    }

    #[test]
    fn an_ipv6_prefix_does_not_remember_all_that_it_ever_assigned() {
        let mut block = block("fd00:0:0:1::/80");
        for now in 1..=u64::try_from(3 * KEPT).unwrap() {
            let address = block.assign(|_| false).unwrap();
            block.cool();
            block.cooled(address, Millis(now));
        }
        assert_eq!(block.returned.len(), KEPT);
    }

    #[test]
    fn only_a_usable_block_has_anything_available() {
        let mut block = block("10.0.1.16/28");
        assert_eq!(block.available(), 16);
        block.set_state(BlockState::Unconfirmed);
        assert_eq!((block.available(), block.rank()), (0, None));
    }
}
