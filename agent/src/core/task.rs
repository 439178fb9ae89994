//! The task that owns the core. Everything reaches it as a message; it steps the core, makes records
//! durable, and only then lets answers and EC2 calls go.
//!
//! What waits in the channel together is stepped together and committed once, so a burst of ADDs shares
//! one disk write. An offer alone goes ahead of the disk: the plugin wires while the lease is written,
//! and the verdict, without which it prints nothing, waits for the disk. EC2 calls and kernel work run
//! beside it and report back as events; a verdict also waits until connection tracking has forgotten the
//! address ([`crate::host::conntrack`]).

use std::{sync::Arc, time::Duration};

use enid_ipamd::{Action, AttachmentKey, CallError, Cause, Class, Core, Effect, Event, Fact, Millis, Refusal, Ticket};
use ipnet::Ipv4Net;
use tokio::{runtime, sync::mpsc, task::yield_now, time::timeout};
use tracing::{debug, warn};

use crate::{
    aws::ec2::Ec2,
    clock::now,
    core::carry::{Carrier, configuring},
    core::handle::{Answer, Forwarding, Found, Handle, Message},
    core::journal::Journal,
    core::published::{Awaited, Published, Publisher},
    core::readiness::Readiness,
    core::recorded::RecordedCore,
    core::requests::Requests,
    host::conntrack::{Forgetting, Offered},
    host::kernel::{Kernel, Steering},
    metrics::{self, Counters},
    record::{self, Record},
    store::Store,
};

/// Messages stepped together.
const BATCH: usize = 256;
/// The core is stepped at least this often.
const PERIOD: Duration = Duration::from_secs(5);

/// The task, before it runs.
pub struct CoreTask {
    core: RecordedCore,
    journal: Journal,
    ec2: Ec2,
    counters: Arc<Counters>,
    record: Arc<Record>,
    carrier: Carrier,
    background: runtime::Handle,
    receiver: mpsc::Receiver<Message>,
    handle: Handle,
    requests: Requests,
    forgetting: Forgetting,
    forwarding: Forwarding,
    /// Why pods cannot start for want of files on the host.
    files: Option<Refusal>,
    /// What is wrong with the host's own network.
    host: Option<Refusal>,
    publisher: Publisher,
}

/// What the task is made of.
pub struct Parts {
    /// The state machine, with what the store remembers.
    pub core: Core,
    /// The open store.
    pub store: Arc<Store>,
    /// EC2 on behalf of this instance.
    pub ec2: Ec2,
    /// What `/metrics` counts.
    pub counters: Arc<Counters>,
    /// What is done.
    pub record: Arc<Record>,
    /// The VPC's CIDRs.
    pub vpc: Vec<Ipv4Net>,
    /// What the settings say of ENIs and of pods' packets.
    pub steering: Steering,
    /// What carries the ENIs.
    pub kernel: Kernel,
    /// Whether somebody will tell if the host forwards between pods.
    pub probes: bool,
    /// Whether an earlier run of this boot could give an address.
    pub served: bool,
    /// Where work runs that no pod waits for by the microsecond.
    pub background: runtime::Handle,
}

impl CoreTask {
    /// The task, a way to it, and what it publishes.
    pub fn new(parts: Parts) -> (Self, Handle, Published) {
        let (sender, receiver) = mpsc::channel(1024);
        let Parts { core, store, ec2, counters, record, vpc, steering, kernel, probes, served, background } = parts;
        let families = steering.policy.families().into();
        let handle = Handle::new(sender, families);
        let reports = handle.clone();
        let forgetting = Forgetting::start(&background, move |addresses| {
            let reports = reports.clone();
            async move { reports.forgotten(addresses).await }
        });
        let unknown = Refusal::new(Cause::Starting, "it is not known yet whether the host forwards");
        let forwarding = Forwarding { dropped: probes.then_some(unknown), ..Forwarding::default() };
        let mut core = RecordedCore::new(core);
        // Before anything has been looked at nothing follows from it.
        core.step_and_plan(now(), Event::Blocked { blocked: forwarding.dropped.clone() });
        let (publisher, published) = Publisher::new(served, record.clone());
        let task = CoreTask {
            core,
            journal: Journal::new(store),
            ec2,
            counters,
            record,
            carrier: Carrier::new(kernel, steering, vpc),
            background,
            receiver,
            handle: handle.clone(),
            requests: Requests::default(),
            forgetting,
            forwarding,
            files: None,
            host: None,
            publisher,
        };
        (task, handle, published)
    }

    /// Runs until every handle has gone, which is when the daemon ends.
    pub async fn run(mut self) {
        loop {
            let due = self.core.next_due(now());
            let messages = self.wait(due).await;
            let mut effects = Vec::new();
            let is_due = due.is_some_and(|due| due <= now());
            let tick = is_due || messages.is_empty() || messages.iter().any(leaves_work);
            for message in messages {
                self.take(message, &mut effects);
            }
            if tick {
                // The batch is complete: what it needs is ordered together.
                self.step(Event::Tick, &mut effects);
            }
            self.perform(effects).await;
            self.carry();
            self.publish();
            if self.receiver.is_closed() && self.receiver.is_empty() {
                break;
            }
        }
    }

    /// Waits for messages, and no longer than until the core's next step is `due`, or something else is.
    async fn wait(&mut self, due: Option<Millis>) -> Vec<Message> {
        let at = now();
        let due = due.map_or(PERIOD, |due| Duration::from_millis(due.since(at).max(1)));
        let due = self.carrier.due(at).map_or(due, |again| due.min(Duration::from_millis(again.since(at).max(1))));
        let again = self.publisher.look_again();
        let due = again.map_or(due, |again| due.min(Duration::from_millis(again.since(at).max(1))));
        // A link that has not shown up yet is looked for soon.
        let due = if self.publisher.looks_soon() { due.min(Duration::from_millis(100)) } else { due };
        let mut messages = Vec::new();
        let _ = timeout(due, self.receiver.recv_many(&mut messages, BATCH)).await;
        messages
    }

    /// Steps the core, and logs what its plan does and why.
    fn step(&mut self, event: Event, effects: &mut Vec<Effect>) {
        let (made, plan) = self.core.step_and_plan(now(), event);
        for Action { step, reason } in &plan.actions {
            debug!("plan: {step}: {reason}");
        }
        effects.extend(made);
    }

    fn take(&mut self, message: Message, effects: &mut Vec<Effect>) {
        match message {
            Message::Event(event) => {
                let is_over = match &event {
                    Event::Closed { ticket } => self.requests.close(*ticket),
                    // Its lease could not be written down, and ends when the connection closes.
                    Event::Wired { ticket, .. } => self.requests.is_refused(*ticket),
                    _ => false,
                };
                if !is_over {
                    self.step(event, effects);
                }
            }
            Message::Open(ticket, answers) => self.requests.open(ticket, answers),
            Message::Lookup(key, reply) => drop(reply.send(self.find(&key))),
            Message::View(reply) => {
                let mut view = self.core.view(now());
                view.blocked = self.blocked();
                drop(reply.send(view));
            }
            Message::Recording(reply) => drop(reply.send(self.core.taken(now()))),
            Message::Wanted(reply) => drop(reply.send(self.carrier.carried(&self.core))),
            Message::KernelFailed(failure) => self.carrier.failed(failure),
            Message::Carried(attempt) => {
                let up = self.carrier.end(*attempt, now());
                // It may serve those who wait.
                up.into_iter().for_each(|eni| self.step(Event::EniConfigured { eni }, effects));
            }
            Message::Vpc(cidrs) => self.carrier.set_vpc(cidrs),
            Message::Forwarding(seen) => {
                self.forwarding = seen;
                self.set_blocked(effects);
            }
            Message::Files(missing) => {
                self.files = missing;
                self.set_blocked(effects);
            }
            Message::Host(fault) => self.host = fault,
            Message::Forgotten(addresses) => {
                for (ticket, (key, offered)) in self.forgetting.end(&addresses) {
                    // A DEL may have come in between.
                    let mine = self.core.lease(&key).is_some_and(|lease| lease.addresses().eq(offered));
                    self.requests.answer(ticket, Answer::Verdict(mine));
                }
            }
        }
    }

    /// What keeps new pods out, whatever the core has to give.
    fn set_blocked(&mut self, effects: &mut Vec<Effect>) {
        let blocked = self.forwarding.dropped.clone().or(self.files.clone());
        self.step(Event::Blocked { blocked }, effects);
    }

    /// Carries a batch of effects out: offers, then the disk, then all the rest.
    async fn perform(&mut self, effects: Vec<Effect>) {
        let mut writes = Vec::new();
        let mut offered = Vec::new();
        let mut others = Vec::new();
        for effect in effects {
            match effect {
                Effect::Record(write) => writes.push(write),
                Effect::Offer { ticket, key, lease } => {
                    offered.push(ticket);
                    self.requests.offer(ticket, key, lease);
                }
                other => others.push(other),
            }
        }
        if !offered.is_empty() {
            // The offers' packets leave before the disk's thread wakes up: on a busy node it would run first, on the very
            // processor that the plugin waits for.
            yield_now().await;
        }
        match self.journal.write(writes).await {
            Ok(()) => others.into_iter().for_each(|effect| self.act(effect)),
            Err(failure) => self.give_up(&format!("{failure:#}"), offered, others),
        }
    }

    /// The disk refused: whoever was offered an address hears that it is not theirs, and no call goes out.
    fn give_up(&mut self, failure: &str, offered: Vec<Ticket>, effects: Vec<Effect>) {
        warn!(failure, "the store cannot be written: requests are refused");
        self.counters.failed(metrics::STORE);
        for ticket in offered {
            self.requests.answer(ticket, Answer::Refused(store_failed(failure)));
            let handle = self.handle.clone();
            tokio::spawn(async move { handle.tell(Event::Closed { ticket }).await });
        }
        for effect in effects {
            let Effect::Call { id, call, .. } = effect else {
                self.act(effect);
                continue;
            };
            warn!(action = call.action(), "not sent, since it could not be written down");
            let message = format!("{} was not sent: the store cannot be written: {failure}", call.action());
            let error = CallError { cause: Cause::StoreFailed, message, request_id: None, fact: Fact::None };
            let handle = self.handle.clone();
            tokio::spawn(async move { handle.tell(Event::Answered { id, answer: Err(error) }).await });
        }
    }

    /// Has the kernel carry the ENIs, if it does not. Verdicts that waited for it go out.
    fn carry(&mut self) {
        if let Some(attempt) = self.carrier.start(&self.core, now()) {
            let handle = self.handle.clone();
            self.background.spawn(async move {
                handle.carried(attempt.await).await;
            });
        }
        for ticket in self.carrier.ready() {
            self.verdict_after_wait(ticket);
        }
    }

    fn find(&self, key: &AttachmentKey) -> Option<Found> {
        let lease = self.core.lease(key)?;
        let wanted = self.carrier.carried(&self.core);
        Some(Found { lease: lease.clone(), fault: self.core.lease_fault(lease), wanted })
    }

    fn act(&mut self, effect: Effect) {
        match effect {
            Effect::Record(_) | Effect::Offer { .. } => {}
            Effect::Refuse { ticket, refusal } => self.requests.answer(ticket, Answer::Refused(self.in_full(refusal))),
            Effect::Verdict { ticket, mine } => self.verdict(ticket, mine),
            Effect::Released { ticket, address } => self.requests.answer(ticket, Answer::Released(address)),
            Effect::ForgetConnections { addresses } => self.forgetting.begin(addresses),
            Effect::Call { id, call, class } => {
                let (ec2, handle, counters) = (self.ec2.clone(), self.handle.clone(), self.counters.clone());
                let mut begun = self.record.begin(record::Kind::Ec2, None, None);
                begun.about(call.action());
                if class == Class::PodWaits {
                    begun.for_who_waits();
                }
                call.eni().into_iter().for_each(|eni| begun.eni(eni));
                self.background.spawn(async move {
                    let answer = ec2.call(&call).await;
                    counters.ec2(call.action(), class.name(), begun.took(), answer.as_ref().err());
                    match &answer {
                        Ok(_) => begun.done(),
                        Err(failure) => begun.refused_by_ec2(failure),
                    }
                    handle.tell(Event::Answered { id, answer }).await;
                });
            }
        }
    }

    /// Answers with a verdict, unless the kernel or connection tracking is not ready for the address yet.
    fn verdict(&mut self, ticket: Ticket, mine: bool) {
        if !(mine && self.carrier.keeps(ticket, self.core.topology())) {
            self.verdict_once_forgotten(ticket, mine);
        }
    }

    fn verdict_once_forgotten(&mut self, ticket: Ticket, mine: bool) {
        let offered = self.requests.offered(ticket).filter(|_| mine);
        if !offered.is_some_and(|offered| self.forgetting.keeps(ticket, offered)) {
            self.requests.answer(ticket, Answer::Verdict(mine));
        }
    }

    fn verdict_after_wait(&mut self, ticket: Ticket) {
        let offered = self.requests.offered(ticket);
        // A DEL may have come in between.
        let is_lease = |(key, offered): &Offered| {
            self.core.lease(key).is_some_and(|lease| lease.addresses().eq(offered.iter().copied()))
        };
        let mine = offered.is_some_and(is_lease);
        self.verdict_once_forgotten(ticket, mine);
    }

    /// Why an ADD would fail now.
    fn blocked(&self) -> Option<Refusal> {
        let of_core = || self.core.blocked(now()).map(|refusal| self.in_full(refusal));
        self.journal.failure().map(store_failed).or_else(of_core)
    }

    /// What is on its way for the core is so because the kernel refuses it, if it does.
    fn in_full(&self, refusal: Refusal) -> Refusal {
        let waits = matches!(refusal.cause, Cause::Starting | Cause::StillGrowing);
        self.carrier.failure().filter(|_| waits).map_or(refusal, refused_by_kernel)
    }

    fn publish(&mut self) {
        let metadata = Awaited {
            soon: self.core.awaits_metadata(),
            enis: self.core.awaited_blocks().map(|(eni, kinds)| (eni.clone(), kinds)).collect(),
            groups: self.core.awaits_groups(),
        };
        self.publisher.awaits(metadata, !configuring(&self.core).is_empty(), self.core.awaits_listing());
        let Forwarding { dropped, is_outage } = &self.forwarding;
        let outage = dropped.clone().filter(|_| *is_outage);
        let seen = Readiness {
            obstacle: self.blocked(),
            risk: self.risk(),
            source: self.core.unreadable(now()),
            host: self.host.clone(),
            outage,
            rights: self.core.denied(now()).cloned(),
            ..Readiness::default()
        };
        self.publisher.readiness(now(), seen);
    }

    /// Why pods that run may have no network.
    fn risk(&self) -> Option<Refusal> {
        let refused = self.carrier.failure().filter(|_| self.core.counts().assigned > 0);
        self.core.pods_at_risk().or_else(|| refused.map(refused_by_kernel))
    }
}

/// Whether the core has something left to order when this has been dealt with. Such messages are most of what a pod's
/// ADD consists of, and a step costs as much as the rest of it.
fn leaves_work(message: &Message) -> bool {
    !matches!(
        message,
        Message::Event(Event::Wired { .. } | Event::Closed { .. })
            | Message::Open(..)
            | Message::Lookup(..)
            | Message::View(_)
            | Message::Wanted(_)
    )
}

fn store_failed(words: &str) -> Refusal {
    Refusal::new(Cause::StoreFailed, format!("the store cannot be written: {words}"))
}

fn refused_by_kernel(words: &str) -> Refusal {
    Refusal::new(Cause::KernelRefused, format!("the kernel refused: {words}"))
}
