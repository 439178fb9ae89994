//! ENIs of ours whose security groups are not the primary's.

use super::{
    state::State,
    value::{Action, Awaited, Reason, Wait},
};
use crate::{
    ec2::{Call, Class},
    groups::Change,
    ids::Millis,
    pool::Eni,
};

/// Sets them, one ENI after the other, behind all other calls.
pub(super) fn follow(state: &State<'_>, now: Millis, waits: &mut Vec<Wait>) -> Vec<Action> {
    if !state.node.provisions() || !state.has_looked() || state.observed.is_broken {
        return Vec::new();
    }
    let groups = state.observed.groups;
    let is_setting = state.calls.any(|call| matches!(call, Call::SetGroups { .. }));
    for eni in of_primary(state) {
        let id = eni.id().clone();
        match groups.change(now, &id, &eni.facts.groups) {
            Change::Due if !state.calls.concerns(&id) && !is_setting => {
                let list = groups.known().clone();
                let (call, class) = (Call::SetGroups { eni: id, groups: list }, Class::Background);
                if state.may_call(now, call.action(), class, waits) {
                    return vec![Action::call(call, class, Reason::Groups)];
                }
            }
            Change::Later(until, refusal) => {
                let message = refusal.map_or_else(
                    || "ENIs follow a change of the primary's security groups within five minutes".to_owned(),
                    |refusal| refusal.message.clone(),
                );
                waits.push(Wait {
                    cause: refusal.map(|refusal| refusal.cause),
                    request_id: refusal.and_then(|refusal| refusal.request_id.clone()),
                    ..Wait::new(Awaited::Groups { eni: id }, Some(until), message)
                });
            }
            _ => {}
        }
    }
    Vec::new()
}

/// ENIs that were created for this node, with the primary's groups: what is in another subnet has those of somebody else's
/// choice.
fn of_primary<'a>(state: &'a State<'_>) -> impl Iterator<Item = &'a Eni> {
    let subnet = state.pool.primary_subnet();
    let secondary = state.pool.enis().filter(|eni| eni.slot != Some(0) && eni.ours && eni.is_usable());
    secondary
        .filter(move |eni| state.demand.places().follows_primary(&state.node.policy, &eni.facts.subnet_id, &subnet))
}

/// When one is due that is not yet.
pub(crate) fn next_due(state: &State<'_>, now: Millis) -> impl Iterator<Item = Millis> {
    let groups = state.observed.groups;
    of_primary(state).filter_map(move |eni| match groups.change(now, eni.id(), &eni.facts.groups) {
        Change::Later(until, _) => Some(until),
        _ => None,
    })
}
