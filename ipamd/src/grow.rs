//! When the pool grows, and where: one order at a time, sized to the need.

use crate::{Call, CallId, Cause, Core, Effect, Eni, EniState, Millis, Refusal, Write, pool::count};

impl Core {
    /// Starts the next EC2 call if one is needed and none is on its way.
    pub(crate) fn grow(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        if self.enis.is_empty() || self.on_its_way() || self.pauses(now) {
            return;
        }
        // EC2 is asked about ownership only when something is to be changed, or was left unfinished.
        let unknown = self.enis.values().any(|eni| eni.state == EniState::Unknown);
        let missing = self.node.policy.missing(self.node.limits, self.counts(now));
        let unfinished = !self.intents.is_empty();
        let wants = missing > 0 && self.can_grow();
        if !self.audited && (unknown || unfinished || wants) {
            return self.call(Call::Audit { unattached: unfinished }, effects);
        }
        if self.audited && unknown {
            // Attached behind our back: look again.
            self.audited = false;
            return self.call(Call::Audit { unattached: false }, effects);
        }
        if !wants || self.enis.values().any(|eni| eni.state == EniState::Joining) {
            return; // what is on its way may cover the need
        }
        if let Some((eni, room)) = self.roomiest() {
            if !eni.ours {
                let eni = eni.facts.id.clone();
                return self.call(Call::Tag { eni }, effects);
            }
            let call = Call::Assign { eni: eni.facts.id.clone(), addresses: self.portion(missing, room) };
            return self.call(call, effects);
        }
        let room = self.node.limits.addresses_per_eni.saturating_sub(1);
        let token = format!("enid-{}-{}", self.node.token_seed, self.next_call);
        self.intents.insert(token.clone(), None);
        effects.push(Effect::Record(Write::Intent(token.clone(), true)));
        self.call(Call::Create { token, addresses: self.portion(missing, room) }, effects);
    }

    pub(crate) fn call(&mut self, call: Call, effects: &mut Vec<Effect>) {
        let id = CallId(self.next_call);
        self.next_call += 1;
        self.calls.insert(id, call.clone());
        effects.push(Effect::Call { id, call });
    }

    /// One order at a time: a call is under way, or metadata has yet to show what the last one brought.
    fn on_its_way(&self) -> bool {
        self.calls.values().any(Call::grows) || !self.expected.is_empty()
    }

    fn portion(&self, missing: u32, room: u32) -> u32 {
        if self.node.policy.whole_enis() && self.node.policy.warm_enis > 0 { room } else { missing.min(room) }
    }

    fn pauses(&self, now: Millis) -> bool {
        self.pause.as_ref().is_some_and(|(until, _)| *until > now)
    }

    fn can_grow(&self) -> bool {
        self.roomiest().is_some() || count(self.enis.len()) < self.node.policy.eni_max(self.node.limits)
    }

    /// The first ready ENI with room, the primary before others.
    fn roomiest(&self) -> Option<(&Eni, u32)> {
        let per_eni = self.node.limits.addresses_per_eni.saturating_sub(1);
        let mut ready: Vec<&Eni> = self
            .enis
            .values()
            .filter(|eni| {
                // The primary is always managed, as the peer has it.
                let ours = eni.ours || eni.slot == Some(0) || self.node.policy.manage_untagged;
                eni.state == EniState::Ready && ours
            })
            .collect();
        ready.sort_by_key(|eni| eni.slot);
        ready.into_iter().find_map(|eni| {
            let room = per_eni.saturating_sub(count(eni.facts.addresses.len()));
            (room > 0).then_some((eni, room))
        })
    }

    /// What a request waits for, as a refusal would tell it now.
    pub(crate) fn why_waiting(&self, now: Millis) -> Refusal {
        // An old refusal that the next try may lift is no reason to give up while that try is under way.
        if let Some((until, refusal)) = &self.pause
            && (*until > now || refusal.cause.passes() || !self.on_its_way())
        {
            let retry_after = Some(until.since(now)).filter(|ms| *ms > 0);
            return Refusal { retry_after, ..refusal.clone() };
        }
        if self.enis.is_empty() || !self.links_listed {
            return Refusal::new(Cause::Starting, "the daemon has not read its node yet");
        }
        let growing = self.on_its_way() || self.enis.values().any(|eni| eni.state == EniState::Joining);
        if growing || self.can_grow() {
            return Refusal::new(Cause::StillGrowing, "addresses are on their way from EC2");
        }
        let (enis, max) = (self.enis.len(), self.node.policy.eni_max(self.node.limits));
        let per_eni = self.node.limits.addresses_per_eni.saturating_sub(1);
        Refusal::new(
            Cause::EniLimit,
            format!(
                "no address is free, and the node is at its limit: {enis} of {max} ENIs with {per_eni} pod addresses each"
            ),
        )
    }
}
