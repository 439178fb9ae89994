//! Which addresses of a subnet are taken, and which one EC2 would give next.
//!
//! EC2 keeps the first four and the last address of a subnet (Amazon VPC User Guide, "Subnet CIDR blocks").
//! It scatters single addresses, which is how subnets get too fragmented for /28 prefixes; so do we: the
//! search starts at a random place and takes the first free address after it.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr},
};

use fastrand::Rng;
use ipnet::{Ipv4Net, Ipv6Net};

/// Addresses of a /28.
const BLOCK: u32 = 16;

/// The addresses of one subnet.
#[derive(Clone, Debug)]
pub(super) struct Space {
    pub cidr: Ipv4Net,
    pub ipv6: Option<Ipv6Net>,
    /// Of ENIs of this account.
    used: BTreeSet<u32>,
    /// Of anybody else.
    others: BTreeSet<u32>,
    /// First addresses of /28 prefixes.
    blocks: BTreeSet<u32>,
    used6: BTreeSet<u128>,
    blocks6: BTreeSet<u128>,
}

impl Space {
    pub fn new(cidr: Ipv4Net, ipv6: Option<Ipv6Net>) -> Self {
        Space {
            cidr: cidr.trunc(),
            ipv6: ipv6.map(|net| net.trunc()),
            used: BTreeSet::new(),
            others: BTreeSet::new(),
            blocks: BTreeSet::new(),
            used6: BTreeSet::new(),
            blocks6: BTreeSet::new(),
        }
    }

    /// First and last address that can be given.
    fn range(&self) -> (u32, u32) {
        (self.cidr.network().to_bits() + 4, self.cidr.broadcast().to_bits() - 1)
    }

    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let (first, last) = self.range();
        (first..=last).contains(&address.to_bits())
    }

    pub fn is_free(&self, address: Ipv4Addr) -> bool {
        self.contains(address) && self.is_untaken(address.to_bits())
    }

    fn is_untaken(&self, address: u32) -> bool {
        !self.used.contains(&address) && !self.others.contains(&address) && !self.blocks.contains(&(address & !15))
    }

    /// How many addresses are free.
    pub fn free(&self) -> u32 {
        let (first, last) = self.range();
        // The three never overlap: each is only taken out of what is free.
        let taken = self.used.len() + self.others.len() + self.blocks.len() * 16;
        let taken = u32::try_from(taken).unwrap_or(u32::MAX);
        (last + 1).saturating_sub(first).saturating_sub(taken)
    }

    /// That many free addresses, not taken yet; `None` if there are not so many. `but`: prefixes that are
    /// spoken for.
    pub fn pick(&self, rng: &mut Rng, count: usize, but: &[Ipv4Net]) -> Option<Vec<Ipv4Addr>> {
        let (first, last) = self.range();
        let mut picked = BTreeSet::new();
        let spoken_for = |address: u32| but.iter().any(|block| block.contains(&Ipv4Addr::from_bits(address)));
        let mut order = Vec::new();
        for _ in 0..count {
            let start = rng.u32(first..=last);
            let mut candidates = (start..=last).chain(first..start);
            let found = candidates
                .find(|address| self.is_untaken(*address) && !picked.contains(address) && !spoken_for(*address))?;
            picked.insert(found);
            order.push(Ipv4Addr::from_bits(found));
        }
        Some(order)
    }

    /// That many free, aligned /28; `None` if there are not so many.
    pub fn pick_blocks(&self, rng: &mut Rng, count: usize) -> Option<Vec<Ipv4Net>> {
        let (first, last) = self.range();
        let (low, high) = (first.next_multiple_of(BLOCK), (last + 1) / BLOCK * BLOCK);
        let blocks = high.saturating_sub(low) / BLOCK;
        if blocks == 0 {
            return (count == 0).then(Vec::new);
        }
        let mut picked = BTreeSet::new();
        let mut order = Vec::new();
        for _ in 0..count {
            let start = rng.u32(0..blocks);
            let mut candidates = (start..blocks).chain(0..start).map(|index| low + index * BLOCK);
            let found = candidates.find(|base| self.is_block_free(*base) && !picked.contains(base))?;
            picked.insert(found);
            order.push(Ipv4Net::new(Ipv4Addr::from_bits(found), 28).ok()?);
        }
        Some(order)
    }

    fn is_block_free(&self, base: u32) -> bool {
        let within = base..base + BLOCK;
        !self.blocks.contains(&base)
            && self.used.range(within.clone()).next().is_none()
            && self.others.range(within).next().is_none()
    }

    pub fn take(&mut self, addresses: &[Ipv4Addr], blocks: &[Ipv4Net]) {
        self.used.extend(addresses.iter().map(|address| address.to_bits()));
        self.blocks.extend(blocks.iter().map(|block| block.network().to_bits()));
    }

    pub fn give_back(&mut self, addresses: &[Ipv4Addr], blocks: &[Ipv4Net]) {
        for address in addresses {
            self.used.remove(&address.to_bits());
        }
        for block in blocks {
            self.blocks.remove(&block.network().to_bits());
        }
    }

    /// Addresses that others take. One that is taken already or not in the subnet is left as it is.
    pub fn occupy(&mut self, addresses: impl IntoIterator<Item = Ipv4Addr>) {
        for address in addresses {
            if self.is_free(address) {
                self.others.insert(address.to_bits());
            }
        }
    }

    pub fn vacate(&mut self, addresses: impl IntoIterator<Item = Ipv4Addr>) {
        for address in addresses {
            self.others.remove(&address.to_bits());
        }
    }

    /// That many free IPv6 addresses; `None` without an IPv6 range.
    pub fn pick6(&self, rng: &mut Rng, count: usize) -> Option<Vec<Ipv6Addr>> {
        let base = self.ipv6?.network().to_bits();
        let mut order = Vec::new();
        while order.len() < count {
            let address = base | u128::from(rng.u64(16..));
            if !self.used6.contains(&address)
                && !self.blocks6.contains(&(address >> 48 << 48))
                && !order.contains(&Ipv6Addr::from_bits(address))
            {
                order.push(Ipv6Addr::from_bits(address));
            }
        }
        Some(order)
    }

    /// That many free /80; `None` without an IPv6 range or when they run out. The first and the last one contain
    /// addresses that EC2 keeps.
    pub fn pick_blocks6(&self, rng: &mut Rng, count: usize) -> Option<Vec<Ipv6Net>> {
        let base = self.ipv6?.network().to_bits();
        let mut order: Vec<Ipv6Net> = Vec::new();
        for _ in 0..count {
            let start = rng.u16(1..u16::MAX);
            let mut candidates = (start..u16::MAX).chain(1..start).map(|index| base | u128::from(index) << 48);
            let found = candidates.find(|block| {
                let used = self.used6.range(*block..block + (1 << 48)).next().is_some();
                !used && !self.blocks6.contains(block) && order.iter().all(|net| net.network().to_bits() != *block)
            })?;
            order.push(Ipv6Net::new(Ipv6Addr::from_bits(found), 80).ok()?);
        }
        Some(order)
    }

    pub fn take6(&mut self, addresses: &[Ipv6Addr], blocks: &[Ipv6Net]) {
        self.used6.extend(addresses.iter().map(|address| address.to_bits()));
        self.blocks6.extend(blocks.iter().map(|block| block.network().to_bits()));
    }

    pub fn give_back6(&mut self, addresses: &[Ipv6Addr], blocks: &[Ipv6Net]) {
        for address in addresses {
            self.used6.remove(&address.to_bits());
        }
        for block in blocks {
            self.blocks6.remove(&block.network().to_bits());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(cidr: &str) -> Space {
        Space::new(cidr.parse().unwrap(), Some("2001:db8:0:1::/64".parse().unwrap()))
    }

    #[test]
    fn ec2_keeps_five_addresses() {
        let mut space = space("10.0.1.0/28");
        assert_eq!(space.free(), 11);
        let all = space.pick(&mut Rng::with_seed(1), 11, &[]).unwrap();
        assert_eq!(*all.iter().min().unwrap(), Ipv4Addr::new(10, 0, 1, 4));
        assert_eq!(*all.iter().max().unwrap(), Ipv4Addr::new(10, 0, 1, 14));
        assert_eq!(space.pick(&mut Rng::with_seed(1), 12, &[]), None);
        space.take(&all, &[]);
        assert_eq!((space.free(), space.pick(&mut Rng::with_seed(1), 1, &[])), (0, None));
        space.give_back(&all[..1], &[]);
        assert_eq!(space.pick(&mut Rng::with_seed(1), 1, &[]), Some(all[..1].to_vec()));
    }

    #[test]
    fn a_prefix_needs_sixteen_aligned_addresses() {
        let mut rng = Rng::with_seed(1);
        let mut space = space("10.0.1.0/26");
        // The first and the last block contain addresses that EC2 keeps.
        assert_eq!(space.pick_blocks(&mut rng, 2).unwrap().len(), 2);
        assert_eq!(space.pick_blocks(&mut rng, 3), None);
        space.occupy(["10.0.1.20".parse().unwrap()]);
        assert_eq!(space.pick_blocks(&mut rng, 1).unwrap(), ["10.0.1.32/28".parse::<Ipv4Net>().unwrap()]);
        space.occupy(["10.0.1.47".parse().unwrap()]);
        assert_eq!((space.pick_blocks(&mut rng, 1), space.free()), (None, 57));
        space.vacate(["10.0.1.20".parse().unwrap()]);
        let blocks = space.pick_blocks(&mut rng, 1).unwrap();
        space.take(&[], &blocks);
        assert_eq!(space.free(), 42);
        assert!(!space.is_free("10.0.1.20".parse().unwrap()));
        assert_eq!(super::Space::new("10.0.1.0/28".parse().unwrap(), None).pick_blocks(&mut rng, 1), None);
    }

    #[test]
    fn ipv6_addresses_and_prefixes_do_not_overlap() {
        let mut rng = Rng::with_seed(1);
        let mut space = space("10.0.1.0/24");
        let blocks = space.pick_blocks6(&mut rng, 3).unwrap();
        space.take6(&[], &blocks);
        let addresses = space.pick6(&mut rng, 100).unwrap();
        assert!(addresses.iter().all(|address| blocks.iter().all(|block| !block.contains(address))));
        assert_eq!(Space::new("10.0.1.0/24".parse().unwrap(), None).pick6(&mut rng, 1), None);
    }
}
