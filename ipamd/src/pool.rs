//! ENIs and the blocks on them, as metadata and EC2 show them, and as they come and go.

use std::{collections::BTreeSet, net::IpAddr};

use imbl::OrdSet;
use ipnet::IpNet;

use crate::{
    BareEni, Block, BlockState, Core, Effect, Eni, EniFacts, EniId, EniState, Millis, Place, Sums, Write, block,
    mutation::Mutation,
};

/// Slots 1…63 name secondary ENIs; 0 is the primary.
const SLOT_MAX: u32 = 63;

/// An address is offered once instance metadata shows it, or when it has not for so long after EC2
/// confirmed it.
pub(crate) const IMDS_LAG_MS: u64 = 10_000;

/// Metadata that still shows what went back to EC2 is taken for stale for so long; then EC2 is asked.
pub(crate) const STALE_MS: u64 = 60_000;
/// How long EC2's word for an ENI or a block stands against metadata that does not show it. EC2's reads lag behind its
/// writes as well, so the word is asked for again.
pub(crate) const EXCUSE_MS: u64 = 5 * STALE_MS;

/// Blocks that EC2 confirmed for an ENI, until metadata shows them or its word has to do.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    pub(crate) blocks: OrdSet<IpNet>,
    /// Since when they should be seen; `None` while the ENI is not attached yet.
    pub(crate) since: Option<Millis>,
    /// When they were asked for.
    pub(crate) asked: Millis,
    /// Where a new ENI was attached.
    pub(crate) place: Option<Place>,
}

impl Core {
    pub(crate) fn imds(&mut self, now: Millis, shown: Vec<EniFacts>, bare: Vec<BareEni>, effects: &mut Vec<Effect>) {
        self.bare = bare.into_iter().map(|eni| (eni.id, eni.place)).collect();
        let first = !std::mem::replace(&mut self.imds_read, true);
        self.met = self.met.or(Some(now));
        if first {
            self.plan_first_audit(now);
        }
        self.forget_given_back(now, &shown, effects);
        let ids: BTreeSet<EniId> = shown.iter().map(|facts| facts.id.clone()).collect();
        for facts in shown {
            self.see(now, facts, effects);
        }
        if first {
            // What an earlier life has fetched it had reasons for.
            let total = self.enis.values().map(|eni| eni.sums.total).sum();
            self.memory.wanted(now, total);
        }
        if first && self.slots.keys().any(|id| !ids.contains(id)) {
            self.want_audit(crate::Scope::Ours); // an earlier life had it: where is it?
        }
        if !self.lost.is_empty() {
            let named: BTreeSet<EniId> = self.leases.values().map(|lease| lease.eni.clone()).collect();
            self.lost = self.lost.iter().filter(|id| named.contains(*id) && !ids.contains(*id)).cloned().collect();
        }
        let missing: Vec<EniId> = self.enis.keys().filter(|id| !ids.contains(*id)).cloned().collect();
        for id in missing {
            if self.is_mutated(Mutation::BelieveMetadata) {
                self.forget_eni(&id);
            } else if let Some(eni) = self.enis.get_mut(&id) {
                eni.doubted = eni.doubted || eni.excused <= now;
            }
        }
    }

    fn see(&mut self, now: Millis, facts: EniFacts, effects: &mut Vec<Effect>) {
        let id = facts.id.clone();
        if let Some(departure) = self.departures.get_mut(&id) {
            departure.place = Some(facts.place);
            return; // it is on its way out
        }
        let blocks = facts.blocks.clone();
        match self.enis.get_mut(&id) {
            Some(eni) => {
                (eni.doubted, eni.excused) = (false, now);
                let same = EniFacts { blocks: facts.blocks.clone(), ..eni.facts.clone() } == facts;
                self.topology += u64::from(!same);
                eni.facts = facts;
            }
            None => self.meet(now, facts, effects),
        }
        let known = self.enis.get(&id).map(|eni| eni.blocks.clone()).unwrap_or_default();
        for net in blocks.iter().filter(|net| !known.contains(*net)) {
            match self.given_back.get(net) {
                None => {
                    self.add_block(&id, *net, now);
                }
                Some((at, _)) if now.since(*at) < STALE_MS => {}
                Some(_) => self.want_audit(crate::Scope::Attached),
            }
        }
        for net in known {
            let shown = blocks.contains(&net);
            match self.blocks.get_mut(&net) {
                Some(block) if shown => {
                    block.excused = now;
                    if block.state == BlockState::Doubted {
                        self.set_state(net, BlockState::Open);
                    }
                }
                Some(block) if block.excused <= now && block.state == BlockState::Open => {
                    self.set_state(net, BlockState::Doubted);
                }
                _ => {}
            }
            if !shown && self.is_mutated(Mutation::BelieveMetadata) {
                self.forget_block(net);
            }
        }
    }

    /// What metadata does not show any more cannot come back by it; the intent that remembered it is closed.
    fn forget_given_back(&mut self, now: Millis, shown: &[EniFacts], effects: &mut Vec<Effect>) {
        if self.given_back.is_empty() {
            return;
        }
        let is_shown = |net: &IpNet| shown.iter().any(|facts| facts.blocks.contains(net));
        let kept = |at: &Millis| now.since(*at) < STALE_MS;
        let over: Vec<IpNet> =
            self.given_back.iter().filter(|(net, (at, _))| !kept(at) && !is_shown(net)).map(|(net, _)| *net).collect();
        over.into_iter().for_each(|net| self.drop_given_back(net, effects));
    }

    /// A block that went back is out of memory, or is here again.
    pub(crate) fn drop_given_back(&mut self, net: IpNet, effects: &mut Vec<Effect>) {
        let Some((_, token)) = self.given_back.remove(&net) else { return };
        if self.given_back.values().all(|(_, other)| *other != token) {
            effects.push(Effect::Record(Write::Intent(token, None)));
        }
    }

    fn meet(&mut self, now: Millis, facts: EniFacts, effects: &mut Vec<Effect>) {
        let id = facts.id.clone();
        let primary = facts.place == Place::default();
        // A slot on record says that an earlier life confirmed tag and delete-on-termination.
        let known = self.slots.get(&id).copied();
        let slot = if primary { Some(0) } else { known };
        let trusted = slot.is_some() || self.node.policy.provisioning == crate::Provisioning::ImdsOnly;
        // An ENI with addresses makes its card one that is managed.
        let state = match (slot.is_some() || self.may_manage(facts.place.card), trusted) {
            (false, _) => EniState::Foreign,
            (true, true) => EniState::Joining,
            (true, false) => EniState::Unknown,
        };
        let trusted = trusted && state == EniState::Joining;
        let slot = slot.or_else(|| if trusted { self.slot_for(facts.mac) } else { None });
        if primary && known.is_none() && !self.looks_around {
            (self.looks_around, self.look_is_open) = (true, true);
            let token = crate::audit::LOOK_AROUND.to_owned();
            effects.push(Effect::Record(Write::Intent(token, Some(crate::Intent::LookAround))));
        }
        if let Some(slot) = slot
            && known.is_none()
        {
            self.give_slot(&id, slot, effects);
        }
        let eni = Eni {
            facts,
            slot,
            state,
            ours: self.vouched.contains(&id),
            attachment: None,
            doubted: false,
            excused: now,
            since: now,
            sums: Sums::default(),
            blocks: OrdSet::new(),
            open: OrdSet::new(),
        };
        self.enis.insert(id, eni);
        self.topology += 1;
    }

    /// A block is on an ENI, and metadata may fail to show it until `excused`: who holds what of it is counted from
    /// the leases.
    pub(crate) fn add_block(&mut self, id: &EniId, net: IpNet, excused: Millis) {
        if self.blocks.contains_key(&net) || !self.enis.contains_key(id) {
            return;
        }
        if self.enis.values().flat_map(|eni| eni.facts.own()).any(|own| net.contains(&own)) {
            return; // whatever the source says: what the host itself uses is for no pod
        }
        let mut block = self.counted(Block::new(net, id.clone(), self.node.policy.leads(&net)));
        block.excused = excused;
        let Some(eni) = self.enis.get_mut(id) else { return };
        eni.blocks.insert(net);
        eni.sums += Sums::of(&block);
        eni.open.extend(block.rank());
        self.blocks.insert(net, block);
        self.topology += 1;
    }

    /// The addresses that only this node knows, as a block that is on no ENI.
    pub(crate) fn block_of_the_node(&self, range: IpNet) -> Block {
        self.counted(Block::new(range, EniId(String::new()), false))
    }

    /// Who holds what of it, and what rests.
    fn counted(&self, mut block: Block) -> Block {
        let (first, last) = block::ends(&block.net);
        let within = first..=last;
        let held = self.holders.range(within.clone()).count() + self.strangers.range(within.clone()).count();
        block.held = u64::try_from(held).unwrap_or(u64::MAX);
        block.resting = u64::try_from(self.resting.range(within).count()).unwrap_or(u64::MAX);
        block
    }

    /// Withholds a block, or gives from it again.
    pub(crate) fn set_state(&mut self, net: IpNet, state: BlockState) {
        self.doubted.remove(&net);
        self.leaving.remove(&net);
        match state {
            BlockState::Open => {}
            BlockState::Doubted => drop(self.doubted.insert(net)),
            BlockState::Leaving(_) => drop(self.leaving.insert(net)),
        }
        self.with_block(net, |block| block.state = state);
    }

    /// A block is not on its ENI any more.
    pub(crate) fn forget_block(&mut self, net: IpNet) {
        self.doubted.remove(&net);
        self.leaving.remove(&net);
        let Some(block) = self.blocks.remove(&net) else { return };
        self.topology += 1;
        if let Some(eni) = self.enis.get_mut(&block.eni) {
            eni.blocks.remove(&net);
            eni.sums -= Sums::of(&block);
            if let Some(rank) = block.rank() {
                eni.open.remove(&rank);
            }
        }
    }

    pub(crate) fn forget_eni(&mut self, id: &EniId) {
        let blocks = self.enis.get(id).map(|eni| eni.blocks.clone()).unwrap_or_default();
        blocks.into_iter().for_each(|net| self.forget_block(net));
        self.enis.remove(id);
        self.vouched.remove(id);
        self.expected.remove(id);
        self.topology += 1;
    }

    /// Changes a block, and what its ENI counts and orders by it.
    pub(crate) fn with_block<T>(&mut self, net: IpNet, change: impl FnOnce(&mut Block) -> T) -> Option<T> {
        let block = self.blocks.get_mut(&net)?;
        let eni = self.enis.get_mut(&block.eni)?;
        eni.sums -= Sums::of(block);
        if let Some(rank) = block.rank() {
            eni.open.remove(&rank);
        }
        let answer = change(block);
        eni.sums += Sums::of(block);
        eni.open.extend(block.rank());
        Some(answer)
    }

    pub(crate) fn with_block_of(&mut self, address: IpAddr, change: impl FnOnce(&mut Block)) {
        if let Some(local) = self.local.as_mut().filter(|local| local.net.contains(&address)) {
            change(local);
        } else if let Some(net) = self.block_of(address).map(|block| block.net) {
            self.with_block(net, change);
        }
    }

    /// The block that an address is in, if it is on this node.
    pub(crate) fn block_of(&self, address: IpAddr) -> Option<&Block> {
        block::candidates(address).iter().find_map(|net| self.blocks.get(net))
    }

    /// Drops expectations that metadata has met, and takes EC2's word where it has not for long.
    pub(crate) fn take_expected(&mut self, now: Millis) {
        let due: Vec<EniId> = self.expected.keys().cloned().collect();
        for id in due {
            let Some(expected) = self.expected.get(&id).cloned() else { continue };
            let waited = expected.since.is_some_and(|since| now.since(since) >= IMDS_LAG_MS);
            let Some(eni) = self.enis.get(&id) else {
                if expected.since.is_some_and(|since| now.since(since) >= STALE_MS) {
                    self.expected.remove(&id);
                    self.want_audit(crate::Scope::Ours);
                }
                continue;
            };
            let open: Vec<IpNet> = expected.blocks.iter().filter(|net| !eni.blocks.contains(*net)).copied().collect();
            if open.is_empty() || waited {
                open.into_iter().for_each(|net| self.add_block(&id, net, now.plus(EXCUSE_MS)));
                self.memory.filled(now.since(expected.asked));
                self.expected.remove(&id);
            }
        }
    }

    pub(crate) fn give_slot(&mut self, id: &EniId, slot: u32, effects: &mut Vec<Effect>) {
        self.topology += 1;
        self.slots.insert(id.clone(), slot);
        effects.push(Effect::Record(Write::Slot(id.clone(), Some(slot))));
    }

    /// A slot for the ENI with this MAC: the one that it has in the kernel, or one that nobody has there or on record.
    pub(crate) fn slot_for(&self, mac: [u8; 6]) -> Option<u32> {
        let leases = self.leases.values().map(|lease| lease.slot);
        let recorded: BTreeSet<u32> = self.slots.values().copied().chain(leases).collect();
        let known = self.kernel_slots.get(&mac).copied().filter(|slot| !recorded.contains(slot));
        let in_kernel: BTreeSet<u32> = self.kernel_slots.values().copied().collect();
        let free = |slot: &u32| !recorded.contains(slot) && !in_kernel.contains(slot);
        known.or_else(|| (1..=SLOT_MAX).find(free)).or_else(|| (1..=SLOT_MAX).find(|slot| !recorded.contains(slot)))
    }

    pub(crate) fn eni_up(&mut self, now: Millis, id: &EniId) {
        if let Some(eni) = self.enis.get_mut(id)
            && eni.state == EniState::Joining
        {
            eni.state = EniState::Ready;
            eni.since = now;
        }
    }

    /// ENIs that host and table must carry: all that have a slot, and those that had one in the kernel when this life
    /// began and are not vouched for yet: after a lost store pods may stand behind them.
    pub fn carried(&self) -> impl Iterator<Item = (&Eni, u32)> {
        self.enis.values().filter_map(|eni| Some((eni, eni.slot.or_else(|| self.slot_in_kernel(eni))?)))
    }

    fn slot_in_kernel(&self, eni: &Eni) -> Option<u32> {
        let slot = self.kernel_slots.get(&eni.facts.mac).copied().filter(|_| eni.state == EniState::Unknown)?;
        let taken = self.slots.values().any(|recorded| *recorded == slot);
        (!taken).then_some(slot)
    }

    /// Slots that leases name, with the leases' addresses of the VPC, and [`Core::carried`] does not: pods stand behind
    /// an ENI that metadata fails to show since this life began.
    pub fn spared(&self) -> Vec<(u32, IpAddr)> {
        let carried: BTreeSet<u32> = self.carried().map(|(_, slot)| slot).collect();
        let behind = self.leases.values().filter(|lease| !carried.contains(&lease.slot));
        let each = behind.flat_map(|lease| lease.addresses().map(|address| (lease.slot, address)));
        // One that another ENI has by now is that one's.
        each.filter(|(_, address)| !crate::supply::is_local(*address) && self.block_of(*address).is_none()).collect()
    }

    /// Another number whenever [`Core::carried`] may tell something else.
    pub fn topology(&self) -> u64 {
        self.topology
    }
}

/// Lengths here are bounded by EC2's limits, far below 2^32.
pub(crate) fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
