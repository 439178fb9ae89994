//! Whether this node can give pods addresses: one rule, read by STATUS, health, `/metrics`, `enid status` and
//! whoever writes the network configuration.
//!
//! The first time it takes an address that can really be given. From then on growth under way counts as ready,
//! since an ADD waits for it, and an obstacle has to last before the answer changes: runtimes that ask every few
//! seconds must not see a node come and go.

use enid_ipamd::{Cause, Millis, Refusal};
use tracing::{info, warn};

/// An obstacle must last so long before a ready node says that it is not.
const HOLD_MS: u64 = 5_000;

/// What is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Why an ADD would fail; `None` if it would succeed.
    pub obstacle: Option<Refusal>,
    /// Why pods that run may have no network.
    pub risk: Option<Refusal>,
}

impl Readiness {
    /// Before anything is known.
    pub fn starting() -> Self {
        let message = "the daemon has not read its node yet";
        Readiness { obstacle: Some(Refusal::new(Cause::Starting, message)), risk: None }
    }

    /// An ADD would succeed, and nobody is known to be cut off.
    pub fn is_ready(&self) -> bool {
        self.obstacle.is_none() && self.risk.is_none()
    }

    /// What it comes from.
    pub fn causes(&self) -> (Option<Cause>, Option<Cause>) {
        let cause = |refusal: &Option<Refusal>| refusal.as_ref().map(|refusal| refusal.cause);
        (cause(&self.obstacle), cause(&self.risk))
    }

    /// One line for each part of it.
    pub fn log(&self) {
        if let Some(refusal) = &self.obstacle {
            info!(cause = %refusal.cause, "not ready: {}", refusal.message);
        }
        if let Some(refusal) = &self.risk {
            warn!(cause = %refusal.cause, "pods may have no network: {}", refusal.message);
        }
        if self.is_ready() {
            info!("ready");
        }
    }
}

/// The rule, with what it has said and what it waits for.
pub struct Rule {
    said: Readiness,
    was_ready: bool,
    /// Since when something else than `said` is seen.
    other_since: Option<Millis>,
}

impl Rule {
    /// Nothing has been seen.
    pub fn new() -> Self {
        Rule { said: Readiness::starting(), was_ready: false, other_since: None }
    }

    /// Takes what is seen now; what is to be said from now on, and when to look again if that may change by itself.
    pub fn look(&mut self, now: Millis, mut seen: Readiness) -> (&Readiness, Option<Millis>) {
        let growing = seen.obstacle.as_ref().is_some_and(|refusal| refusal.cause == Cause::StillGrowing);
        if growing && self.was_ready {
            seen.obstacle = None; // an ADD waits for it
        }
        self.was_ready |= seen.obstacle.is_none();
        let worse = self.said.is_ready() && !seen.is_ready();
        if !worse {
            self.other_since = None;
            self.said = seen;
            return (&self.said, None);
        }
        let since = *self.other_since.get_or_insert(now);
        if now.since(since) < HOLD_MS {
            return (&self.said, Some(since.plus(HOLD_MS)));
        }
        self.other_since = None;
        self.said = seen;
        (&self.said, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(cause: Cause) -> Readiness {
        Readiness { obstacle: Some(Refusal::new(cause, "no")), risk: None }
    }

    fn said(rule: &mut Rule, at: u64, seen: Readiness) -> bool {
        rule.look(Millis(at), seen).0.is_ready()
    }

    // D81 D86
    #[test]
    fn the_first_yes_needs_an_address_and_no_needs_time() {
        let mut rule = Rule::new();
        assert!(!said(&mut rule, 0, refused(Cause::StillGrowing)), "nothing could be given yet");
        assert!(said(&mut rule, 1, Readiness::default()), "at once");
        assert!(said(&mut rule, 2, refused(Cause::StillGrowing)), "an ADD waits for growth");
        assert!(said(&mut rule, 3, refused(Cause::SubnetFull)));
        assert!(said(&mut rule, 4, Readiness::default()), "it was nothing");
        assert!(said(&mut rule, 5, refused(Cause::SubnetFull)));
        assert_eq!(rule.look(Millis(6), refused(Cause::SubnetFull)).1, Some(Millis(5 + HOLD_MS)));
        assert!(!said(&mut rule, 5 + HOLD_MS, refused(Cause::SubnetFull)));
        assert!(!said(&mut rule, 6 + HOLD_MS, refused(Cause::Throttled)), "the cause is always the newest");
        assert!(said(&mut rule, 7 + HOLD_MS, Readiness::default()));
    }

    // D82
    #[test]
    fn pods_at_risk_are_said_beside_an_obstacle() {
        let mut rule = Rule::new();
        let lost = Readiness { obstacle: None, risk: Some(Refusal::new(Cause::EniLost, "gone")) };
        assert!(said(&mut rule, 0, Readiness::default()));
        assert!(said(&mut rule, 1, lost.clone()));
        assert_eq!(*rule.look(Millis(1 + HOLD_MS), lost.clone()).0, lost);
    }
}
