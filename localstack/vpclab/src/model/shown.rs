//! What others see of a thing that changes: the past, for a while.

use std::collections::VecDeque;

/// A thing's appearances and when each starts to be seen, oldest first; `None`: it does not exist.
#[derive(Clone, Debug)]
pub(super) struct Shown<T>(VecDeque<(u64, Option<T>)>);

impl<T> Default for Shown<T> {
    fn default() -> Self {
        Shown(VecDeque::new())
    }
}

impl<T: PartialEq> Shown<T> {
    /// From `at` on it looks like this, unless an earlier change is seen later than that: nothing that has
    /// been seen is seen the old way again.
    pub fn push(&mut self, at: u64, thing: Option<T>) {
        let (latest, same) = match self.0.back() {
            Some((latest, last)) => (*latest, *last == thing),
            None => (0, thing.is_none()),
        };
        if !same {
            self.0.push_back((at.max(latest), thing));
        }
    }

    /// What is seen.
    pub fn at(&self, now: u64) -> Option<&T> {
        self.0.iter().rev().find(|(at, _)| *at <= now).and_then(|(_, thing)| thing.as_ref())
    }

    /// When the latest change is seen.
    pub fn latest(&self) -> u64 {
        self.0.back().map_or(0, |(at, _)| *at)
    }

    /// Forgets what nobody will see again; false if nothing is left to be seen ever.
    pub fn prune(&mut self, now: u64) -> bool {
        while self.0.get(1).is_some_and(|(at, _)| *at <= now) {
            self.0.pop_front();
        }
        !(self.0.len() == 1 && self.0[0].1.is_none() && self.0[0].0 <= now)
    }
}
