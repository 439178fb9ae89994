//! ADDs that wait for an address, in the order in which they came.

use imbl::{OrdMap, OrdSet};
use serde::{Deserialize, Serialize};

use crate::ids::{AttachmentKey, Millis, PodRef, Ticket};

/// One request without an address yet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Waiter {
    pub(crate) ticket: Ticket,
    pub(crate) key: AttachmentKey,
    pub(crate) pod: Option<PodRef>,
    pub(crate) deadline: Millis,
    /// The address has to be on an ENI of this network card.
    pub(crate) card: Option<u32>,
}

impl Waiter {
    /// The card whose pool has to grow for it.
    pub(crate) fn pool_card(&self) -> u32 {
        self.card.unwrap_or(0)
    }
}

/// The queue.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Queue {
    next: u64,
    line: OrdMap<u64, Waiter>,
    /// Places in the line, by the card that is asked for.
    #[serde(with = "crate::serial")]
    by_card: OrdMap<Option<u32>, OrdSet<u64>>,
    #[serde(with = "crate::serial")]
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
        self.by_card.entry(waiter.card).or_default().insert(place);
        self.deadlines.insert((waiter.deadline, place));
        self.line.insert(place, waiter);
    }

    /// The cards that ADDs ask for; `None`: any will do.
    pub(crate) fn cards(&self) -> Vec<Option<u32>> {
        self.by_card.keys().copied().collect()
    }

    /// The first ADD that asks for this card.
    pub(crate) fn pop(&mut self, card: Option<u32>) -> Option<Waiter> {
        let place = *self.by_card.get(&card)?.get_min()?;
        self.remove(place)
    }

    /// How many ADDs ask for this card.
    pub(crate) fn waiting_for(&self, card: Option<u32>) -> u64 {
        self.by_card.get(&card).map_or(0, |places| u64::try_from(places.len()).unwrap_or(u64::MAX))
    }

    /// How many ADDs wait for this card's pool: those that ask for none in particular wait for the first card's.
    pub(crate) fn waiting_on(&self, card: u32) -> u64 {
        self.waiting_for(Some(card)) + if card == 0 { self.waiting_for(None) } else { 0 }
    }

    pub(crate) fn take_key(&mut self, key: &AttachmentKey) -> Option<Waiter> {
        let place = *self.by_key.get(key)?;
        self.remove(place)
    }

    pub(crate) fn take_ticket(&mut self, ticket: Ticket) -> Option<Waiter> {
        let place = *self.by_ticket.get(&ticket)?;
        self.remove(place)
    }

    /// One whose timeout has ended.
    pub(crate) fn take_overdue(&mut self, now: Millis) -> Option<Waiter> {
        let (deadline, place) = *self.deadlines.get_min()?;
        if deadline <= now { self.remove(place) } else { None }
    }

    /// One that asks for this card and whose timeout ends before this moment (any one, if the moment never comes).
    pub(crate) fn take_before(&mut self, card: Option<u32>, moment: Option<Millis>) -> Option<Waiter> {
        let asks = |place: &u64| self.line.get(place).is_some_and(|waiter| waiter.card == card);
        let (deadline, place) = *self.deadlines.iter().find(|(_, place)| asks(place))?;
        if moment.is_none_or(|at| at >= deadline) { self.remove(place) } else { None }
    }

    fn remove(&mut self, place: u64) -> Option<Waiter> {
        let waiter = self.line.remove(&place)?;
        self.by_key.remove(&waiter.key);
        self.by_ticket.remove(&waiter.ticket);
        if let Some(places) = self.by_card.get_mut(&waiter.card) {
            places.remove(&place);
            if places.is_empty() {
                self.by_card.remove(&waiter.card);
            }
        }
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
