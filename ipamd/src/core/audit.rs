//! What EC2 says of our ENIs, compared with what is known.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::{Core, imds::DISCOVER, observe::CONFIRMED_MS};
use crate::{
    ec2::{AuditedEni, Call, CreationStage, DeletionStage, Intent, Scope, UnattachedEni},
    event::{Effect, Write},
    ids::{EniId, Millis},
    mutation::Mutation,
    pool::{Block, BlockState, Eni, EniState, STALE_MS},
    supply::kind,
};

impl Core {
    pub(super) fn audited(
        &mut self,
        now: Millis,
        sent: Millis,
        scope: Scope,
        attached: Vec<AuditedEni>,
        unattached: Vec<UnattachedEni>,
        effects: &mut Vec<Effect>,
    ) {
        self.audits.answered(now, scope);
        if scope == Scope::Attached {
            let foreign = attached.iter().filter(|eni| !eni.ours && self.pool.eni(&eni.id).is_none());
            let places = foreign.map(|eni| eni.place).collect();
            self.pool.set_occupied(places);
        }
        let listed: BTreeSet<EniId> = attached.iter().map(|eni| eni.id.clone()).collect();
        self.forget_absent(&listed, scope);
        if scope == Scope::Ours {
            let loose: Vec<EniId> = unattached.iter().map(|eni| eni.id.clone()).collect();
            self.settle_creations(&attached, &unattached, sent);
            self.delete_unclaimed(unattached, sent, effects);
            self.settle_deletions(now, &attached, &loose, effects);
            self.free_slots(&listed, effects);
        }
        let discovering = self.audits.is_discovering();
        // Tagged already: an earlier run was here, and its store is lost. There may be more of it.
        let earlier = attached.iter().any(|eni| eni.ours);
        if scope == Scope::Ours || !earlier {
            // What metadata does not show is being attached or detached; `compare` wants to know which.
            let settled = attached.iter().all(|eni| !eni.ours || self.pool.eni(&eni.id).is_some());
            if self.audits.end_discovery(settled) {
                effects.push(Effect::Record(Write::Intent(DISCOVER.to_owned(), None)));
            }
        }
        self.look_for_lost(&listed, scope);
        for eni in attached {
            self.compare(now, sent, discovering, eni, effects);
        }
    }

    /// ENIs that leases name, and neither EC2 nor metadata shows.
    fn look_for_lost(&mut self, listed: &BTreeSet<EniId>, scope: Scope) {
        let shown = |id: &EniId| self.pool.eni(id).is_some_and(|eni| !eni.unconfirmed);
        // An audit of what is ours leaves out what carries no tag of ours: the primary may not.
        let covered = |slot: u32| scope == Scope::Attached || slot != 0;
        let named = self.leases.values().filter(|lease| covered(lease.slot)).map(|lease| &lease.eni);
        let lost = named.filter(|id| !listed.contains(*id) && !shown(id)).cloned().collect();
        self.audits.set_lost(lost);
    }

    /// Two witnesses, EC2 and metadata, say that an ENI is not here; one with addresses in use is kept.
    fn forget_absent(&mut self, listed: &BTreeSet<EniId>, scope: Scope) {
        let gone: Vec<EniId> = self
            .pool
            .enis()
            .filter(|eni| eni.unconfirmed && eni.sums.assigned == 0 && eni.slot != Some(0))
            .filter(|eni| scope == Scope::Attached || eni.ours)
            .map(|eni| eni.id().clone())
            .filter(|id| !listed.contains(id))
            .collect();
        if !gone.is_empty() && scope == Scope::Attached {
            self.audits.want(Scope::Ours); // somebody detached it: it may be attached to nothing now
        }
        gone.iter().for_each(|id| self.pool.forget_eni(id));
    }

    /// What an audit of all our ENIs says about those that are being created.
    fn settle_creations(&mut self, attached: &[AuditedEni], unattached: &[UnattachedEni], sent: Millis) {
        let unclear: Vec<(String, Option<EniId>)> = self
            .creations
            .iter()
            .filter_map(|(token, pending)| match &pending.stage {
                CreationStage::Unclear(known) => Some((token.clone(), known.clone())),
                _ => None,
            })
            .collect();
        for (token, known) in unclear {
            let is_it = |id: &EniId, tag: &Option<String>| known.as_ref() == Some(id) || tag.as_ref() == Some(&token);
            let found = attached.iter().find(|eni| is_it(&eni.id, &eni.token));
            let loose = unattached.iter().find(|eni| is_it(&eni.id, &eni.token));
            let stage = match (found, loose, &known) {
                (Some(eni), ..) => CreationStage::ToProtect(eni.id.clone(), eni.attachment.clone()),
                (_, Some(eni), _) => CreationStage::ToAttach(eni.id.clone()),
                (_, _, Some(known)) => CreationStage::ToAttach(known.clone()),
                _ => CreationStage::ToCreate,
            };
            if let Some(eni) = stage.eni() {
                self.pool.expect(eni, Vec::new(), None, sent);
            }
            self.creations.set_stage(&token, stage, found.map(|eni| eni.place));
        }
    }

    /// ENIs of ours, for this instance, that are attached to nothing and that nothing here explains: they are deleted.
    fn delete_unclaimed(&mut self, unattached: Vec<UnattachedEni>, sent: Millis, effects: &mut Vec<Effect>) {
        for UnattachedEni { id, token } in unattached {
            // Metadata may go on showing what is attached to nothing; one with addresses in use is kept for their pods.
            let shown = |eni: &Eni| eni.state != EniState::Unknown || eni.sums.assigned > 0 || eni.since >= sent;
            let known = self.creations.of(&id).is_some() || self.pool.eni(&id).is_some_and(shown);
            // It may be what is being created at this moment, unless its token says that it is not.
            let may_be_new = match &token {
                Some(token) => self.creations.contains(token),
                None => self.creations.is_creating(),
            };
            if !known && !may_be_new && !self.deletions.contains(&id) {
                let token = format!("delete-{id}");
                effects.push(Effect::Record(Write::Intent(token.clone(), Some(Intent::Delete(id.clone())))));
                self.begin_deletion(&id, DeletionStage::ToDelete, Some(token));
                self.pool.forget_eni(&id);
            }
        }
    }

    /// What an audit of all our ENIs says about those that are being deleted.
    fn settle_deletions(
        &mut self,
        now: Millis,
        attached: &[AuditedEni],
        unattached: &[EniId],
        effects: &mut Vec<Effect>,
    ) {
        // What the run before has just created EC2 may not list yet.
        let certain = self.observed.imds_read().unwrap_or(now).plus(STALE_MS);
        let unclear = self.deletions.iter().filter(|(_, deletion)| deletion.stage == DeletionStage::Unclear);
        let unclear: Vec<EniId> = unclear.map(|(id, _)| id.clone()).collect();
        for id in unclear {
            match attached.iter().find(|eni| eni.id == id) {
                // After a restart somebody may use it again: the decision is made anew.
                Some(_) if self.pool.eni(&id).is_some_and(|eni| eni.sums.assigned > 0) => {
                    self.close_deletion(&id, effects);
                }
                Some(eni) => {
                    self.begin_deletion(&id, DeletionStage::ToDetach(eni.attachment.clone()), None);
                    self.deletions.set_place(&id, eni.place);
                    self.pool.forget_eni(&id);
                }
                None if unattached.contains(&id) => self.begin_deletion(&id, DeletionStage::ToDelete, None),
                None if now < certain => self.deletions.wait(&id, certain),
                None => self.deleted(&id, effects),
            }
        }
    }

    /// Slots of ENIs that are nowhere; only a look at all that is ours tells.
    fn free_slots(&mut self, listed: &BTreeSet<EniId>, effects: &mut Vec<Effect>) {
        let used = |id: &EniId| {
            self.pool.eni(id).is_some()
                || listed.contains(id)
                || self.creations.may_be(id)
                || self.deletions.contains(id)
                || self.leases.names(id)
        };
        let unused: Vec<EniId> = self.slots.enis().filter(|id| !used(id)).cloned().collect();
        for id in unused {
            self.slots.free(&id);
            effects.push(Effect::Record(Write::Slot(id, None)));
        }
    }

    fn compare(&mut self, now: Millis, sent: Millis, discovering: bool, found: AuditedEni, effects: &mut Vec<Effect>) {
        let id = found.id.clone();
        let is_being_created = self.creations.may_be(&id);
        let Some(eni) = self.pool.eni(&id) else {
            if found.ours && !self.deletions.contains(&id) {
                self.audits.want(Scope::Ours); // metadata does not show it yet; what becomes of it?
            }
            return;
        };
        // What was asked for after the audit was sent is not in its answer.
        let is_newer = eni.since >= sent || is_being_created;
        self.pool.confirm(&id, found.ours, found.attachment.clone(), now.plus(CONFIRMED_MS));
        if discovering {
            self.deny_unknown(now, &id, &found.blocks, effects);
        }
        if !is_newer {
            self.compare_blocks(now, &id, &found.blocks, effects);
        }
        let is_unknown = self.pool.eni(&id).is_some_and(|eni| eni.state == EniState::Unknown);
        if is_unknown && !is_being_created {
            self.claim(found, effects);
        }
    }

    /// EC2 says whose an ENI is that was not known yet.
    fn claim(&mut self, found: AuditedEni, effects: &mut Vec<Effect>) {
        let AuditedEni { id, ours, no_manage, delete_on_termination, attachment, .. } = found;
        self.audits.end_claim(&id);
        let call = if no_manage || (!ours && !self.node.policy.manage_untagged) {
            return self.pool.set_unmanaged(&id);
        } else if !self.node.provisions() {
            return self.configure(&id, effects);
        } else if !ours {
            // CreateTags is the first and only call until the tag is there.
            Call::Tag { eni: id.clone() }
        } else if delete_on_termination || self.integrity.is_mutated(Mutation::ServeUnprotected) {
            return self.configure(&id, effects);
        } else {
            Call::DeleteOnTermination { eni: id.clone(), attachment }
        };
        self.audits.claim(id, call);
    }

    /// The store began with nothing, so no record says what an earlier run unassigned and stale metadata still shows:
    /// what EC2 does not know counts as unassigned.
    fn deny_unknown(&mut self, now: Millis, id: &EniId, found: &BTreeSet<IpNet>, effects: &mut Vec<Effect>) {
        let known = self.pool.eni(id).map(|eni| eni.blocks.clone()).unwrap_or_default();
        let idle = |net: &IpNet| self.pool.block(net).is_some_and(Block::is_idle);
        let denied: Vec<IpNet> = known.into_iter().filter(|net| !found.contains(net) && idle(net)).collect();
        if denied.is_empty() {
            return;
        }
        let token = format!("deny-{}-{id}", self.node.token_seed);
        for net in &denied {
            self.pool.forget_block(*net);
            self.unassigned.add(*net, now, token.clone());
        }
        effects.push(Effect::Record(Write::Intent(token, Some(Intent::Unassign(denied)))));
    }

    /// Blocks that EC2 and metadata agree are gone are forgotten, unless somebody uses them; what EC2 has
    /// is there, whatever metadata says.
    fn compare_blocks(&mut self, now: Millis, id: &EniId, found: &BTreeSet<IpNet>, effects: &mut Vec<Effect>) {
        let known = self.pool.eni(id).map(|eni| eni.blocks.clone()).unwrap_or_default();
        let busy = self.calls.any(|call| matches!(call, Call::Unassign { eni, .. } if eni == id));
        for net in known {
            let Some(block) = self.pool.block(&net) else { continue };
            match (block.state(), found.contains(&net)) {
                (BlockState::Unconfirmed, true) => self.pool.confirm_block(net, now.plus(CONFIRMED_MS)),
                (BlockState::Unconfirmed, false) if block.is_idle() => self.pool.forget_block(net),
                (BlockState::Unassigning(_), false) if !busy && block.is_idle() => self.pool.forget_block(net),
                _ => {}
            }
        }
        for net in found {
            let long_ago = self.unassigned.since(net).is_some_and(|at| now.since(at) >= STALE_MS);
            let (first, last) = kind::ends(net);
            let leased = self.leases.leased_in(first, last);
            let is_unassigning = self.pool.unassigning().any(|(block, _)| block.net() == *net);
            if (long_ago || leased) && !is_unassigning {
                self.forget_unassigned(*net, effects);
                self.add_block(id, *net, now.plus(CONFIRMED_MS));
            }
        }
    }
}
