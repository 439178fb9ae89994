//! When the pool grows, and where: one order per ENI, sized to the need, however many wait.

use crate::{
    Call, Cause, Core, Effect, Eni, EniState, Kind, Millis, Order, Provisioning, Refusal, Target, mutation::Mutation,
    pool::count, supply,
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
        let missing = self.missing(now);
        if missing == 0 || !self.can_grow() {
            return;
        }
        // EC2 is asked about ownership only when something is to be changed.
        let claimable = |eni: &Eni| eni.slot == Some(0) || self.node.policy.manage_untagged;
        let unclaimed: Vec<_> = self
            .enis
            .values()
            .filter(|eni| !eni.ours && eni.gives() && claimable(eni) && self.room(eni) > 0)
            .map(|eni| eni.facts.id.clone())
            .collect();
        if !unclaimed.is_empty() && !self.is_mutated(Mutation::ChangeForeign) {
            if self.audited.is_none() {
                if !self.is_under_way(|call| matches!(call, Call::Audit { .. })) {
                    self.want_audit(crate::Scope::Attached);
                }
                return self.look_after(now, effects);
            }
            for eni in unclaimed {
                let tagged = self.is_under_way(|call| matches!(call, Call::Tag { eni: tagged } if *tagged == eni));
                if !tagged && self.pace.is_open(now, "CreateTags", self.class()) {
                    self.call(now, Call::Tag { eni }, self.class(), effects);
                }
            }
            return;
        }
        if self.enis.values().any(|eni| eni.state == EniState::Unknown) {
            return; // it may bring what is missing
        }
        self.order(now, missing, effects);
    }

    /// Addresses that are missing and not on their way.
    fn missing(&mut self, now: Millis) -> u64 {
        let mut counts = self.counts();
        let learnt = self.learnt(now);
        let policy = &self.node.policy;
        let coming = self.coming();
        counts.available += coming;
        counts.total += coming;
        counts.idle_prefixes += coming / Kind::Prefix.size();
        let (mut missing, unserved) =
            (policy.missing(self.node.limits, counts, learnt), counts.demand().saturating_sub(counts.available));
        if self.cordoned && !policy.manage_cordoned {
            missing = unserved;
        } else if missing > 0 && policy.target == Target::Auto && policy.kind(self.node.limits) == Kind::Single {
            let fresh = counts.total == 0;
            missing += policy.portion(self.node.limits, counts, learnt, self.memory.lately(now));
            let room = policy.max_pods.map_or(u64::MAX, |pods| u64::from(pods).saturating_sub(counts.total));
            missing = missing.min(room).max(unserved);
            let ahead =
                if fresh { missing.min(supply::per_eni(self.node.limits)) } else { learnt.margin + counts.demand() };
            self.memory.wanted(now, counts.held + counts.resting + ahead);
        }
        missing
    }

    /// Addresses on their way to the pool.
    pub(crate) fn coming(&self) -> u64 {
        let flights = self.calls.values().map(|flight| match &flight.call {
            Call::Assign { order, .. } => order.addresses(),
            _ => 0,
        });
        let built = self.builds.values().filter(|build| {
            build.stage.eni().is_none_or(|eni| self.expected.get(eni).is_none_or(|expected| expected.blocks.is_empty()))
        });
        let expected = self.expected.iter().flat_map(|(id, expected)| {
            let shown = self.enis.get(id).map(|eni| eni.blocks.clone()).unwrap_or_default();
            expected.blocks.clone().into_iter().filter(move |net| !shown.contains(net))
        });
        let joining = self.enis.values().filter(|eni| eni.state == EniState::Joining).map(|eni| eni.sums.free);
        flights.sum::<u64>()
            + built.map(|build| build.order.addresses()).sum::<u64>()
            + expected.map(|net| crate::block::size(&net)).sum::<u64>()
            + joining.sum::<u64>()
    }

    /// Orders so many addresses: on ENIs that have room, then on new ones.
    fn order(&mut self, now: Millis, mut missing: u64, effects: &mut Vec<Effect>) {
        let kind = self.kind_now(now);
        if kind == Kind::Single && self.node.policy.kind(self.node.limits) == Kind::Prefix {
            // The stopgap serves who waits, and keeps a little more: the room is for /28s to come.
            let counts = self.counts();
            missing = missing.min((counts.demand() + STOPGAP).saturating_sub(counts.available + self.coming()));
        }
        let enough = |addresses: u64| u32::try_from(addresses.div_ceil(kind.size())).unwrap_or(u32::MAX);
        let assign = if kind == Kind::V6Prefix { "AssignIpv6Addresses" } else { "AssignPrivateIpAddresses" };
        let mut put_off = 0;
        for (eni, room) in self.with_room() {
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
            let count = if self.node.policy.whole_enis() { room } else { enough(missing).min(room) };
            let order = Order { kind, count };
            missing = missing.saturating_sub(order.addresses());
            self.call(now, Call::Assign { eni, order }, self.class(), effects);
        }
        // ENIs that are being asked, or made, take more when they have answered.
        let later = self.room_later() * kind.size();
        missing = missing.saturating_sub(later);
        // `auto` makes an ENI for who waits and for the margin, and where EC2 is crowded for who waits only;
        // what it asks for beyond that comes with it or stays away.
        let mut have = self.counts().available + self.coming() + put_off + later;
        let wanted = match self.node.policy.target {
            Target::Auto if self.pace.is_crowded(now) => self.counts().demand(),
            Target::Auto => self.counts().demand() + self.learnt(now).margin,
            Target::Warm { .. } => u64::MAX,
        };
        let room = u32::try_from(supply::per_eni(self.node.limits)).unwrap_or(u32::MAX);
        let steps = ["CreateNetworkInterface", "AttachNetworkInterface", "ModifyNetworkInterfaceAttribute"];
        while missing > 0 && have < wanted && room > 0 && self.enis_left() > 0 {
            if !steps.iter().all(|action| self.pace.is_open(now, action, self.class())) {
                break;
            }
            let count = if self.node.policy.whole_enis() { room } else { enough(missing).min(room) };
            let order = Order { kind, count };
            missing = missing.saturating_sub(order.addresses());
            have += order.addresses();
            self.build(now, order, effects);
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

    /// ENIs that may be asked to carry more, the primary first, none that is being asked already.
    fn with_room(&self) -> Vec<(crate::EniId, u32)> {
        let asked = |eni: &Eni| self.is_under_way(|call| call.eni() == Some(&eni.facts.id));
        let mut ready: Vec<&Eni> = self
            .enis
            .values()
            .filter(|eni| eni.gives() && (eni.ours || self.is_mutated(Mutation::ChangeForeign)) && !asked(eni))
            .collect();
        ready.sort_by_key(|eni| eni.slot);
        ready.into_iter().map(|eni| (eni.facts.id.clone(), self.room(eni))).filter(|(_, room)| *room > 0).collect()
    }

    /// Blocks that ENIs could take which cannot be asked at this moment.
    fn room_later(&self) -> u64 {
        let per_eni = supply::per_eni(self.node.limits);
        let busy =
            self.enis.values().filter(|eni| matches!(eni.state, EniState::Ready | EniState::Joining)).map(|eni| {
                let asked = self.calls.values().map(|flight| match &flight.call {
                    Call::Assign { eni: asked, order } if *asked == eni.facts.id => u64::from(order.count),
                    _ => 0,
                });
                let asked: u64 = asked.sum();
                let waits = asked > 0 || eni.state == EniState::Joining;
                if waits { u64::from(self.room(eni)).saturating_sub(asked) } else { 0 }
            });
        let built = self.builds.values().map(|build| per_eni.saturating_sub(u64::from(build.order.count)));
        busy.sum::<u64>() + built.sum::<u64>()
    }

    fn can_grow(&self) -> bool {
        self.enis_left() > 0 || self.enis.values().any(|eni| eni.gives() && self.room(eni) > 0)
    }

    /// ENIs that may still be made. Those of others take up the instance's room as well.
    fn enis_left(&self) -> u32 {
        let seen = |eni: &crate::EniId| self.enis.contains_key(eni);
        let built = self.builds.values().filter(|build| build.stage.eni().is_none_or(|eni| !seen(eni)));
        let joined = self.expected.iter().filter(|(eni, expected)| expected.since.is_some() && !seen(eni));
        let used = count(self.enis.len() + built.count() + joined.count() + self.departures.len());
        self.node.policy.eni_max(self.node.limits).saturating_sub(used)
    }

    /// What a request waits for, as a refusal would tell it now.
    pub(crate) fn why_waiting(&self, now: Millis) -> Refusal {
        if !self.imds_read || self.links_listed.is_none() {
            return Refusal::new(Cause::Starting, "the daemon has not read its node yet");
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
        if coming || joining || !self.calls.is_empty() || self.can_grow() {
            return Refusal::new(Cause::StillGrowing, "addresses are on their way from EC2");
        }
        let counts = self.counts();
        if counts.resting > 0 {
            return Refusal::new(
                Cause::Resting,
                format!("the node is at its limit, and its free addresses rest after use: {}", counts.resting),
            );
        }
        let (enis, max) = (self.enis.len(), self.node.policy.eni_max(self.node.limits));
        let per_eni = supply::per_eni(self.node.limits);
        Refusal::new(
            Cause::EniLimit,
            format!(
                "no address is free, and the node is at its limit: {enis} of {max} ENIs with {per_eni} pod addresses each"
            ),
        )
    }
}
