//! What this node says of itself: one value, read by STATUS, health, `/metrics`, `enid status` and whoever writes the
//! network configuration.
//!
//! Runtimes ask STATUS every few seconds, and a no makes the whole node NotReady: the node controller takes all of its
//! pods out of their Services and evicts them five minutes later. So STATUS says no in two cases only: since this boot no
//! address could be given yet, or what the pods that run send does not arrive. Whatever only keeps new pods from an
//! address is an *obstacle*: ADD's cause, a metric, a line of `enid status`.

use std::{collections::BTreeMap, fmt};

use enid_ipamd::{Cause, Millis, Refusal};
use tracing::{info, warn};

/// An obstacle must last so long before it is reported.
const HOLD_MS: u64 = 5_000;
/// One that has been reported is over when all that is seen for so long is that the pool can grow: nobody has wanted an
/// address since, so that EC2 was not asked again.
const KEEP_MS: u64 = 120_000;

/// What is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Since this boot an address could be given at least once.
    pub served: bool,
    /// Why a new pod would not get an address; `None` if it would.
    pub obstacle: Option<Refusal>,
    /// Why some of the pods that run may have no network.
    pub risk: Option<Refusal>,
    /// Why instance metadata cannot be read.
    pub source: Option<Refusal>,
    /// What is wrong with the host's own network, which pods do not need and the daemon does.
    pub host: Option<Refusal>,
    /// Why what the pods that run send does not arrive.
    pub outage: Option<Refusal>,
    /// What EC2 refuses for want of a right, also while there are addresses enough.
    pub rights: Option<Refusal>,
    /// Since when each of these has its cause, by its name.
    pub since: BTreeMap<&'static str, (Cause, Millis)>,
}

/// What STATUS says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status<'a> {
    /// The network is there, also for pods that have to wait for an address.
    Yes,
    /// No address could be given since this boot.
    NotYet(&'a Refusal),
    /// The pods that run are cut off.
    CutOff(&'a Refusal),
}

impl Readiness {
    /// Before anything is known; `served`: in an earlier run of this boot.
    pub fn starting(served: bool) -> Self {
        let message = "the daemon has not read its node yet";
        Readiness { served, obstacle: Some(Refusal::new(Cause::Starting, message)), ..Readiness::default() }
    }

    /// What STATUS says.
    pub fn status(&self) -> Status<'_> {
        match (&self.obstacle, &self.outage) {
            (Some(obstacle), _) if !self.served => Status::NotYet(obstacle),
            (_, Some(outage)) => Status::CutOff(outage),
            _ => Status::Yes,
        }
    }

    /// Whether STATUS says yes.
    pub fn is_ready(&self) -> bool {
        self.status() == Status::Yes
    }

    /// What has a cause now, with the name of what it is.
    pub fn causes(&self) -> impl Iterator<Item = (&'static str, &Refusal)> {
        let named = [
            ("obstacle", &self.obstacle),
            ("risk", &self.risk),
            ("source", &self.source),
            ("host", &self.host),
            ("outage", &self.outage),
            ("rights", &self.rights),
        ];
        named.into_iter().filter_map(|(name, refusal)| Some((name, refusal.as_ref()?)))
    }

    /// Whether another one has the same causes, whatever the words.
    fn has_causes_of(&self, other: &Readiness) -> bool {
        let cause = |(name, refusal): (&'static str, &Refusal)| (name, refusal.cause);
        self.served == other.served && self.causes().map(cause).eq(other.causes().map(cause))
    }

    /// Logs what is different from what was said before: in which words. None where nothing is.
    pub fn log(&self, before: &Readiness) -> Vec<String> {
        if self.has_causes_of(before) {
            return Vec::new();
        }
        let mut told = Vec::new();
        let was = |name: &str| before.causes().find(|(other, _)| *other == name).map(|(_, refusal)| refusal.cause);
        for (name, refusal) in self.causes().filter(|(name, refusal)| was(name) != Some(refusal.cause)) {
            let Refusal { cause, message, .. } = refusal;
            let words = match name {
                "obstacle" => format!("new pods get no address: {message}"),
                "risk" => format!("pods may have no network: {message}"),
                "outage" => format!("pods are cut off, and STATUS says so: {message}"),
                _ => message.clone(),
            };
            if name == "obstacle" {
                info!(%cause, "{words}")
            } else {
                warn!(%cause, "{words}")
            }
            told.push(format!("{cause}: {words}"));
        }
        let ended = ["risk", "source", "host", "outage", "rights"].into_iter();
        let ended = ended.filter(|name| self.causes().all(|(other, _)| other != *name));
        told.extend(ended.filter_map(|name| Some(format!("{} is over", was(name)?))));
        if before.obstacle.is_some() && self.obstacle.is_none() {
            info!("new pods get addresses");
            told.push("new pods get addresses".to_owned());
        }
        if before.is_ready() != self.is_ready() {
            info!("STATUS says {self}");
            told.push(format!("STATUS says {self}"));
        }
        told
    }
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status() {
            Status::Yes => f.write_str("yes"),
            Status::NotYet(refusal) | Status::CutOff(refusal) => {
                write!(f, "no, {}: {}", refusal.cause, refusal.message)
            }
        }
    }
}

/// The rule, with what it has said and what it waits for.
pub struct Rule {
    said: Readiness,
    /// Since when an obstacle is seen that is not said yet.
    obstacle_since: Option<Millis>,
    /// Since when the pool could grow, while an obstacle is said.
    grows_since: Option<Millis>,
}

impl Rule {
    /// Nothing has been seen; `served`: an earlier run of this boot could give an address.
    pub fn new(served: bool) -> Self {
        Rule { said: Readiness::starting(served), obstacle_since: None, grows_since: None }
    }

    /// Takes what is seen now; what is to be said from now on, and when to look again if that may change by itself.
    pub fn look(&mut self, now: Millis, seen: Readiness) -> (&Readiness, Option<Millis>) {
        let served = self.said.served || seen.obstacle.is_none();
        let (obstacle, again) = self.obstacle(now, seen.obstacle, served);
        let before = std::mem::take(&mut self.said.since);
        self.said = Readiness { served, obstacle, ..seen };
        let since = |(name, refusal): (&'static str, &Refusal)| {
            let same = before.get(name).filter(|(cause, _)| *cause == refusal.cause);
            (name, same.copied().unwrap_or((refusal.cause, now)))
        };
        self.said.since = self.said.causes().map(since).collect();
        (&self.said, again)
    }

    /// An obstacle has to last before it is said. Once said it stays until an address can be given: that EC2 is asked
    /// again is no end of it, and that nobody asks any more is one after a while, unless none was ever given.
    fn obstacle(&mut self, now: Millis, seen: Option<Refusal>, served: bool) -> (Option<Refusal>, Option<Millis>) {
        let said = self.said.obstacle.take();
        let Some(seen) = seen else {
            (self.obstacle_since, self.grows_since) = (None, None);
            return (None, None);
        };
        let grows = seen.cause == Cause::StillGrowing;
        if let Some(said) = said {
            if !grows {
                self.grows_since = None;
                return (Some(seen), None);
            }
            let until = self.grows_since.get_or_insert(now).plus(KEEP_MS);
            if served && now >= until {
                self.grows_since = None;
                return (None, None);
            }
            let keeps = said.cause != Cause::Starting;
            return (Some(if keeps { said } else { seen }), served.then_some(until));
        }
        if grows {
            return (None, None); // an ADD waits for it
        }
        let since = *self.obstacle_since.get_or_insert(now);
        if now.since(since) < HOLD_MS {
            return (None, Some(since.plus(HOLD_MS)));
        }
        self.obstacle_since = None;
        (Some(seen), None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hindered(cause: Cause) -> Readiness {
        Readiness { obstacle: Some(Refusal::new(cause, "no")), ..Readiness::default() }
    }

    fn obstacle(rule: &mut Rule, at: u64, seen: Readiness) -> Option<Cause> {
        rule.look(Millis(at), seen).0.obstacle.as_ref().map(|refusal| refusal.cause)
    }

    // D81 D86
    #[test]
    fn an_obstacle_needs_time_and_ends_with_an_address() {
        let mut rule = Rule::new(false);
        assert!(!rule.look(Millis(0), hindered(Cause::StillGrowing)).0.is_ready(), "nothing could be given yet");
        assert!(rule.look(Millis(1), Readiness::default()).0.is_ready(), "at once");
        assert_eq!(obstacle(&mut rule, 2, hindered(Cause::StillGrowing)), None, "an ADD waits for growth");
        assert_eq!(obstacle(&mut rule, 3, hindered(Cause::SubnetFull)), None);
        assert_eq!(obstacle(&mut rule, 4, Readiness::default()), None, "it was nothing");
        assert_eq!(obstacle(&mut rule, 5, hindered(Cause::SubnetFull)), None);
        assert_eq!(rule.look(Millis(6), hindered(Cause::SubnetFull)).1, Some(Millis(5 + HOLD_MS)));
        assert_eq!(obstacle(&mut rule, 5 + HOLD_MS, hindered(Cause::SubnetFull)), Some(Cause::SubnetFull));
        assert_eq!(obstacle(&mut rule, 6 + HOLD_MS, hindered(Cause::Throttled)), Some(Cause::Throttled), "the newest");
        let next_try = obstacle(&mut rule, 7 + HOLD_MS, hindered(Cause::StillGrowing));
        assert_eq!(next_try, Some(Cause::Throttled), "the next try is no end");
        assert_eq!(obstacle(&mut rule, 8 + HOLD_MS, Readiness::default()), None);
    }

    #[test]
    fn a_cause_lasts_from_when_it_is_said_whatever_the_words() {
        let mut rule = Rule::new(true);
        let since = |rule: &Rule| rule.said.since.get("obstacle").map(|(cause, at)| (*cause, at.0));
        rule.look(Millis(0), Readiness::default());
        rule.look(Millis(1), hindered(Cause::Throttled));
        assert_eq!(since(&rule), None);
        rule.look(Millis(1 + HOLD_MS), hindered(Cause::Throttled));
        let again = Refusal::new(Cause::Throttled, "another request");
        rule.look(Millis(9_000), Readiness { obstacle: Some(again), ..Readiness::default() });
        assert_eq!(since(&rule), Some((Cause::Throttled, 1 + HOLD_MS)));
        rule.look(Millis(9_001), hindered(Cause::SubnetFull));
        assert_eq!(since(&rule), Some((Cause::SubnetFull, 9_001)));
        rule.look(Millis(9_002), Readiness::default());
        assert_eq!(since(&rule), None);
    }

    /// The kind: a subnet was full when a pod was refused; the pod has gone, the subnet has addresses again, and nothing tries
    /// it, since the node's taint keeps pods away for as long as the obstacle is said.
    #[test]
    fn an_obstacle_that_nobody_runs_into_any_more_ends() {
        let mut rule = Rule::new(true);
        rule.look(Millis(0), Readiness::default());
        rule.look(Millis(1), hindered(Cause::SubnetFull));
        assert_eq!(obstacle(&mut rule, 1 + HOLD_MS, hindered(Cause::SubnetFull)), Some(Cause::SubnetFull));
        let begun = 10_000_000;
        assert_eq!(obstacle(&mut rule, begun, hindered(Cause::StillGrowing)), Some(Cause::SubnetFull));
        let again = rule.look(Millis(begun + 1), hindered(Cause::StillGrowing)).1;
        assert_eq!(again, Some(Millis(begun + KEEP_MS)));
        assert_eq!(
            obstacle(&mut rule, begun + 2, hindered(Cause::SubnetFull)),
            Some(Cause::SubnetFull),
            "it was tried"
        );
        assert_eq!(obstacle(&mut rule, begun + KEEP_MS, hindered(Cause::StillGrowing)), Some(Cause::SubnetFull));
        assert_eq!(obstacle(&mut rule, begun + 2 * KEEP_MS, hindered(Cause::StillGrowing)), None);
        // A node that has never served says no for as long as it grows.
        let mut new = Rule::new(false);
        for at in [0, KEEP_MS, 2 * KEEP_MS] {
            assert!(!new.look(Millis(at), hindered(Cause::StillGrowing)).0.is_ready());
        }
    }

    /// A node that is full, or cannot ask EC2, serves the pods that it has: a no would evict them.
    #[test]
    fn what_only_keeps_new_pods_out_is_no_reason_for_status() {
        let mut rule = Rule::new(false);
        let full = |rule: &mut Rule, at| rule.look(Millis(at), hindered(Cause::EniLimit)).0.clone();
        assert!(matches!(full(&mut rule, 0).status(), Status::NotYet(refusal) if refusal.cause == Cause::EniLimit));
        rule.look(Millis(1), Readiness::default());
        for at in [2, 2 + HOLD_MS, 10 * HOLD_MS] {
            assert!(full(&mut rule, at).is_ready());
        }
        // A run that begins on a full node says so from its first moment.
        let again = Rule::new(true).look(Millis(0), hindered(Cause::Starting)).0.clone();
        assert!(again.is_ready() && again.obstacle.is_some());
    }

    // D82
    #[test]
    fn pods_that_are_cut_off_are_a_no_and_pods_at_risk_are_not() {
        let mut rule = Rule::new(true);
        let refusal = |cause| Some(Refusal::new(cause, "gone"));
        let lost = Readiness { risk: refusal(Cause::EniLost), ..Readiness::default() };
        assert!(rule.look(Millis(0), lost).0.is_ready(), "the pods of the other ENIs have their network");
        let dropped = Readiness { outage: refusal(Cause::ForwardDropped), ..hindered(Cause::ForwardDropped) };
        assert!(matches!(rule.look(Millis(1), dropped).0.status(), Status::CutOff(_)));
    }
}
