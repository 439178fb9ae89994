//! What asks for addresses beside the ADDs that wait: pods bound to the node, and what the node's own past lets expect.

use super::{history::History, target::Learned};
use crate::ids::Millis;

/// How long a subnet is taken to have no /28 after EC2 said so.
const NO_PREFIX_MS: u64 = 120_000;

/// How long a subnet is taken to be short of addresses after EC2 refused an amount.
const SHORT_MS: u64 = 120_000;

/// Demand, and what limits how it can be met.
#[derive(Clone, Debug)]
pub(crate) struct Demand {
    history: History,
    /// Pods bound to this node that hold no lease yet.
    bound: u64,
    /// The node takes no new pods.
    cordoned: bool,
    /// The pool has been too large since then.
    surplus_since: Option<Millis>,
    /// An order waits for more to order since then.
    held_since: Option<Millis>,
    /// Until when the subnet is taken to have no /28.
    no_prefix_until: Option<Millis>,
    /// The most blocks that one call asks for while the subnet is short, and until when.
    most: Option<(u32, Millis)>,
}

impl Demand {
    pub(crate) fn new() -> Self {
        Demand {
            history: History::new(),
            bound: 0,
            cordoned: false,
            surplus_since: None,
            held_since: None,
            no_prefix_until: None,
            most: None,
        }
    }

    pub(crate) fn set_bound(&mut self, pods: u32) {
        self.bound = pods.into();
    }

    pub(crate) fn bound(&self) -> u64 {
        self.bound
    }

    pub(crate) fn set_cordoned(&mut self, cordoned: bool) {
        self.cordoned = cordoned;
    }

    pub(crate) fn is_cordoned(&self) -> bool {
        self.cordoned
    }

    /// A pod asked for an address.
    pub(crate) fn asked(&mut self, now: Millis) {
        self.history.ask(now);
    }

    /// Pods that asked in the last minute.
    pub(crate) fn lately(&self, now: Millis) -> u64 {
        self.history.lately(now)
    }

    /// So many addresses are in use, or asked for.
    pub(crate) fn in_use(&mut self, now: Millis, addresses: u64) {
        self.history.in_use(now, addresses);
    }

    /// So many addresses were fetched on purpose: they are not surplus for a while.
    pub(crate) fn fetched(&mut self, now: Millis, addresses: u64) {
        self.history.wanted(now, addresses);
    }

    /// Addresses that were asked for could be assigned after this time.
    pub(crate) fn delivered(&mut self, took_ms: u64) {
        self.history.filled(took_ms);
    }

    /// What `auto` has learned, where so many addresses are in use or asked for.
    pub(crate) fn learned(&self, now: Millis, in_use: u64) -> Learned {
        self.history.learned(now, in_use)
    }

    /// EC2 found no /28 in the subnet.
    pub(crate) fn no_prefix(&mut self, now: Millis) {
        self.no_prefix_until = Some(now.plus(NO_PREFIX_MS));
    }

    /// Until when the subnet is taken to have no /28, if it is.
    pub(crate) fn no_prefix_until(&self) -> Option<Millis> {
        self.no_prefix_until
    }

    /// EC2 refused so many blocks for want of addresses: the next call asks for what is waited for, then for half as
    /// many each time. Whether there is less to ask for.
    pub(crate) fn ask_for_less(&mut self, now: Millis, refused: u32, waiting: u32) -> bool {
        let most = if (1..refused).contains(&waiting) { waiting } else { refused / 2 };
        self.most = Some((most.max(1), now.plus(SHORT_MS)));
        most > 0
    }

    /// EC2 gave so many blocks: where they were all that may be asked for, more may be.
    pub(crate) fn given(&mut self, blocks: u32) {
        if let Some((most, _)) = self.most.as_mut().filter(|(most, _)| blocks >= *most) {
            *most = most.saturating_mul(2);
        }
    }

    /// The most blocks that one call may ask for, while the subnet is short.
    pub(crate) fn most(&self, now: Millis) -> Option<u32> {
        self.most.filter(|(_, until)| *until > now).map(|(most, _)| most)
    }

    /// Whether the pool is too large at this moment.
    pub(crate) fn set_surplus(&mut self, now: Millis, there_is: bool) {
        self.surplus_since = there_is.then(|| self.surplus_since.unwrap_or(now));
    }

    /// Whether an order waits for more to order at this moment.
    pub(crate) fn set_held(&mut self, now: Millis, is_held: bool) {
        self.held_since = is_held.then(|| self.held_since.unwrap_or(now));
    }

    /// Since when an order has waited for more to order.
    pub(crate) fn held_since(&self) -> Option<Millis> {
        self.held_since
    }

    /// Since when the pool has been too large.
    pub(crate) fn surplus_since(&self) -> Option<Millis> {
        self.surplus_since
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_that_is_short_is_asked_for_less_until_it_gives() {
        let mut demand = Demand::new();
        let at = Millis(5);
        assert_eq!(demand.most(at), None);
        assert!(demand.ask_for_less(at, 14, 5));
        assert_eq!(demand.most(at), Some(5), "what is waited for");
        assert!(demand.ask_for_less(at, 5, 5));
        assert!(demand.ask_for_less(at, 2, 5));
        assert_eq!(demand.most(at), Some(1));
        assert!(!demand.ask_for_less(at, 1, 5), "there is nothing less than one");
        demand.given(1);
        assert_eq!(demand.most(at), Some(2));
        assert_eq!(demand.most(at.plus(SHORT_MS)), None);
    }
}
