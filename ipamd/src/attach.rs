//! From ADD to DEL: who holds which address.

use crate::{AttachmentKey, Cause, Core, Effect, Lease, Millis, PodRef, Refusal, Ticket, Waiter, Write, pool::count};

/// A wired lease ends when its link is missing from two complete listings this far apart.
const MISSING_MS: u64 = 5_000;

impl Core {
    pub(crate) fn ask(
        &mut self,
        now: Millis,
        ticket: Ticket,
        key: AttachmentKey,
        pod: Option<PodRef>,
        patience: u64,
        effects: &mut Vec<Effect>,
    ) {
        // The runtime asks again when it lost the first answer: the newer request stands for both.
        self.supersede(&key, effects);
        if let Some(lease) = self.leases.get_mut(&key) {
            lease.ticket = Some(ticket);
            let lease = lease.clone();
            effects.push(Effect::Offer { ticket, key, lease });
            return;
        }
        self.waiters.push_back(Waiter { ticket, key, pod, deadline: now.plus(patience) });
    }

    fn supersede(&mut self, key: &AttachmentKey, effects: &mut Vec<Effect>) {
        let (same, rest) = self.waiters.drain(..).partition(|waiter| waiter.key == *key);
        self.waiters = rest;
        for waiter in Vec::<Waiter>::from_iter::<std::collections::VecDeque<Waiter>>(same) {
            let refusal = Refusal::new(Cause::Superseded, "a newer request for the same attachment came in");
            effects.push(Effect::Refuse { ticket: waiter.ticket, refusal });
        }
    }

    /// Gives what is free to those who wait, in the order in which they came.
    pub(crate) fn serve(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        if !self.links_listed {
            return; // what the kernel holds decides what is free
        }
        while let Some(waiter) = self.waiters.front()
            && let Some((eni, slot, address)) = self.pick(now)
        {
            let Waiter { ticket, key, pod, .. } = waiter.clone();
            self.waiters.pop_front();
            if self.resting.remove(&address).is_some() {
                effects.push(Effect::Record(Write::Rest(address, None)));
            }
            let index = self.next_index(&key, pod.as_ref());
            let lease =
                Lease { address, eni, slot, pod, index, wired: false, missing_since: None, ticket: Some(ticket) };
            effects.push(Effect::Record(Write::Lease(key.clone(), Some(lease.clone()))));
            self.holders.insert(address, key.clone());
            self.leases.insert(key.clone(), lease.clone());
            effects.push(Effect::Offer { ticket, key, lease });
        }
    }

    /// Interfaces of one pod are numbered, since its name alone names only the first link.
    fn next_index(&self, key: &AttachmentKey, pod: Option<&PodRef>) -> u32 {
        if pod.is_none() {
            return 0;
        }
        let taken: Vec<u32> = self
            .leases
            .iter()
            .filter(|(other, lease)| other.container == key.container && lease.pod.as_ref() == pod)
            .map(|(_, lease)| lease.index)
            .collect();
        (0..=count(taken.len())).find(|index| !taken.contains(index)).unwrap_or(0)
    }

    pub(crate) fn wired(&mut self, ticket: Ticket, key: &AttachmentKey, seen: bool, effects: &mut Vec<Effect>) {
        let mine = match self.leases.get_mut(key) {
            Some(lease) if lease.ticket == Some(ticket) && seen => {
                lease.wired = true;
                lease.missing_since = None;
                lease.ticket = None;
                true
            }
            _ => false,
        };
        effects.push(Effect::Verdict { ticket, mine });
    }

    pub(crate) fn gone(&mut self, now: Millis, ticket: Ticket, effects: &mut Vec<Effect>) {
        self.waiters.retain(|waiter| waiter.ticket != ticket);
        let reserved = self.leases.iter().find(|(_, lease)| lease.ticket == Some(ticket)).map(|(key, _)| key.clone());
        if let Some(key) = reserved {
            match self.leases.get_mut(&key) {
                Some(lease) if lease.wired => lease.ticket = None,
                _ => self.rest(now, &key, effects),
            }
        }
    }

    pub(crate) fn release(&mut self, now: Millis, ticket: Ticket, key: &AttachmentKey, effects: &mut Vec<Effect>) {
        self.supersede(key, effects);
        let address = self.leases.get(key).map(|lease| lease.address);
        self.rest(now, key, effects);
        effects.push(Effect::Released { ticket, address });
    }

    fn rest(&mut self, now: Millis, key: &AttachmentKey, effects: &mut Vec<Effect>) {
        let Some(lease) = self.leases.remove(key) else { return };
        self.holders.remove(&lease.address);
        let until = now.plus(self.node.policy.rest_ms);
        self.resting.insert(lease.address, until);
        effects.push(Effect::Record(Write::Lease(key.clone(), None)));
        effects.push(Effect::Record(Write::Rest(lease.address, Some(until))));
    }

    /// A complete listing of the kernel's links. It proves who is alive; only a link that is missing
    /// twice ends a wired lease. At start it also tells which leases were only reserved: their plugin's
    /// connection closed with the process that held it.
    pub(crate) fn links(&mut self, now: Millis, seen: &[AttachmentKey], effects: &mut Vec<Effect>) {
        let first = !std::mem::replace(&mut self.links_listed, true);
        let seen: std::collections::BTreeSet<&AttachmentKey> = seen.iter().collect();
        let mut ended = Vec::new();
        for (key, lease) in &mut self.leases {
            if seen.contains(key) {
                lease.wired = lease.wired || first;
                lease.missing_since = None;
            } else if first {
                ended.push(key.clone());
            } else if lease.wired {
                let since = *lease.missing_since.get_or_insert(now);
                if now.since(since) >= MISSING_MS {
                    ended.push(key.clone());
                }
            }
        }
        for key in ended {
            self.rest(now, &key, effects);
        }
        // Rest that is over needs no record.
        let rested: Vec<_> = self.resting.iter().filter(|(_, until)| now.since(**until) > 0).map(|(a, _)| *a).collect();
        for address in rested {
            if now.since(self.resting[&address]) >= self.node.policy.rest_ms {
                self.resting.remove(&address);
                effects.push(Effect::Record(Write::Rest(address, None)));
            }
        }
    }

    /// Tells those who wait in vain: at once where no wait can help, else when their patience ends.
    pub(crate) fn refuse_hopeless(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        if self.waiters.is_empty() {
            return;
        }
        let next_rested = self.next_rested(now);
        let reason = self.why_waiting(now);
        let mut waiting = std::collections::VecDeque::new();
        for waiter in std::mem::take(&mut self.waiters) {
            let comes_in_time = next_rested.is_some_and(|at| at < waiter.deadline);
            if waiter.deadline > now && (reason.cause.passes() || comes_in_time) {
                waiting.push_back(waiter);
            } else {
                effects.push(Effect::Refuse { ticket: waiter.ticket, refusal: reason.clone() });
            }
        }
        self.waiters = waiting;
    }
}
