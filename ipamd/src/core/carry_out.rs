//! The plan's actions, carried out: as changes of the state and as effects.

use super::Core;
use crate::{
    ec2::{Call, Class, Creation, CreationStage, DeletionStage, Intent, Recorded},
    event::{Effect, Write},
    ids::Millis,
    mutation::Mutation,
    plan::{Action, Step},
    pool::BlockState,
    supply::Home,
};

impl Core {
    pub(super) fn carry_out(&mut self, now: Millis, action: &Action, effects: &mut Vec<Effect>) {
        let reason = action.reason.to_string();
        match &action.step {
            Step::Call { call, class } => self.call(now, call.clone(), *class, reason, effects),
            Step::Create { creation, home, class } => {
                self.create(now, (*creation, home.clone()), *class, reason, effects);
            }
            Step::PlanAhead { addresses } => self.demand.fetched(now, *addresses),
            Step::WithholdEni(eni) => self.pool.begin_detaching(now, eni),
            Step::WithholdBlocks(nets) => {
                let state = BlockState::Unassigning(now);
                nets.iter().for_each(|net| self.pool.set_block_state(*net, state));
            }
            Step::KeepEni(eni) => self.pool.keep(eni),
            Step::KeepBlock(net) => self.pool.set_block_state(*net, BlockState::Usable),
            Step::Delete { eni, attachment } => {
                let token = format!("delete-{eni}");
                effects.push(Effect::Record(Write::Intent(token.clone(), Some(Intent::Delete(eni.clone())))));
                self.begin_deletion(eni, DeletionStage::ToDetach(attachment.clone()), Some(token));
                self.pool.forget_eni(eni);
            }
            Step::Unassign { eni, blocks } => {
                let token = self.calls.token("unassign");
                for net in blocks {
                    self.forget_unassigned(*net, effects);
                    self.unassigned.add(*net, now, token.clone());
                }
                effects.push(Effect::Record(Write::Intent(token, Some(Intent::Unassign(blocks.clone())))));
                let call = Call::Unassign { eni: eni.clone(), blocks: blocks.clone() };
                self.call(now, call, Class::Background, reason, effects);
            }
        }
    }

    fn create(
        &mut self,
        now: Millis,
        (creation, home): (Creation, Home),
        class: Class,
        reason: String,
        effects: &mut Vec<Effect>,
    ) {
        let token = self.calls.token("enid");
        if !self.integrity.is_mutated(Mutation::CreateUnrecorded) {
            let recorded = Recorded { creation, home: home.clone() };
            effects.push(Effect::Record(Write::Intent(token.clone(), Some(Intent::Create(recorded)))));
        }
        self.creations.begin(token.clone(), creation, home.clone());
        self.call(now, Call::Create { token, creation, home }, class, reason, effects);
    }

    /// Sends a call, and notes what it is about to change.
    fn call(&mut self, now: Millis, call: Call, class: Class, reason: String, effects: &mut Vec<Effect>) {
        match &call {
            Call::Audit { scope } => self.audits.sent(*scope),
            // A list of the whole zone is for other purposes.
            Call::Subnets { ids } if ids.is_empty() => {}
            Call::Subnets { .. } => self.demand.subnets_mut().asked(now),
            Call::FindLeaked => self.leaks.plan(Some(now.plus(crate::ec2::LEAK_PERIOD_MS))),
            Call::Create { token, .. } => self.creations.set_stage(token, CreationStage::Creating, None),
            Call::Attach { eni, place } => {
                if let Some(token) = self.creations.of(eni).map(|(token, _)| token.clone()) {
                    self.creations.set_stage(&token, CreationStage::Attaching(eni.clone()), Some(*place));
                }
            }
            Call::DeleteOnTermination { eni, .. } => {
                self.audits.end_claim(eni);
                self.creations.set_stage_of(eni, CreationStage::Protecting(eni.clone()));
            }
            Call::Detach { eni, .. } => self.begin_deletion(eni, DeletionStage::Detaching, None),
            Call::Delete { eni } => self.begin_deletion(eni, DeletionStage::Deleting, None),
            Call::Tag { eni } => self.audits.end_claim(eni),
            Call::Assign { .. } | Call::Unassign { .. } | Call::SetGroups { .. } => {}
        }
        let id = self.calls.start(now, call.clone(), class, reason);
        effects.push(Effect::Call { id, call, class });
    }
}
