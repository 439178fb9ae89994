//! What EC2 answered, and what follows from it.
//!
//! An ENI costs three calls: create (with its addresses and tags), attach, delete-on-termination. It
//! joins only after the third was confirmed. One that fails on the way is detached and deleted; it has
//! never served anybody.

use crate::{
    AuditedEni, Call, CallError, CallId, Cause, Core, Done, Effect, EniId, EniState, Expected, Millis, Refusal, Write,
    pool::count,
};

const FIRST_PAUSE_MS: u64 = 500;
const LONGEST_PAUSE_MS: u64 = 60_000;

impl Core {
    pub(crate) fn done(&mut self, now: Millis, id: CallId, answer: Result<Done, CallError>, effects: &mut Vec<Effect>) {
        let Some(call) = self.calls.remove(&id) else { return };
        match answer {
            Ok(done) => {
                self.failures = 0;
                self.pause = None;
                self.succeeded(now, call, done, effects);
            }
            Err(error) => self.failed(now, call, error, effects),
        }
    }

    fn succeeded(&mut self, now: Millis, call: Call, done: Done, effects: &mut Vec<Effect>) {
        match (call, done) {
            (Call::Audit { unattached }, Done::Audited { attached, unattached: left }) => {
                self.audited = true;
                self.forget_slots(&attached, effects);
                attached.into_iter().for_each(|eni| self.audit(eni, effects));
                if unattached {
                    self.sweep(left, effects);
                }
            }
            (Call::Tag { eni }, _) => {
                if let Some(eni) = self.enis.get_mut(&eni) {
                    eni.ours = true;
                }
            }
            (Call::Create { token, .. }, Done::Created { eni }) => {
                // The intent stays until the ENI is protected: an audit after a restart finds it by tag.
                self.intents.insert(token, Some(eni.clone()));
                let device_index = self.free_device_index();
                self.call(Call::Attach { eni, device_index }, effects);
            }
            (Call::Attach { eni, .. }, Done::Attached { attachment }) => {
                self.call(Call::Protect { eni, attachment }, effects);
            }
            (Call::Assign { eni, .. }, Done::Assigned { addresses }) => {
                let expected = Expected { addresses: addresses.into_iter().collect(), since: now };
                self.expected.insert(eni, expected);
                self.take_expected(now);
            }
            (Call::Protect { eni, .. }, _) => {
                self.join(&eni, effects);
                self.close_intents(|created| created == Some(&eni), effects);
                if !self.enis.contains_key(&eni) {
                    self.expected.insert(eni, Expected { addresses: [].into(), since: now });
                }
            }
            (Call::Detach { eni, .. }, _) => self.call(Call::Delete { eni }, effects),
            (Call::Delete { eni }, _) => self.deleted(&eni, effects),
            _ => {}
        }
    }

    /// ENIs that an earlier creation left unattached go; what then is known about intents.
    fn sweep(&mut self, left: Vec<EniId>, effects: &mut Vec<Effect>) {
        // One audit sees all that this instance ever created, so an unclear creation with nothing left
        // behind was none.
        if left.is_empty() {
            self.close_intents(|created| created.is_none(), effects);
        }
        for eni in left {
            let call = Call::Delete { eni };
            if !self.calls.values().any(|under_way| *under_way == call) {
                self.call(call, effects);
            }
        }
    }

    fn deleted(&mut self, eni: &EniId, effects: &mut Vec<Effect>) {
        self.close_intents(|created| created == Some(eni), effects);
        // An intent without an answer is closed by an audit that finds nothing left.
        self.audited = self.audited && self.intents.values().all(Option::is_some);
    }

    fn close_intents(&mut self, known: impl Fn(Option<&EniId>) -> bool, effects: &mut Vec<Effect>) {
        let closed: Vec<String> = self
            .intents
            .iter()
            .filter(|(_, created)| known(created.as_ref()))
            .map(|(token, _)| token.clone())
            .collect();
        for token in closed {
            self.intents.remove(&token);
            effects.push(Effect::Record(Write::Intent(token, false)));
        }
    }

    /// Two witnesses, EC2 and metadata, say that the ENI is not here, and no lease stands on it.
    fn forget_slots(&mut self, attached: &[AuditedEni], effects: &mut Vec<Effect>) {
        let gone: Vec<EniId> = self
            .slots
            .keys()
            .filter(|id| !self.enis.contains_key(id) && attached.iter().all(|eni| eni.id != **id))
            .filter(|id| self.leases.values().all(|lease| lease.eni != **id))
            .cloned()
            .collect();
        for id in gone {
            self.slots.remove(&id);
            effects.push(Effect::Record(Write::Slot(id, None)));
        }
    }

    fn audit(&mut self, found: AuditedEni, effects: &mut Vec<Effect>) {
        let Some(eni) = self.enis.get_mut(&found.id) else { return };
        eni.ours = found.ours;
        if eni.state != EniState::Unknown {
            return;
        }
        if found.no_manage || (!found.ours && !self.node.policy.manage_untagged) {
            eni.state = EniState::Foreign;
        } else if !found.ours {
            // CreateTags is the first and only call until the tag is there.
            self.audited = false;
            self.call(Call::Tag { eni: found.id }, effects);
        } else if found.delete_on_termination {
            self.join(&found.id, effects);
        } else {
            self.call(Call::Protect { eni: found.id, attachment: found.attachment }, effects);
        }
    }

    /// The ENI is ours and goes with the instance: it gets its slot, the host takes it on.
    fn join(&mut self, id: &EniId, effects: &mut Vec<Effect>) {
        let Some(slot) = self.slots.get(id).copied().or_else(|| self.free_slot()) else { return };
        self.give_slot(id, slot, effects);
        if let Some(eni) = self.enis.get_mut(id) {
            eni.slot = Some(slot);
            eni.ours = true;
            if matches!(eni.state, EniState::Unknown) {
                eni.state = EniState::Joining;
            }
        }
    }

    fn free_device_index(&self) -> u32 {
        let taken: Vec<u32> =
            self.enis.values().filter(|eni| eni.facts.card == 0).map(|eni| eni.facts.device_index).collect();
        (1..=count(taken.len()) + 1).find(|index| !taken.contains(index)).unwrap_or(1)
    }

    fn failed(&mut self, now: Millis, call: Call, error: CallError, effects: &mut Vec<Effect>) {
        match call {
            Call::Attach { eni, .. } => self.call(Call::Delete { eni }, effects),
            Call::Protect { eni, attachment } if !self.slots.contains_key(&eni) => {
                self.call(Call::Detach { eni, attachment }, effects);
            }
            Call::Detach { eni, .. } if error.not_found => return self.call(Call::Delete { eni }, effects),
            Call::Delete { eni } if error.not_found => return self.deleted(&eni, effects),
            // EC2 has answered: nothing was created.
            Call::Create { token, .. } if error.cause != Cause::Ec2Unreachable => {
                self.intents.remove(&token);
                effects.push(Effect::Record(Write::Intent(token, false)));
            }
            // An unclear answer may hide a created ENI: the next audit reads back by our tag.
            Call::Create { .. } | Call::Detach { .. } | Call::Delete { .. } => self.audited = false,
            _ => {}
        }
        let pause = (FIRST_PAUSE_MS << self.failures.min(10)).min(LONGEST_PAUSE_MS);
        let pause = if error.cause == Cause::Denied { pause.max(5_000) } else { pause };
        self.failures += 1;
        let refusal =
            Refusal { cause: error.cause, message: error.message, request_id: error.request_id, retry_after: None };
        self.pause = Some((now.plus(pause), refusal));
    }
}
