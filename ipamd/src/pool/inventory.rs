//! The ENIs of the node and the blocks on them. What an ENI counts and in which order it assigns follows every change of
//! a block, because every change passes through here.
//!
//! Each step is made on a copy of the core that it may be undone to, and copies of these maps share what did not change:
//! a leaf of a map is copied when one of its values changes, so the values are shared pointers.

use std::{cmp::Reverse, collections::BTreeSet, net::IpAddr, sync::Arc};

use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    block::{Block, BlockState, InUse, Rank},
    eni::{AddresslessEni, Eni, EniFacts, EniState, Sums},
    expected::{Expectations, Expected, Met},
};
use crate::{
    ids::{EniId, Millis, Place, SubnetId},
    node::Node,
    supply::{Counts, Second, kind, per_eni},
};

/// An address taken out of a block for a pod, and its second one.
pub(crate) struct Taken {
    pub(crate) eni: EniId,
    pub(crate) slot: u32,
    pub(crate) address: IpAddr,
    pub(crate) second: Option<IpAddr>,
}

/// The inventory.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Pool {
    enis: OrdMap<EniId, Arc<Eni>>,
    blocks: OrdMap<IpNet, Arc<Block>>,
    /// Addresses that only this node knows, where pods get one of them as their second.
    local: Option<Block>,
    /// ENIs without any address, which take up a place.
    addressless: OrdMap<EniId, Place>,
    /// Places at which EC2 says something is attached that is not ours, and metadata does not show yet.
    occupied: OrdSet<Place>,
    unconfirmed: OrdSet<IpNet>,
    unassigning: OrdSet<IpNet>,
    expected: Expectations,
    /// ENIs that carry our tag, as EC2 has said in this run.
    tagged: OrdSet<EniId>,
    /// Changes with every ENI and block that comes or goes.
    topology: u64,
}

impl Pool {
    /// An empty one, with the range that only the node knows.
    pub(crate) fn new(local: Option<Block>) -> Self {
        Pool { local, ..Pool::default() }
    }

    pub(crate) fn eni(&self, id: &EniId) -> Option<&Eni> {
        self.enis.get(id).map(Arc::as_ref)
    }

    pub(crate) fn enis(&self) -> impl Iterator<Item = &Eni> {
        self.enis.values().map(Arc::as_ref)
    }

    pub(crate) fn enis_by_id(&self) -> &OrdMap<EniId, Arc<Eni>> {
        &self.enis
    }

    /// The subnet of the primary ENI; an empty name before metadata has shown that.
    pub(crate) fn primary_subnet(&self) -> SubnetId {
        let primary = self.enis().find(|eni| eni.facts.place == Place::default());
        primary.map_or_else(|| SubnetId("".into()), |eni| eni.facts.subnet_id.clone())
    }

    pub(crate) fn on_card(&self, card: u32) -> impl Iterator<Item = &Eni> {
        self.enis().filter(move |eni| eni.card() == card)
    }

    pub(crate) fn block(&self, net: &IpNet) -> Option<&Block> {
        self.blocks.get(net).map(Arc::as_ref)
    }

    pub(crate) fn blocks_by_net(&self) -> &OrdMap<IpNet, Arc<Block>> {
        &self.blocks
    }

    /// The block that an address is in, if it is on this node.
    pub(crate) fn block_of(&self, address: IpAddr) -> Option<&Block> {
        kind::candidates(address).iter().find_map(|net| self.block(net))
    }

    /// Addresses that only this node knows.
    pub(crate) fn local(&self) -> Option<&Block> {
        self.local.as_ref()
    }

    pub(crate) fn addressless(&self) -> impl Iterator<Item = (&EniId, Place)> {
        self.addressless.iter().map(|(id, place)| (id, *place))
    }

    /// Places at which something of others is attached that metadata does not show yet.
    pub(crate) fn occupied(&self) -> impl Iterator<Item = Place> {
        self.occupied.iter().copied()
    }

    /// EC2 refused to attach anything there.
    pub(crate) fn add_occupied(&mut self, place: Place) {
        self.occupied.insert(place);
    }

    /// EC2 has listed all that is attached.
    pub(crate) fn set_occupied(&mut self, places: OrdSet<Place>) {
        self.occupied = places;
    }

    /// Another number whenever the ENIs or the blocks on them have changed.
    pub(crate) fn topology(&self) -> u64 {
        self.topology
    }

    /// Whether metadata does not show something that is taken for there.
    pub(crate) fn has_unconfirmed(&self) -> bool {
        !self.unconfirmed.is_empty() || self.enis().any(|eni| eni.unconfirmed)
    }

    /// Blocks that are being unassigned, and since when that has been decided.
    pub(crate) fn unassigning(&self) -> impl Iterator<Item = (&Block, Millis)> {
        self.unassigning.iter().filter_map(|net| self.block(net)).filter_map(|block| match block.state() {
            BlockState::Unassigning(since) => Some((block, since)),
            _ => None,
        })
    }

    /// Network cards whose ENIs serve pods: all, but for one that carries addressless ENIs and nothing else.
    pub(crate) fn manages(&self, node: &Node, card: u32) -> bool {
        let only_addressless =
            || self.addressless.values().any(|place| place.card == card) && self.on_card(card).next().is_none();
        card == 0 || node.may_use_card(card) && !only_addressless()
    }

    /// The cards that are managed. Without EC2's word the ENIs that are there tell which cards there are.
    pub(crate) fn cards(&self, node: &Node) -> Vec<u32> {
        let shown = || self.enis().map(Eni::card).max().unwrap_or(0);
        let further = if node.asks_ec2() { node.limits.further_cards } else { shown() };
        let further = if node.policy.multi_card { further } else { 0 };
        (0..=further).filter(|card| self.manages(node, *card)).collect()
    }

    /// Whether pods may get its addresses now: it may lack the block for their second ones.
    pub(crate) fn serves(&self, node: &Node, eni: &Eni) -> bool {
        eni.is_usable()
            && !eni.excluded
            && self.manages(node, eni.card())
            && (!needs_v6(node) || self.v6_of(eni).is_some())
    }

    /// The IPv6 block on this ENI that pods' second addresses are from.
    fn v6_of(&self, eni: &Eni) -> Option<IpNet> {
        let has_some =
            |net: &&IpNet| self.blocks.get(*net).is_some_and(|block| !block.leads() && block.available() > 0);
        eni.blocks.iter().filter(|net| is_v6(net)).find(has_some).copied()
    }

    /// Whether this ENI has no IPv6 block, and none is on its way.
    pub(crate) fn lacks_v6(&self, node: &Node, eni: &Eni) -> bool {
        needs_v6(node)
            && eni.is_usable()
            && !eni.excluded
            && self.manages(node, eni.card())
            && !eni.blocks.iter().any(is_v6)
            && !self.expected.get(eni.id()).is_some_and(|expected| expected.blocks.iter().any(is_v6))
    }

    /// Blocks that an ENI could still take.
    pub(crate) fn room(&self, node: &Node, eni: &Eni) -> u32 {
        if eni.excluded {
            return 0;
        }
        // IPv4 and IPv6 have limits of their own (Amazon EC2 User Guide, "IP addresses per network interface").
        let leads = |net: &&IpNet| node.policy.leads(net);
        let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let used = number(eni.blocks.iter().filter(leads).count());
        let coming = self.expected.get(eni.id()).map_or(0, |expected| {
            number(expected.blocks.iter().filter(leads).filter(|net| !eni.blocks.contains(*net)).count())
        });
        u32::try_from(per_eni(node.limits).saturating_sub(used + coming)).unwrap_or(u32::MAX)
    }

    /// Addresses assigned, cooling and available on these ENIs.
    pub(crate) fn counts(&self, node: &Node, which: impl Fn(&Eni) -> bool) -> Counts {
        let mut counts = Counts::default();
        let known = |eni: &&Eni| !matches!(eni.state, EniState::Unknown | EniState::Unmanaged);
        for eni in self.enis().filter(known).filter(|eni| which(eni)) {
            let Sums { total, assigned, cooling, available, prefixes, idle_prefixes } = eni.sums;
            let serves = self.serves(node, eni);
            counts.total += if serves { total } else { assigned + cooling };
            counts.assigned += assigned;
            counts.cooling += cooling;
            counts.available += if serves { available } else { 0 };
            counts.prefixes += prefixes;
            counts.idle_prefixes += if serves { idle_prefixes } else { 0 };
        }
        counts
    }

    /// The block to assign from next, on this card or on the first that has one: the fullest prefix, so that others can
    /// empty; among equals on the ENI that has assigned most; there the address that was available longest.
    pub(crate) fn pick(&self, node: &Node, card: Option<u32>) -> Option<IpNet> {
        if self.local.as_ref().is_some_and(|local| local.available() == 0) {
            return None;
        }
        let on_card = |eni: &&Eni| card.is_none_or(|card| eni.card() == card);
        let ready = self.enis().filter(on_card).filter(|eni| self.serves(node, eni));
        let best = ready.filter_map(|eni| eni.ranked.get_min().copied().map(|rank| (rank, eni)));
        let order = |(rank, eni): &(Rank, &Eni)| (eni.card(), rank.0, Reverse(eni.sums.assigned), eni.slot);
        best.min_by_key(order).map(|(rank, _)| rank.2)
    }

    /// Assigns the address that was available longest out of a block, and a second one where pods get two. A block
    /// whose available addresses turn out to be taken has nothing left to assign.
    pub(crate) fn take(
        &mut self,
        now: Millis,
        node: &Node,
        net: IpNet,
        taken: impl Fn(IpAddr) -> bool + Copy,
    ) -> Option<Taken> {
        let eni = self.enis.get(self.blocks.get(&net)?.eni())?;
        let (id, slot, v6) = (eni.id().clone(), eni.slot?, self.v6_of(eni));
        let second = match node.policy.second {
            Second::None => None,
            Second::V6OfEni => Some(self.with_block(v6?, |block| block.assign(taken))??),
            Second::NodeLocal => Some(self.local.as_mut()?.assign(taken)?),
        };
        let address = self.with_block(net, |block| block.assign(taken)).flatten();
        if let (None, Some(second)) = (address, second) {
            self.with_block_of(second, |block| block.put_back(second, now));
        }
        Some(Taken { eni: id, slot, address: address?, second })
    }

    /// An assigned address begins its cooldown.
    pub(crate) fn cool(&mut self, address: IpAddr) {
        self.with_block_of(address, Block::cool);
    }

    /// The cooldown of an address is over.
    pub(crate) fn cooled(&mut self, address: IpAddr, now: Millis) {
        self.with_block_of(address, |block| block.cooled(address, now));
    }

    /// An address is in use by an orphaned link.
    pub(crate) fn occupy(&mut self, address: IpAddr, was_cooling: bool) {
        self.with_block_of(address, |block| block.occupy(address, was_cooling));
    }

    pub(crate) fn set_addressless(&mut self, enis: Vec<AddresslessEni>) {
        self.addressless = enis.into_iter().map(|eni| (eni.id, eni.place)).collect();
    }

    /// An ENI that metadata shows for the first time.
    pub(crate) fn add_eni(&mut self, mut eni: Eni) {
        eni.ours = self.tagged.contains(eni.id());
        self.enis.insert(eni.id().clone(), Arc::new(eni));
        self.topology += 1;
    }

    /// Metadata shows an ENI that is known; whether it is.
    pub(crate) fn update(&mut self, now: Millis, facts: &EniFacts) -> bool {
        let Some(eni) = self.eni_mut(&facts.id) else { return false };
        (eni.unconfirmed, eni.confirmed_until) = (false, now);
        let (blocks, groups) = (facts.blocks.clone(), facts.groups.clone());
        let same = EniFacts { blocks, groups, ..eni.facts.clone() } == *facts;
        eni.facts = facts.clone();
        self.topology += u64::from(!same);
        true
    }

    /// What metadata shows of a known ENI's blocks: those that it shows are confirmed, others are withheld as soon as
    /// EC2's word for them has run out. Returns those that are not known yet.
    pub(crate) fn update_blocks(&mut self, now: Millis, id: &EniId, shown: &BTreeSet<IpNet>) -> Vec<IpNet> {
        let Some(eni) = self.enis.get(id) else { return Vec::new() };
        let known = eni.blocks.clone();
        for net in &known {
            let is_shown = shown.contains(net);
            match self.blocks.get_mut(net).map(Arc::make_mut) {
                Some(block) if is_shown => {
                    block.confirm(now);
                    if block.state() == BlockState::Unconfirmed {
                        self.set_block_state(*net, BlockState::Usable);
                    }
                }
                Some(block) if block.confirmed_until() <= now && block.state() == BlockState::Usable => {
                    self.set_block_state(*net, BlockState::Unconfirmed);
                }
                _ => {}
            }
        }
        shown.iter().filter(|net| !known.contains(*net)).copied().collect()
    }

    /// Metadata does not show this ENI: it is withheld as soon as EC2's word for it has run out.
    pub(crate) fn not_shown(&mut self, now: Millis, id: &EniId) {
        if let Some(eni) = self.eni_mut(id) {
            eni.unconfirmed = eni.unconfirmed || eni.confirmed_until <= now;
        }
    }

    /// EC2 knows this attached ENI; metadata that does not show it is the stale one until then.
    pub(crate) fn confirm(&mut self, id: &EniId, ours: bool, attachment: String, until: Millis) {
        if let Some(eni) = self.eni_mut(id) {
            eni.ours = ours;
            eni.attachment = Some(attachment);
            if eni.unconfirmed {
                (eni.unconfirmed, eni.confirmed_until) = (false, until);
            }
        }
    }

    /// EC2 knows this block; metadata that does not show it is the stale one until then.
    pub(crate) fn confirm_block(&mut self, net: IpNet, until: Millis) {
        self.set_block_state(net, BlockState::Usable);
        self.with_block(net, |block| block.confirm(until));
    }

    /// New pods get no addresses of an ENI any more, or do again.
    pub(crate) fn set_excluded(&mut self, id: &EniId, excluded: bool) {
        if let Some(eni) = self.eni_mut(id) {
            eni.excluded = excluded;
        }
    }

    /// EC2 has put our tag on an ENI.
    pub(crate) fn set_ours(&mut self, id: &EniId) {
        if let Some(eni) = self.eni_mut(id) {
            eni.ours = true;
        }
    }

    /// EC2 says that an ENI carries our tag, also one that metadata does not show yet.
    pub(crate) fn set_tagged(&mut self, id: &EniId) {
        self.tagged.insert(id.clone());
        self.set_ours(id);
    }

    pub(crate) fn set_attachment(&mut self, id: &EniId, attachment: String) {
        if let Some(eni) = self.eni_mut(id) {
            eni.attachment = Some(attachment);
        }
    }

    /// An ENI is ours and goes with the instance: the host is to carry it.
    pub(crate) fn configure(&mut self, id: &EniId, slot: u32) {
        self.topology += 1;
        if let Some(eni) = self.eni_mut(id) {
            eni.slot = Some(slot);
            if eni.state == EniState::Unknown {
                eni.state = EniState::Configuring;
            }
        }
    }

    /// The host carries an ENI.
    pub(crate) fn configured(&mut self, now: Millis, id: &EniId) {
        if let Some(eni) = self.eni_mut(id)
            && eni.state == EniState::Configuring
        {
            (eni.state, eni.since) = (EniState::Ready, now);
        }
    }

    pub(crate) fn set_unmanaged(&mut self, id: &EniId) {
        if let Some(eni) = self.eni_mut(id) {
            eni.state = EniState::Unmanaged;
            self.topology += 1; // what the kernel has of it is not carried any more
        }
    }

    /// An ENI is to be detached: withheld from now on.
    pub(crate) fn begin_detaching(&mut self, now: Millis, id: &EniId) {
        if let Some(eni) = self.eni_mut(id) {
            eni.state = EniState::Detaching(now);
        }
    }

    /// An ENI that was to be detached stays.
    pub(crate) fn keep(&mut self, id: &EniId) {
        if let Some(eni) = self.eni_mut(id) {
            eni.state = EniState::Ready;
        }
    }

    /// A block is on an ENI, and metadata may fail to show it until `confirmed_until`.
    pub(crate) fn add_block(&mut self, id: &EniId, net: IpNet, leads: bool, in_use: InUse, confirmed_until: Millis) {
        if self.blocks.contains_key(&net) || !self.enis.contains_key(id) {
            return;
        }
        if self.enis().flat_map(|eni| eni.facts.own()).any(|own| net.contains(&own)) {
            return; // whatever the source says: what the host itself uses is for no pod
        }
        let mut block = Block::new(net, id.clone(), leads, in_use);
        block.confirm(confirmed_until);
        let Some(eni) = self.eni_mut(id) else { return };
        eni.blocks.insert(net);
        eni.sums += Sums::of(&block);
        eni.ranked.extend(block.rank());
        self.blocks.insert(net, Arc::new(block));
        self.topology += 1;
    }

    /// Withholds a block, or assigns from it again.
    pub(crate) fn set_block_state(&mut self, net: IpNet, state: BlockState) {
        self.unconfirmed.remove(&net);
        self.unassigning.remove(&net);
        match state {
            BlockState::Usable => {}
            BlockState::Unconfirmed => drop(self.unconfirmed.insert(net)),
            BlockState::Unassigning(_) => drop(self.unassigning.insert(net)),
        }
        self.with_block(net, |block| block.set_state(state));
    }

    /// A block is not on its ENI any more.
    pub(crate) fn forget_block(&mut self, net: IpNet) {
        self.unconfirmed.remove(&net);
        self.unassigning.remove(&net);
        let Some(block) = self.blocks.remove(&net) else { return };
        self.topology += 1;
        if let Some(eni) = self.eni_mut(block.eni()) {
            eni.blocks.remove(&net);
            eni.sums -= Sums::of(&block);
            if let Some(rank) = block.rank() {
                eni.ranked.remove(&rank);
            }
        }
    }

    /// An ENI is not on this node any more.
    pub(crate) fn forget_eni(&mut self, id: &EniId) {
        let blocks = self.enis.get(id).map(|eni| eni.blocks.clone()).unwrap_or_default();
        blocks.into_iter().for_each(|net| self.forget_block(net));
        self.enis.remove(id);
        self.tagged.remove(id);
        self.expected.remove(id);
        self.topology += 1;
    }

    /// EC2 has confirmed blocks that metadata is to show; `since` is when the ENI was attached.
    pub(crate) fn expect(&mut self, id: &EniId, blocks: Vec<IpNet>, since: Option<Millis>, asked: Millis) {
        self.expected.add(id, blocks, since, asked);
    }

    /// A new ENI was attached there, and metadata is to show it.
    pub(crate) fn expect_eni(&mut self, now: Millis, id: &EniId, place: Option<Place>) {
        self.expected.attached(now, id, place);
    }

    pub(crate) fn expected(&self) -> impl Iterator<Item = (&EniId, &Expected)> {
        self.expected.iter()
    }

    /// Whether metadata is to show this block on another ENI.
    pub(crate) fn is_expected_elsewhere(&self, id: &EniId, net: &IpNet) -> bool {
        self.expected.iter().any(|(other, expected)| other != id && expected.blocks.contains(net))
    }

    /// When EC2's word for something that metadata does not show has to do.
    pub(crate) fn next_expected(&self) -> impl Iterator<Item = Millis> {
        self.expected.next()
    }

    /// Ends expectations that metadata has met, or that have lasted so long that EC2's confirmation alone is enough.
    pub(crate) fn end_expected(&mut self, now: Millis) -> Vec<Met> {
        self.expected.end(now, |id| self.enis.get(id).map(|eni| &eni.blocks))
    }

    fn eni_mut(&mut self, id: &EniId) -> Option<&mut Eni> {
        self.enis.get_mut(id).map(Arc::make_mut)
    }

    /// Changes a block, and what its ENI counts and orders by it.
    fn with_block<T>(&mut self, net: IpNet, change: impl FnOnce(&mut Block) -> T) -> Option<T> {
        let block = Arc::make_mut(self.blocks.get_mut(&net)?);
        let eni = Arc::make_mut(self.enis.get_mut(block.eni())?);
        eni.sums -= Sums::of(block);
        if let Some(rank) = block.rank() {
            eni.ranked.remove(&rank);
        }
        let answer = change(block);
        eni.sums += Sums::of(block);
        eni.ranked.extend(block.rank());
        Some(answer)
    }

    fn with_block_of(&mut self, address: IpAddr, change: impl FnOnce(&mut Block)) {
        if let Some(local) = self.local.as_mut().filter(|local| local.net().contains(&address)) {
            change(local);
        } else if let Some(net) = self.block_of(address).map(Block::net) {
            self.with_block(net, change);
        }
    }
}

fn needs_v6(node: &Node) -> bool {
    node.policy.second == Second::V6OfEni
}

fn is_v6(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(_))
}
