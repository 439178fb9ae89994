//! What EC2 knows of our ENIs, asked only when something is to be changed or cannot be settled without it,
//! and once in a long while.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::{
    AuditedEni, BlockState, Call, Class, Core, Effect, EniId, EniState, Intent, LooseEni, Millis, Provisioning, Scope,
    Write,
    build::Stage,
    mutation::Mutation,
    pool::{EXCUSE_MS, STALE_MS},
    shrink,
};

/// The token of [`crate::Intent::LookAround`].
pub(crate) const LOOK_AROUND: &str = "look-around";
/// The slow audit: twelve times a day.
const SLOW_MS: u64 = 2 * 3_600_000;
/// The first one of a life comes after so long, and up to half as long again: it finds what an earlier life lost
/// together with its store, and a rollout of the daemon does not ask on all nodes at once.
const FIRST_MS: u64 = 4 * 60_000;
/// An ENI that metadata shows and EC2 does not know is asked for again after so long.
const AGAIN_MS: u64 = 30_000;
/// Doubts are brought to EC2 at most this often.
const DOUBT_MS: u64 = STALE_MS;

impl Core {
    /// Asks EC2 where something is open that only it can tell.
    pub(crate) fn look_after(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        if self.node.policy.provisioning == Provisioning::ImdsOnly || !self.imds_read {
            return;
        }
        self.search_leaked(now, effects);
        if self.is_under_way(|call| matches!(call, Call::Audit { .. })) {
            return;
        }
        let long_since = |limit: u64| self.audited.is_some_and(|at| now.since(at) >= limit);
        let unknown = self.enis.values().any(|eni| {
            let news = self.audited.is_none_or(|at| at <= eni.since) || long_since(AGAIN_MS);
            eni.state == EniState::Unknown && news && !self.is_being_built(&eni.facts.id)
        });
        let unclear = self.builds.values().any(|build| matches!(build.stage, Stage::Unclear(_)))
            || self
                .departures
                .values()
                .any(|departure| departure.stage == shrink::Stage::Unclear && departure.not_before <= now);
        let doubts = !self.doubted.is_empty() || self.enis.values().any(|eni| eni.doubted);
        let waited = self.audited.is_none() || long_since(DOUBT_MS);
        let scope = if unclear {
            Some(Scope::Ours)
        } else if self.looks_around && self.links_listed.is_some() {
            // First what hangs here; then, if that tells of an earlier life, all that is ours.
            Some(if self.audited.is_none() { Scope::Attached } else { Scope::Ours })
        } else if unknown || (doubts && waited) {
            Some(Scope::Attached)
        } else if waited && !self.audit_wanted.is_empty() {
            self.audit_wanted.get_min().copied()
        } else if self.slow_audit.is_some_and(|due| due <= now) {
            Some(Scope::Ours)
        } else {
            None
        };
        // What is asked before the first change holds that change up.
        let class = if unclear || unknown || self.audited.is_none() { self.class() } else { Class::Tidy };
        if let Some(scope) = scope
            && self.pace.is_open(now, "DescribeNetworkInterfaces", class)
        {
            self.audit_wanted.remove(&scope);
            self.call(now, Call::Audit { scope }, class, effects);
        }
    }

    /// An audit of this kind is to settle something.
    pub(crate) fn want_audit(&mut self, scope: Scope) {
        self.audit_wanted.insert(scope);
    }

    /// Metadata has been read for the first time in this life.
    pub(crate) fn plan_first_audit(&mut self, now: Millis) {
        self.slow_audit = Some(now.plus(FIRST_MS + self.jitter(FIRST_MS / 2)));
    }

    pub(crate) fn next_audit(&self) -> Option<Millis> {
        let doubts = !self.doubted.is_empty() || self.enis.values().any(|eni| eni.doubted);
        let open = doubts || !self.audit_wanted.is_empty();
        self.audited.filter(|_| open).map(|at| at.plus(DOUBT_MS)).into_iter().chain(self.slow_audit).min()
    }

    fn is_being_built(&self, id: &EniId) -> bool {
        self.builds.values().any(|build| build.stage.eni() == Some(id) || build.stage == Stage::Creating)
    }

    pub(crate) fn audited(
        &mut self,
        now: Millis,
        asked: Millis,
        scope: Scope,
        attached: Vec<AuditedEni>,
        loose: Vec<LooseEni>,
        effects: &mut Vec<Effect>,
    ) {
        self.audited = Some(now);
        let listed: BTreeSet<EniId> = attached.iter().map(|eni| eni.id.clone()).collect();
        self.forget_absent(&listed, scope);
        if scope == Scope::Ours {
            self.slow_audit = Some(now.plus(SLOW_MS));
            let lying: Vec<EniId> = loose.iter().map(|eni| eni.id.clone()).collect();
            self.settle_builds(&attached, loose, asked, effects);
            self.settle_departures(now, &attached, &lying, effects);
            self.free_slots(&listed, effects);
        }
        let first_look = self.looks_around;
        // Tagged already: an earlier life was here, and its store is lost. There may be more of it.
        let earlier = attached.iter().any(|eni| eni.ours);
        if scope == Scope::Ours || !earlier {
            self.looks_around = false;
            // What metadata does not show is on its way in or out; `compare` wants to know which.
            let settled = attached.iter().all(|eni| !eni.ours || self.enis.contains_key(&eni.id));
            if settled && std::mem::take(&mut self.look_is_open) {
                effects.push(Effect::Record(Write::Intent(LOOK_AROUND.to_owned(), None)));
            }
        }
        self.look_for_lost(&listed, scope);
        for eni in attached {
            self.compare(now, asked, first_look, eni, effects);
        }
    }

    /// ENIs that leases name, and neither EC2 nor metadata shows.
    fn look_for_lost(&mut self, listed: &BTreeSet<EniId>, scope: Scope) {
        let shown = |id: &EniId| self.enis.get(id).is_some_and(|eni| !eni.doubted);
        // An audit of what is ours leaves out what carries no tag of ours: the primary may not.
        let covered = |slot: u32| scope == Scope::Attached || slot != 0;
        let named = self.leases.values().filter(|lease| covered(lease.slot)).map(|lease| &lease.eni);
        let lost = named.filter(|id| !listed.contains(*id) && !shown(id)).cloned().collect();
        self.lost = lost;
    }

    /// Two witnesses, EC2 and metadata, say that an ENI is not here; one that somebody lives on is kept.
    fn forget_absent(&mut self, listed: &BTreeSet<EniId>, scope: Scope) {
        let gone: Vec<EniId> = self
            .enis
            .values()
            .filter(|eni| eni.doubted && eni.sums.held == 0 && eni.slot != Some(0))
            .filter(|eni| scope == Scope::Attached || eni.ours)
            .map(|eni| eni.facts.id.clone())
            .filter(|id| !listed.contains(id))
            .collect();
        if !gone.is_empty() && scope == Scope::Attached {
            self.want_audit(crate::Scope::Ours); // somebody detached it: it may hang nowhere now
        }
        gone.iter().for_each(|id| self.forget_eni(id));
    }

    /// Slots of ENIs that are nowhere; only a look at all that is ours tells.
    fn free_slots(&mut self, listed: &BTreeSet<EniId>, effects: &mut Vec<Effect>) {
        let used = |id: &EniId| {
            self.enis.contains_key(id)
                || listed.contains(id)
                || self.is_being_built(id)
                || self.departures.contains_key(id)
                || self.leases.values().any(|lease| lease.eni == *id)
        };
        let unused: Vec<EniId> = self.slots.keys().filter(|id| !used(id)).cloned().collect();
        for id in unused {
            self.slots.remove(&id);
            effects.push(Effect::Record(Write::Slot(id, None)));
        }
    }

    fn compare(&mut self, now: Millis, asked: Millis, first_look: bool, found: AuditedEni, effects: &mut Vec<Effect>) {
        let policy = &self.node.policy;
        let (manage_untagged, frozen) = (policy.manage_untagged, policy.provisioning != Provisioning::On);
        let id = found.id.clone();
        let being_built = self.is_being_built(&id);
        let Some(eni) = self.enis.get_mut(&id) else {
            if found.ours && !self.departures.contains_key(&id) {
                self.want_audit(crate::Scope::Ours); // metadata does not show it yet; what becomes of it?
            }
            return;
        };
        eni.ours = found.ours;
        eni.attachment = Some(found.attachment.clone());
        if eni.doubted {
            (eni.doubted, eni.excused) = (false, now.plus(EXCUSE_MS)); // metadata was the stale one
        }
        // What was asked for after the audit was sent is not in its answer.
        let young = eni.since >= asked || being_built;
        if first_look {
            self.deny_unknown(now, &id, &found.blocks, effects);
        }
        if !young {
            self.compare_blocks(now, &id, &found.blocks, effects);
        }
        let Some(eni) = self.enis.get_mut(&id) else { return };
        if eni.state != EniState::Unknown || being_built {
            return;
        }
        if found.no_manage || (!found.ours && !manage_untagged) {
            eni.state = EniState::Foreign;
            self.topology += 1; // it is not carried for what the kernel has of it any more
        } else if frozen {
            self.join(&id, effects);
        } else if !found.ours {
            // CreateTags is the first and only call until the tag is there.
            self.call(now, Call::Tag { eni: id }, Class::PoolShort, effects);
        } else if found.delete_on_termination || self.is_mutated(Mutation::ServeUnprotected) {
            self.join(&id, effects);
        } else {
            let call = Call::Protect { eni: id, attachment: found.attachment };
            self.call(now, call, Class::PoolShort, effects);
        }
    }

    /// EC2 read our tag back, so the ENI may be changed; it still has to go with the instance.
    pub(crate) fn vouched(&mut self, _: Millis, id: &EniId, _: &mut [Effect]) {
        if let Some(eni) = self.enis.get(id)
            && eni.state == EniState::Unknown
        {
            self.want_audit(crate::Scope::Attached);
            self.audited = None;
        }
    }

    /// The store began with nothing, so nobody knows what an earlier life gave back and stale metadata still
    /// shows: what EC2 does not know counts as given back.
    fn deny_unknown(&mut self, now: Millis, id: &EniId, found: &BTreeSet<IpNet>, effects: &mut Vec<Effect>) {
        let known = self.enis.get(id).map(|eni| eni.blocks.clone()).unwrap_or_default();
        let idle = |net: &IpNet| self.blocks.get(net).is_some_and(crate::Block::is_idle);
        let denied: Vec<IpNet> = known.into_iter().filter(|net| !found.contains(net) && idle(net)).collect();
        if denied.is_empty() {
            return;
        }
        let token = format!("deny-{}-{id}", self.node.token_seed);
        for net in &denied {
            self.forget_block(*net);
            self.given_back.insert(*net, (now, token.clone()));
        }
        effects.push(Effect::Record(Write::Intent(token, Some(Intent::GiveBack(denied)))));
    }

    /// Blocks that EC2 and metadata agree are gone are forgotten, unless somebody uses them; what EC2 has
    /// is there, whatever metadata says.
    fn compare_blocks(&mut self, now: Millis, id: &EniId, found: &BTreeSet<IpNet>, effects: &mut Vec<Effect>) {
        let known = self.enis.get(id).map(|eni| eni.blocks.clone()).unwrap_or_default();
        let busy = self.is_under_way(|call| matches!(call, Call::Unassign { eni, .. } if eni == id));
        for net in known {
            let Some(block) = self.blocks.get(&net) else { continue };
            match (block.state, found.contains(&net)) {
                (BlockState::Doubted, true) => {
                    self.set_state(net, BlockState::Open);
                    self.with_block(net, |block| block.excused = now.plus(EXCUSE_MS));
                }
                (BlockState::Doubted, false) if block.is_idle() => self.forget_block(net),
                (BlockState::Leaving(_), false) if !busy && block.is_idle() => {
                    self.forget_block(net);
                }
                _ => {}
            }
        }
        for net in found {
            let long_ago = self.given_back.get(net).is_some_and(|(at, _)| now.since(*at) >= STALE_MS);
            let (first, last) = crate::block::ends(net);
            let leased = self.holders.range(first..=last).next().is_some();
            if (long_ago || leased) && !self.leaving.contains(net) {
                self.drop_given_back(*net, effects);
                self.add_block(id, *net, now.plus(EXCUSE_MS));
            }
        }
    }
}
