//! The core, with what it has taken lately: a state and the events since. `enid bundle` has it, and the simulator takes the same
//! events again. Events are kept as lines of JSON, in two parts of bounded size; the older one is dropped when the newer is full.

use std::ops::Deref;

use anyhow::Context;
use enid_ipamd::{Core, Effect, Event, Millis, Plan, Recording};

/// Bytes of a part: on a quiet node the events of hours. Listings of links are most of it: with 100 pods, of which many come and go,
/// it is minutes.
const PART: usize = 256 * 1024;

/// The core; it can be read, and takes steps.
pub struct RecordedCore {
    core: Core,
    older: Option<Part>,
    newer: Part,
}

#[derive(Clone)]
struct Part {
    start: Core,
    events: Vec<u8>,
}

/// What is recorded at one moment; it takes a while to make a [`Recording`] of it.
pub struct Taken {
    parts: Vec<Part>,
    at: Millis,
    end: Core,
}

impl RecordedCore {
    /// From its first state on.
    pub fn new(core: Core) -> Self {
        let newer = Part { start: core.clone(), events: Vec::new() };
        RecordedCore { core, older: None, newer }
    }

    /// Takes one event.
    pub fn step_and_plan(&mut self, now: Millis, event: Event) -> (Vec<Effect>, Plan) {
        if self.newer.events.len() >= PART {
            let newer = Part { start: self.core.clone(), events: Vec::new() };
            self.older = Some(std::mem::replace(&mut self.newer, newer));
        }
        let written = serde_json::to_writer(&mut self.newer.events, &(now, &event));
        self.newer.events.push(b'\n');
        let done = self.core.step_and_plan(now, event);
        if written.is_err() {
            // A line is missing: it is recorded from here on.
            *self = RecordedCore::new(self.core.clone());
        }
        done
    }

    /// What is recorded now.
    pub fn taken(&self, now: Millis) -> Taken {
        let parts = self.older.iter().chain([&self.newer]).cloned().collect();
        Taken { parts, at: now, end: self.core.clone() }
    }
}

impl Deref for RecordedCore {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.core
    }
}

impl Taken {
    /// The recording as JSON.
    ///
    /// # Errors
    ///
    /// A line is none: a defect.
    pub fn json(self) -> anyhow::Result<Vec<u8>> {
        let lines = self.parts.iter().flat_map(|part| part.events.split(|byte| *byte == b'\n'));
        let events = lines.filter(|line| !line.is_empty()).map(serde_json::from_slice).collect::<Result<_, _>>();
        let start = self.parts.into_iter().next().context("nothing is recorded")?.start;
        let recording = Recording::new(start, events.context("an event cannot be read")?, self.at, self.end);
        serde_json::to_vec(&recording).context("the recording cannot be written")
    }
}

#[cfg(test)]
mod tests {
    use enid_ipamd::{Ledger, Limits, Node, Restrictions};

    use super::*;
    use crate::settings::Settings;

    #[test]
    fn the_last_events_are_kept_and_end_in_the_same_state() {
        let policy = Settings::read(&|_| None).unwrap().policy;
        let limits = Limits::of_one_card(3, 10, true);
        let (instance_id, token_seed) = ("i-1".to_owned(), "t".to_owned());
        let node = Node { instance_id, limits, policy, restrictions: Restrictions::default(), token_seed };
        // As after a restart: the kernel has slots.
        let ledger = Ledger { kernel_slots: [([2, 0, 0, 0, 0, 1], 1)].into(), ..Ledger::default() };
        let mut core = RecordedCore::new(Core::new(node, ledger));
        for number in 0..40_000 {
            let event = if number % 2 == 0 { Event::Tick } else { Event::Cordoned { cordoned: number % 4 == 1 } };
            core.step_and_plan(Millis(number), event);
        }
        let json = core.taken(Millis(40_000)).json().unwrap();
        let read: Recording = serde_json::from_slice(&json).unwrap();
        assert!(core.older.is_some() && (10_000..40_000).contains(&read.events.len()), "{}", read.events.len());
        read.replay(|_, _, _, _| ()).unwrap();
    }
}
