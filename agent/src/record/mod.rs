//! What the daemon has done: its last operations with the time of each of their phases, a stream of them, and the stories of
//! pods. An operation is one value that records itself when it is dropped; what becomes of it then (log, metrics, stream, story)
//! is decided here and nowhere else.
//!
//! Nobody waits here: who reads the stream too slowly misses some of it, and is told how many.

pub mod kept;
mod kind;
mod repeats;
pub mod spans;
mod stories;

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use enid_api::v1::{Operation, Phase};
use enid_ipamd::{AttachmentKey, CallError, Cause, PodRef, Refusal};
use prost::Message;
use tokio::sync::broadcast;

use self::{repeats::Repeats, spans::Spans, stories::Stories};
use crate::{clock, metrics::Counters};

pub use kind::{Kind, outcome};
pub use stories::{name_of, pod_of};

/// Operations that are kept.
const LAST: usize = 1_000;
/// What "lately" is for refused ADDs: runtimes ask again within seconds, and later and later.
const LATELY_MS: u64 = 120_000;
/// Operations that a reader of the stream may be behind.
const BEHIND: usize = 256;

/// All of it.
pub struct Record {
    state: Mutex<State>,
    stream: broadcast::Sender<Arc<Operation>>,
    counters: Arc<Counters>,
    /// Where traces go, if they go anywhere.
    spans: Option<Spans>,
}

struct State {
    next: u64,
    open: BTreeMap<u64, Operation>,
    /// Encoded: hardly any is ever read, and as a value one is four times as large.
    ended: VecDeque<Arc<[u8]>>,
    /// When ADDs were refused lately, milliseconds since 1970.
    refused: VecDeque<u64>,
    stories: Stories,
    repeats: Repeats,
}

impl Record {
    /// Nothing has been done; stories go on where an earlier run has left them.
    pub fn new(counters: Arc<Counters>, stories: Stories, spans: Option<Spans>) -> Arc<Self> {
        let state = State {
            next: 1,
            open: BTreeMap::new(),
            ended: VecDeque::with_capacity(LAST),
            refused: VecDeque::new(),
            stories,
            repeats: Repeats::default(),
        };
        Arc::new(Record { state: Mutex::new(state), stream: broadcast::channel(BEHIND).0, counters, spans })
    }

    /// An operation begins. It ends when what is returned is dropped; without an outcome, whoever asked has gone.
    pub fn begin(self: &Arc<Self>, kind: Kind, key: Option<&AttachmentKey>, pod: Option<&PodRef>) -> Begun {
        let mut operation = Operation {
            kind: kind.name().to_owned(),
            pod: pod.map(|pod| name_of(&pod.namespace, &pod.name)).unwrap_or_default(),
            container: key.map(|key| key.container.clone()).unwrap_or_default(),
            ifname: key.map(|key| key.ifname.clone()).unwrap_or_default(),
            began_unix_ms: clock::wall_ms(),
            ..Operation::default()
        };
        if let Some(spans) = &self.spans {
            spans.begin(kind, &mut operation);
        }
        let mut state = self.state();
        operation.number = state.next;
        state.next += 1;
        state.open.insert(operation.number, operation.clone());
        drop(state);
        let now = Instant::now();
        Begun { record: self.clone(), kind, operation, began: now, since: now }
    }

    /// Something that takes no time.
    pub fn note(self: &Arc<Self>, kind: Kind, pod: Option<&PodRef>, message: impl fmt::Display) {
        let mut noted = self.begin(kind, None, pod);
        noted.operation.message = message.to_string();
        noted.done();
    }

    /// The last operations, the oldest first, and then those that go on.
    pub fn operations(&self) -> Vec<Operation> {
        let (ended, open): (Vec<Arc<[u8]>>, Vec<Operation>) = {
            let state = self.state();
            (state.ended.iter().cloned().collect(), state.open.values().cloned().collect())
        };
        // Not while an ADD may wait for the lock.
        ended.iter().filter_map(|ended| Operation::decode(&**ended).ok()).chain(open).collect()
    }

    /// A pod's story: what has ended, and what goes on.
    pub fn story(&self, pod: &str) -> Vec<Operation> {
        let (ended, open): (Option<Vec<u8>>, Vec<Operation>) = {
            let state = self.state();
            let open = state.open.values().filter(|open| open.pod == pod && stories::is_told(open)).cloned();
            (state.stories.of(pod, clock::wall_ms()).map(<[u8]>::to_vec), open.collect())
        };
        // Not while an ADD may wait for the lock.
        ended.map(|ended| stories::decode(&ended)).unwrap_or_default().into_iter().chain(open).collect()
    }

    /// A DEL has come, whatever number of attachments it ends.
    pub fn del_requested(&self) {
        self.counters.del();
    }

    /// ADDs that were refused within the last two minutes.
    pub fn refused_lately(&self) -> usize {
        let since = clock::wall_ms().saturating_sub(LATELY_MS);
        let mut state = self.state();
        state.refused.retain(|at| *at >= since);
        state.refused.len()
    }

    /// Sends what is left of traces; it may take a while.
    pub fn end_traces(&self) {
        self.spans.iter().for_each(Spans::end);
    }

    /// Operations that end from now on.
    pub fn watch(&self) -> broadcast::Receiver<Arc<Operation>> {
        self.stream.subscribe()
    }

    fn ended(&self, kind: Kind, operation: Operation) {
        self.counters.ended(&operation);
        if let Some(spans) = &self.spans {
            spans.ended(kind, &operation);
        }
        let operation = Arc::new(operation);
        let mut state = self.state();
        state.open.remove(&operation.number);
        if state.ended.len() == LAST {
            state.ended.pop_front();
        }
        state.ended.push_back(operation.encode_to_vec().into());
        state.stories.take(&operation);
        if kind == Kind::Add && operation.outcome == outcome::REFUSED {
            let since = operation.began_unix_ms.saturating_sub(LATELY_MS);
            state.refused.retain(|at| *at >= since);
            state.refused.push_back(operation.began_unix_ms);
        }
        let line = state.repeats.take(&operation, Instant::now());
        drop(state);
        if let Some(line) = line {
            line.log(kind, &operation);
        }
        // Nobody listens, or somebody does.
        let _ = self.stream.send(operation);
    }

    /// Logs how often what was told once has happened since, if nobody has for a while.
    fn log_repeats(&self) {
        let repeated = self.state().repeats.due(Instant::now());
        repeated.into_iter().for_each(|repeated| repeated.log());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An operation that goes on.
pub struct Begun {
    record: Arc<Record>,
    kind: Kind,
    operation: Operation,
    began: Instant,
    /// When the phase that goes on began.
    since: Instant,
}

impl Begun {
    /// A phase has ended, and the next one begins.
    pub fn phase(&mut self, name: &'static str) {
        let now = Instant::now();
        let phase = Phase { name: name.to_owned(), took_us: micros(now - self.since) };
        self.operation.phases.push(phase);
        self.since = now;
        self.open(|open, now| open.phases.clone_from(&now.phases));
    }

    /// The pod that it is about, once that is known.
    pub fn of_pod(&mut self, pod: Option<&PodRef>) {
        self.operation.pod = pod.map(|pod| name_of(&pod.namespace, &pod.name)).unwrap_or_default();
        self.open(|open, now| open.pod.clone_from(&now.pod));
    }

    /// What it waits for: why it would be refused now. Once it has ended, what it has waited for.
    pub fn waits_for(&mut self, refusal: &Refusal) {
        let Operation { awaited_cause, awaited, .. } = &mut self.operation;
        (*awaited_cause, *awaited) = (refusal.cause.name().to_owned(), refusal.message.clone());
        self.open(|open, now| {
            open.awaited_cause.clone_from(&now.awaited_cause);
            open.awaited.clone_from(&now.awaited);
        });
    }

    /// What it is about beyond a pod.
    pub fn about(&mut self, subject: impl fmt::Display) {
        self.operation.subject = subject.to_string();
        self.open(|open, now| open.subject.clone_from(&now.subject));
    }

    /// What others see of it while it goes on.
    fn open(&self, change: impl FnOnce(&mut Operation, &Operation)) {
        if let Some(open) = self.record.state().open.get_mut(&self.operation.number) {
            change(open, &self.operation);
        }
    }

    /// It is part of the trace that the runtime names; of none, if the runtime does not record that one.
    pub fn follows(&mut self, traceparent: &str) {
        let Some((trace, parent, sampled)) = spans::named(traceparent).filter(|_| self.record.spans.is_some()) else {
            return;
        };
        let Operation { trace_id, parent_span_id, .. } = &mut self.operation;
        (*trace_id, *parent_span_id) =
            if sampled { (trace.to_string(), parent.to_string()) } else { Default::default() };
        self.open(|open, now| {
            open.trace_id.clone_from(&now.trace_id);
            open.parent_span_id.clone_from(&now.parent_span_id);
        });
    }

    /// It is part of the trace of the ADD that has waited longest for an address, if one waits.
    pub fn for_who_waits(&mut self) {
        if self.record.spans.is_none() {
            return;
        }
        let waits =
            |open: &&Operation| open.kind == Kind::Add.name() && open.phases.is_empty() && !open.trace_id.is_empty();
        let first = self.record.state().open.values().find(waits).cloned();
        if let Some(Operation { trace_id, span_id, .. }) = first {
            (self.operation.parent_span_id, self.operation.trace_id) = (span_id, trace_id);
            self.open(|open, now| {
                open.trace_id.clone_from(&now.trace_id);
                open.parent_span_id.clone_from(&now.parent_span_id);
            });
        }
    }

    /// The address that it is about, and its ENI.
    pub fn address(&mut self, address: impl fmt::Display, eni: impl fmt::Display) {
        (self.operation.address, self.operation.eni) = (address.to_string(), eni.to_string());
        self.open(|open, now| {
            open.address.clone_from(&now.address);
            open.eni.clone_from(&now.eni);
        });
    }

    /// The ENI that it is about.
    pub fn eni(&mut self, eni: impl fmt::Display) {
        self.operation.eni = eni.to_string();
    }

    /// How long it has taken so far.
    pub fn took(&self) -> Duration {
        self.began.elapsed()
    }

    /// It has ended as it should.
    pub fn done(mut self) {
        self.operation.outcome = outcome::DONE.to_owned();
    }

    /// It has ended as it should; it is recorded at once, though its value lives on.
    pub fn done_now(&mut self) {
        self.operation.outcome = outcome::DONE.to_owned();
        self.record_now();
    }

    /// It is recorded now, with what was said of its end.
    pub fn record_now(&mut self) {
        let mut operation = std::mem::take(&mut self.operation);
        // It has been recorded.
        if operation.number == 0 {
            return;
        }
        if operation.outcome.is_empty() {
            operation.outcome = outcome::GONE.to_owned();
        }
        operation.took_us = micros(self.began.elapsed());
        self.record.ended(self.kind, operation);
    }

    /// It has ended as it should, and there is something to say.
    pub fn done_with(mut self, message: impl fmt::Display) {
        self.operation.message = message.to_string();
        self.done();
    }

    /// It was refused.
    pub fn refused(&mut self, refusal: &Refusal) {
        let cause = refusal.cause.name();
        self.ended(outcome::REFUSED, cause, refusal.message.clone(), refusal.request_id.as_ref());
        // The next try, as far as it is the daemon's own.
        self.operation.retry_unix_ms = refusal.retry_after.map_or(0, |after| clock::wall_ms() + after);
    }

    /// EC2 has refused.
    pub fn refused_by_ec2(mut self, failure: &CallError) {
        let cause = failure.cause.name();
        self.ended(outcome::REFUSED, cause, failure.message.clone(), failure.request_id.as_ref());
    }

    /// It could not be done, for this cause.
    pub fn failed_for(&mut self, cause: Cause, message: impl fmt::Display) {
        self.ended(outcome::FAILED, cause.name(), message.to_string(), None);
    }

    /// It could not be done, and that is no cause of a refused ADD.
    pub fn failed(&mut self, message: impl fmt::Display) {
        self.ended(outcome::FAILED, "", message.to_string(), None);
    }

    /// A newer request, or a DEL, has taken its place.
    pub fn superseded(&mut self) {
        let cause = Cause::Superseded.name();
        self.ended(outcome::SUPERSEDED, cause, "a newer request for the pod, or its DEL, came in between".into(), None);
    }

    fn ended(&mut self, outcome: &str, cause: &str, message: String, request_id: Option<&String>) {
        let Operation { outcome: ended, cause: why, message: words, aws_request_id, .. } = &mut self.operation;
        (*ended, *why, *words) = (outcome.to_owned(), cause.to_owned(), message);
        *aws_request_id = request_id.cloned().unwrap_or_default();
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.record_now();
    }
}

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Arc<Record> {
        Record::new(Arc::new(Counters::new().unwrap()), Stories::default(), None)
    }

    fn pod(name: &str) -> PodRef {
        PodRef { namespace: "default".into(), name: name.into() }
    }

    #[test]
    fn an_operation_is_open_until_it_is_dropped() {
        let record = record();
        let mut add = record.begin(Kind::Add, None, Some(&pod("web")));
        add.phase("address");
        assert_eq!(record.operations()[0].outcome, "");
        add.refused(&Refusal::new(Cause::SubnetFull, "no"));
        drop(add);
        let ended = &record.operations()[0];
        assert_eq!((&*ended.outcome, &*ended.cause, &*ended.phases[0].name), ("refused", "subnet_full", "address"));
        drop(record.begin(Kind::Add, None, Some(&pod("web"))));
        assert_eq!(record.operations()[1].outcome, "gone");
    }

    #[test]
    fn only_the_last_are_kept() {
        let record = record();
        (0..LAST + 5).for_each(|_| record.note(Kind::Repair, None, "a rule"));
        let kept = record.operations();
        assert_eq!((kept.len(), kept[0].number), (LAST, 6));
    }

    /// The kind: a client that never reads holds up whoever sends.
    #[tokio::test]
    async fn who_does_not_read_misses_some_and_is_told_how_many() {
        let record = record();
        let mut slow = record.watch();
        (0..BEHIND + 7).for_each(|_| record.note(Kind::Repair, None, "a rule"));
        assert!(matches!(slow.recv().await, Err(broadcast::error::RecvError::Lagged(7))));
        assert_eq!(slow.recv().await.unwrap().number, 8);
    }
}
