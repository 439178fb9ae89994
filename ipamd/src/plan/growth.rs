//! When the pool grows, and where: one order per ENI, sized to the need, however many ADDs wait.

use std::collections::BTreeSet;

use super::{
    state::State,
    value::{Action, Awaited, Reason, Step, Wait},
};
use crate::{
    ec2::{Call, Class, Creation, Order, Scope},
    ids::{EniId, Millis},
    pool::{Eni, EniState},
    supply::{Kind, Second, Target, per_eni},
};

/// Single addresses that are kept available where the subnet has no /28.
const STOPGAP: u64 = 4;
/// As long as nobody waits and so many addresses are available, an order waits for more to order.
const RESERVE: u64 = 2;
/// And no longer than this: as long as the peer's pool goes unlooked at.
pub(crate) const HOLD_MS: u64 = 5_000;
/// The calls that a new ENI takes.
const CREATION: [&str; 3] = ["CreateNetworkInterface", "AttachNetworkInterface", "ModifyNetworkInterfaceAttribute"];

/// What a card's pool lacks.
struct Shortage {
    card: u32,
    /// Addresses that are asked for.
    missing: u64,
    /// What is in use then, as `auto` sees it.
    ahead: Option<u64>,
}

/// The EC2 calls that the need asks for and that are not in flight yet.
pub(super) fn growth(state: &State<'_>, now: Millis, waits: &mut Vec<Wait>) -> Vec<Action> {
    if !state.has_looked() || !state.node.provisions() {
        return Vec::new();
    }
    let cards = state.pool.cards(state.node).into_iter();
    let short: Vec<Shortage> = cards
        .map(|card| shortage(state, now, card))
        .filter(|short| short.missing > 0 && state.can_grow(short.card))
        .filter(|short| !is_held(state, now, short, waits))
        .collect();
    let lacking: Vec<&Eni> = state.pool.enis().filter(|eni| state.pool.lacks_v6(state.node, eni)).collect();
    if short.is_empty() && lacking.is_empty() {
        return Vec::new();
    }
    if let Some(before) = before_change(state, now, waits) {
        return before;
    }
    for eni in lacking {
        let order = Order { kind: Kind::V6Prefix, count: 1 };
        let call = Call::Assign { eni: eni.id().clone(), order };
        if eni.ours && !state.calls.concerns(eni.id()) && state.may_call(now, call.action(), state.class(), waits) {
            return vec![Action::call(call, state.class(), Reason::NoV6Block)];
        }
    }
    if state.pool.enis().any(|eni| eni.state == EniState::Unknown) {
        return Vec::new(); // it may bring what is missing
    }
    let orders = short.iter().map(|short| order(state, now, short, waits));
    orders.into_iter().find(|actions| !actions.is_empty()).unwrap_or_default()
}

/// Whether what a card's pool lacks may be ordered a little later, together with what is lacking then: a node that keeps a
/// number of single addresses would order one for each pod otherwise.
fn is_held(state: &State<'_>, now: Millis, short: &Shortage, waits: &mut Vec<Wait>) -> bool {
    let until = state.demand.held_since().unwrap_or(now).plus(HOLD_MS);
    if !may_be_held(state, short.card) || until <= now {
        return false;
    }
    let message = "what the pool lacks is ordered together, within five seconds";
    waits.push(Wait::new(Awaited::Order { card: short.card }, Some(until), message));
    true
}

/// Whether a card's pool is short and can do without what it lacks for a while.
fn may_be_held(state: &State<'_>, card: u32) -> bool {
    let policy = state.node.policy.of_card(card);
    let Target::Warm { addresses, minimum, .. } = policy.target else { return false };
    let (counts, coming) = (state.counts_on(card), state.coming_to(card));
    counts.demand() == 0
        && counts.available + coming >= u64::from(addresses / 3).max(RESERVE)
        && counts.total + coming >= u64::from(minimum)
        && policy.kind(state.node.limits) == Kind::Single
}

/// Whether an order of some card's pool is held.
pub(crate) fn holds_order(state: &State<'_>, now: Millis) -> bool {
    let is_short = |card: &u32| may_be_held(state, *card) && shortage(state, now, *card).missing > 0;
    state.has_looked() && state.node.provisions() && state.pool.cards(state.node).iter().any(is_short)
}

/// What has to be known or done before the first change, `None` if nothing: EC2 says which ENIs are ours, and those that
/// may be and carry no tag are tagged.
fn before_change(state: &State<'_>, now: Millis, waits: &mut Vec<Wait>) -> Option<Vec<Action>> {
    let (pool, node) = (state.pool, state.node);
    let may_be_ours = |eni: &&Eni| eni.slot == Some(0) || node.policy.manage_untagged;
    let takes = |eni: &&Eni| pool.room(node, eni) > 0 || pool.lacks_v6(node, eni);
    let unclaimed: Vec<&EniId> = pool
        .enis()
        .filter(|eni| !eni.ours && eni.is_usable() && pool.manages(node, eni.card()))
        .filter(may_be_ours)
        .filter(takes)
        .map(Eni::id)
        .collect();
    if unclaimed.is_empty() || state.guards.changes_unmanaged {
        return None;
    }
    // Who waits is served beside the primary, if EC2 does not list the subnets now.
    let is_closed = state.calls.opens_at(now, "DescribeSubnets", state.class()).is_some();
    let is_unknown = state.demand.places().is_unknown(now, &node.policy) && !is_closed;
    if state.audits.last().is_none() || is_unknown {
        let (call, class) = (Call::Audit { scope: Scope::Attached }, state.class());
        let asks = state.audits.last().is_none() && !state.calls.is_auditing();
        let may = asks && state.may_call(now, call.action(), class, waits);
        let audit = may.then(|| Action::call(call, class, Reason::BeforeChange));
        let list = if is_unknown { list_subnets(state, now, class, waits) } else { None };
        return Some(audit.into_iter().chain(list).collect());
    }
    for eni in unclaimed {
        let (call, class) = (Call::Tag { eni: eni.clone() }, state.class());
        let is_tagged = state.calls.any(|other| *other == call);
        if !is_tagged && state.may_call(now, call.action(), class, waits) {
            return Some(vec![Action::call(call, class, Reason::Untagged)]);
        }
    }
    Some(Vec::new())
}

/// Addresses that a card's pool lacks and that are not on their way.
fn shortage(state: &State<'_>, now: Millis, card: u32) -> Shortage {
    let mut counts = state.counts_on(card);
    let (policy, limits) = (state.node.policy.of_card(card), state.node.limits);
    let learned = state.learned_on(now, card);
    let coming = state.coming_to(card) + state.without_v6(card);
    counts.available += coming + state.returning(now, counts);
    counts.total += coming;
    counts.idle_prefixes += coming / Kind::Prefix.size();
    let missing = policy.missing(limits, counts, learned);
    let unserved = counts.demand().saturating_sub(counts.available);
    if state.demand.is_cordoned() && !policy.manage_cordoned {
        return Shortage { card, missing: unserved, ahead: None };
    }
    if missing == 0 || policy.target != Target::Auto || policy.kind(limits) != Kind::Single {
        return Shortage { card, missing, ahead: None };
    }
    let room = policy.max_pods.map_or(u64::MAX, |pods| u64::from(pods).saturating_sub(counts.total));
    let portion = policy.portion(limits, counts, learned, state.demand.lately(now));
    let is_new = counts.total == 0;
    let missing = (missing + portion).min(room).max(unserved);
    let ahead = if is_new { missing.min(per_eni(limits)) } else { learned.margin + counts.demand() };
    Shortage { card, missing, ahead: Some(counts.assigned + counts.cooling + ahead) }
}

/// Orders addresses for a card: on ENIs that have room, then on new ones.
fn order(state: &State<'_>, now: Millis, short: &Shortage, waits: &mut Vec<Wait>) -> Vec<Action> {
    let (card, mut missing, class) = (short.card, short.missing, state.class());
    let (policy, counts) = (state.node.policy.of_card(card), state.counts_on(card));
    let reason = Reason::Short { card, missing, waiting: counts.waiting };
    // Single addresses in place of /28s serve who waits, and keep a little more: the room is for /28s to come.
    let mut stopgap = (counts.demand() + STOPGAP).saturating_sub(counts.available + state.coming_to(card));
    let needed = |missing: u64, stopgap: u64, kind: Kind| {
        let is_stopgap = kind == Kind::Single && policy.kind(state.node.limits) == Kind::Prefix;
        if is_stopgap { missing.min(stopgap) } else { missing }
    };
    let blocks = |addresses: u64, kind: Kind| u32::try_from(addresses.div_ceil(kind.size())).unwrap_or(u32::MAX);
    let is_elsewhere = state.has_place(now, card);
    let mut calls = Vec::new();
    let mut put_off = 0;
    for (eni, room) in with_room(state, card) {
        let (id, subnet) = (eni.id().clone(), &eni.facts.subnet_id);
        let (kind, most) = (state.kind_in(now, subnet), state.most_in(now, subnet));
        let need = needed(missing, stopgap, kind);
        if need == 0 || (is_elsewhere && state.is_full(now, subnet)) {
            continue;
        }
        let wanted = if policy.whole_enis() { room } else { blocks(need, kind).min(room) };
        let count = wanted.min(most.unwrap_or(u32::MAX));
        let call = Call::Assign { eni: id, order: Order { kind, count } };
        let action = call.action();
        let sent = u32::try_from(calls.len()).unwrap_or(u32::MAX);
        let all = u64::from(room) * kind.size();
        let met = if !state.may_call(now, action, class, waits) || sent >= state.permits(now, action, class) {
            // It has room; a new ENI for the same would be too many in the end.
            put_off += all;
            all
        } else {
            calls.push(Action::call(call, class, reason.clone()));
            // Where the subnet is short, what this ENI still has room for needs no other.
            if most.is_some() { all } else { u64::from(count) * kind.size() }
        };
        (missing, stopgap) = (missing.saturating_sub(met), stopgap.saturating_sub(met));
    }
    // ENIs that are being asked, or created, take more when they have answered.
    let asked_now: u64 = calls.iter().map(assigned).sum();
    // Where there is no place at all, that is what whoever waits hears.
    let home = state.homes(now).ok().and_then(|homes| homes.into_iter().next());
    let subnet = home.as_ref().map_or_else(|| state.pool.primary_subnet(), |home| state.subnet_of(home));
    let (kind, most) = (state.kind_in(now, &subnet), state.most_in(now, &subnet));
    let later = room_later(state, card) * kind.size();
    let mut need = needed(missing, stopgap, kind).saturating_sub(later);
    // `auto` creates an ENI for who waits and for the margin, and where EC2 is crowded for who waits only;
    // what it asks for beyond that comes with it or stays away.
    let mut have = counts.available + state.coming_to(card) + asked_now + put_off + later;
    let wanted = match policy.target {
        Target::Auto if state.calls.is_crowded(now) => counts.demand(),
        Target::Auto => counts.demand() + state.learned(now).margin,
        Target::Warm { .. } => u64::MAX,
    };
    let room = u32::try_from(per_eni(state.node.limits)).unwrap_or(u32::MAX);
    let mut enis_left = state.enis_left(card);
    let mut permits = CREATION.iter().map(|action| state.permits(now, action, class)).min().unwrap_or(0);
    while need > 0 && have < wanted && room > 0 && enis_left > 0 {
        if state.demand.places().is_stale(now, &state.node.policy) {
            let list = list_subnets(state, now, class, waits);
            if list.is_some() || is_listing(state) {
                calls.extend(list);
                break;
            }
            // EC2 does not list them now: what is known has to do.
        }
        let Some(home) = &home else { break };
        if permits == 0 {
            for action in CREATION {
                state.may_call(now, action, class, waits);
            }
            break;
        }
        let wanted = if policy.whole_enis() { room } else { blocks(need, kind).min(room) };
        let order = Order { kind, count: wanted.min(most.unwrap_or(u32::MAX)) };
        need = need.saturating_sub(if most.is_some() { u64::from(room) * kind.size() } else { order.addresses() });
        have += order.addresses();
        (enis_left, permits) = (enis_left - 1, permits - 1);
        let creation = Creation { order, with_v6: policy.second == Second::V6OfEni, card };
        calls.push(Action::new(Step::Create { creation, home: home.clone(), class }, reason.clone()));
    }
    if let (Some(addresses), false) = (short.ahead, calls.is_empty()) {
        calls.insert(0, Action::new(Step::PlanAhead { addresses }, reason));
    }
    calls
}

/// EC2 lists the subnets of the node's zone, unless it is being asked already.
fn list_subnets(state: &State<'_>, now: Millis, class: Class, waits: &mut Vec<Wait>) -> Option<Action> {
    let call = Call::Subnets { ids: BTreeSet::new() };
    let may = !is_listing(state) && state.may_call(now, call.action(), class, waits);
    may.then(|| Action::call(call, class, Reason::Subnets))
}

/// Whether EC2 is listing them.
fn is_listing(state: &State<'_>) -> bool {
    state.calls.any(|call| matches!(call, Call::Subnets { ids } if ids.is_empty()))
}

fn assigned(action: &Action) -> u64 {
    match &action.step {
        Step::Call { call: Call::Assign { order, .. }, .. } => order.addresses(),
        _ => 0,
    }
}

/// ENIs of a card that may be asked to carry more, the primary first, none that a call in flight is about.
fn with_room<'a>(state: &State<'a>, card: u32) -> Vec<(&'a Eni, u32)> {
    let mut usable: Vec<&Eni> = state
        .pool
        .on_card(card)
        .filter(|eni| eni.is_usable() && (eni.ours || state.guards.changes_unmanaged))
        .filter(|eni| !state.calls.concerns(eni.id()))
        .collect();
    usable.sort_by_key(|eni| eni.slot);
    let room = |eni: &'a Eni| (eni, state.pool.room(state.node, eni));
    usable.into_iter().map(room).filter(|(_, room)| *room > 0).collect()
}

/// Blocks that ENIs of a card could take which cannot be asked at this moment.
fn room_later(state: &State<'_>, card: u32) -> u64 {
    let per_eni = per_eni(state.node.limits);
    let has_room = |eni: &&Eni| matches!(eni.state, EniState::Ready | EniState::Configuring);
    let busy = state.pool.on_card(card).filter(has_room).map(|eni| {
        let asked = state.calls.in_flight().map(|flight| match &flight.call {
            Call::Assign { eni: asked, order } if asked == eni.id() => u64::from(order.count),
            _ => 0,
        });
        let asked: u64 = asked.sum();
        let waits = asked > 0 || eni.state == EniState::Configuring || state.calls.concerns(eni.id());
        if waits { u64::from(state.pool.room(state.node, eni)).saturating_sub(asked) } else { 0 }
    });
    let created = state.creations.values().filter(|pending| pending.creation.card == card);
    let created = created.map(|pending| per_eni.saturating_sub(u64::from(pending.creation.order.count)));
    // Attached, and not shown by metadata yet.
    let unseen = state.pool.expected().filter(|(id, expected)| {
        let on_card = expected.place.map_or(0, |place| place.card) == card;
        on_card && expected.since.is_some() && state.pool.eni(id).is_none() && state.creations.of(id).is_none()
    });
    let unseen = unseen.map(|(_, expected)| {
        let leading = expected.blocks.iter().filter(|net| state.node.policy.leads(net)).count();
        per_eni.saturating_sub(u64::try_from(leading).unwrap_or(u64::MAX))
    });
    busy.sum::<u64>() + created.sum::<u64>() + unseen.sum::<u64>()
}
