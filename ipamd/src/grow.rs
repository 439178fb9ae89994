//! When the pool grows, and where: one order per ENI, sized to the need, however many wait.

use crate::{
    Beside, Call, Cause, Core, Creation, Effect, Eni, EniId, EniState, Kind, Learnt, Millis, Order, Place,
    Provisioning, Refusal, Target, mutation::Mutation, pool::count, supply,
};

/// Single addresses that are kept free where the subnet has no /28.
const STOPGAP: u64 = 4;

impl Core {
    /// Starts the EC2 calls that the need asks for and that are not on their way yet.
    pub(crate) fn grow(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        if !self.imds_read || self.links_listed.is_none() || self.node.policy.provisioning != Provisioning::On {
            return;
        }
        self.go_on_building(now, effects);
        let mut needs = Vec::new();
        for card in self.cards() {
            let missing = self.missing(now, card);
            if missing > 0 && self.can_grow(card) {
                needs.push((card, missing));
            }
        }
        let lacking: Vec<EniId> =
            self.enis.values().filter(|eni| self.lacks_v6(eni)).map(|eni| eni.facts.id.clone()).collect();
        if (needs.is_empty() && lacking.is_empty()) || !self.may_change(now, effects) {
            return;
        }
        for eni in lacking {
            let ours = self.enis.get(&eni).is_some_and(|eni| eni.ours);
            let asked = self.is_under_way(|call| call.eni() == Some(&eni));
            if ours && !asked && self.pace.is_open(now, "AssignIpv6Addresses", self.class()) {
                let order = Order { kind: Kind::V6Prefix, count: 1 };
                self.call(now, Call::Assign { eni, order }, self.class(), effects);
            }
        }
        if self.enis.values().any(|eni| eni.state == EniState::Unknown) {
            return; // it may bring what is missing
        }
        for (card, missing) in needs {
            self.order(now, card, missing, effects);
        }
    }

    /// Whether the ENIs that have room are known to be ours. EC2 is asked about that only when something is to be
    /// changed.
    fn may_change(&mut self, now: Millis, effects: &mut Vec<Effect>) -> bool {
        let claimable = |eni: &Eni| eni.slot == Some(0) || self.node.policy.manage_untagged;
        let takes = |eni: &Eni| self.room(eni) > 0 || self.lacks_v6(eni);
        let unclaimed: Vec<EniId> = self
            .enis
            .values()
            .filter(|eni| !eni.ours && eni.gives() && self.manages(eni.facts.place.card))
            .filter(|eni| claimable(eni) && takes(eni))
            .map(|eni| eni.facts.id.clone())
            .collect();
        if unclaimed.is_empty() || self.is_mutated(Mutation::ChangeForeign) {
            return true;
        }
        if self.audited.is_none() {
            if !self.is_under_way(|call| matches!(call, Call::Audit { .. })) {
                self.want_audit(crate::Scope::Attached);
            }
            self.look_after(now, effects);
            return false;
        }
        for eni in unclaimed {
            let tagged = self.is_under_way(|call| matches!(call, Call::Tag { eni: tagged } if *tagged == eni));
            if !tagged && self.pace.is_open(now, "CreateTags", self.class()) {
                self.call(now, Call::Tag { eni }, self.class(), effects);
            }
        }
        false
    }

    /// Addresses that a card's pool lacks and that are not on their way.
    fn missing(&mut self, now: Millis, card: u32) -> u64 {
        let mut counts = self.counts_on(card);
        let (policy, limits) = (self.node.policy.of_card(card), self.node.limits);
        let learnt = if card == 0 { self.learnt(now) } else { Learnt::default() };
        let coming = self.coming_to(card) + self.without_v6(card);
        counts.available += coming;
        counts.total += coming;
        counts.idle_prefixes += coming / Kind::Prefix.size();
        let (mut missing, unserved) =
            (policy.missing(limits, counts, learnt), counts.demand().saturating_sub(counts.available));
        if self.cordoned && !policy.manage_cordoned {
            missing = unserved;
        } else if missing > 0 && policy.target == Target::Auto && policy.kind(limits) == Kind::Single {
            let fresh = counts.total == 0;
            missing += policy.portion(limits, counts, learnt, self.memory.lately(now));
            let room = policy.max_pods.map_or(u64::MAX, |pods| u64::from(pods).saturating_sub(counts.total));
            missing = missing.min(room).max(unserved);
            let ahead = if fresh { missing.min(supply::per_eni(limits)) } else { learnt.margin + counts.demand() };
            self.memory.wanted(now, counts.held + counts.resting + ahead);
        }
        missing
    }

    /// Addresses on their way to the pools.
    pub(crate) fn coming(&self) -> u64 {
        self.cards().into_iter().map(|card| self.coming_to(card)).sum()
    }

    /// Addresses on their way to the pool of a card.
    fn coming_to(&self, card: u32) -> u64 {
        let on_card = |eni: &EniId| self.enis.get(eni).is_some_and(|eni| eni.facts.place.card == card);
        let flights = self.calls.values().map(|flight| match &flight.call {
            Call::Assign { eni, order } if on_card(eni) && self.leading(order.kind) => order.addresses(),
            _ => 0,
        });
        let built = self.builds.values().filter(|build| build.creation.card == card).filter(|build| {
            build.stage.eni().is_none_or(|eni| self.expected.get(eni).is_none_or(|expected| expected.blocks.is_empty()))
        });
        let built_for = |id: &EniId| {
            let build = self.builds.values().find(|build| build.stage.eni() == Some(id));
            build.map(|build| build.creation.card)
        };
        let headed = |id: &EniId, expected: &crate::pool::Expected| match self.enis.get(id) {
            Some(eni) => eni.facts.place.card == card,
            None => built_for(id).or(expected.place.map(|place| place.card)).unwrap_or(0) == card,
        };
        let expected = self.expected.iter().filter(|(id, expected)| headed(id, expected)).flat_map(|(id, expected)| {
            let shown = self.enis.get(id).map(|eni| eni.blocks.clone()).unwrap_or_default();
            expected.blocks.clone().into_iter().filter(move |net| !shown.contains(net))
        });
        let joining = |eni: &&Eni| eni.state == EniState::Joining && eni.facts.place.card == card;
        flights.sum::<u64>()
            + built.map(|build| build.creation.order.addresses()).sum::<u64>()
            + expected.map(|net| self.node.policy.size(&net)).sum::<u64>()
            + self.enis.values().filter(joining).map(|eni| eni.sums.free).sum::<u64>()
    }

    /// Free addresses of a card that wait for the IPv6 block beside them.
    fn without_v6(&self, card: u32) -> u64 {
        let waits = |eni: &&Eni| eni.gives() && eni.facts.place.card == card && !self.serves(eni);
        self.enis.values().filter(waits).map(|eni| eni.sums.free).sum()
    }

    /// Whether blocks of this kind carry pods' first addresses.
    fn leading(&self, kind: Kind) -> bool {
        (kind == Kind::V6Prefix) == (self.node.policy.kind == Kind::V6Prefix)
    }

    /// Orders so many addresses for a card: on ENIs that have room, then on new ones.
    fn order(&mut self, now: Millis, card: u32, mut missing: u64, effects: &mut Vec<Effect>) {
        let (kind, policy) = (self.kind_now(now), self.node.policy.of_card(card));
        if kind == Kind::Single && policy.kind(self.node.limits) == Kind::Prefix {
            // The stopgap serves who waits, and keeps a little more: the room is for /28s to come.
            let counts = self.counts_on(card);
            missing = missing.min((counts.demand() + STOPGAP).saturating_sub(counts.available + self.coming_to(card)));
        }
        let enough = |addresses: u64| u32::try_from(addresses.div_ceil(kind.size())).unwrap_or(u32::MAX);
        let assign = if kind == Kind::V6Prefix { "AssignIpv6Addresses" } else { "AssignPrivateIpAddresses" };
        let mut put_off = 0;
        for (eni, room) in self.with_room(card) {
            if missing == 0 {
                break;
            }
            if !self.pace.is_open(now, assign, self.class()) {
                // It has room; a new ENI for the same would be too many in the end.
                let later = u64::from(room) * kind.size();
                missing = missing.saturating_sub(later);
                put_off += later;
                continue;
            }
            let count = if policy.whole_enis() { room } else { enough(missing).min(room) };
            let order = Order { kind, count };
            missing = missing.saturating_sub(order.addresses());
            self.call(now, Call::Assign { eni, order }, self.class(), effects);
        }
        // ENIs that are being asked, or made, take more when they have answered.
        let later = self.room_later(card) * kind.size();
        missing = missing.saturating_sub(later);
        // `auto` makes an ENI for who waits and for the margin, and where EC2 is crowded for who waits only;
        // what it asks for beyond that comes with it or stays away.
        let counts = self.counts_on(card);
        let mut have = counts.available + self.coming_to(card) + put_off + later;
        let wanted = match policy.target {
            Target::Auto if self.pace.is_crowded(now) => counts.demand(),
            Target::Auto => counts.demand() + self.learnt(now).margin,
            Target::Warm { .. } => u64::MAX,
        };
        let room = u32::try_from(supply::per_eni(self.node.limits)).unwrap_or(u32::MAX);
        let steps = ["CreateNetworkInterface", "AttachNetworkInterface", "ModifyNetworkInterfaceAttribute"];
        while missing > 0 && have < wanted && room > 0 && self.enis_left(card) > 0 {
            if !steps.iter().all(|action| self.pace.is_open(now, action, self.class())) {
                break;
            }
            let count = if policy.whole_enis() { room } else { enough(missing).min(room) };
            let order = Order { kind, count };
            missing = missing.saturating_sub(order.addresses());
            have += order.addresses();
            let with_v6 = policy.beside == Beside::V6OfEni;
            self.build(now, Creation { order, with_v6, card }, effects);
        }
    }

    /// The kind that can be had now: singles while the subnet is taken to have no /28.
    fn kind_now(&mut self, now: Millis) -> Kind {
        if self.no_prefix_until.is_some_and(|until| until <= now) {
            self.no_prefix_until = None;
        }
        match self.node.policy.kind(self.node.limits) {
            Kind::Prefix if self.no_prefix_until.is_some() => Kind::Single,
            kind => kind,
        }
    }

    /// ENIs of a card that may be asked to carry more, the primary first, none that is being asked already.
    fn with_room(&self, card: u32) -> Vec<(EniId, u32)> {
        let asked = |eni: &Eni| self.is_under_way(|call| call.eni() == Some(&eni.facts.id));
        let mut ready: Vec<&Eni> = self
            .enis
            .values()
            .filter(|eni| eni.facts.place.card == card && eni.gives())
            .filter(|eni| (eni.ours || self.is_mutated(Mutation::ChangeForeign)) && !asked(eni))
            .collect();
        ready.sort_by_key(|eni| eni.slot);
        ready.into_iter().map(|eni| (eni.facts.id.clone(), self.room(eni))).filter(|(_, room)| *room > 0).collect()
    }

    /// Blocks that ENIs of a card could take which cannot be asked at this moment.
    fn room_later(&self, card: u32) -> u64 {
        let per_eni = supply::per_eni(self.node.limits);
        let on_card =
            |eni: &&Eni| matches!(eni.state, EniState::Ready | EniState::Joining) && eni.facts.place.card == card;
        let busy = self.enis.values().filter(on_card).map(|eni| {
            let asked = self.calls.values().map(|flight| match &flight.call {
                Call::Assign { eni: asked, order } if *asked == eni.facts.id => u64::from(order.count),
                _ => 0,
            });
            let asked: u64 = asked.sum();
            let waits = asked > 0 || eni.state == EniState::Joining;
            if waits { u64::from(self.room(eni)).saturating_sub(asked) } else { 0 }
        });
        let built = self.builds.values().filter(|build| build.creation.card == card);
        let built = built.map(|build| per_eni.saturating_sub(u64::from(build.creation.order.count)));
        busy.sum::<u64>() + built.sum::<u64>()
    }

    fn can_grow(&self, card: u32) -> bool {
        let takes = |eni: &Eni| eni.facts.place.card == card && eni.gives() && self.room(eni) > 0;
        self.manages(card) && (self.enis_left(card) > 0 || self.enis.values().any(takes))
    }

    /// ENIs that may still be made on a card. Those of others take up its room as well.
    fn enis_left(&self, card: u32) -> u32 {
        let seen = |eni: &EniId| self.enis.contains_key(eni);
        let on_card = |place: Option<Place>| place.map_or(0, |place| place.card) == card;
        let there = self.enis.values().filter(|eni| eni.facts.place.card == card);
        let bare = self.bare.iter().filter(|(eni, place)| on_card(Some(**place)) && !seen(eni));
        let built = self.builds.values().filter(|build| build.creation.card == card);
        let built = built.filter(|build| build.stage.eni().is_none_or(|eni| !seen(eni)));
        let joined = self.expected.iter().filter(|(eni, expected)| expected.since.is_some() && !seen(eni));
        let joined = joined.filter(|(_, expected)| on_card(expected.place));
        let departing = self.departures.values().filter(|departure| on_card(departure.place));
        let used = count(there.count() + bare.count() + built.count() + joined.count() + departing.count());
        self.node.policy.eni_max(self.node.limits, card).saturating_sub(used)
    }

    /// What a request for this card waits for, as a refusal would tell it now.
    pub(crate) fn why_waiting(&self, now: Millis, card: u32) -> Refusal {
        if !self.imds_read || self.links_listed.is_none() {
            return Refusal::new(Cause::Starting, "the daemon has not read its node yet");
        }
        if let Some(hindrance) = &self.hindrance {
            return hindrance.clone();
        }
        if self.node.policy.provisioning != Provisioning::On {
            return Refusal::new(
                Cause::ProvisioningOff,
                "no address is free, and the settings forbid to ask EC2 for more (DISABLE_NETWORK_RESOURCE_PROVISIONING or ENABLE_IMDS_ONLY_MODE)",
            );
        }
        let coming = self.coming() > 0;
        // An old refusal that the next try may lift is no reason to give up while that try is under way.
        if let Some(pause) = self.growth_pause(now)
            && (!coming || pause.refusal.cause.passes())
        {
            let retry_after = Some(pause.until.since(now)).filter(|ms| *ms > 0);
            return Refusal { retry_after, ..pause.refusal.clone() };
        }
        let joining = self.enis.values().any(|eni| matches!(eni.state, EniState::Joining | EniState::Unknown));
        if let Some(local) = self.local.as_ref().filter(|local| local.free() == 0) {
            // Those that rest come back; nobody can get more.
            let cause = if local.resting > 0 { Cause::Resting } else { Cause::EniLimit };
            return Refusal::new(
                cause,
                format!("all of {}, which only this node knows, is in use or rests", local.net),
            );
        }
        if coming || joining || !self.calls.is_empty() || self.can_grow(card) {
            return Refusal::new(Cause::StillGrowing, "addresses are on their way from EC2");
        }
        let counts = self.counts_on(card);
        if counts.resting > 0 {
            return Refusal::new(
                Cause::Resting,
                format!("the node is at its limit, and its free addresses rest after use: {}", counts.resting),
            );
        }
        let enis = self.enis.values().filter(|eni| eni.facts.place.card == card).count();
        let max = self.node.policy.eni_max(self.node.limits, card);
        let per_eni = supply::per_eni(self.node.limits);
        let of_card = if self.node.policy.multi_card { format!(" of network card {card}") } else { String::new() };
        Refusal::new(
            Cause::EniLimit,
            format!(
                "no address is free, and the node is at its limit: {enis} of {max} ENIs{of_card} with {per_eni} pod addresses each"
            ),
        )
    }
}
