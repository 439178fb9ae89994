//! EC2 calls in flight, and when an action may be called: the one place where it is decided when something is tried again.

use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use super::{
    call::{Call, CallError, Class},
    pace::{Pace, Pause},
};
use crate::{
    cause::{Cause, Refusal},
    ids::{CallId, EniId, Millis},
};

/// How long after a refusal EC2 is taken to be failing: nothing is released meanwhile.
const FAILING_MS: u64 = 60_000;
/// Actions without which the pool does not grow.
const GROWTH: [&str; 7] = [
    "AssignPrivateIpAddresses",
    "AssignIpv6Addresses",
    "CreateNetworkInterface",
    "CreateTags",
    "AttachNetworkInterface",
    "ModifyNetworkInterfaceAttribute",
    "DescribeNetworkInterfaces",
];

/// A call in flight.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Flight {
    pub(crate) call: Call,
    pub(crate) since: Millis,
    /// Why it was sent, one sentence.
    pub(crate) reason: String,
}

/// The calls.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Calls {
    in_flight: OrdMap<CallId, Flight>,
    /// The next number, for calls, tokens and jitter.
    next: u64,
    pace: Pace,
    /// Mixed into tokens and jitter.
    seed: String,
    instance: String,
}

impl Calls {
    pub(crate) fn new(seed: String, instance: String) -> Self {
        Calls { in_flight: OrdMap::new(), next: 1, pace: Pace::default(), seed, instance }
    }

    /// What the wall clock shows now, in milliseconds since 1970.
    pub(crate) fn wall(&mut self, now: Millis, wall_ms: u64) {
        self.pace.wall(now, wall_ms);
    }

    /// A call is sent.
    pub(crate) fn start(&mut self, now: Millis, call: Call, class: Class, reason: String) -> CallId {
        let id = CallId(self.number());
        self.pace.take(now, call.action(), class);
        self.in_flight.insert(id, Flight { call, since: now, reason });
        id
    }

    /// An answer came: the call that it is for.
    pub(crate) fn end(&mut self, id: CallId) -> Option<Flight> {
        self.in_flight.remove(&id)
    }

    /// The action was carried out.
    pub(crate) fn succeeded(&mut self, action: &'static str) {
        self.pace.answered(action);
    }

    /// The action was refused, or its answer never came.
    pub(crate) fn failed(&mut self, now: Millis, action: &'static str, error: CallError) {
        let CallError { cause, message, request_id, .. } = error;
        let chance = self.jitter(u64::MAX);
        self.pace.refused(now, action, Refusal { cause, message, request_id, retry_after: None }, chance);
    }

    pub(crate) fn in_flight(&self) -> impl Iterator<Item = &Flight> {
        self.in_flight.values()
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.in_flight.is_empty()
    }

    pub(crate) fn any(&self, wanted: impl Fn(&Call) -> bool) -> bool {
        self.in_flight().any(|flight| wanted(&flight.call))
    }

    pub(crate) fn is_auditing(&self) -> bool {
        self.any(|call| matches!(call, Call::Audit { .. }))
    }

    /// Whether a call about this ENI is in flight.
    pub(crate) fn concerns(&self, eni: &EniId) -> bool {
        self.any(|call| call.eni() == Some(eni))
    }

    /// How many calls of this class may be made now.
    pub(crate) fn permits(&self, now: Millis, action: &'static str, class: Class) -> u32 {
        self.pace.permits(now, action, class)
    }

    /// When a call of this class may be made; `None`: now.
    pub(crate) fn opens_at(&self, now: Millis, action: &'static str, class: Class) -> Option<Millis> {
        self.pace.opens_at(now, action, class)
    }

    /// Whether EC2 is taken to have too much to do.
    pub(crate) fn is_crowded(&self, now: Millis) -> bool {
        self.pace.is_crowded(now)
    }

    pub(crate) fn pace(&self) -> &Pace {
        &self.pace
    }

    pub(crate) fn pauses(&self) -> impl Iterator<Item = (&'static str, &Pause)> {
        self.pace.pauses()
    }

    pub(crate) fn pause(&self, action: &str) -> Option<&Pause> {
        self.pace.pause(action)
    }

    /// Whether an action has been refused so many times in a row.
    pub(crate) fn has_failed(&self, action: &str, times: u32) -> bool {
        self.pace.pause(action).is_some_and(|pause| pause.failures >= times)
    }

    /// The latest refusal that still holds growth up.
    pub(crate) fn growth_pause(&self, now: Millis) -> Option<&Pause> {
        let pauses = GROWTH.iter().filter_map(|action| self.pace.pause(action));
        pauses.filter(|pause| pause.until > now || pause.refusal.cause.is_temporary()).max_by_key(|pause| pause.until)
    }

    /// Whether EC2 has lately not answered or refused: then nothing is released.
    pub(crate) fn is_failing(&self, now: Millis) -> bool {
        let failing = |pause: &Pause| pause.until.plus(FAILING_MS) > now && pause.refusal.cause != Cause::SubnetFull;
        self.pauses().any(|(_, pause)| failing(pause))
    }

    /// When something may be called that may not now.
    pub(crate) fn opens(&self, now: Millis) -> impl Iterator<Item = Millis> {
        self.pace.opens(now)
    }

    /// A token that no other call and no other run of the daemon has.
    pub(crate) fn token(&self, purpose: &str) -> String {
        format!("{purpose}-{}-{}", self.seed, self.next)
    }

    /// A number below `bound`, different for each node, run and call.
    pub(crate) fn jitter(&mut self, bound: u64) -> u64 {
        let number = self.number() + 1;
        let mut hash = 0xcbf2_9ce4_8422_2325_u64; // FNV-1a
        let seed = self.seed.bytes().chain(self.instance.bytes());
        for byte in seed.chain(number.to_le_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        (hash >> 16) % bound.max(1)
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }
}
