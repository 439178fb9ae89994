//! Events, observed: what plugins, the runtime, the kernel and the operator say; time that passes.

use std::{collections::BTreeMap, net::IpAddr};

use imbl::OrdSet;

use super::Core;
use crate::{
    ec2::{DeletionStage, Intent, LEAK_PERIOD_MS, Scope},
    event::{Effect, Event, Write},
    ids::{AttachmentKey, EniId, Millis},
    lease::Waiter,
    mutation::Mutation,
    plan,
    pool::{Eni, Met},
    supply::Kind,
};

/// How long EC2's word for an ENI or a block stands against metadata that does not show it. EC2's reads lag behind its
/// writes as well, so the word is asked for again.
pub(super) const CONFIRMED_MS: u64 = 5 * crate::pool::STALE_MS;

impl Core {
    /// What an earlier run of the daemon had begun.
    pub(super) fn resume(&mut self, intents: BTreeMap<String, Intent>) {
        if intents.values().any(|intent| matches!(intent, Intent::Create(_) | Intent::Delete(_))) {
            self.audits.want(Scope::Ours);
        }
        for (token, intent) in intents {
            match intent {
                Intent::Create(recorded) => self.creations.resume(token, recorded),
                Intent::Unassign(nets) => {
                    nets.into_iter().for_each(|net| self.unassigned.add(net, Millis(0), token.clone()));
                }
                Intent::Discover => drop(self.audits.begin_discovery()),
                Intent::Delete(eni) => self.begin_deletion(&eni, DeletionStage::Unclear, Some(token)),
            }
        }
    }

    pub(super) fn observe(&mut self, now: Millis, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Ask { ticket, key, pod, timeout_ms, card } => {
                self.ask(now, Waiter { ticket, key, pod, deadline: now.plus(timeout_ms), card }, effects);
            }
            Event::Wired { ticket, key, seen } => {
                let mine = self.leases.wired(ticket, &key, seen);
                effects.push(Effect::Verdict { ticket, mine });
            }
            Event::Closed { ticket } => {
                self.queue.take_ticket(ticket);
                if let Some(key) = self.leases.closed(ticket) {
                    self.end_lease(now, &key, effects);
                }
            }
            Event::Release { ticket, key } => self.release(now, ticket, &key, effects),
            Event::Gc { network, alive } => self.leases.not_in_list(now, &network, &alive),
            Event::Links { begun, asked, seen, used } => self.links(now, begun, (&asked, &seen), used, effects),
            Event::Imds { enis, listed, addressless } => self.imds(now, enis, &listed, addressless, effects),
            Event::Groups { groups } => self.groups_read(now, &groups),
            Event::ImdsFailed { message } => self.observed.imds_failed(now, message),
            Event::Answered { id, answer } => self.answered(now, id, answer, effects),
            Event::EniConfigured { eni } => self.pool.configured(now, &eni),
            Event::Bound { pods } => self.demand.set_pods(pods),
            Event::EniConfig { config } => self.demand.places_mut().configure(config),
            Event::Settings { policy } => self.node.policy = policy,
            Event::Blocked { blocked } => self.observed.set_blocked(blocked),
            Event::Restricted { restrictions } => self.node.restrictions = restrictions,
            Event::ReleaseNow => self.demand.has_had_surplus_since(Millis(now.0.saturating_sub(plan::SURPLUS_MS))),
            Event::AuditNow => self.audits.want_now(Scope::Ours),
            Event::Cordoned { cordoned } => self.demand.set_cordoned(cordoned),
            Event::Wall { ms } => self.calls.wall(now, ms),
            Event::Tick => {}
        }
    }

    fn links(
        &mut self,
        now: Millis,
        begun: Millis,
        (asked, seen): (&[AttachmentKey], &[AttachmentKey]),
        used: Vec<IpAddr>,
        effects: &mut Vec<Effect>,
    ) {
        let first = self.observed.listed_links(begun);
        for key in self.leases.listed(now, first, asked, seen) {
            self.end_lease(now, &key, effects);
        }
        if self.integrity.is_mutated(Mutation::IgnoreOrphans) {
            return;
        }
        let (gone, new) = self.leases.listed_addresses(used);
        for address in gone {
            self.start_cooldown(now, address, effects);
        }
        for address in new {
            let was_cooling = self.cooldown.stop(address);
            if was_cooling {
                effects.push(Effect::Record(Write::Cooldown(address, None)));
            }
            self.pool.occupy(address, was_cooling);
        }
    }

    /// An assigned address is used no more.
    pub(super) fn start_cooldown(&mut self, now: Millis, address: IpAddr, effects: &mut Vec<Effect>) {
        let until = now.plus(self.node.policy.cooldown_ms);
        self.cooldown.start(address, until);
        self.pool.cool(address);
        effects.push(Effect::Record(Write::Cooldown(address, Some(until))));
    }

    /// Ends the cooldowns whose time has come. What connection tracking remembers of an address is forgotten then, but never
    /// while a link uses it: a pod may live on whose lease was lost. So the kernel's links are listed first.
    pub(super) fn end_cooldowns(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        if !self.observed.has_listed_links() {
            return;
        }
        let at = if self.integrity.is_mutated(Mutation::NoCooldown) { Millis(u64::MAX) } else { now };
        let mut addresses = Vec::new();
        while let Some(address) = self.cooldown.pop_over(at) {
            self.pool.cooled(address, now);
            // Whatever is still on record at another boot begins its cooldown again.
            effects.push(Effect::Record(Write::Cooldown(address, None)));
            if !self.leases.uses(&address) {
                addresses.push(address);
            }
        }
        if !addresses.is_empty() {
            effects.push(Effect::ForgetConnections { addresses });
        }
    }

    /// Ends waits for metadata that has shown what was waited for, or that is overdue.
    pub(super) fn end_expected(&mut self, now: Millis) {
        for met in self.pool.end_expected(now) {
            match met {
                Met::Never => self.audits.want(Scope::Ours),
                Met::Delivered { eni, blocks, took_ms } => {
                    for net in blocks {
                        self.add_block(&eni, net, now.plus(CONFIRMED_MS));
                    }
                    self.demand.delivered(took_ms);
                }
            }
        }
    }

    /// Notes which ENIs serve new pods, by what is known now of where new ones would be.
    pub(super) fn exclude(&mut self) {
        let (primary, groups) = (self.pool.primary_subnet(), self.observed.groups().of_new());
        let (policy, by_operator) = (&self.node.policy, &self.node.restrictions.excluded_enis);
        let by_place = |eni: &Eni| self.demand.places().excludes(policy, eni.placed(), &primary, &groups);
        let is_excluded = |eni: &Eni| by_operator.contains(eni.id()) || by_place(eni);
        let changed: Vec<(EniId, bool)> = self
            .pool
            .enis()
            .map(|eni| (eni, is_excluded(eni)))
            .filter(|(eni, excluded)| eni.excluded != *excluded)
            .map(|(eni, excluded)| (eni.id().clone(), excluded))
            .collect();
        changed.iter().for_each(|(id, excluded)| self.pool.set_excluded(id, *excluded));
    }

    /// Plans what is done periodically.
    pub(super) fn schedule(&mut self, now: Millis) {
        if !self.node.asks_ec2() || self.observed.imds_read().is_none() {
            return;
        }
        let policy = &self.node.policy;
        let searches = policy.clean_leaked && self.node.provisions() && policy.kind != Kind::V6Prefix;
        if !searches || self.integrity.is_broken() {
            self.leaks.plan(None);
        } else if self.leaks.next().is_none() {
            // Nodes that boot together do not search together.
            let next = now.plus(LEAK_PERIOD_MS / 4 + self.calls.jitter(LEAK_PERIOD_MS));
            self.leaks.plan(Some(next));
        }
    }

    /// A search found ENIs of the cluster that are attached to nothing.
    pub(super) fn found_leaked(&mut self, now: Millis, found: Vec<EniId>) {
        let found: OrdSet<EniId> = found.into_iter().filter(|id| !plan::is_known(&self.state(), id)).collect();
        let (certain, wait) = self.leaks.found(found);
        for id in certain {
            self.begin_deletion(&id, DeletionStage::ToDelete, None);
        }
        let next = now.plus(wait + self.calls.jitter(wait / 4));
        self.leaks.plan(Some(next));
    }

    pub(super) fn begin_deletion(&mut self, eni: &EniId, stage: DeletionStage, token: Option<String>) {
        let place = self.pool.eni(eni).map(|eni| eni.facts.place);
        self.deletions.set(eni, stage, token, place);
    }
}
