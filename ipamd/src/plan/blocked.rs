//! What is waited for: why an ADD would not succeed at once, and what EC2, metadata and the kernel are still to say.

use std::collections::BTreeSet;

use super::{
    state::State,
    value::{Awaited, Wait},
};
use crate::{
    cause::{Cause, Refusal},
    ec2::Call,
    ids::Millis,
    pool::{BlockState, EniState},
    supply::per_eni,
};

/// Adds what is waited for while nothing is to be done.
pub(super) fn waits(state: &State<'_>, now: Millis, waits: &mut Vec<Wait>) {
    let asked: BTreeSet<u32> = state.queue.cards().into_iter().map(|card| card.unwrap_or(0)).collect();
    let cards: BTreeSet<u32> = state.pool.cards(state.node).into_iter().chain(asked.iter().copied()).collect();
    for card in cards {
        if asked.contains(&card) || !would_serve(state, card) {
            waits.push(addresses(state, now, card));
        }
    }
    for flight in state.calls.in_flight() {
        let action = flight.call.action();
        waits.push(Wait::new(Awaited::Answer { action }, None, flight.reason.clone()));
    }
    for (eni, expected) in state.pool.expected().filter(|(_, expected)| expected.since.is_some()) {
        let message = "EC2 has confirmed it, and instance metadata does not show it yet";
        let until = expected.since.map(|since| since.plus(crate::pool::IMDS_LAG_MS));
        waits.push(Wait::new(Awaited::Metadata { eni: eni.clone() }, until, message));
    }
    for (eni, deletion) in state.deletions.iter().filter(|(_, deletion)| deletion.not_before > now) {
        let message = "EC2 needs some seconds to detach an ENI, and refuses to delete it before";
        waits.push(Wait::new(Awaited::Detached { eni: eni.clone() }, Some(deletion.not_before), message));
    }
}

/// Whether an ADD for this card would get an address at once; the first card also stands for those that ask for none.
fn would_serve(state: &State<'_>, card: u32) -> bool {
    let wanted = if card == 0 { None } else { Some(card) };
    state.observed.blocked.is_none()
        && state.observed.links_listed.is_some()
        && state.pool.pick(state.node, wanted).is_some()
}

/// Whether nothing is on its way that comes without a further change at EC2.
fn is_still(state: &State<'_>) -> bool {
    let configuring = |eni: &crate::pool::Eni| eni.state == EniState::Configuring;
    // An ENI that is created and not attached yet is confirmed, and cannot show up.
    let arriving = state.pool.expected().any(|(_, expected)| expected.since.is_some());
    let is_change = |call: &Call| !call.reads();
    !state.calls.any(is_change) && !arriving && !state.pool.enis().any(configuring)
}

/// Why an ADD for this card waits.
fn addresses(state: &State<'_>, now: Millis, card: u32) -> Wait {
    let awaited = Awaited::Addresses { card };
    let wait = |cause, message: String| Wait { cause: Some(cause), ..Wait::new(awaited.clone(), None, message) };
    let refused = |refusal: &Refusal, until: Option<Millis>| Wait {
        until,
        request_id: refusal.request_id.clone(),
        ..wait(refusal.cause, refusal.message.clone())
    };
    let unreadable = state.observed.unreadable(now);
    if !state.has_looked() {
        if let Some(refusal) = unreadable {
            return refused(&refusal, None);
        }
        return wait(Cause::Starting, "the daemon has not read its node yet".to_owned());
    }
    if let Some(blocked) = state.observed.blocked {
        return refused(blocked, blocked.retry_after.map(|ms| now.plus(ms)));
    }
    if !state.node.provisions() {
        let message = "no address is available, and the settings forbid to ask EC2 for more \
                       (DISABLE_NETWORK_RESOURCE_PROVISIONING or ENABLE_IMDS_ONLY_MODE)";
        return wait(Cause::ProvisioningOff, message.to_owned());
    }
    if state.node.restrictions.writes_frozen && state.can_grow(card) && is_still(state) {
        let message = "no address is available, and an operator has frozen all that changes something at EC2 \
                       (enid admin unfreeze writes)";
        return wait(Cause::WritesFrozen, message.to_owned());
    }
    let coming = state.coming() > 0;
    // An old refusal that the next try may lift is no reason to give up while that try is in flight.
    let pause = state.calls.growth_pause(now).filter(|pause| !coming || pause.refusal.cause.is_temporary());
    if let Some(pause) = pause {
        let wait = refused(&pause.refusal, Some(pause.until));
        let left = state.demand.subnets().words(now);
        let left = left.filter(|_| matches!(pause.refusal.cause, Cause::SubnetFull | Cause::NoPrefix));
        return Wait {
            message: [Some(wait.message), left].into_iter().flatten().collect::<Vec<_>>().join("; "),
            ..wait
        };
    }
    let takes = |eni: &crate::pool::Eni| eni.is_usable() && state.pool.room(state.node, eni) > 0;
    if !coming
        && let Err(refusal) = state.homes(now)
        && !state.pool.on_card(card).any(takes)
    {
        return refused(&refusal, None);
    }
    if let Some(local) = state.pool.local().filter(|local| local.available() == 0) {
        // Those that are cooling come back; nobody can get more.
        let cause = if local.in_use().cooling > 0 { Cause::Cooldown } else { Cause::EniLimit };
        let message = format!("all of {}, which only this node knows, is assigned or in its cooldown", local.net());
        return wait(cause, message);
    }
    let arriving = |state_of: EniState| matches!(state_of, EniState::Configuring | EniState::Unknown);
    let arriving = state.pool.enis().any(|eni| arriving(eni.state));
    if let Some(refusal) = unreadable.filter(|_| coming || arriving) {
        return refused(&refusal, None);
    }
    if coming || arriving || !state.calls.is_quiet() || state.can_grow(card) {
        return wait(Cause::StillGrowing, "addresses are on their way from EC2".to_owned());
    }
    let counts = state.counts_on(card);
    if counts.cooling > 0 {
        let message = "the node is at its limit, and all of its unassigned addresses are in their cooldown";
        return Wait { until: next_cooled(state), ..wait(Cause::Cooldown, message.to_owned()) };
    }
    let (enis, per_eni) = (state.pool.on_card(card).count(), per_eni(state.node.limits));
    let max = state.node.policy.eni_max(state.node.limits, card);
    let of_card = if state.node.policy.multi_card { format!(" of network card {card}") } else { String::new() };
    wait(
        Cause::EniLimit,
        format!(
            "no address is available, and the node is at its limit: {enis} of {max} ENIs{of_card} with {per_eni} pod \
             addresses each"
        ),
    )
}

/// When the next address can be assigned again, if one is cooling on a usable block.
pub(crate) fn next_cooled(state: &State<'_>) -> Option<Millis> {
    let comes_back = |(until, address)| {
        let block = state.pool.block_of(address)?;
        (block.leads() && block.state() == BlockState::Usable).then_some(until)
    };
    state.cooldown.ends().find_map(comes_back)
}
