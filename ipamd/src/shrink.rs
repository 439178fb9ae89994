//! Giving back: whole ENIs first, then blocks, and only what nobody has missed for a while.
//!
//! Two witnesses stand before it: a listing of the kernel, made after the decision, that shows no link on
//! it, and EC2's own answer. What is withheld for it is not given any more from the decision on.

use std::cmp::Reverse;

use ipnet::IpNet;

use crate::{
    AuditedEni, BlockState, Call, Class, Core, Counts, Effect, EniId, EniState, Intent, Learnt, Millis, Place,
    Provisioning, Sums, Write, block, mutation::Mutation, pool::STALE_MS,
};

/// The pool has to be too large for so long.
pub(crate) const PATIENCE_MS: u64 = 60_000;
/// EC2 needs some seconds to detach an ENI, and refuses to delete it before.
const DETACHING_MS: u64 = 5_000;
/// An ENI younger than this stays.
pub(crate) const ENI_AGE_MS: u64 = 60_000;

/// An ENI on its way out.
#[derive(Clone, Debug)]
pub(crate) struct Departure {
    pub(crate) stage: Stage,
    /// The intent that is closed when it is gone.
    token: Option<String>,
    /// It is not deleted, nor looked for, before that.
    pub(crate) not_before: Millis,
    /// Where it hangs, or hung: the place is not free before it is gone.
    pub(crate) place: Option<Place>,
}

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// An earlier life had decided it, or an answer never came: an audit will tell where it is.
    Unclear,
    /// It is attached.
    ToDetach(String),
    /// DetachNetworkInterface is under way.
    Detaching,
    /// It hangs nowhere.
    ToDelete,
    /// DeleteNetworkInterface is under way.
    Deleting,
}

impl Core {
    pub(crate) fn depart(&mut self, eni: EniId, stage: Stage, token: Option<String>) {
        let before = self.departures.get(&eni);
        let token = token.or_else(|| before.and_then(|departure| departure.token.clone()));
        let shown = self.enis.get(&eni).map(|eni| eni.facts.place);
        let place = before.and_then(|departure| departure.place).or(shown);
        self.departures.insert(eni, Departure { stage, token, not_before: Millis(0), place });
    }

    /// When the next ENI that is being detached may be deleted.
    pub(crate) fn next_departure(&self, now: Millis) -> Option<Millis> {
        self.departures.values().map(|departure| departure.not_before).filter(|at| *at > now).min()
    }

    /// Goes on with what is leaving, and decides what leaves next.
    pub(crate) fn shrink(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        self.go_on_departing(now, effects);
        if self.node.policy.provisioning != Provisioning::On || !self.broken.is_empty() || self.links_listed.is_none() {
            return;
        }
        self.go_on_leaving(now, effects);
        let calm = self.queue.is_empty()
            && self.coming() == 0
            && self.builds.is_empty()
            && !self.ec2_ails(now)
            && (!self.cordoned || self.node.policy.manage_cordoned);
        if !calm || self.is_giving_back() {
            self.surplus_since = None;
            return;
        }
        let Some(choice) = self.cards().into_iter().find_map(|card| self.choose(now, card)) else {
            self.surplus_since = None;
            return;
        };
        if now.since(*self.surplus_since.get_or_insert(now)) < PATIENCE_MS {
            return;
        }
        self.surplus_since = None;
        match choice {
            Choice::Eni(id) => {
                if let Some(eni) = self.enis.get_mut(&id) {
                    eni.state = EniState::Leaving(now);
                }
            }
            Choice::Blocks(nets) => {
                for net in nets {
                    self.set_state(net, BlockState::Leaving(now));
                }
            }
        }
    }

    pub(crate) fn is_giving_back(&self) -> bool {
        !self.departures.is_empty()
            || self.enis.values().any(|eni| matches!(eni.state, EniState::Leaving(_)))
            || !self.leaving.is_empty()
    }

    /// What a card's pool could do without.
    fn choose(&self, now: Millis, card: u32) -> Option<Choice> {
        let (policy, limits, counts) = (self.node.policy.of_card(card), self.node.limits, self.counts_on(card));
        let learnt = if card == 0 { self.learnt(now) } else { Learnt::default() };
        let left = |sums: Sums| counts.without(sums.free, sums.idle_prefixes);
        let enough = |left: Counts| policy.enough(limits, left, learnt);
        let mut idle: Vec<_> = self
            .enis
            .values()
            .filter(|eni| {
                eni.gives()
                    && eni.facts.place.card == card
                    && eni.ours
                    && eni.slot != Some(0)
                    && (eni.is_idle() || self.is_mutated(Mutation::DetachHeld))
            })
            .collect();
        idle.sort_by_key(|eni| (eni.sums.total, Reverse(eni.slot)));
        let settled = |eni: &&&crate::Eni| self.links_listed.is_some_and(|now| now.since(eni.since) >= ENI_AGE_MS);
        if let Some(eni) = idle.iter().filter(settled).find(|eni| enough(left(eni.sums))) {
            return Some(Choice::Eni(eni.facts.id.clone()));
        }
        let surplus = policy.surplus(limits, counts, learnt);
        if surplus <= policy.slack(learnt) {
            return None;
        }
        let on_card = |eni: &&crate::Eni| eni.facts.place.card == card;
        let mut enis: Vec<_> = self.enis.values().filter(on_card).filter(|eni| eni.gives() && eni.ours).collect();
        enis.sort_by_key(|eni| (eni.sums.held, Reverse(eni.slot)));
        let mut room = surplus;
        for eni in enis {
            let mut nets = Vec::new();
            for net in &eni.blocks {
                let size = block::size(net);
                let idle = self
                    .blocks
                    .get(net)
                    .is_some_and(|block| block.leads && block.is_idle() && block.state == BlockState::Open);
                if size <= room && (idle || self.is_mutated(Mutation::UnassignHeld)) {
                    room -= size;
                    nets.push(*net);
                }
            }
            if !nets.is_empty() {
                return Some(Choice::Blocks(nets));
            }
        }
        None
    }

    /// Whether the kernel has been asked since that moment.
    fn kernel_has_spoken(&self, since: Millis) -> bool {
        self.links_listed.is_some_and(|at| at > since)
    }

    fn go_on_leaving(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let enis: Vec<(EniId, Millis)> = self
            .enis
            .values()
            .filter_map(|eni| match eni.state {
                EniState::Leaving(since) => Some((eni.facts.id.clone(), since)),
                _ => None,
            })
            .collect();
        let detaches_held = self.is_mutated(Mutation::DetachHeld);
        for (id, since) in enis {
            // Metadata may fail to show the block that a lease is in: the leases themselves are asked.
            let held = self.leases.values().any(|lease| lease.eni == id);
            let Some(eni) = self.enis.get_mut(&id) else { continue };
            if ((held || eni.sums.held > 0) && !detaches_held) || eni.doubted {
                eni.state = EniState::Ready;
            } else if let Some(attachment) = eni.attachment.clone() {
                if self.kernel_has_spoken(since) {
                    let token = format!("leave-{id}");
                    effects.push(Effect::Record(Write::Intent(token.clone(), Some(Intent::Leave(id.clone())))));
                    self.depart(id.clone(), Stage::ToDetach(attachment), Some(token));
                    self.forget_eni(&id);
                }
            } else {
                self.want_audit(crate::Scope::Attached);
                self.audited = None;
            }
        }
        self.go_on_departing(now, effects);
        self.unassign(now, effects);
    }

    fn unassign(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let mut leaving: Vec<(EniId, IpNet)> = Vec::new();
        let mut stay = Vec::new();
        for block in self.leaving.iter().filter_map(|net| self.blocks.get(net)) {
            if let BlockState::Leaving(since) = block.state {
                if block.held > 0 && !self.is_mutated(Mutation::UnassignHeld) {
                    stay.push(block.net);
                } else if self.kernel_has_spoken(since) {
                    leaving.push((block.eni.clone(), block.net));
                }
            }
        }
        for net in stay {
            self.set_state(net, BlockState::Open);
        }
        let Some((eni, _)) = leaving.first().cloned() else { return };
        let action = "UnassignPrivateIpAddresses";
        if !self.pace.is_open(now, action, Class::Tidy)
            || self.is_under_way(|call| matches!(call, Call::Unassign { .. }))
        {
            return;
        }
        let audit_under_way = self.is_under_way(|call| matches!(call, Call::Audit { .. }));
        if audit_under_way || self.audit_wanted.contains(&crate::Scope::Attached) {
            return; // an earlier answer never came, or made no sense
        }
        let blocks: Vec<IpNet> = leaving.into_iter().filter(|(id, _)| *id == eni).map(|(_, net)| net).collect();
        let token = format!("give-{}-{}", self.node.token_seed, self.next_call);
        for net in &blocks {
            self.drop_given_back(*net, effects);
            self.given_back.insert(*net, (now, token.clone()));
        }
        effects.push(Effect::Record(Write::Intent(token, Some(Intent::GiveBack(blocks.clone())))));
        self.call(now, Call::Unassign { eni, blocks }, Class::Tidy, effects);
    }

    pub(crate) fn unassigned(&mut self, blocks: &[IpNet]) {
        blocks.iter().for_each(|net| self.forget_block(*net));
    }

    pub(crate) fn not_unassigned(&mut self, blocks: &[IpNet], unclear: bool, effects: &mut Vec<Effect>) {
        if unclear {
            self.want_audit(crate::Scope::Attached);
            return;
        }
        for net in blocks {
            self.set_state(*net, BlockState::Open);
            self.drop_given_back(*net, effects);
        }
    }

    fn go_on_departing(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let waiting: Vec<(EniId, Stage)> = self
            .departures
            .iter()
            .filter(|(_, departure)| departure.not_before <= now)
            .map(|(id, departure)| (id.clone(), departure.stage.clone()))
            .collect();
        for (eni, stage) in waiting {
            let (call, next) = match stage {
                Stage::ToDetach(attachment) => (Call::Detach { eni: eni.clone(), attachment }, Stage::Detaching),
                Stage::ToDelete => (Call::Delete { eni: eni.clone() }, Stage::Deleting),
                _ => continue,
            };
            if self.pace.is_open(now, call.action(), Class::Tidy) {
                self.depart(eni, next, None);
                self.call(now, call, Class::Tidy, effects);
            }
        }
    }

    pub(crate) fn detached(&mut self, now: Millis, eni: &EniId) {
        self.depart(eni.clone(), Stage::ToDelete, None);
        self.forget_eni(eni);
        if let Some(departure) = self.departures.get_mut(eni) {
            departure.not_before = now.plus(DETACHING_MS);
        }
    }

    pub(crate) fn deleted(&mut self, eni: &EniId, effects: &mut Vec<Effect>) {
        if let Some(Departure { token: Some(token), .. }) = self.departures.remove(eni) {
            effects.push(Effect::Record(Write::Intent(token, None)));
        }
        if self.slots.contains_key(eni) && self.leases.values().all(|lease| lease.eni != *eni) {
            self.slots.remove(eni);
            effects.push(Effect::Record(Write::Slot(eni.clone(), None)));
        }
    }

    /// Detach or delete failed: tried again after the pause, from where an audit says it is.
    pub(crate) fn not_departed(&mut self, eni: &EniId, call: &Call, unclear: bool) {
        // It may hang somewhere after all, if it cannot be deleted for long.
        let in_vain = self.has_failed(call.action(), 3);
        let stage = match call {
            _ if unclear => Stage::Unclear,
            Call::Delete { .. } if in_vain => Stage::Unclear,
            Call::Detach { attachment, .. } => Stage::ToDetach(attachment.clone()),
            _ => Stage::ToDelete,
        };
        if self.departures.contains_key(eni) {
            self.depart(eni.clone(), stage, None);
        }
    }

    /// What an audit of all our ENIs says about those on their way out.
    pub(crate) fn settle_departures(
        &mut self,
        now: Millis,
        attached: &[AuditedEni],
        loose: &[EniId],
        effects: &mut Vec<Effect>,
    ) {
        // What the life before has just created EC2 may not list yet.
        let certain = self.met.unwrap_or(now).plus(STALE_MS);
        let unclear: Vec<EniId> = self
            .departures
            .iter()
            .filter(|(_, departure)| departure.stage == Stage::Unclear)
            .map(|(id, _)| id.clone())
            .collect();
        for id in unclear {
            let hangs = attached.iter().find(|eni| eni.id == id);
            match hangs {
                // After a restart somebody may live on it again: the decision is made anew.
                Some(_) if self.enis.get(&id).is_some_and(|eni| eni.sums.held > 0) => self.stay(&id, effects),
                Some(eni) => {
                    self.forget_eni(&id);
                    self.depart(id.clone(), Stage::ToDetach(eni.attachment.clone()), None);
                    if let Some(departure) = self.departures.get_mut(&id) {
                        departure.place = Some(eni.place);
                    }
                }
                None if loose.contains(&id) => self.depart(id, Stage::ToDelete, None),
                None if now < certain => {
                    if let Some(departure) = self.departures.get_mut(&id) {
                        departure.not_before = certain;
                    }
                }
                None => self.deleted(&id, effects),
            }
        }
    }

    fn stay(&mut self, id: &EniId, effects: &mut Vec<Effect>) {
        if let Some(Departure { token: Some(token), .. }) = self.departures.remove(id) {
            effects.push(Effect::Record(Write::Intent(token, None)));
        }
    }
}

enum Choice {
    Eni(EniId),
    Blocks(Vec<IpNet>),
}
