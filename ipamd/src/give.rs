//! Which address is given next, with what beside it, and how many there are: over all, and on each network card.

use std::{cmp::Reverse, net::IpAddr};

use ipnet::IpNet;

use crate::{
    Beside, Block, Core, Counts, Eni, EniId, EniState, Millis, Place, Sums, block::Rank, mutation::Mutation, supply,
};

impl Core {
    /// Network cards whose ENIs serve pods: all, but for one that carries an EFA-only ENI and nothing else.
    pub(crate) fn manages(&self, card: u32) -> bool {
        let on_it = |place: &Place| place.card == card;
        let only_bare = || self.bare.values().any(on_it) && !self.enis.values().any(|eni| on_it(&eni.facts.place));
        card == 0 || self.may_manage(card) && !only_bare()
    }

    pub(crate) fn may_manage(&self, card: u32) -> bool {
        card == 0 || self.node.policy.multi_card && (card <= self.node.limits.further_cards || !self.asks_ec2())
    }

    /// Without EC2's word the ENIs that are there tell which cards there are.
    fn asks_ec2(&self) -> bool {
        self.node.policy.provisioning != crate::Provisioning::ImdsOnly
    }

    /// The cards that are managed.
    pub(crate) fn cards(&self) -> Vec<u32> {
        let shown = || self.enis.values().map(|eni| eni.facts.place.card).max().unwrap_or(0);
        let further = if self.asks_ec2() { self.node.limits.further_cards } else { shown() };
        let further = if self.node.policy.multi_card { further } else { 0 };
        (0..=further).filter(|card| self.manages(*card)).collect()
    }

    /// Whether pods may get its addresses now: it may lack what they get beside.
    pub(crate) fn serves(&self, eni: &Eni) -> bool {
        eni.gives() && self.manages(eni.facts.place.card) && (!self.needs_v6() || self.v6_of(eni).is_some())
    }

    fn needs_v6(&self) -> bool {
        self.node.policy.beside == Beside::V6OfEni
    }

    /// The IPv6 block that stands beside on this ENI.
    fn v6_of(&self, eni: &Eni) -> Option<IpNet> {
        let free = |net: &&IpNet| self.blocks.get(*net).is_some_and(|block| !block.leads && block.free() > 0);
        eni.blocks.iter().filter(|net| matches!(net, IpNet::V6(_))).find(free).copied()
    }

    /// Whether this ENI has no IPv6 block, and none is on its way.
    pub(crate) fn lacks_v6(&self, eni: &Eni) -> bool {
        let v6 = |net: &IpNet| matches!(net, IpNet::V6(_));
        self.needs_v6()
            && eni.gives()
            && self.manages(eni.facts.place.card)
            && !eni.blocks.iter().any(v6)
            && !self.expected.get(&eni.facts.id).is_some_and(|expected| expected.blocks.iter().any(v6))
    }

    /// The block to give from next, on this card or on the first that has one: the fullest prefix, so that others can
    /// empty; among equals on the ENI that has given most; there the address that was free longest.
    pub(crate) fn pick(&self, card: Option<u32>) -> Option<IpNet> {
        if self.local.as_ref().is_some_and(|local| local.free() == 0) {
            return None;
        }
        let first = |eni: &Eni| eni.open.get_min().copied();
        let on_card = |eni: &&Eni| card.is_none_or(|card| eni.facts.place.card == card);
        let ready = self.enis.values().filter(on_card).filter(|eni| self.serves(eni));
        let best = ready.filter_map(|eni| first(eni).map(|rank| (rank, eni)));
        let order = |(rank, eni): &(Rank, &Eni)| (eni.facts.place.card, rank.0, Reverse(eni.sums.held), eni.slot);
        best.min_by_key(order).map(|(rank, _)| rank.2)
    }

    /// Takes the address that was free longest out of a block, and what a pod gets beside.
    pub(crate) fn take_from(&mut self, now: Millis, net: IpNet) -> Option<(EniId, u32, IpAddr, Option<IpAddr>)> {
        let eni = self.enis.get(&self.blocks.get(&net)?.eni)?;
        let (id, slot, beside) = (eni.facts.id.clone(), eni.slot?, self.v6_of(eni));
        let (holders, resting, strangers) = (self.holders.clone(), self.resting.clone(), self.strangers.clone());
        let twice = self.is_mutated(Mutation::GiveTwice);
        let taken = |address: IpAddr| {
            !twice && (holders.contains_key(&address) || resting.contains_key(&address) || strangers.contains(&address))
        };
        let take = |block: &mut Block| {
            let address = block.take(taken)?;
            block.held += 1;
            Some(address)
        };
        let second = match self.node.policy.beside {
            Beside::Nothing => None,
            Beside::V6OfEni => Some(self.with_block(beside?, take)??),
            Beside::OfNode => Some(take(self.local.as_mut()?)?),
        };
        let address = self.with_block(net, take).flatten();
        if let (None, Some(second)) = (address, second) {
            self.with_block_of(second, |block| {
                block.held -= 1;
                block.give_back(second, now);
            });
        }
        Some((id, slot, address?, second))
    }

    /// Addresses held, free and asked for, over all.
    pub fn counts(&self) -> Counts {
        let counts = Counts { waiting: self.queue.len(), bound: self.bound, ..Counts::default() };
        self.count_enis(counts, |_| true)
    }

    /// The same for the pool of one network card.
    pub(crate) fn counts_on(&self, card: u32) -> Counts {
        let bound = if card == 0 { self.bound } else { 0 };
        let counts = Counts { waiting: self.queue.waiting_on(card), bound, ..Counts::default() };
        self.count_enis(counts, |eni| eni.facts.place.card == card)
    }

    fn count_enis(&self, mut counts: Counts, which: impl Fn(&Eni) -> bool) -> Counts {
        let known = |eni: &&Eni| !matches!(eni.state, EniState::Unknown | EniState::Foreign);
        for eni in self.enis.values().filter(known).filter(|eni| which(eni)) {
            let Sums { total, held, resting, free, prefixes, idle_prefixes } = eni.sums;
            let gives = self.serves(eni);
            counts.total += if gives { total } else { held + resting };
            counts.held += held;
            counts.resting += resting;
            counts.available += if gives { free } else { 0 };
            counts.prefixes += prefixes;
            counts.idle_prefixes += if gives { idle_prefixes } else { 0 };
        }
        counts
    }

    /// Blocks that an ENI could still take.
    pub(crate) fn room(&self, eni: &Eni) -> u32 {
        // IPv4 and IPv6 have limits of their own (Amazon EC2 User Guide, "IP addresses per network interface").
        let leads = |net: &&IpNet| self.node.policy.leads(net);
        let used = u64::try_from(eni.blocks.iter().filter(leads).count()).unwrap_or(u64::MAX);
        let coming = self.expected.get(&eni.facts.id).map_or(0, |expected| {
            let open = expected.blocks.iter().filter(leads).filter(|net| !eni.blocks.contains(*net)).count();
            u64::try_from(open).unwrap_or(u64::MAX)
        });
        let room = supply::per_eni(self.node.limits).saturating_sub(used + coming);
        u32::try_from(room).unwrap_or(u32::MAX)
    }
}
