//! ENIs and the blocks on them: what is held, what is free, which address is given next.

use std::{
    cmp::Reverse,
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
    ops::{AddAssign, SubAssign},
};

use imbl::OrdSet;
use ipnet::{IpNet, Ipv4Net};

use crate::{
    Beside, Block, BlockState, Core, Counts, Effect, EniId, Kind, Millis, Place, Write,
    block::{self, Rank},
    mutation::Mutation,
    supply,
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

/// One ENI as instance metadata shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EniFacts {
    /// EC2's id.
    pub id: EniId,
    /// From IMDS, never from EC2's answer.
    pub mac: [u8; 6],
    /// Where it is attached.
    pub place: Place,
    /// Its own address, with the subnet's prefix length.
    pub primary: Ipv4Net,
    /// Its own IPv6 address, if it has one.
    pub own_v6: Option<Ipv6Addr>,
    /// The subnet's id.
    pub subnet_id: String,
    /// Blocks for pods: its own address left out.
    pub blocks: BTreeSet<IpNet>,
}

/// An ENI without any address: one that is EFA-only, or one of which not all shows yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BareEni {
    /// EC2's id.
    pub id: EniId,
    /// Where it is attached.
    pub place: Place,
}

/// How far an ENI has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EniState {
    /// Attached; whether it is ours is not known yet.
    Unknown,
    /// Ours; the host does not carry it yet.
    Joining,
    /// Its addresses may be given.
    Ready,
    /// It is about to be detached; withheld since then.
    Leaving(Millis),
    /// Somebody else's: left alone.
    Foreign,
}

/// Addresses of an ENI, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// All of them.
    pub total: u64,
    /// In somebody's hands.
    pub held: u64,
    /// Resting.
    pub resting: u64,
    /// To be given.
    pub free: u64,
    /// Prefixes.
    pub prefixes: u64,
    /// Prefixes that nobody uses any of.
    pub idle_prefixes: u64,
}

/// One ENI of this node.
#[derive(Clone, Debug)]
pub struct Eni {
    /// What IMDS shows.
    pub facts: EniFacts,
    /// Slot in marks and device groups.
    pub slot: Option<u32>,
    /// How far it has come.
    pub state: EniState,
    /// EC2 confirmed our tag in this life, so it may be changed.
    pub ours: bool,
    /// Id of its attachment, if EC2 told it in this life.
    pub attachment: Option<String>,
    /// Metadata does not show it any more.
    pub doubted: bool,
    /// Its absence from metadata means something from then on.
    pub(crate) excused: Millis,
    /// Since when it has been what it is.
    pub since: Millis,
    /// Its addresses, counted.
    pub sums: Sums,
    /// Its blocks: what metadata or EC2 has shown and nobody has taken away.
    pub blocks: OrdSet<IpNet>,
    /// Blocks with something to give, in the order of giving.
    open: OrdSet<Rank>,
}

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

impl EniFacts {
    /// Its own addresses, which the host uses itself.
    pub(crate) fn own(&self) -> impl Iterator<Item = IpAddr> {
        [Some(IpAddr::from(self.primary.addr())), self.own_v6.map(IpAddr::from)].into_iter().flatten()
    }
}

impl Eni {
    /// Whether pods may get its addresses.
    pub fn gives(&self) -> bool {
        self.state == EniState::Ready && !self.doubted
    }

    /// Whether nobody uses or remembers any address of it.
    pub fn is_idle(&self) -> bool {
        self.sums.held == 0 && self.sums.resting == 0
    }
}

impl Core {
    pub(crate) fn imds(
        &mut self,
        now: Millis,
        shown: Vec<crate::EniFacts>,
        bare: Vec<BareEni>,
        effects: &mut Vec<Effect>,
    ) {
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
        let slot = slot.or_else(|| if trusted { self.free_slot() } else { None });
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

    /// Network cards whose ENIs serve pods: all, but for one that carries an EFA-only ENI and nothing else.
    pub(crate) fn manages(&self, card: u32) -> bool {
        let on_it = |place: &Place| place.card == card;
        let only_bare = || self.bare.values().any(on_it) && !self.enis.values().any(|eni| on_it(&eni.facts.place));
        card == 0 || self.may_manage(card) && !only_bare()
    }

    fn may_manage(&self, card: u32) -> bool {
        card == 0 || self.node.policy.multi_card && card <= self.node.limits.further_cards
    }

    /// The cards that are managed.
    pub(crate) fn cards(&self) -> Vec<u32> {
        let further = if self.node.policy.multi_card { self.node.limits.further_cards } else { 0 };
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

    pub(crate) fn free_slot(&self) -> Option<u32> {
        let leases = self.leases.values().map(|lease| lease.slot);
        let taken: BTreeSet<u32> = self.slots.values().copied().chain(leases).collect();
        (1..=SLOT_MAX).find(|slot| !taken.contains(slot))
    }

    pub(crate) fn eni_up(&mut self, now: Millis, id: &EniId) {
        if let Some(eni) = self.enis.get_mut(id)
            && eni.state == EniState::Joining
        {
            eni.state = EniState::Ready;
            eni.since = now;
        }
    }

    /// ENIs that host and table must carry: all that have a slot.
    pub fn carried(&self) -> impl Iterator<Item = (&Eni, u32)> {
        self.enis.values().filter_map(|eni| Some((eni, eni.slot?)))
    }

    /// Another number whenever [`Core::carried`] may tell something else.
    pub fn topology(&self) -> u64 {
        self.topology
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

impl Sums {
    fn of(block: &Block) -> Sums {
        if !block.leads {
            return Sums::default();
        }
        let prefix = u64::from(block::kind(&block.net) == Kind::Prefix);
        let open = block.state == BlockState::Open;
        let (held, resting, free) = (block.held, block.resting, block.free());
        let idle = open && block.is_idle();
        let total = held + resting + free;
        Sums { total, held, resting, free, prefixes: prefix * u64::from(open), idle_prefixes: prefix * u64::from(idle) }
    }
}

impl AddAssign for Sums {
    fn add_assign(&mut self, other: Sums) {
        self.total += other.total;
        self.held += other.held;
        self.resting += other.resting;
        self.free += other.free;
        self.prefixes += other.prefixes;
        self.idle_prefixes += other.idle_prefixes;
    }
}

impl SubAssign for Sums {
    fn sub_assign(&mut self, other: Sums) {
        self.total -= other.total;
        self.held -= other.held;
        self.resting -= other.resting;
        self.free -= other.free;
        self.prefixes -= other.prefixes;
        self.idle_prefixes -= other.idle_prefixes;
    }
}

/// Lengths here are bounded by EC2's limits, far below 2^32.
pub(crate) fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
