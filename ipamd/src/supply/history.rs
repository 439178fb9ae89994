//! What `auto` learns from the node's own past: how many pods come while an address is fetched, and how
//! many addresses were in use at once lately.

use imbl::Vector;
use serde::{Deserialize, Serialize};

use super::target::Learned;
use crate::ids::Millis;

/// How long a burst of pods is remembered: daily routines come back within hours.
const BURSTS_MS: u64 = 6 * 3_600_000;
/// How long it is remembered how many addresses were in use.
const IN_USE_MS: u64 = 2 * 3_600_000;
/// A past is kept in so many pieces.
const PIECES: u64 = 10;
/// What one order is to last for, if pods go on coming as they do; an ENI may take a third of that to come.
const LATELY_MS: u64 = 60_000;
const ENI_PART: u64 = 3;
const OF_A_SECOND: u32 = 3;
/// The margin of a node that has seen nothing yet: one address for so many in use, and its bounds.
const IN_USE_PER_MARGIN: u64 = 5;
const LEAST: u64 = 1;
const LEAST_OF_MANY: u64 = 4;
const MOST: u64 = 16;
/// A first guess at how long an address takes to come.
const FIRST_DELAY_MS: u64 = 2_000;

/// The greatest value of the last while.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Greatest {
    window_ms: u64,
    pieces: Vector<(u64, u64)>,
}

impl Greatest {
    fn see(&mut self, now: Millis, value: u64) {
        let piece = now.0 / (self.window_ms / PIECES);
        while self.pieces.front().is_some_and(|(at, _)| at + PIECES <= piece) {
            self.pieces.pop_front();
        }
        match self.pieces.back_mut() {
            Some((at, greatest)) if *at == piece => *greatest = value.max(*greatest),
            _ => self.pieces.push_back((piece, value)),
        }
    }

    fn get(&self) -> u64 {
        self.pieces.iter().map(|(_, value)| *value).max().unwrap_or(0)
    }
}

/// What has been seen.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct History {
    /// When pods asked, for the last minute or as long as an address takes to come.
    asked: Vector<Millis>,
    bursts: Greatest,
    in_use: Greatest,
    /// What was in use or asked for ahead of it.
    wanted: Greatest,
    delay_ms: u64,
}

impl History {
    pub(crate) fn new() -> Self {
        History {
            asked: Vector::new(),
            bursts: Greatest { window_ms: BURSTS_MS, pieces: Vector::new() },
            in_use: Greatest { window_ms: IN_USE_MS, pieces: Vector::new() },
            wanted: Greatest { window_ms: IN_USE_MS, pieces: Vector::new() },
            delay_ms: FIRST_DELAY_MS,
        }
    }

    /// A pod asked.
    pub(crate) fn ask(&mut self, now: Millis) {
        self.asked.push_back(now);
        while self.asked.front().is_some_and(|at| now.since(*at) > self.delay_ms.max(LATELY_MS)) {
            self.asked.pop_front();
        }
        self.bursts.see(now, self.asked_within(now, self.delay_ms).min(MOST));
    }

    fn asked_within(&self, now: Millis, span: u64) -> u64 {
        let within = self.asked.iter().rev().take_while(|at| now.since(**at) <= span).count();
        u64::try_from(within).unwrap_or(u64::MAX)
    }

    /// Pods that asked in the last minute, of each second only a few: a crowd that comes at once is no sign of
    /// more to come.
    fn steadily(&self, now: Millis) -> u64 {
        let (mut second, mut of_it, mut all) = (None, 0, 0);
        for at in self.asked.iter().rev().take_while(|at| now.since(**at) <= LATELY_MS) {
            of_it = if second.replace(at.0 / 1000) == Some(at.0 / 1000) { of_it + 1 } else { 1 };
            all += u64::from(of_it <= OF_A_SECOND);
        }
        all
    }

    /// Pods that asked in the last minute.
    pub(crate) fn lately(&self, now: Millis) -> u64 {
        self.asked_within(now, LATELY_MS)
    }

    /// An order was filled after so long.
    pub(crate) fn filled(&mut self, took_ms: u64) {
        self.delay_ms = (self.delay_ms * 3 + took_ms.clamp(500, 60_000)) / 4;
    }

    /// So many addresses are in use, cooling ones included.
    pub(crate) fn in_use(&mut self, now: Millis, addresses: u64) {
        self.in_use.see(now, addresses);
        self.wanted.see(now, addresses);
        self.bursts.see(now, 0);
    }

    /// So many addresses were fetched for pods that are there and for some to come: they are not given back
    /// before those had time to come.
    pub(crate) fn wanted(&mut self, now: Millis, addresses: u64) {
        self.wanted.see(now, addresses);
    }

    /// What to keep, where so many addresses are in use. A burst on top of the most that was in use lately is
    /// not waited for; pods that come at this moment are.
    pub(crate) fn learned(&self, now: Millis, in_use: u64) -> Learned {
        let burst = self.bursts.get().min(self.in_use.get().saturating_sub(in_use));
        let coming = self.steadily(now).div_ceil(ENI_PART);
        let least = (in_use / IN_USE_PER_MARGIN).clamp(LEAST, LEAST_OF_MANY);
        Learned { margin: burst.max(coming).clamp(least, MOST), peak: self.wanted.get().max(in_use) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_remembered_and_forgotten() {
        let mut history = History::new();
        let margin = |history: &History, now, in_use| history.learned(Millis(now), in_use).margin;
        assert_eq!(margin(&history, 0, 0), LEAST);
        (0..9).for_each(|_| history.ask(Millis(10_000)));
        history.in_use(Millis(10_100), 40);
        assert_eq!((history.lately(Millis(60_000)), history.lately(Millis(80_000))), (9, 0));
        assert_eq!(margin(&history, 30_000, 40), LEAST_OF_MANY, "they came at once");
        assert_eq!(margin(&history, 80_000, 20), 9, "they come again");
        assert_eq!(margin(&history, 80_000, 35), 5, "most of them are there");
        assert_eq!(history.learned(Millis(80_000), 41), Learned { margin: LEAST_OF_MANY, peak: 41 });
        history.in_use(Millis(IN_USE_MS * 2), 12);
        assert_eq!(history.learned(Millis(IN_USE_MS * 2), 0), Learned { margin: 9, peak: 12 });
        history.in_use(Millis(BURSTS_MS * 2), 12);
        assert_eq!(history.learned(Millis(BURSTS_MS * 2), 0), Learned { margin: LEAST, peak: 12 });
    }

    #[test]
    fn pods_that_come_slower_than_addresses_need_no_margin() {
        let mut history = History::new();
        (0..50).for_each(|n| history.ask(Millis(n * 30_000)));
        history.in_use(Millis(1_500_000), 50);
        assert_eq!(history.learned(Millis(1_600_000), 0).margin, 1);
        (0..9).for_each(|_| history.filled(60_000));
        (50..100).for_each(|n| history.ask(Millis(n * 30_000)));
        assert!(history.learned(Millis(3_100_000), 0).margin > 1);
    }
}
