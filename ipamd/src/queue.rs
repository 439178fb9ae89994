//! Those who wait for an address, in the order in which they came.

use imbl::{OrdMap, OrdSet};

use crate::{AttachmentKey, Millis, PodRef, Ticket};

/// One request without an address yet.
#[derive(Clone, Debug)]
pub(crate) struct Waiter {
    pub(crate) ticket: Ticket,
    pub(crate) key: AttachmentKey,
    pub(crate) pod: Option<PodRef>,
    pub(crate) deadline: Millis,
}

/// The queue.
#[derive(Clone, Debug, Default)]
pub(crate) struct Queue {
    next: u64,
    line: OrdMap<u64, Waiter>,
    by_key: OrdMap<AttachmentKey, u64>,
    by_ticket: OrdMap<Ticket, u64>,
    deadlines: OrdSet<(Millis, u64)>,
}

impl Queue {
    pub(crate) fn push(&mut self, waiter: Waiter) {
        let place = self.next;
        self.next += 1;
        self.by_key.insert(waiter.key.clone(), place);
        self.by_ticket.insert(waiter.ticket, place);
        self.deadlines.insert((waiter.deadline, place));
        self.line.insert(place, waiter);
    }

    pub(crate) fn pop(&mut self) -> Option<Waiter> {
        let place = self.line.get_min()?.0;
        self.remove(place)
    }

    pub(crate) fn take_key(&mut self, key: &AttachmentKey) -> Option<Waiter> {
        let place = *self.by_key.get(key)?;
        self.remove(place)
    }

    pub(crate) fn take_ticket(&mut self, ticket: Ticket) -> Option<Waiter> {
        let place = *self.by_ticket.get(&ticket)?;
        self.remove(place)
    }

    /// One whose patience has ended.
    pub(crate) fn take_overdue(&mut self, now: Millis) -> Option<Waiter> {
        let (deadline, place) = *self.deadlines.get_min()?;
        if deadline <= now { self.remove(place) } else { None }
    }

    /// One who will not live to see this moment (or anyone, if it never comes).
    pub(crate) fn take_hopeless(&mut self, help: Option<Millis>) -> Option<Waiter> {
        let (deadline, place) = *self.deadlines.get_min()?;
        if help.is_none_or(|at| at >= deadline) { self.remove(place) } else { None }
    }

    fn remove(&mut self, place: u64) -> Option<Waiter> {
        let waiter = self.line.remove(&place)?;
        self.by_key.remove(&waiter.key);
        self.by_ticket.remove(&waiter.ticket);
        self.deadlines.remove(&(waiter.deadline, place));
        Some(waiter)
    }

    pub(crate) fn next_deadline(&self) -> Option<Millis> {
        self.deadlines.get_min().map(|(deadline, _)| *deadline)
    }

    pub(crate) fn len(&self) -> u64 {
        u64::try_from(self.line.len()).unwrap_or(u64::MAX)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.line.is_empty()
    }
}
