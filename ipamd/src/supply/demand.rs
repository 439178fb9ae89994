//! What asks for addresses beside the ADDs that wait: pods bound to the node, and what the node's own past lets expect.

use std::{collections::BTreeSet, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{history::History, places::Places, subnets::Subnets, target::Learned};
use crate::ids::{Millis, PodRef};

/// Demand, and what limits how it can be met.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Demand {
    history: History,
    /// Pods bound to this node, as the API server shows them: those without an address.
    pods: Arc<BTreeSet<PodRef>>,
    /// How many of them hold no lease yet.
    bound: u64,
    /// The node takes no new pods.
    cordoned: bool,
    /// The pool has been too large since then.
    surplus_since: Option<Millis>,
    /// An order waits for more to order since then.
    held_since: Option<Millis>,
    /// The subnets that ENIs are in.
    subnets: Subnets,
    /// Where new ENIs are created.
    places: Places,
}

impl Demand {
    pub(crate) fn new() -> Self {
        Demand {
            history: History::new(),
            pods: Arc::default(),
            bound: 0,
            cordoned: false,
            surplus_since: None,
            held_since: None,
            subnets: Subnets::default(),
            places: Places::default(),
        }
    }

    pub(crate) fn set_pods(&mut self, pods: BTreeSet<PodRef>) {
        self.pods = Arc::new(pods);
    }

    /// Counts the pods on their way, where these hold a lease. Their status shows an address seconds later.
    pub(crate) fn count_bound<'a>(&mut self, leased: impl Iterator<Item = &'a PodRef>) {
        if self.pods.is_empty() {
            self.bound = 0;
            return;
        }
        let leased: BTreeSet<&PodRef> = leased.collect();
        let without = self.pods.iter().filter(|pod| !leased.contains(pod)).count();
        self.bound = u64::try_from(without).unwrap_or(u64::MAX);
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

    /// What the subnets have left, as far as EC2 has said.
    pub(crate) fn subnets(&self) -> &Subnets {
        &self.subnets
    }

    /// Where new ENIs are created.
    pub(crate) fn places(&self) -> &Places {
        &self.places
    }

    pub(crate) fn places_mut(&mut self) -> &mut Places {
        &mut self.places
    }

    pub(crate) fn subnets_mut(&mut self) -> &mut Subnets {
        &mut self.subnets
    }

    /// Whether the pool is too large at this moment.
    pub(crate) fn set_surplus(&mut self, now: Millis, there_is: bool) {
        self.surplus_since = there_is.then(|| self.surplus_since.unwrap_or(now));
    }

    /// The pool is taken to have been too large since then.
    pub(crate) fn has_had_surplus_since(&mut self, since: Millis) {
        self.surplus_since = Some(since);
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
