//! What EC2 is asked about our ENIs, where something is open that only it can tell.

use std::collections::BTreeSet;

use super::{
    state::State,
    value::{Action, Reason, Wait},
};
use crate::{
    ec2::{Call, Class, Scope},
    ids::{EniId, Millis},
    pool::{Eni, EniState, STALE_MS},
};

/// An ENI that metadata shows and EC2 does not know is asked for again after so long.
pub(super) const AGAIN_MS: u64 = 30_000;
/// What can wait for it is brought to EC2 at most this often.
const SETTLE_MS: u64 = STALE_MS;

/// The search for ENIs that nodes of the cluster have lost.
pub(super) fn leak_search(state: &State<'_>, now: Millis, waits: &mut Vec<Wait>) -> Vec<Action> {
    let due = state.leaks.next().is_some_and(|next| next <= now);
    let (call, class) = (Call::FindLeaked, Class::Background);
    if !due || state.calls.any(|call| *call == Call::FindLeaked) || state.calls.is_failing(now) {
        return Vec::new();
    }
    let may = state.may_call(now, call.action(), class, waits);
    if may { vec![Action::call(call, class, Reason::LeakSearch)] } else { Vec::new() }
}

/// What the subnets have left that were short lately, and, once in a long while, how those of the zone are tagged.
pub(super) fn subnets(state: &State<'_>, now: Millis, waits: &mut Vec<Wait>) -> Vec<Action> {
    let ids = state.demand.subnets().due(now);
    let places = state.demand.places();
    let is_due = places.next_listing(&state.node.policy).is_some_and(|next| next <= now);
    let lists_all = is_due || (places.is_unknown(now, &state.node.policy) && state.has_looked());
    let is_asking = state.calls.any(|other| matches!(other, Call::Subnets { .. }));
    if !state.node.provisions() || is_asking || (ids.is_empty() && !lists_all) {
        return Vec::new();
    }
    let (ids, reason) = if lists_all { (BTreeSet::new(), Reason::Subnets) } else { (ids, Reason::SubnetShort) };
    let (call, class) = (Call::Subnets { ids }, Class::Background);
    if state.may_call(now, call.action(), class, waits) { vec![Action::call(call, class, reason)] } else { Vec::new() }
}

/// What EC2 is asked about the ENIs of this node.
pub(super) fn audits(state: &State<'_>, now: Millis, waits: &mut Vec<Wait>) -> Vec<Action> {
    if !state.node.asks_ec2() || state.observed.imds_read.is_none() || state.calls.is_auditing() {
        return Vec::new();
    }
    let Some((scope, reason)) = open_question(state, now) else { return Vec::new() };
    // What is asked before the first change holds that change up.
    let urgent = matches!(reason, Reason::Unclear | Reason::UnknownEni) || state.audits.last().is_none();
    let (call, class) = (Call::Audit { scope }, if urgent { state.class() } else { Class::Background });
    if state.may_call(now, call.action(), class, waits) { vec![Action::call(call, class, reason)] } else { Vec::new() }
}

/// What an ENI needs before it serves that an audit has found attached here, and that no run has made ready: our tag
/// first, then delete-on-termination.
pub(super) fn claims(state: &State<'_>, now: Millis, waits: &mut Vec<Wait>) -> Vec<Action> {
    if !state.node.provisions() {
        return Vec::new();
    }
    let is_unknown = |id: &EniId| state.pool.eni(id).is_some_and(|eni| eni.state == EniState::Unknown);
    let claims = state.audits.claims().filter(|(id, call)| is_unknown(id) && !state.calls.any(|other| other == *call));
    for (_, call) in claims {
        let class = state.class();
        if state.may_call(now, call.action(), class, waits) {
            return vec![Action::call(call.clone(), class, Reason::UnknownEni)];
        }
    }
    Vec::new()
}

fn open_question(state: &State<'_>, now: Millis) -> Option<(Scope, Reason)> {
    let audits = state.audits;
    if state.creations.has_unclear() || state.deletions.unclear(now).next().is_some() {
        return Some((Scope::Ours, Reason::Unclear));
    }
    if audits.is_discovering() && state.observed.links_listed.is_some() {
        // First what is attached here; then, if that tells of an earlier run, all that is ours.
        let scope = if audits.last().is_none() { Scope::Attached } else { Scope::Ours };
        return Some((scope, Reason::Discovery));
    }
    let unknown = state.pool.enis().any(|eni| {
        let is_news = audits.last().is_none_or(|at| at <= eni.since) || audits.is_older(now, AGAIN_MS);
        eni.state == EniState::Unknown && is_news && !state.creations.may_be(eni.id())
    });
    if unknown {
        return Some((Scope::Attached, Reason::UnknownEni));
    }
    let waited = audits.last().is_none() || audits.is_older(now, SETTLE_MS);
    if state.pool.has_unconfirmed() && waited {
        return Some((Scope::Attached, Reason::Unconfirmed));
    }
    if let Some(scope) = audits.wanted().filter(|_| waited) {
        return Some((scope, Reason::Unsettled));
    }
    let slow = audits.slow().is_some_and(|due| due <= now);
    slow.then_some((Scope::Ours, Reason::SlowAudit))
}

/// When audits are due that are not yet.
pub(crate) fn next_due(state: &State<'_>) -> impl Iterator<Item = Millis> {
    let audits = state.audits;
    let open = state.pool.has_unconfirmed() || audits.wanted().is_some();
    let settles = audits.last().filter(|_| open).map(|at| at.plus(SETTLE_MS));
    let waits = |eni: &Eni| {
        eni.state == EniState::Unknown || matches!(eni.state, EniState::Detaching(_)) && eni.attachment.is_none()
    };
    let again = audits.last().filter(|_| state.pool.enis().any(waits)).map(|at| at.plus(AGAIN_MS));
    let listing = state.demand.places().next_listing(&state.node.policy).filter(|_| state.node.provisions());
    settles.into_iter().chain(again).chain(audits.slow()).chain(listing)
}
