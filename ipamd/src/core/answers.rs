//! EC2's answers to calls.

use ipnet::IpNet;

use super::Core;
use crate::{
    cause::{Cause, Refusal},
    ec2::{Call, CallError, CreationStage, DeletionStage, Ec2Answer, Fact, Flight, Intent, Order, Scope},
    event::{Effect, Write},
    ids::{CallId, EniId, Millis, SubnetId},
    pool::BlockState,
    supply::Kind,
};

impl Core {
    pub(super) fn answered(
        &mut self,
        now: Millis,
        id: CallId,
        answer: Result<Ec2Answer, CallError>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(Flight { call, since, .. }) = self.calls.end(id) else { return };
        match answer {
            Ok(answer) => {
                self.calls.succeeded(call.action());
                self.succeeded(now, since, call, answer, effects);
            }
            Err(error) => self.failed(now, call, error, effects),
        }
    }

    fn succeeded(&mut self, now: Millis, sent: Millis, call: Call, answer: Ec2Answer, effects: &mut Vec<Effect>) {
        match (call, answer) {
            (Call::Audit { scope }, Ec2Answer::Audited { attached, unattached }) => {
                self.audited(now, sent, scope, attached, unattached, effects);
            }
            (Call::Tag { eni }, _) => self.tagged(&eni),
            (Call::Create { token, creation, home }, Ec2Answer::Created { eni, blocks }) => {
                let subnet = self.state().subnet_of(&home);
                self.demand.subnets_mut().of(&subnet).given(creation.order.count);
                self.pool.expect(&eni, blocks, None, sent);
                self.audits.created(now, &eni);
                self.creations.set_stage(&token, CreationStage::ToAttach(eni), None);
            }
            (Call::Attach { eni, .. }, Ec2Answer::Attached { attachment }) => {
                self.pool.set_attachment(&eni, attachment.clone());
                self.creations.set_stage_of(&eni, CreationStage::ToProtect(eni.clone(), attachment));
            }
            (Call::DeleteOnTermination { eni, attachment }, _) => self.protected(now, &eni, attachment, effects),
            (Call::Assign { eni, order }, Ec2Answer::Assigned { mut blocks }) => {
                if let Some(subnet) = self.pool.eni(&eni).map(|eni| eni.facts.subnet_id.clone()) {
                    self.demand.subnets_mut().of(&subnet).given(order.count);
                }
                // Who names all names the ENI's own address too, which is no block.
                let own: Vec<IpNet> =
                    self.pool.eni(&eni).into_iter().flat_map(|eni| eni.facts.own()).map(IpNet::from).collect();
                blocks.retain(|net| !own.contains(net));
                blocks.iter().for_each(|net| self.forget_unassigned(*net, effects));
                self.pool.expect(&eni, blocks, Some(now), sent);
            }
            (Call::Unassign { blocks, .. }, _) => blocks.iter().for_each(|net| self.pool.forget_block(*net)),
            (Call::SetGroups { eni, groups }, _) => self.observed.groups_mut().told(now, &eni, groups, None),
            (Call::Detach { eni, .. }, _) => self.detached(now, &eni),
            (Call::Delete { eni }, _) => self.deleted(&eni, effects),
            (Call::Subnets { ids }, Ec2Answer::Subnets { list }) => {
                list.iter().for_each(|(id, facts)| self.demand.subnets_mut().of(id).has_left(now, facts.free));
                if ids.is_empty() {
                    self.demand.places_mut().list(now, list);
                }
            }
            (Call::FindLeaked, Ec2Answer::Leaked { enis }) => self.found_leaked(now, enis),
            _ => {}
        }
    }

    /// EC2 has put our tag on an ENI, so it may be changed; it still has to be deleted with the instance.
    fn tagged(&mut self, id: &EniId) {
        self.pool.set_ours(id);
        if self.pool.eni(id).is_some_and(|eni| eni.state == crate::pool::EniState::Unknown) {
            self.audits.want_now(Scope::Attached);
        }
    }

    fn protected(&mut self, now: Millis, eni: &EniId, attachment: String, effects: &mut Vec<Effect>) {
        self.configure(eni, effects);
        self.pool.set_tagged(eni);
        self.pool.set_attachment(eni, attachment);
        let place = self.creations.of(eni).and_then(|(_, pending)| pending.place);
        self.pool.expect_eni(now, eni, place);
        self.close_creation(eni, effects);
    }

    fn close_creation(&mut self, eni: &EniId, effects: &mut Vec<Effect>) {
        if let Some(token) = self.creations.of(eni).map(|(token, _)| token.clone()) {
            self.creations.remove(&token);
            effects.push(Effect::Record(Write::Intent(token, None)));
        }
    }

    pub(super) fn detached(&mut self, now: Millis, eni: &EniId) {
        let place = self.pool.eni(eni).map(|eni| eni.facts.place);
        self.deletions.detached(now, eni, place);
        self.pool.forget_eni(eni);
    }

    pub(super) fn deleted(&mut self, eni: &EniId, effects: &mut Vec<Effect>) {
        self.close_deletion(eni, effects);
        if !self.leases.names(eni) && self.slots.free(eni) {
            effects.push(Effect::Record(Write::Slot(eni.clone(), None)));
        }
    }

    /// An ENI is gone, or stays.
    pub(super) fn close_deletion(&mut self, eni: &EniId, effects: &mut Vec<Effect>) {
        if let Some(token) = self.deletions.remove(eni).and_then(|deletion| deletion.token) {
            effects.push(Effect::Record(Write::Intent(token, None)));
        }
    }

    fn failed(&mut self, now: Millis, call: Call, error: CallError, effects: &mut Vec<Effect>) {
        let error = match self.asked_of(&call) {
            Some((order, subnet)) => error.of_order(order, &subnet),
            None => error,
        };
        let unanswered = error.cause == Cause::Ec2Unreachable;
        // EC2 may not know yet what it has just created.
        let too_early = error.fact == Fact::NotFound && self.audits.may_be_denied(now, call.eni());
        if error.fact == Fact::GroupGone {
            self.observed.groups_mut().set_not_found();
        }
        if let Call::SetGroups { eni, groups } = &call
            && !error.cause.is_temporary()
        {
            // The pool grows whatever is said of this.
            let CallError { cause, message, request_id, .. } = error;
            let refusal = Refusal { cause, message, request_id, retry_after: None };
            return self.observed.groups_mut().told(now, eni, groups.clone(), Some(refusal));
        }
        if let Call::Subnets { ids } = &call
            && !error.cause.is_temporary()
        {
            if ids.is_empty() {
                let CallError { cause, message, request_id, .. } = error;
                self.demand.places_mut().unlisted(now, Refusal { cause, message, request_id, retry_after: None });
            }
            return; // without it ENIs are created beside the primary
        }
        // Asked for again as it is: nothing is known to be wrong with it.
        let again = too_early || matches!(error.cause, Cause::Throttled | Cause::NoCredentials);
        match &call {
            Call::Attach { eni, place } if error.fact == Fact::PlaceTaken => {
                // It is attached at the next free place; what is at this one, EC2 tells.
                self.pool.add_occupied(*place);
                self.creations.set_stage_of(eni, CreationStage::ToAttach(eni.clone()));
                self.audits.want(Scope::Attached);
                return;
            }
            Call::Attach { eni, .. } if again => {
                self.creations.set_stage_of(eni, CreationStage::ToAttach(eni.clone()));
            }
            Call::DeleteOnTermination { eni, attachment } if again => {
                self.creations.set_stage_of(eni, CreationStage::ToProtect(eni.clone(), attachment.clone()));
            }
            Call::Detach { eni, .. } | Call::Delete { eni } if too_early => self.not_deleted(eni, &call, false),
            Call::Detach { eni, .. } if error.fact == Fact::NotFound => return self.detached(now, eni),
            Call::Delete { eni } if error.fact == Fact::NotFound => return self.deleted(eni, effects),
            // EC2 may not have them any more: an audit tells.
            Call::Unassign { blocks, .. } => {
                self.not_unassigned(blocks, unanswered || error.cause == Cause::Ec2Error, effects);
            }
            Call::Detach { eni, .. } | Call::Delete { eni } => self.not_deleted(eni, &call, unanswered),
            Call::Create { token, .. } if self.is_given_up(token, &error) => {
                // The same request is not sent again. What it may have made all the same, an audit finds.
                self.creations.remove(token);
                effects.push(Effect::Record(Write::Intent(token.clone(), None)));
                self.audits.want(Scope::Ours);
            }
            Call::Create { token, .. } => self.not_created(token, unanswered, effects),
            Call::Attach { eni, .. } | Call::DeleteOnTermination { eni, .. } => {
                self.not_configured(eni, &call, unanswered, effects);
            }
            Call::Audit { scope } => self.audits.want(*scope),
            Call::Assign { .. } if unanswered => self.audits.want(Scope::Attached),
            _ => {}
        }
        if matches!(error.cause, Cause::SubnetFull | Cause::NoPrefix) && self.ask_otherwise(now, &call, error.cause) {
            return;
        }
        if error.cause == Cause::NoPrefix && self.no_prefix(now, &call) {
            return;
        }
        self.calls.failed(now, call.action(), error);
    }

    /// The subnet has not as much as a call asked for. Whether the next one asks for less, or another subnet, at once.
    fn ask_otherwise(&mut self, now: Millis, call: &Call, cause: Cause) -> bool {
        let Some((order, id)) = self.asked_of(call) else { return false };
        let card = match call {
            Call::Create { creation, .. } => creation.card,
            other => other.eni().and_then(|eni| self.pool.eni(eni)).map_or(0, |eni| eni.card()),
        };
        let waiting = self.state().counts_on(card).demand().div_ceil(order.kind.size());
        let waiting = u32::try_from(waiting).unwrap_or(u32::MAX);
        let subnet = self.demand.subnets_mut().of(&id);
        if subnet.ask_for_less(now, order.count, waiting) {
            return true;
        }
        if order.kind != Kind::Single && cause == Cause::NoPrefix {
            return false; // single addresses may be there
        }
        subnet.set_full(now);
        self.state().has_place(now, card)
    }

    /// What a call asks a subnet for.
    fn asked_of(&self, call: &Call) -> Option<(Order, SubnetId)> {
        match call {
            Call::Assign { eni, order } => Some((*order, self.pool.eni(eni)?.facts.subnet_id.clone())),
            Call::Create { creation, home, .. } => Some((creation.order, self.state().subnet_of(home))),
            _ => None,
        }
    }

    /// EC2 found no prefix in the subnet: single addresses serve until it may have one. Whether this is all there is to
    /// do. For a block of IPv6 there is nothing that could serve instead.
    fn no_prefix(&mut self, now: Millis, call: &Call) -> bool {
        let (kind, with_v6) = match call {
            Call::Assign { order, .. } => (order.kind, false),
            Call::Create { creation, .. } => (creation.order.kind, creation.with_v6),
            _ => (Kind::Single, false),
        };
        if kind == Kind::V6Prefix {
            return false;
        }
        if let Some((_, subnet)) = self.asked_of(call) {
            self.demand.subnets_mut().of(&subnet).no_prefix(now);
        }
        !with_v6
    }

    /// Whether a creation is not asked for again under its token, that is with the same request: it will never be taken, or
    /// its subnet has too little, so that one that is sent for the second time would wait where others could serve.
    fn is_given_up(&self, token: &str, error: &CallError) -> bool {
        let has_too_little = matches!(error.cause, Cause::SubnetFull | Cause::NoPrefix);
        let resent = self.creations.get(token).is_some_and(|pending| pending.resent);
        matches!(error.fact, Fact::GroupGone | Fact::OtherRequest) || (resent && has_too_little)
    }

    fn not_created(&mut self, token: &str, unanswered: bool, effects: &mut Vec<Effect>) {
        if unanswered {
            self.creations.unanswered(token);
            self.audits.want(Scope::Ours);
        } else if self.creations.get(token).is_some_and(|pending| pending.resent) {
            self.creations.set_stage(token, CreationStage::ToCreate, None);
        } else {
            // EC2 has answered: nothing was created.
            self.creations.remove(token);
            effects.push(Effect::Record(Write::Intent(token.to_owned(), None)));
        }
    }

    /// Attach or delete-on-termination failed. Such an ENI has never served: it is deleted again.
    fn not_configured(&mut self, eni: &EniId, call: &Call, unanswered: bool, effects: &mut Vec<Effect>) {
        if unanswered {
            self.creations.set_stage_of(eni, CreationStage::Unclear(Some(eni.clone())));
            self.audits.want(Scope::Ours);
            return;
        }
        let Some(token) = self.creations.of(eni).map(|(token, _)| token.clone()) else { return };
        if self.pool.eni(eni).is_some_and(|known| known.slot.is_some() || known.sums.assigned > 0) {
            return self.close_creation(eni, effects); // an earlier run had finished it, and pods may use it
        }
        // A next run must not go on creating what this one deletes.
        effects.push(Effect::Record(Write::Intent(token.clone(), Some(Intent::Delete(eni.clone())))));
        let place = self.creations.remove(&token).and_then(|pending| pending.place);
        let stage = match call {
            Call::DeleteOnTermination { attachment, .. } => DeletionStage::ToDetach(attachment.clone()),
            _ => DeletionStage::ToDelete,
        };
        let place = self.pool.eni(eni).map(|eni| eni.facts.place).or(place);
        self.deletions.set(eni, stage, Some(token), place);
        self.pool.forget_eni(eni);
    }

    fn not_unassigned(&mut self, blocks: &[IpNet], unclear: bool, effects: &mut Vec<Effect>) {
        if unclear {
            self.audits.want(Scope::Attached);
            return;
        }
        for net in blocks {
            self.pool.set_block_state(*net, BlockState::Usable);
            self.forget_unassigned(*net, effects);
        }
    }

    /// Detach or delete failed: tried again after the pause, from where an audit says it is.
    fn not_deleted(&mut self, eni: &EniId, call: &Call, unanswered: bool) {
        // It may be attached somewhere after all, if it cannot be deleted for long.
        let in_vain = self.calls.has_failed(call.action(), 3);
        let stage = match call {
            _ if unanswered => DeletionStage::Unclear,
            Call::Delete { .. } if in_vain => DeletionStage::Unclear,
            Call::Detach { attachment, .. } => DeletionStage::ToDetach(attachment.clone()),
            _ => DeletionStage::ToDelete,
        };
        if self.deletions.contains(eni) {
            self.begin_deletion(eni, stage, None);
        }
    }
}
