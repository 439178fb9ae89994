//! EC2 calls: sent, answered, refused. The one place where it is decided when something is tried again.

use crate::{
    Call, CallError, CallId, Cause, Class, Core, Done, Effect, EniId, Kind, Millis, Refusal, build::Stage, pace::Pause,
    pool::STALE_MS,
};

/// How long a subnet is taken to have no /28 after it said so.
const NO_PREFIX_MS: u64 = 120_000;

/// A call on its way.
#[derive(Clone, Debug)]
pub(crate) struct Flight {
    pub(crate) call: Call,
    pub(crate) since: Millis,
}

impl Core {
    pub(crate) fn call(&mut self, now: Millis, call: Call, class: Class, effects: &mut Vec<Effect>) {
        let id = CallId(self.next_call);
        self.next_call += 1;
        self.calls.insert(id, Flight { call: call.clone(), since: now });
        self.pace.take(now, call.action(), class);
        effects.push(Effect::Call { id, call, class });
    }

    /// Who waits for what is called now.
    pub(crate) fn class(&self) -> Class {
        if self.queue.is_empty() && self.bound == 0 { Class::PoolShort } else { Class::PodWaits }
    }

    pub(crate) fn is_under_way(&self, wanted: impl Fn(&Call) -> bool) -> bool {
        self.calls.values().any(|flight| wanted(&flight.call))
    }

    pub(crate) fn done(&mut self, now: Millis, id: CallId, answer: Result<Done, CallError>, effects: &mut Vec<Effect>) {
        let Some(Flight { call, since }) = self.calls.remove(&id) else { return };
        match answer {
            Ok(done) => {
                self.pace.answered(call.action());
                self.succeeded(now, since, call, done, effects);
            }
            Err(error) => self.failed(now, call, error, effects),
        }
    }

    fn succeeded(&mut self, now: Millis, since: Millis, call: Call, done: Done, effects: &mut Vec<Effect>) {
        match (call, done) {
            (Call::Audit { scope }, Done::Audited { attached, unattached }) => {
                self.audited(now, since, scope, attached, unattached, effects);
            }
            (Call::Tag { eni }, _) => {
                if let Some(eni) = self.enis.get_mut(&eni) {
                    eni.ours = true;
                }
                self.vouched(now, &eni, effects);
            }
            (Call::Create { token, .. }, Done::Created { eni, blocks }) => {
                self.created(now, since, &token, eni, blocks, effects);
            }
            (Call::Attach { eni, .. }, Done::Attached { attachment }) => {
                self.attached(now, &eni, attachment, effects);
            }
            (Call::Protect { eni, attachment }, _) => self.protected(now, &eni, attachment, effects),
            (Call::Assign { eni, .. }, Done::Assigned { blocks }) => {
                for net in &blocks {
                    self.drop_given_back(*net, effects);
                }
                self.expect(&eni, blocks, Some(now), since);
                self.take_expected(now);
            }
            (Call::Unassign { blocks, .. }, _) => self.unassigned(&blocks),
            (Call::Detach { eni, .. }, _) => self.detached(now, &eni),
            (Call::Delete { eni }, _) => self.deleted(&eni, effects),
            (Call::FindLeaked, Done::Leaked { enis }) => self.found_leaked(now, enis, effects),
            _ => {}
        }
    }

    /// EC2 is eventually consistent: it may not know yet what it has just created ("Eventual consistency in
    /// the Amazon EC2 API").
    fn is_newborn(&self, now: Millis, eni: Option<&EniId>) -> bool {
        eni.and_then(|eni| self.born.get(eni)).is_some_and(|at| now.since(*at) < STALE_MS)
    }

    fn failed(&mut self, now: Millis, call: Call, error: CallError, effects: &mut Vec<Effect>) {
        let unclear = error.cause == Cause::Ec2Unreachable;
        let too_early = error.not_found && self.is_newborn(now, call.eni());
        // Asked for again as it is: nothing is known to be wrong with it.
        let again = too_early || error.cause == Cause::Throttled;
        match &call {
            Call::Attach { eni, .. } if again => self.set_stage(eni, Stage::ToAttach(eni.clone())),
            Call::Protect { eni, attachment } if again => {
                self.set_stage(eni, Stage::ToProtect(eni.clone(), attachment.clone()));
            }
            Call::Detach { eni, .. } | Call::Delete { eni } if too_early => self.not_departed(eni, &call, false),
            Call::Detach { eni, .. } if error.not_found => return self.detached(now, eni),
            Call::Delete { eni } if error.not_found => return self.deleted(eni, effects),
            // EC2 may not have them any more: an audit tells.
            Call::Unassign { blocks, .. } => {
                self.not_unassigned(blocks, unclear || error.cause == Cause::Ec2Error, effects);
            }
            Call::Detach { eni, .. } | Call::Delete { eni } => self.not_departed(eni, &call, unclear),
            Call::Create { token, .. } => self.not_created(token, unclear, effects),
            Call::Attach { eni, .. } | Call::Protect { eni, .. } => {
                self.not_joined(eni, &call, unclear, effects);
            }
            Call::Audit { scope } => self.want_audit(*scope),
            Call::Assign { .. } if unclear => self.want_audit(crate::Scope::Attached),
            _ => {}
        }
        let (kind, with_v6) = match &call {
            Call::Assign { order, .. } => (order.kind, false),
            Call::Create { creation, .. } => (creation.order.kind, creation.with_v6),
            _ => (Kind::Single, false),
        };
        if error.cause == Cause::NoPrefix && kind != Kind::V6Prefix {
            // Single addresses serve until then. For a block of IPv6 there is nothing that could.
            self.no_prefix_until = Some(now.plus(NO_PREFIX_MS));
            let again = matches!(&call, Call::Create { token, .. } if self.builds.contains_key(token));
            if !again && !with_v6 {
                return;
            }
        }
        self.pause(now, call.action(), error);
    }

    fn pause(&mut self, now: Millis, action: &'static str, error: CallError) {
        let CallError { cause, message, request_id, .. } = error;
        let chance = self.jitter(u64::MAX);
        self.pace.refused(now, action, Refusal { cause, message, request_id, retry_after: None }, chance);
    }

    /// Whether an action has been refused so many times in a row.
    pub(crate) fn has_failed(&self, action: &str, times: u32) -> bool {
        self.pace.pause(action).is_some_and(|pause| pause.failures >= times)
    }

    /// The latest refusal that still holds growth up.
    pub(crate) fn growth_pause(&self, now: Millis) -> Option<&Pause> {
        let grows = ["AssignPrivateIpAddresses", "AssignIpv6Addresses", "CreateNetworkInterface", "CreateTags"];
        let others = ["AttachNetworkInterface", "ModifyNetworkInterfaceAttribute", "DescribeNetworkInterfaces"];
        let pauses = grows.iter().chain(&others).filter_map(|action| self.pace.pause(action));
        pauses.filter(|pause| pause.until > now || pause.refusal.cause.passes()).max_by_key(|pause| pause.until)
    }

    /// Whether EC2 has lately not answered or refused: then nothing is given back.
    pub(crate) fn ec2_ails(&self, now: Millis) -> bool {
        self.pace
            .pauses()
            .any(|(_, pause)| pause.until.plus(STALE_MS) > now && pause.refusal.cause != Cause::SubnetFull)
    }

    /// A number below `bound`, different for each node, life and call.
    pub(crate) fn jitter(&mut self, bound: u64) -> u64 {
        self.next_call += 1;
        let mut hash = 0xcbf2_9ce4_8422_2325_u64; // FNV-1a
        let seed = self.node.token_seed.bytes().chain(self.node.instance_id.bytes());
        for byte in seed.chain(self.next_call.to_le_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        (hash >> 16) % bound.max(1)
    }
}
