//! What `auto` learns from the node's own past: how many pods come while an address is fetched, and how
//! many addresses were in use at once lately.

use imbl::Vector;

use crate::{Learnt, Millis};

/// The past that counts.
const WINDOW_MS: u64 = 30 * 60_000;
/// It is kept in so many pieces.
const PIECES: u64 = 10;
/// The margin of a node that has seen nothing yet, and its bounds.
const LEAST: u64 = 1;
const MOST: u64 = 16;
/// A first guess at how long an address takes to come.
const FIRST_DELAY_MS: u64 = 2_000;

/// The greatest value of the last while.
#[derive(Clone, Debug, Default)]
struct Greatest {
    pieces: Vector<(u64, u64)>,
}

impl Greatest {
    fn see(&mut self, now: Millis, value: u64) {
        let piece = now.0 / (WINDOW_MS / PIECES);
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

/// The memory.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    asked: Vector<Millis>,
    bursts: Greatest,
    in_use: Greatest,
    delay_ms: u64,
}

impl Memory {
    pub(crate) fn new() -> Self {
        Memory {
            asked: Vector::new(),
            bursts: Greatest::default(),
            in_use: Greatest::default(),
            delay_ms: FIRST_DELAY_MS,
        }
    }

    /// A pod asked.
    pub(crate) fn ask(&mut self, now: Millis) {
        self.asked.push_back(now);
        while self.asked.front().is_some_and(|at| now.since(*at) > self.delay_ms) {
            self.asked.pop_front();
        }
        let burst = u64::try_from(self.asked.len()).unwrap_or(u64::MAX);
        self.bursts.see(now, burst.min(MOST));
    }

    /// An order was filled after so long.
    pub(crate) fn filled(&mut self, took_ms: u64) {
        self.delay_ms = (self.delay_ms * 3 + took_ms.clamp(500, 60_000)) / 4;
    }

    /// So many addresses are in use, rest included.
    pub(crate) fn in_use(&mut self, now: Millis, addresses: u64) {
        self.in_use.see(now, addresses);
        self.bursts.see(now, 0);
    }

    pub(crate) fn learnt(&self) -> Learnt {
        Learnt { margin: self.bursts.get().clamp(LEAST, MOST), peak: self.in_use.get() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_remembered_and_forgotten() {
        let mut memory = Memory::new();
        assert_eq!(memory.learnt().margin, LEAST);
        (0..5).for_each(|_| memory.ask(Millis(10_000)));
        memory.in_use(Millis(10_100), 40);
        assert_eq!(memory.learnt(), Learnt { margin: 5, peak: 40 });
        memory.in_use(Millis(WINDOW_MS * 3), 2);
        assert_eq!(memory.learnt(), Learnt { margin: LEAST, peak: 2 });
    }

    #[test]
    fn pods_that_come_slower_than_addresses_need_no_margin() {
        let mut memory = Memory::new();
        (0..50).for_each(|n| memory.ask(Millis(n * 5_000)));
        assert_eq!(memory.learnt().margin, 1);
        memory.filled(60_000);
        (50..100).for_each(|n| memory.ask(Millis(n * 5_000)));
        assert!(memory.learnt().margin > 1);
    }
}
