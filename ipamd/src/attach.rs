//! From ADD to DEL: who holds which address.

use std::{collections::BTreeSet, net::IpAddr};

use crate::{
    AttachmentKey, Cause, Core, Effect, EniId, Lease, Millis, PodRef, Refusal, Ticket, Write, mutation::Mutation,
    pool::count, queue::Waiter,
};

/// A wired lease ends when its link is missing from two complete listings this far apart.
const MISSING_MS: u64 = 5_000;

/// How long a node without memory waits for EC2's word before it believes metadata.
pub(crate) const SETTLED_MS: u64 = 30_000;

impl Core {
    pub(crate) fn ask(&mut self, now: Millis, waiter: Waiter, effects: &mut Vec<Effect>) {
        let (ticket, key) = (waiter.ticket, waiter.key.clone());
        // The runtime asks again when it lost the first answer: the newer request stands for both.
        self.supersede(&key, effects);
        if let Some(refusal) = self.hindrance.clone().filter(|hindrance| !hindrance.cause.passes()) {
            effects.push(Effect::Refuse { ticket, refusal });
            return;
        }
        if let Some(lease) = self.leases.get_mut(&key) {
            let earlier = lease.ticket.replace(ticket);
            let lease = lease.clone();
            if let Some(earlier) = earlier {
                self.reserved.remove(&earlier);
            }
            self.reserved.insert(ticket, key.clone());
            effects.push(Effect::Offer { ticket, key, lease });
            return;
        }
        self.memory.ask(now);
        self.queue.push(waiter);
    }

    /// No pod is given an address while this stands in the way of what it would send; those who ask wait for it to go,
    /// as long as it may go by itself.
    pub fn hinder(&mut self, hindrance: Option<Refusal>) {
        self.hindrance = hindrance;
    }

    fn supersede(&mut self, key: &AttachmentKey, effects: &mut Vec<Effect>) {
        if let Some(waiter) = self.queue.take_key(key) {
            let refusal = Refusal::new(Cause::Superseded, "a newer request for the same attachment came in");
            effects.push(Effect::Refuse { ticket: waiter.ticket, refusal });
        }
    }

    /// Gives what is free to those who wait, in the order in which they came.
    pub(crate) fn serve(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        if self.links_listed.is_none() || self.hindrance.is_some() {
            return; // what the kernel holds decides what is free
        }
        let remembers = !self.looks_around || self.audited.is_some();
        let settled = self.met.is_some_and(|met| now.since(met) >= SETTLED_MS);
        let asks = self.node.policy.provisioning != crate::Provisioning::ImdsOnly;
        if !remembers && !settled && asks {
            return; // metadata may be stale, and no record says what has gone back: EC2's word first, if it comes
        }
        // Who needs a certain card goes first: the others can do with any.
        for card in self.queue.cards().into_iter().rev() {
            while self.queue.waiting_for(card) > 0
                && let Some(net) = self.pick(card)
            {
                // A prefix whose free addresses turn out to be taken has nothing left to give.
                let Some(taken) = self.take_from(now, net) else { return };
                let Some(waiter) = self.queue.pop(card) else { return };
                self.lease_to(waiter, taken, effects);
            }
        }
        self.remember_use(now);
    }

    fn lease_to(
        &mut self,
        Waiter { ticket, key, pod, .. }: Waiter,
        (eni, slot, address, second): (EniId, u32, IpAddr, Option<IpAddr>),
        effects: &mut Vec<Effect>,
    ) {
        let index = self.next_index(&key, pod.as_ref());
        let mut lease = Lease::remembered((address, second), eni, slot, pod, index);
        lease.ticket = Some(ticket);
        effects.extend(lease.addresses().map(|address| Effect::Record(Write::Rest(address, None))));
        if !self.is_mutated(Mutation::OfferUnrecorded) {
            effects.push(Effect::Record(Write::Lease(key.clone(), Some(lease.clone()))));
        }
        self.holders.extend(lease.addresses().map(|address| (address, key.clone())));
        self.seconds += usize::from(lease.second.is_some());
        self.leases.insert(key.clone(), lease.clone());
        self.reserved.insert(ticket, key.clone());
        effects.push(Effect::Offer { ticket, key, lease });
    }

    /// Interfaces of one pod are numbered, since its name alone names only the first link.
    fn next_index(&self, key: &AttachmentKey, pod: Option<&PodRef>) -> u32 {
        if pod.is_none() {
            return 0;
        }
        let first = AttachmentKey { ifname: String::new(), ..key.clone() };
        let of_container = self
            .leases
            .range(first..)
            .take_while(|(other, _)| other.network == key.network && other.container == key.container);
        let taken: BTreeSet<u32> =
            of_container.filter(|(_, lease)| lease.pod.as_ref() == pod).map(|(_, lease)| lease.index).collect();
        (0..=count(taken.len())).find(|index| !taken.contains(index)).unwrap_or(0)
    }

    pub(crate) fn wired(&mut self, ticket: Ticket, key: &AttachmentKey, seen: bool, effects: &mut Vec<Effect>) {
        let mine = match self.leases.get_mut(key) {
            Some(lease) if lease.ticket == Some(ticket) && seen => {
                lease.wired = true;
                lease.missing_since = None;
                lease.ticket = None;
                self.reserved.remove(&ticket);
                true
            }
            _ => false,
        };
        effects.push(Effect::Verdict { ticket, mine });
    }

    pub(crate) fn gone(&mut self, now: Millis, ticket: Ticket, effects: &mut Vec<Effect>) {
        self.queue.take_ticket(ticket);
        let Some(key) = self.reserved.remove(&ticket) else { return };
        match self.leases.get_mut(&key) {
            Some(lease) if lease.wired => lease.ticket = None,
            _ => self.end(now, &key, effects),
        }
    }

    pub(crate) fn release(&mut self, now: Millis, ticket: Ticket, key: &AttachmentKey, effects: &mut Vec<Effect>) {
        self.supersede(key, effects);
        let address = self.leases.get(key).map(|lease| lease.address);
        self.end(now, key, effects);
        effects.push(Effect::Released { ticket, address });
    }

    /// The runtime's list of what lives. It is one witness; the lease of another attachment ends when the
    /// next listing of the kernel shows no link of it either.
    pub(crate) fn collect(&mut self, now: Millis, network: &str, alive: &[AttachmentKey]) {
        let alive: BTreeSet<&AttachmentKey> = alive.iter().collect();
        let long_ago = Millis(now.0.saturating_sub(MISSING_MS));
        let doubted: Vec<AttachmentKey> = self
            .leases
            .iter()
            .filter(|(key, lease)| key.network == network && lease.ticket.is_none() && !alive.contains(key))
            .map(|(key, _)| key.clone())
            .collect();
        for key in doubted {
            if let Some(lease) = self.leases.get_mut(&key) {
                lease.missing_since = Some(long_ago);
            }
        }
    }

    fn end(&mut self, now: Millis, key: &AttachmentKey, effects: &mut Vec<Effect>) {
        let Some(lease) = self.leases.remove(key) else { return };
        if let Some(ticket) = lease.ticket {
            self.reserved.remove(&ticket);
        }
        self.seconds -= usize::from(lease.second.is_some());
        effects.push(Effect::Record(Write::Lease(key.clone(), None)));
        for address in lease.addresses() {
            self.holders.remove(&address);
            self.lay_to_rest(now, address, effects);
        }
    }

    /// A complete listing of the kernel's links. It proves who is alive; only a link that is missing
    /// twice ends a wired lease. At start it also tells which leases were only reserved: their plugin's
    /// connection closed with the process that held it.
    pub(crate) fn links(
        &mut self,
        now: Millis,
        asked: &[AttachmentKey],
        seen: &[AttachmentKey],
        routed: Vec<IpAddr>,
        effects: &mut Vec<Effect>,
    ) {
        let first = self.links_listed.replace(now).is_none();
        let (asked, seen): (BTreeSet<_>, BTreeSet<_>) = (asked.iter().collect(), seen.iter().collect());
        let mut ended = Vec::new();
        let mut changed = Vec::new();
        // It says nothing about those that have come since it was begun.
        for (key, lease) in self.leases.iter().filter(|(key, _)| asked.contains(key)) {
            if seen.contains(key) {
                if (first && !lease.wired) || lease.missing_since.is_some() {
                    changed.push((key.clone(), lease.wired || first, None));
                }
            } else if first && !lease.wired && lease.ticket.is_none() {
                ended.push(key.clone());
            } else if lease.wired {
                let since = lease.missing_since.unwrap_or(now);
                if now.since(since) >= MISSING_MS {
                    ended.push(key.clone());
                } else if lease.missing_since.is_none() {
                    changed.push((key.clone(), true, Some(now)));
                }
            }
        }
        for (key, wired, missing_since) in changed {
            if let Some(lease) = self.leases.get_mut(&key) {
                (lease.wired, lease.missing_since) = (wired, missing_since);
            }
        }
        for key in ended {
            self.end(now, &key, effects);
        }
        self.meet_strangers(now, routed, effects);
    }

    /// Addresses that are routed to pods though no lease says so are in use: whoever that is, it is alive.
    fn meet_strangers(&mut self, now: Millis, listed: Vec<IpAddr>, effects: &mut Vec<Effect>) {
        if self.is_mutated(Mutation::IgnoreStrangers) {
            return;
        }
        let listed: BTreeSet<IpAddr> =
            listed.into_iter().filter(|address| !self.holders.contains_key(address)).collect();
        let gone: Vec<IpAddr> = self.strangers.iter().filter(|address| !listed.contains(address)).copied().collect();
        for address in gone {
            self.strangers.remove(&address);
            self.lay_to_rest(now, address, effects);
        }
        for address in listed {
            if self.strangers.contains(&address) {
                continue;
            }
            self.strangers.insert(address);
            let rested = self.resting.remove(&address);
            if let Some(until) = rested {
                self.rest_ends.remove(&(until, address));
            }
            self.with_block_of(address, |block| {
                block.withhold(address);
                block.held += 1;
                block.resting -= u64::from(rested.is_some());
            });
        }
    }

    /// What is in use now, for what `auto` learns.
    fn remember_use(&mut self, now: Millis) {
        let counts = self.counts();
        self.memory.in_use(now, counts.held + counts.resting + counts.demand());
    }

    /// What `auto` has learnt.
    pub(crate) fn learnt(&self, now: Millis) -> crate::Learnt {
        let counts = self.counts();
        self.memory.learnt(now, counts.held + counts.resting + counts.demand())
    }

    /// Tells those who wait in vain: at once where no wait can help, else when their patience ends.
    pub(crate) fn refuse_hopeless(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        if self.queue.is_empty() {
            return;
        }
        let mut overdue = Vec::new();
        while let Some(waiter) = self.queue.take_overdue(now) {
            overdue.push(waiter);
        }
        for waiter in overdue {
            let refusal = self.why_waiting(now, waiter.grows());
            effects.push(Effect::Refuse { ticket: waiter.ticket, refusal });
        }
        for card in self.queue.cards() {
            let refusal = self.why_waiting(now, card.unwrap_or(0));
            if refusal.cause.passes() {
                continue;
            }
            let help = self.next_rested();
            while let Some(waiter) = self.queue.take_hopeless(card, help) {
                effects.push(Effect::Refuse { ticket: waiter.ticket, refusal: refusal.clone() });
            }
        }
    }
}
