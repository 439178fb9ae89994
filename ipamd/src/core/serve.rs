//! From ADD to DEL: who is assigned which address, and who is refused.

use super::Core;
use crate::{
    cause::{Cause, Refusal},
    event::{Effect, Write},
    ids::{AttachmentKey, Millis, Ticket},
    lease::{Lease, Waiter},
    mutation::Mutation,
    observations::SETTLED_MS,
    plan::{self, Plan},
    pool::Taken,
};

impl Core {
    pub(super) fn ask(&mut self, now: Millis, waiter: Waiter, effects: &mut Vec<Effect>) {
        let (ticket, key) = (waiter.ticket, waiter.key.clone());
        // The runtime asks again when it lost the first answer: the newer request stands for both.
        self.supersede(&key, effects);
        if let Some(refusal) = self.observed.blocked().filter(|blocked| !blocked.cause.is_temporary()).cloned() {
            effects.push(Effect::Refuse { ticket, refusal });
            return;
        }
        if let Some(lease) = self.leases.ask_again(ticket, &key) {
            effects.push(Effect::Offer { ticket, key, lease });
            return;
        }
        self.demand.asked(now);
        self.queue.push(waiter);
    }

    fn supersede(&mut self, key: &AttachmentKey, effects: &mut Vec<Effect>) {
        if let Some(waiter) = self.queue.take_key(key) {
            let refusal = Refusal::new(Cause::Superseded, "a newer request for the same attachment came in");
            effects.push(Effect::Refuse { ticket: waiter.ticket, refusal });
        }
    }

    /// Assigns what is available to the ADDs that wait, in the order in which they came.
    pub(super) fn serve(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        if !self.may_serve(now) {
            return;
        }
        // ADDs that need a certain card go first: the others can do with any.
        for card in self.queue.cards().into_iter().rev() {
            while self.queue.waiting_for(card) > 0
                && let Some(net) = self.pool.pick(&self.node, card)
            {
                let is_taken = |address| self.leases.uses(&address) || self.cooldown.contains(&address);
                let twice = self.integrity.is_mutated(Mutation::AssignTwice);
                let taken = |address| !twice && is_taken(address);
                // A prefix whose available addresses turn out to be taken has nothing left to assign.
                let Some(taken) = self.pool.take(now, &self.node, net, taken) else { return };
                let Some(waiter) = self.queue.pop(card) else { return };
                self.lease_to(now, waiter, taken, effects);
            }
        }
    }

    /// Counts who has an address and who is about to need one.
    pub(super) fn count_demand(&mut self, now: Millis) {
        self.demand.count_bound(self.leases.values().filter_map(|lease| lease.pod.as_ref()));
        if self.may_serve(now) {
            let counts = self.counts();
            self.demand.in_use(now, counts.assigned + counts.cooling + counts.demand());
        }
    }

    fn may_serve(&self, now: Millis) -> bool {
        if !self.observed.has_listed_links() || self.observed.blocked().is_some() {
            return false; // what the kernel holds decides what is available
        }
        let remembers = !self.audits.is_discovering() || self.audits.last().is_some();
        let settled = self.observed.imds_read().is_some_and(|at| now.since(at) >= SETTLED_MS);
        // Metadata may be stale, and no record says what was unassigned: EC2's word first, if it comes.
        remembers || settled || !self.node.asks_ec2()
    }

    fn lease_to(&mut self, now: Millis, waiter: Waiter, taken: Taken, effects: &mut Vec<Effect>) {
        let Waiter { ticket, key, pod, .. } = waiter;
        let index = self.leases.next_index(&key, pod.as_ref());
        let mut lease = Lease::remembered((taken.address, taken.second), taken.eni, taken.slot, pod, index);
        lease.since = Some(now);
        lease.ticket = Some(ticket);
        effects.extend(lease.addresses().map(|address| Effect::Record(Write::Cooldown(address, None))));
        if !self.integrity.is_mutated(Mutation::OfferUnrecorded) {
            effects.push(Effect::Record(Write::Lease(key.clone(), Some(lease.clone()))));
        }
        self.leases.insert(key.clone(), lease.clone());
        effects.push(Effect::Offer { ticket, key, lease });
    }

    pub(super) fn release(&mut self, now: Millis, ticket: Ticket, key: &AttachmentKey, effects: &mut Vec<Effect>) {
        self.supersede(key, effects);
        let address = self.leases.get(key).map(|lease| lease.address);
        self.end_lease(now, key, effects);
        effects.push(Effect::Released { ticket, address });
    }

    pub(super) fn end_lease(&mut self, now: Millis, key: &AttachmentKey, effects: &mut Vec<Effect>) {
        let Some(lease) = self.leases.remove(key) else { return };
        effects.push(Effect::Record(Write::Lease(key.clone(), None)));
        for address in lease.addresses() {
            self.start_cooldown(now, address, effects);
        }
    }

    /// Refuses ADDs that wait in vain, with the cause that the plan has: at once where no wait can help, else when their
    /// timeout ends. Whether anybody was refused.
    pub(super) fn refuse(&mut self, now: Millis, plan: &Plan, effects: &mut Vec<Effect>) -> bool {
        if self.queue.is_empty() {
            return false;
        }
        let before = self.queue.len();
        let why = |card: u32| {
            plan.refusal(now, card).unwrap_or_else(|| Refusal::new(Cause::StillGrowing, "the address is on its way"))
        };
        while let Some(waiter) = self.queue.take_overdue(now) {
            effects.push(Effect::Refuse { ticket: waiter.ticket, refusal: why(waiter.pool_card()) });
        }
        let next_cooled = plan::next_cooled(&self.state());
        for card in self.queue.cards() {
            let refusal = why(card.unwrap_or(0));
            while !refusal.cause.is_temporary()
                && let Some(waiter) = self.queue.take_before(card, next_cooled)
            {
                effects.push(Effect::Refuse { ticket: waiter.ticket, refusal: refusal.clone() });
            }
        }
        self.queue.len() < before
    }
}
