//! Release of surplus: whole ENIs first, then blocks, all at once, and only what nobody has missed for a while.
//!
//! A listing of the kernel, begun after the decision, must show no link on it. What is withheld is not assigned any more
//! from the decision on.

use std::cmp::Reverse;

use ipnet::IpNet;

use super::{
    audit::AGAIN_MS,
    state::State,
    value::{Action, Awaited, Reason, Step, Wait},
};
use crate::{
    ec2::{Call, Class, DeletionStage, Scope},
    ids::{EniId, Millis},
    pool::{Block, BlockState, Eni, EniState},
    supply::{Counts, kind},
};

/// The pool has to be too large for so long.
pub(crate) const SURPLUS_MS: u64 = 60_000;
/// An ENI younger than this stays.
const ENI_AGE_MS: u64 = 60_000;

/// The next step of an ENI that is being detached or deleted.
pub(super) fn deletions(state: &State<'_>, now: Millis, waits: &mut Vec<Wait>) -> Vec<Action> {
    for (eni, deletion) in state.deletions.iter() {
        let (eni, class) = (eni.clone(), Class::Background);
        let call = match deletion.stage.clone() {
            DeletionStage::ToDetach(attachment) => Call::Detach { eni, attachment },
            DeletionStage::ToDelete => Call::Delete { eni },
            _ => continue,
        };
        if deletion.not_before <= now && state.may_call(now, call.action(), class, waits) {
            return vec![Action::call(call, class, Reason::Deletion)];
        }
    }
    Vec::new()
}

/// What was withheld is released, or kept if somebody uses it.
pub(super) fn releases(state: &State<'_>, now: Millis, waits: &mut Vec<Wait>) -> Vec<Action> {
    if !lets_release(state) {
        return keep_withheld(state);
    }
    if !may_release(state) {
        return Vec::new();
    }
    let detaching = state.pool.enis().filter_map(|eni| match eni.state {
        EniState::Detaching(since) => Some((eni, since)),
        _ => None,
    });
    for (eni, since) in detaching {
        let actions = detach(state, now, eni, since, waits);
        if !actions.is_empty() {
            return actions;
        }
    }
    unassign(state, now, waits)
}

/// Whether an operator lets anything be released.
fn lets_release(state: &State<'_>) -> bool {
    state.node.restrictions.lets_release() || state.guards.ignores_restrictions
}

/// What was withheld and is not given back yet serves pods again while an operator has frozen what gives back.
fn keep_withheld(state: &State<'_>) -> Vec<Action> {
    let is_detaching = |eni: &&Eni| matches!(eni.state, EniState::Detaching(_));
    let enis = state.pool.enis().filter(is_detaching).map(|eni| Step::KeepEni(eni.id().clone()));
    // EC2 may have taken away what it was asked to.
    let is_open = state.calls.any(|call| matches!(call, Call::Unassign { .. }))
        || state.calls.is_auditing()
        || state.audits.is_wanted(Scope::Attached);
    let blocks = state.pool.unassigning().filter(|_| !is_open).map(|(block, _)| Step::KeepBlock(block.net()));
    enis.chain(blocks).map(|step| Action::new(step, Reason::Frozen)).collect()
}

/// Whether surplus may be released at all.
fn may_release(state: &State<'_>) -> bool {
    state.node.provisions() && lets_release(state) && !state.observed.is_broken && state.observed.links_listed.is_some()
}

fn detach(state: &State<'_>, now: Millis, eni: &Eni, since: Millis, waits: &mut Vec<Wait>) -> Vec<Action> {
    let id = eni.id().clone();
    // Metadata may fail to show the block that a lease is in: the leases themselves are asked.
    let is_used = (state.leases.names(&id) || eni.sums.assigned > 0) && !state.guards.detaches_in_use;
    if is_used || eni.unconfirmed {
        return vec![Action::new(Step::KeepEni(id), Reason::InUse)];
    }
    let Some(attachment) = eni.attachment.clone() else {
        let (call, class) = (Call::Audit { scope: Scope::Attached }, Class::Background);
        let is_news = state.audits.last().is_none_or(|at| at <= since) || state.audits.is_older(now, AGAIN_MS);
        let asks = is_news && !state.calls.is_auditing() && state.may_call(now, call.action(), class, waits);
        return asks.then(|| Action::call(call, class, Reason::BeforeChange)).into_iter().collect();
    };
    if is_listed_since(state, since) {
        return vec![Action::new(Step::Delete { eni: id, attachment }, Reason::Unused)];
    }
    let message = format!("{id} is detached after a listing of links that shows none on it");
    waits.push(Wait::new(Awaited::EniListing { eni: id }, None, message));
    Vec::new()
}

/// Whether the kernel's links were listed, from a moment after that one on. No link comes later: what is withheld is not
/// assigned.
fn is_listed_since(state: &State<'_>, since: Millis) -> bool {
    state.guards.ignores_kernel || state.observed.links_listed.is_some_and(|begun| begun > since)
}

fn unassign(state: &State<'_>, now: Millis, waits: &mut Vec<Wait>) -> Vec<Action> {
    let is_used = |block: &Block| block.in_use().assigned > 0 && !state.guards.unassigns_in_use;
    if let Some((block, _)) = state.pool.unassigning().find(|(block, _)| is_used(block)) {
        return vec![Action::new(Step::KeepBlock(block.net()), Reason::InUse)];
    }
    if state.calls.any(|call| matches!(call, Call::Unassign { .. })) {
        return Vec::new();
    }
    let (ready, waiting): (Vec<_>, Vec<_>) =
        state.pool.unassigning().partition(|(_, since)| is_listed_since(state, *since));
    let Some(eni) = ready.first().map(|(block, _)| block.eni().clone()) else {
        if !waiting.is_empty() {
            let blocks = waiting.iter().map(|(block, _)| block.net()).collect();
            let message = "the blocks are unassigned after a listing of links that shows none on them";
            waits.push(Wait::new(Awaited::BlockListing { blocks }, None, message));
        }
        return Vec::new();
    };
    if state.calls.is_auditing() || state.audits.is_wanted(Scope::Attached) {
        return Vec::new(); // an earlier answer never came, or made no sense
    }
    let blocks: Vec<IpNet> =
        ready.into_iter().filter(|(block, _)| *block.eni() == eni).map(|(block, _)| block.net()).collect();
    let action = Call::Unassign { eni: eni.clone(), blocks: blocks.clone() }.action();
    let may = state.may_call(now, action, Class::Background, waits);
    if may { vec![Action::new(Step::Unassign { eni, blocks }, Reason::Unused)] } else { Vec::new() }
}

/// Excluded ENIs whose pods have gone: they are in the way of others, and who waits may wait for their place.
pub(super) fn drain(state: &State<'_>, _: Millis, _: &mut Vec<Wait>) -> Vec<Action> {
    if !may_release(state) || is_releasing(state) {
        return Vec::new();
    }
    let is_free = |eni: &Eni| is_idle(state, eni) && !state.calls.concerns(eni.id());
    let is_done = |eni: &&Eni| eni.excluded && eni.ours && eni.is_usable() && is_free(eni);
    let steps = state.pool.enis().filter(is_done).map(|eni| Step::WithholdEni(eni.id().clone()));
    steps.map(|step| Action::new(step, Reason::Excluded)).collect()
}

/// Whether a secondary ENI carries no address that is assigned or cooling. Metadata may fail to show the block that a lease
/// is in.
fn is_idle(state: &State<'_>, eni: &Eni) -> bool {
    eni.slot != Some(0) && eni.is_idle() && !state.leases.names(eni.id())
}

/// Whether something is on its way out already.
fn is_releasing(state: &State<'_>) -> bool {
    !state.deletions.is_empty()
        || state.pool.enis().any(|eni| matches!(eni.state, EniState::Detaching(_)))
        || state.pool.unassigning().next().is_some()
}

/// What the pool could do without, once it has been too large for long enough.
pub(super) fn surplus(state: &State<'_>, now: Millis, waits: &mut Vec<Wait>) -> Vec<Action> {
    let is_calm = state.queue.is_empty()
        && state.coming() == 0
        && state.creations.is_empty()
        && !state.calls.is_failing(now)
        && (!state.demand.is_cordoned() || state.node.policy.manage_cordoned);
    if !may_release(state) || !is_calm || is_releasing(state) {
        return Vec::new();
    }
    let cards = state.pool.cards(state.node).into_iter();
    let steps: Vec<Step> = cards.flat_map(|card| choose(state, now, card)).collect();
    if steps.is_empty() {
        return Vec::new();
    }
    let until = Some(state.demand.surplus_since().unwrap_or(now).plus(SURPLUS_MS)).filter(|until| *until > now);
    if until.is_none() && are_ours(state, &steps) {
        return steps.into_iter().map(|step| Action::new(step, Reason::Surplus)).collect();
    }
    let message = match until {
        Some(_) => "the pool is larger than its target; what is idle is released after a minute",
        None => "the pool is larger than its target; EC2 is asked whose the ENIs are before the first change",
    };
    for step in steps {
        let awaited = match step {
            Step::WithholdEni(eni) => Awaited::SurplusEni { eni },
            Step::WithholdBlocks(blocks) => Awaited::SurplusBlocks { blocks },
            _ => continue,
        };
        waits.push(Wait::new(awaited, until, message));
    }
    let (call, class) = (Call::Audit { scope: Scope::Attached }, Class::Background);
    let asks = until.is_none() && !state.calls.is_auditing() && state.may_call(now, call.action(), class, waits);
    asks.then(|| Action::call(call, class, Reason::BeforeChange)).into_iter().collect()
}

/// Whether EC2 has said in this run that all ENIs are ours that these steps are about.
fn are_ours(state: &State<'_>, steps: &[Step]) -> bool {
    let eni_of = |step: &Step| match step {
        Step::WithholdEni(eni) => Some(eni.clone()),
        Step::WithholdBlocks(nets) => state.pool.block(nets.first()?).map(|block| block.eni().clone()),
        _ => None,
    };
    let is_ours = |step: &Step| eni_of(step).and_then(|id| state.pool.eni(&id)).is_some_and(|eni| eni.ours);
    steps.iter().all(is_ours)
}

/// What a card's pool could do without: idle ENIs, as many as it may be, and then idle blocks of the others.
fn choose(state: &State<'_>, now: Millis, card: u32) -> Vec<Step> {
    let (policy, limits, mut counts) = (state.node.policy.of_card(card), state.node.limits, state.counts_on(card));
    let learned = state.learned_on(now, card);
    // One with a slot is ours by the record; before anything is done EC2 is asked.
    let may_be_ours = |eni: &Eni| eni.ours || (eni.slot.is_some() && state.audits.last().is_none());
    let on_card = || state.pool.on_card(card).filter(|eni| eni.is_usable() && may_be_ours(eni));
    let in_use = |eni: &Eni| state.guards.detaches_in_use && eni.slot != Some(0);
    let is_idle = |eni: &&Eni| !eni.excluded && (is_idle(state, eni) || in_use(eni));
    let mut idle: Vec<&Eni> = on_card().filter(is_idle).filter(|eni| now.since(eni.since) >= ENI_AGE_MS).collect();
    idle.sort_by_key(|eni| (eni.sums.total, Reverse(eni.slot)));
    let (mut steps, mut leaving) = (Vec::new(), Vec::new());
    for eni in idle {
        let left: Counts = counts.without(eni.sums.available, eni.sums.idle_prefixes);
        if policy.enough(limits, left, learned) {
            counts = left;
            leaving.push(eni.id());
            steps.push(Step::WithholdEni(eni.id().clone()));
        }
    }
    let mut room = policy.surplus(limits, counts, learned);
    if room <= policy.slack(learned) {
        room = 0;
    }
    // Each ADD and DEL asks: where nothing can be given, an ENI's blocks are not looked at one by one.
    let may_give = |eni: &&Eni| (room > 0 || eni.excluded) && !leaving.contains(&eni.id());
    let mut enis: Vec<&Eni> = on_card().filter(may_give).collect();
    enis.sort_by_key(|eni| (eni.sums.assigned, Reverse(eni.slot)));
    for eni in enis {
        let mut nets = Vec::new();
        for net in &eni.blocks {
            let size = kind::size(net);
            let is_idle = |block: &Block| block.leads() && block.is_idle() && block.state() == BlockState::Usable;
            let is_idle = state.pool.block(net).is_some_and(is_idle);
            if (size <= room || eni.excluded) && (is_idle || state.guards.unassigns_in_use) {
                room -= if eni.excluded { 0 } else { size };
                nets.push(*net);
            }
        }
        if !nets.is_empty() {
            steps.push(Step::WithholdBlocks(nets));
        }
    }
    steps
}

/// Whether a listing of the kernel is waited for.
pub(crate) fn awaits_listing(state: &State<'_>) -> bool {
    let detaching = |eni: &Eni| matches!(eni.state, EniState::Detaching(_));
    may_release(state) && (state.pool.enis().any(detaching) || state.pool.unassigning().next().is_some())
}

/// ENIs that a leak search found and that are nobody's business here.
pub(crate) fn is_known(state: &State<'_>, eni: &EniId) -> bool {
    state.pool.eni(eni).is_some() || state.deletions.contains(eni) || state.creations.of(eni).is_some()
}
