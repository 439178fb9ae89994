//! What a plan is made from, and the facts that follow from it.

use crate::{
    cause::{Cause, Refusal},
    ec2::{Audits, Call, Calls, Class, Creations, Deletions, LeakSearch},
    groups::Groups,
    ids::{EniId, Millis, Place, SubnetId, count},
    lease::{Cooldown, Leases, Queue},
    node::Node,
    pool::{Eni, EniState, Pool},
    supply::{Counts, Demand, Home, Kind, Learned, Placement},
};

use super::value::{Awaited, Wait};

/// The state of the node, to be read.
pub(crate) struct State<'a> {
    pub(crate) node: &'a Node,
    pub(crate) leases: &'a Leases,
    pub(crate) cooldown: &'a Cooldown,
    pub(crate) queue: &'a Queue,
    pub(crate) pool: &'a Pool,
    pub(crate) demand: &'a Demand,
    pub(crate) calls: &'a Calls,
    pub(crate) creations: &'a Creations,
    pub(crate) deletions: &'a Deletions,
    pub(crate) audits: &'a Audits,
    pub(crate) leaks: &'a LeakSearch,
    pub(crate) observed: Observed<'a>,
    pub(crate) guards: Guards,
}

/// What has been looked at, and what stands in the way.
#[derive(Clone, Copy)]
pub(crate) struct Observed<'a> {
    /// When metadata was first read in this run.
    pub(crate) imds_read: Option<Millis>,
    /// Since when metadata cannot be read, and why not.
    pub(crate) imds_failed: Option<&'a (Millis, String)>,
    /// When the newest listing of the kernel's links was begun.
    pub(crate) links_listed: Option<Millis>,
    /// Why nobody is given an address at present.
    pub(crate) blocked: Option<&'a Refusal>,
    /// The primary ENI's security groups.
    pub(crate) groups: &'a Groups,
    /// A step would have broken an invariant.
    pub(crate) is_broken: bool,
}

/// Metadata must have been unreadable for so long before it is a cause: a single failure is none.
const UNREADABLE_MS: u64 = 10_000;

impl Observed<'_> {
    /// Why metadata cannot be read, once that has lasted.
    pub(crate) fn unreadable(&self, now: Millis) -> Option<Refusal> {
        let (_, why) = self.imds_failed.filter(|(since, _)| now.since(*since) >= UNREADABLE_MS)?;
        let message =
            format!("instance metadata cannot be read, and addresses are given out once it shows them: {why}");
        Some(Refusal::new(Cause::MetadataUnreadable, message))
    }
}

/// Guards that only the simulator takes away.
#[derive(Clone, Copy, Default)]
pub(crate) struct Guards {
    pub(crate) unassigns_in_use: bool,
    pub(crate) detaches_in_use: bool,
    pub(crate) ignores_kernel: bool,
    pub(crate) changes_unmanaged: bool,
    pub(crate) ignores_places: bool,
    pub(crate) ignores_restrictions: bool,
}

impl State<'_> {
    /// Addresses assigned, available and asked for, over all network cards.
    pub(crate) fn counts(&self) -> Counts {
        let counts = self.pool.counts(self.node, |_| true);
        Counts { waiting: self.queue.len(), bound: self.demand.bound(), ..counts }
    }

    /// Addresses that come back within one cooldown of the machine's start: those of pods from before it. The same pods
    /// come back with them, and need no further ENI.
    pub(crate) fn returning(&self, now: Millis, counts: Counts) -> u64 {
        if now.0 < self.node.policy.cooldown_ms { counts.cooling } else { 0 }
    }

    /// The same for the pool of one network card.
    pub(crate) fn counts_on(&self, card: u32) -> Counts {
        let counts = self.pool.counts(self.node, |eni| eni.card() == card);
        let bound = if card == 0 { self.demand.bound() } else { 0 };
        Counts { waiting: self.queue.waiting_on(card), bound, ..counts }
    }

    /// What `auto` has learned; its targets are the first card's.
    pub(crate) fn learned_on(&self, now: Millis, card: u32) -> Learned {
        if card == 0 { self.learned(now) } else { Learned::default() }
    }

    pub(crate) fn learned(&self, now: Millis) -> Learned {
        let counts = self.counts();
        self.demand.learned(now, counts.assigned + counts.cooling + counts.demand())
    }

    /// Who waits for what is called now.
    pub(crate) fn class(&self) -> Class {
        if self.queue.is_empty() && self.demand.bound() == 0 { Class::PoolShort } else { Class::PodWaits }
    }

    /// Whether a call may be made now; if not, that is waited for.
    pub(crate) fn may_call(&self, now: Millis, action: &'static str, class: Class, waits: &mut Vec<Wait>) -> bool {
        if let Some(why) = self.forbidden(action) {
            let wait = Wait::new(Awaited::Permission { action }, None, why);
            if !waits.contains(&wait) {
                waits.push(wait);
            }
            return false;
        }
        let Some(until) = self.calls.opens_at(now, action, class) else { return true };
        let pause = self.calls.pause(action);
        let message = pause.map_or_else(
            || format!("the node's own rate of {action} is used up"),
            |pause| pause.refusal.message.clone(),
        );
        let wait = Wait {
            cause: pause.map(|pause| pause.refusal.cause),
            request_id: pause.and_then(|pause| pause.refusal.request_id.clone()),
            ..Wait::new(Awaited::Permission { action }, Some(until), message)
        };
        if !waits.contains(&wait) {
            waits.push(wait);
        }
        false
    }

    /// How many calls of this class may be made now.
    pub(crate) fn permits(&self, now: Millis, action: &'static str, class: Class) -> u32 {
        if self.forbidden(action).is_some() { 0 } else { self.calls.permits(now, action, class) }
    }

    /// Why an operator does not want EC2 to be called with this action.
    fn forbidden(&self, action: &str) -> Option<&'static str> {
        self.node.restrictions.forbids(action).filter(|_| !self.guards.ignores_restrictions)
    }

    /// Whether the node's surroundings have been looked at: before that nothing is decided.
    pub(crate) fn has_looked(&self) -> bool {
        self.observed.imds_read.is_some() && self.observed.links_listed.is_some()
    }

    /// The kind of block that can be had in a subnet now: single addresses while it is taken to have no /28.
    pub(crate) fn kind_in(&self, now: Millis, subnet: &SubnetId) -> Kind {
        let lacks_prefixes = || self.demand.subnets().get(subnet).is_some_and(|subnet| subnet.has_no_prefix(now));
        match self.node.policy.kind(self.node.limits) {
            Kind::Prefix if lacks_prefixes() => Kind::Single,
            kind => kind,
        }
    }

    /// The most blocks that one call may ask a subnet for, while it is short.
    pub(crate) fn most_in(&self, now: Millis, subnet: &SubnetId) -> Option<u32> {
        self.demand.subnets().get(subnet)?.most(now)
    }

    /// Where an ENI may be created, the best place first.
    pub(crate) fn homes(&self, now: Millis) -> Result<Vec<Home>, Refusal> {
        let (primary, groups) = (self.pool.primary_subnet(), self.observed.groups.of_new());
        if self.guards.ignores_places {
            return Ok(vec![Home { subnet: None, groups }]);
        }
        self.demand.places().homes(now, &self.node.policy, self.demand.subnets(), (&primary, &groups))
    }

    /// Whether a subnet is taken to have no address at all.
    pub(crate) fn is_full(&self, now: Millis, subnet: &SubnetId) -> bool {
        self.demand.subnets().get(subnet).is_some_and(|subnet| subnet.is_full(now))
    }

    /// Whether a card may get addresses of a subnet that is not taken to be full: by an ENI that is there, or a new one.
    pub(crate) fn has_place(&self, now: Millis, card: u32) -> bool {
        let takes = |eni: &Eni| eni.is_usable() && eni.ours && self.pool.room(self.node, eni) > 0;
        let by_eni = || self.pool.on_card(card).any(|eni| takes(eni) && !self.is_full(now, &eni.facts.subnet_id));
        let in_new = |home: &Home| !self.is_full(now, &self.subnet_of(home));
        let by_new = || self.enis_left(card) > 0 && self.homes(now).is_ok_and(|homes| homes.iter().any(in_new));
        by_eni() || by_new()
    }

    /// The subnet that an ENI is created in.
    pub(crate) fn subnet_of(&self, home: &Home) -> SubnetId {
        home.subnet.clone().unwrap_or_else(|| self.pool.primary_subnet())
    }

    /// Addresses on their way to the pools.
    pub(crate) fn coming(&self) -> u64 {
        self.pool.cards(self.node).into_iter().map(|card| self.coming_to(card)).sum()
    }

    /// Addresses on their way to the pool of a card: calls in flight, ENIs that are being created, what EC2 has confirmed
    /// and metadata does not show yet, ENIs that the host does not carry yet.
    pub(crate) fn coming_to(&self, card: u32) -> u64 {
        let on_card = |eni: &EniId| self.pool.eni(eni).is_some_and(|eni| eni.card() == card);
        let leads = |kind: Kind| (kind == Kind::V6Prefix) == (self.node.policy.kind == Kind::V6Prefix);
        let in_flight = self.calls.in_flight().map(|flight| match &flight.call {
            Call::Assign { eni, order } if on_card(eni) && leads(order.kind) => order.addresses(),
            _ => 0,
        });
        let confirmed =
            |eni: &EniId| self.pool.expected().any(|(id, expected)| id == eni && !expected.blocks.is_empty());
        let created = self.creations.values().filter(|pending| pending.creation.card == card);
        let created = created.filter(|pending| pending.stage.eni().is_none_or(|eni| !confirmed(eni)));
        let card_of = |id: &EniId, place: Option<Place>| match self.pool.eni(id) {
            Some(eni) => eni.card(),
            None => {
                let creation = self.creations.of(id).map(|(_, pending)| pending.creation.card);
                creation.or(place.map(|place| place.card)).unwrap_or(0)
            }
        };
        let expected = self.pool.expected().filter(|(id, expected)| card_of(id, expected.place) == card);
        let expected = expected.flat_map(|(id, expected)| {
            let shown = self.pool.eni(id).map(|eni| eni.blocks.clone()).unwrap_or_default();
            expected.blocks.clone().into_iter().filter(move |net| !shown.contains(net))
        });
        let configuring = self.pool.on_card(card).filter(|eni| eni.state == EniState::Configuring);
        in_flight.sum::<u64>()
            + created.map(|pending| pending.creation.order.addresses()).sum::<u64>()
            + expected.map(|net| self.node.policy.size(&net)).sum::<u64>()
            + configuring.map(|eni| eni.sums.available).sum::<u64>()
    }

    /// Available addresses of a card that wait for the IPv6 block of their ENI.
    pub(crate) fn without_v6(&self, card: u32) -> u64 {
        let waits = |eni: &&Eni| eni.is_usable() && !eni.excluded && !self.pool.serves(self.node, eni);
        self.pool.on_card(card).filter(waits).map(|eni| eni.sums.available).sum()
    }

    /// Whether the pool of a card could get more addresses.
    pub(crate) fn can_grow(&self, card: u32) -> bool {
        let takes = |eni: &Eni| eni.is_usable() && self.pool.room(self.node, eni) > 0;
        self.pool.manages(self.node, card) && (self.enis_left(card) > 0 || self.pool.on_card(card).any(takes))
    }

    /// ENIs that may still be created on a card. Those of others take up its room as well.
    pub(crate) fn enis_left(&self, card: u32) -> u32 {
        let seen = |eni: &EniId| self.pool.eni(eni).is_some();
        let on_card = |place: Option<Place>| place.map_or(0, |place| place.card) == card;
        let created = self.creations.values().filter(|pending| pending.creation.card == card);
        let created = created.filter(|pending| pending.stage.eni().is_none_or(|eni| !seen(eni)));
        let expected = self.pool.expected().filter(|(eni, expected)| expected.since.is_some() && !seen(eni));
        let expected = expected.filter(|(_, expected)| on_card(expected.place));
        let deleted = self.deletions.values().filter(|deletion| on_card(deletion.place));
        let there = self.pool.on_card(card).count() + self.without_addresses(card);
        let used = count(there + created.count() + expected.count() + deleted.count());
        self.node.policy.eni_max(self.node.limits, card).saturating_sub(used)
    }

    /// ENIs on a card that will never serve pods: those of others, and the primary where it is excluded.
    pub(crate) fn enis_not_for_pods(&self, card: u32) -> u32 {
        let with_eni_configs = self.node.policy.placement == Placement::EniConfig;
        let is_not_for_pods = |eni: &&Eni| {
            let is_primary = eni.facts.place == Place::default();
            eni.state == EniState::Unmanaged || (is_primary && (eni.excluded || with_eni_configs))
        };
        count(self.pool.on_card(card).filter(is_not_for_pods).count() + self.without_addresses(card))
    }

    /// ENIs on a card of which metadata shows no address: those of others that have none, or that it does not show yet.
    fn without_addresses(&self, card: u32) -> usize {
        let seen = |eni: &EniId| self.pool.eni(eni).is_some();
        let addressless = self.pool.addressless().filter(|(eni, place)| place.card == card && !seen(eni));
        let accounted = |place: &Place| {
            let shown = self.pool.enis().any(|eni| eni.facts.place == *place);
            let bare = self.pool.addressless().any(|(_, other)| other == *place);
            let ours = self.creations.values().any(|pending| pending.place == Some(*place));
            let expected = self.pool.expected().any(|(_, expected)| expected.place == Some(*place));
            shown || bare || ours || expected || self.deletions.values().any(|deletion| deletion.place == Some(*place))
        };
        let foreign = self.pool.occupied().filter(|place| place.card == card && !accounted(place));
        addressless.count() + foreign.count()
    }

    /// The first place on a card that nothing is attached to.
    pub(crate) fn free_place(&self, card: u32) -> Place {
        let attached = self.pool.enis().map(|eni| eni.facts.place).chain(self.pool.addressless().map(|(_, at)| at));
        let created = self.creations.values().filter_map(|pending| pending.place);
        let expected = self.pool.expected().filter_map(|(_, expected)| expected.place);
        let deleted = self.deletions.values().filter_map(|deletion| deletion.place);
        let occupied = self.pool.occupied();
        let taken: Vec<Place> = attached.chain(created).chain(expected).chain(deleted).chain(occupied).collect();
        let places = (1..=count(taken.len()) + 1).map(|device_index| Place { card, device_index });
        places.into_iter().find(|place| !taken.contains(place)).unwrap_or(Place { card, device_index: 1 })
    }
}
