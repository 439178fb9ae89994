//! What EC2 has said of our ENIs, and what it is still to be asked: only when something is to be changed or cannot be
//! settled without it, and once in a long while.

use imbl::{OrdMap, OrdSet};
use serde::{Deserialize, Serialize};

use super::call::{Call, Scope};
use crate::ids::{EniId, Millis};

/// The slow audit: twelve times a day.
const SLOW_MS: u64 = 2 * 3_600_000;
/// How long EC2 may fail to list, or deny that it knows, what was created before: its reads lag behind its writes
/// ("Eventual consistency in the Amazon EC2 API").
const CONSISTENT_MS: u64 = 60_000;

/// The audits.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Audits {
    /// When EC2 last answered one in this run.
    last: Option<Millis>,
    /// Something was seen that only an audit of this kind can settle.
    wanted: OrdSet<Scope>,
    /// When EC2 is asked for all that is ours although nothing is open.
    slow: Option<Millis>,
    /// The store began with nothing, and EC2 has not said yet what an earlier run left.
    discovering: bool,
    /// Whether [`super::call::Intent::Discover`] is open; it may be longer than the discovery takes.
    discovery_open: bool,
    /// When ENIs were created in this run.
    created_at: OrdMap<EniId, Millis>,
    /// ENIs that leases name, and that neither EC2 nor metadata shows.
    lost: OrdSet<EniId>,
    /// What attached ENIs need before they serve: our tag, then delete-on-termination.
    claims: OrdMap<EniId, Call>,
}

impl Audits {
    pub(crate) fn last(&self) -> Option<Millis> {
        self.last
    }

    /// Whether the last answer is at least this old; no answer is not.
    pub(crate) fn is_older(&self, now: Millis, age_ms: u64) -> bool {
        self.last.is_some_and(|at| now.since(at) >= age_ms)
    }

    pub(crate) fn want(&mut self, scope: Scope) {
        self.wanted.insert(scope);
    }

    /// One is wanted at once, however short ago the last one was.
    pub(crate) fn want_now(&mut self, scope: Scope) {
        self.want(scope);
        self.last = None;
    }

    /// The next one that is wanted.
    pub(crate) fn wanted(&self) -> Option<Scope> {
        self.wanted.get_min().copied()
    }

    pub(crate) fn is_wanted(&self, scope: Scope) -> bool {
        self.wanted.contains(&scope)
    }

    /// One of this kind is sent.
    pub(crate) fn sent(&mut self, scope: Scope) {
        self.wanted.remove(&scope);
    }

    /// EC2 has answered one of this kind.
    pub(crate) fn answered(&mut self, now: Millis, scope: Scope) {
        self.last = Some(now);
        if scope == Scope::Ours {
            self.slow = Some(now.plus(SLOW_MS));
        }
    }

    pub(crate) fn plan_slow(&mut self, at: Millis) {
        self.slow = Some(at);
    }

    pub(crate) fn slow(&self) -> Option<Millis> {
        self.slow
    }

    /// The store began with nothing. Whether that is news.
    pub(crate) fn begin_discovery(&mut self) -> bool {
        let new = !self.discovering;
        (self.discovering, self.discovery_open) = (true, true);
        new
    }

    pub(crate) fn is_discovering(&self) -> bool {
        self.discovering
    }

    /// EC2 has said what an earlier run left; `settled`: and all of it is known. Whether the intent is to be closed.
    pub(crate) fn end_discovery(&mut self, settled: bool) -> bool {
        self.discovering = false;
        settled && std::mem::take(&mut self.discovery_open)
    }

    /// An ENI was created.
    pub(crate) fn created(&mut self, now: Millis, eni: &EniId) {
        self.created_at.insert(eni.clone(), now);
    }

    /// Whether EC2 may deny that it knows this ENI, although it does.
    pub(crate) fn may_be_denied(&self, now: Millis, eni: Option<&EniId>) -> bool {
        eni.and_then(|eni| self.created_at.get(eni)).is_some_and(|at| now.since(*at) < CONSISTENT_MS)
    }

    /// An ENI that is attached here needs this call before it serves.
    pub(crate) fn claim(&mut self, eni: EniId, call: Call) {
        self.claims.insert(eni, call);
    }

    pub(crate) fn claims(&self) -> impl Iterator<Item = (&EniId, &Call)> {
        self.claims.iter()
    }

    /// The call is sent, or the ENI is not here any more.
    pub(crate) fn end_claim(&mut self, eni: &EniId) {
        self.claims.remove(eni);
    }

    pub(crate) fn set_lost(&mut self, lost: OrdSet<EniId>) {
        self.lost = lost;
    }

    pub(crate) fn lost(&self) -> &OrdSet<EniId> {
        &self.lost
    }
}
