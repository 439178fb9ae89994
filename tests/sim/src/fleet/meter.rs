//! What the account's buckets were used for: a token that is refilled while somebody waits should serve him.

use std::collections::{BTreeMap, BTreeSet};

use enid_ipamd::{CallError, Cause, Ec2Answer};
use vpclab::model::{Options, bucket};

use super::number::float;

/// The use of every bucket.
pub struct Meter {
    others_share: f64,
    actions: BTreeMap<&'static str, Use>,
}

/// The use of one.
#[derive(Clone, Debug, Default)]
pub struct Use {
    pub calls: u64,
    pub served: u64,
    /// Nodes whose last call was refused for the rate, and a pod waited for it.
    waiting: BTreeSet<usize>,
    since: u64,
    /// Milliseconds in which somebody waited, and calls served in them.
    pub busy_ms: u64,
    pub served_busy: u64,
}

/// One action's figures.
#[derive(Clone, Debug)]
pub struct Figures {
    pub action: &'static str,
    pub calls: u64,
    pub served: u64,
    /// Served calls by tokens refilled while somebody waited; none if nobody ever did.
    pub goodput: Option<f64>,
    refilled: f64,
    served_busy: f64,
    /// Seconds that this many calls need at the least.
    pub least: f64,
}

impl Meter {
    pub fn new(options: &Options) -> Self {
        Meter { others_share: options.others_share, actions: BTreeMap::new() }
    }

    /// A call of a node was answered; `waits`: a pod waits for it.
    pub fn called(
        &mut self,
        now: u64,
        node: usize,
        action: &'static str,
        answer: &Result<Ec2Answer, CallError>,
        waits: bool,
    ) {
        let used = self.actions.entry(action).or_default();
        used.calls += 1;
        let throttled = answer.as_ref().is_err_and(|error| error.cause == Cause::Throttled);
        let was_busy = !used.waiting.is_empty();
        if throttled {
            if waits {
                used.waiting.insert(node);
            }
            if !was_busy {
                used.since = now;
            }
            return;
        }
        used.served += 1;
        if was_busy {
            used.served_busy += 1;
            used.waiting.remove(&node);
            if used.waiting.is_empty() {
                used.busy_ms += now - used.since;
            }
        }
    }

    /// Served calls by tokens refilled while somebody waited, over all buckets.
    pub fn goodput(&self, now: u64) -> Option<f64> {
        let figures = self.figures(now);
        let refilled: f64 = figures.iter().map(|figure| figure.refilled).sum();
        let served: f64 = figures.iter().map(|figure| figure.served_busy).sum();
        (refilled >= 1.0).then(|| served / refilled)
    }

    /// All actions, up to this time.
    pub fn figures(&self, now: u64) -> Vec<Figures> {
        let left = 1.0 - self.others_share;
        let figures = self.actions.iter().map(|(action, used)| {
            let (size, refill) = bucket(action);
            let busy = used.busy_ms + if used.waiting.is_empty() { 0 } else { now - used.since };
            let refilled = float(busy) / 1000.0 * refill * left;
            let served_busy = float(used.served_busy);
            let goodput = (refilled >= 1.0).then(|| served_busy / refilled);
            let least = ((float(used.served) - size * left) / (refill * left)).max(0.0);
            Figures { action, calls: used.calls, served: used.served, goodput, refilled, served_busy, least }
        });
        figures.collect()
    }
}
