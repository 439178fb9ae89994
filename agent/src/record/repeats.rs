//! The log's lines for operations: one for each, and of the same failure again and again one with how often.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use enid_api::v1::Operation;
use tracing::{info, warn};

use super::kind::{Kind, outcome};

/// The same failure is told once in so long.
const QUIET: Duration = Duration::from_secs(60);

/// What is the same: kind, subject, outcome, cause.
type Same = (String, String, String, String);

/// Failures that were told.
#[derive(Default)]
pub(super) struct Repeats {
    told: BTreeMap<Same, Told>,
}

struct Told {
    at: Instant,
    /// Since then.
    more: u64,
    message: String,
}

/// An operation's line is to be written.
pub(super) struct Line {
    /// As often the same happened since it was told, and was not told.
    untold: u64,
}

/// A failure that has happened again since it was told.
pub(super) struct Repeated {
    what: Same,
    more: u64,
    message: String,
}

impl Repeats {
    /// An operation has ended; its line, if it is to be written.
    pub(super) fn take(&mut self, operation: &Operation, now: Instant) -> Option<Line> {
        // An order is told each time.
        if operation.outcome == outcome::DONE || operation.kind == Kind::Admin.name() {
            return Some(Line { untold: 0 });
        }
        let Operation { kind, subject, outcome, cause, message, .. } = operation;
        // Where a cause says little, the words tell failures apart.
        let words = if outcome == outcome::FAILED { without_names(message) } else { cause.clone() };
        let what = (kind.clone(), subject.clone(), outcome.clone(), words);
        match self.told.get_mut(&what) {
            Some(told) if now - told.at < QUIET => {
                told.more += 1;
                told.message.clone_from(message);
                None
            }
            told => {
                let untold = told.map_or(0, |told| told.more);
                self.told.insert(what, Told { at: now, more: 0, message: message.clone() });
                Some(Line { untold })
            }
        }
    }

    /// What has happened again, and was told so long ago that it is time to say so. What has not is forgotten.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Repeated> {
        let mut due = Vec::new();
        self.told.retain(|what, told| {
            if now - told.at < QUIET {
                return true;
            }
            if told.more > 0 {
                due.push(Repeated { what: what.clone(), more: told.more, message: std::mem::take(&mut told.message) });
                (told.at, told.more) = (now, 0);
                return true;
            }
            false
        });
        due
    }
}

impl Repeated {
    pub(super) fn log(&self) {
        let ((kind, subject, outcome, cause), more, message) = (&self.what, self.more, &self.message);
        let what = [&**kind, &**subject, &**outcome].into_iter().filter(|word| !word.is_empty());
        let what = what.collect::<Vec<_>>().join(" ");
        let last = if message.is_empty() { String::new() } else { format!("; the last: {message}") };
        warn!(cause, more, "{what}, {more} times more in about a minute{last}");
    }
}

impl Line {
    pub(super) fn log(&self, kind: Kind, operation: &Operation) {
        let Operation { pod, container, ifname, subject, address, eni, outcome, cause, message, .. } = operation;
        let phases = operation.phases.iter().map(|phase| format!("{} {}", phase.name, ms(phase.took_us)));
        let phases = phases.collect::<Vec<_>>().join(", ");
        let took_ms = ms(operation.took_us);
        let request_id = Some(&operation.aws_request_id).filter(|id| !id.is_empty());
        let more = Some(self.untold).filter(|more| *more > 0);
        let kind_name = kind.name();
        match (kind, &**outcome) {
            (Kind::Add, outcome::DONE) => info!(pod, container, address, eni, took_ms, phases, "ADD"),
            (Kind::Del, outcome::DONE) => info!(pod, container, ifname, address, took_ms, phases, "DEL"),
            (Kind::Ec2, outcome::DONE) => info!(eni, took_ms, "{subject}"),
            (Kind::Gc, outcome::DONE) if !message.is_empty() => info!(took_ms, "GC: {message}"),
            // What they say is logged where it is found, or is nothing to say.
            (Kind::Check | Kind::Gc | Kind::Bound | Kind::Repair | Kind::State, outcome::DONE) => {}
            (Kind::Admin, _) => warn!(took_ms, "an operator's order, {subject}: {outcome}: {message}"),
            (Kind::Plugin, _) => info!(pod, container, "the plugin, {subject}: {message}"),
            (Kind::Ec2, _) => warn!(cause, request_id, took_ms, more, "{message}"),
            (_, outcome::GONE) => {
                info!(pod, container, took_ms, phases, more, "{kind_name} ended: the plugin has gone")
            }
            (_, outcome::SUPERSEDED) => {
                info!(pod, container, address, eni, took_ms, more, "{kind_name} given up: {message}");
            }
            _ => warn!(pod, container, cause, request_id, took_ms, more, "{kind_name} {outcome}: {message}"),
        }
    }
}

/// A sentence without what is of one pod: paths, numbers, quoted names.
fn without_names(message: &str) -> String {
    let is_name = |word: &&str| word.contains(|c: char| matches!(c, '/' | '"') || c.is_ascii_digit());
    message.split_whitespace().filter(|word| !is_name(word)).collect::<Vec<_>>().join(" ")
}

/// Milliseconds, three decimals.
fn ms(micros: u64) -> String {
    format!("{}.{:03}", micros / 1_000, micros % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_failure_is_told_once_and_then_counted() {
        let mut repeats = Repeats::default();
        let start = Instant::now();
        let refused = |cause: &str| Operation {
            kind: "ADD".into(),
            outcome: outcome::REFUSED.into(),
            cause: cause.into(),
            ..Operation::default()
        };
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(repeats.take(&refused("subnet_full"), start).is_some());
        assert!(repeats.take(&refused("throttled"), start).is_some(), "another cause");
        for second in 1..=40 {
            assert!(repeats.take(&refused("subnet_full"), at(second)).is_none());
        }
        assert!(repeats.due(at(59)).is_empty());
        let due = repeats.due(at(60));
        assert_eq!(due.iter().map(|it| (&*it.what.3, it.more)).collect::<Vec<_>>(), [("subnet_full", 40)]);
        assert!(repeats.due(at(121)).is_empty(), "nothing happened since");
        assert!(repeats.told.is_empty());
        assert_eq!(repeats.take(&refused("subnet_full"), at(122)).unwrap().untold, 0);
        let failed = |message: &str| Operation {
            kind: "ADD".into(),
            outcome: outcome::FAILED.into(),
            message: message.into(),
            ..Operation::default()
        };
        assert!(repeats.take(&failed("the namespace /run/netns/a is gone"), at(123)).is_some());
        assert!(
            repeats.take(&failed("the namespace /run/netns/b is gone"), at(123)).is_none(),
            "the same of another pod"
        );
        assert!(repeats.take(&failed("the interface exists"), at(123)).is_some(), "another failure");
        let done = Operation { outcome: outcome::DONE.into(), ..Operation::default() };
        assert!(repeats.take(&done, at(122)).is_some() && repeats.take(&done, at(122)).is_some());
    }
}
