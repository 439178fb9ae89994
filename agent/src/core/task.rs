//! The task that owns the core. Everything reaches it as a message; it steps the core, makes records
//! durable, and only then lets answers and EC2 calls go.
//!
//! What waits in the channel together is stepped together and committed once, so a burst of ADDs shares
//! one disk write. An offer alone goes ahead of the disk: the plugin wires while the lease is written,
//! and the verdict, without which it prints nothing, waits for the disk. EC2 calls and kernel work run
//! beside it and report back as events; a verdict also waits until connection tracking has forgotten the
//! address ([`crate::host::conntrack`]).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use enid_ipamd::{AttachmentKey, CallError, Cause, Core, Effect, Event, Millis, Refusal, Ticket, Write};
use ipnet::Ipv4Net;
use tokio::{
    runtime,
    sync::{mpsc, watch},
    time::timeout,
};
use tracing::{info, warn};

use crate::{
    aws::ec2::Ec2,
    clock::now,
    core::carry::{Carrier, configuring},
    core::handle::{Answer, Found, Handle, Message},
    core::readiness::{Readiness, Rule},
    host::conntrack::{Forgetting, Offered},
    host::kernel::{Kernel, Steering},
    metrics::Counters,
    store::Store,
};

/// Messages stepped together.
const BATCH: usize = 256;
/// The core is stepped at least this often.
const PERIOD: Duration = Duration::from_secs(5);

/// Who has an open request.
struct Caller {
    answers: mpsc::UnboundedSender<Answer>,
    offered: Option<Offered>,
    /// It has its last answer: that it goes then is no news to the core.
    answered: bool,
}

/// The brain before it runs.
pub struct Brain {
    core: Core,
    store: Arc<Store>,
    ec2: Ec2,
    counters: Arc<Counters>,
    carrier: Carrier,
    elsewhere: runtime::Handle,
    receiver: mpsc::Receiver<Message>,
    handle: Handle,
    open: BTreeMap<Ticket, Caller>,
    forgetting: Forgetting,
    /// Set while something is expected that only metadata or the kernel can show.
    hurry: watch::Sender<bool>,
    /// Set while a listing of the kernel's links is waited for.
    listing: watch::Sender<bool>,
    rule: Rule,
    ready: watch::Sender<Readiness>,
    /// When readiness may change by itself.
    look_again: Option<Millis>,
    /// What the store has refused so far, and in which words.
    unwritten: Vec<Write>,
    store_failure: Option<String>,
}

/// What the brain is made of.
pub struct Parts {
    /// The state machine, with what the store remembers.
    pub core: Core,
    /// The open store.
    pub store: Arc<Store>,
    /// EC2 on behalf of this instance.
    pub ec2: Ec2,
    /// What `/metrics` counts.
    pub counters: Arc<Counters>,
    /// The VPC's CIDRs.
    pub vpc: Vec<Ipv4Net>,
    /// What the settings say of ENIs and of pods' packets.
    pub steering: Steering,
    /// What carries the ENIs.
    pub kernel: Kernel,
    /// Whether somebody will tell if the host forwards between pods.
    pub probes: bool,
    /// Where work runs that no pod waits for by the microsecond.
    pub elsewhere: runtime::Handle,
}

/// What the brain publishes.
pub struct Published {
    /// Whether metadata should be read in a hurry.
    pub hurries: watch::Receiver<bool>,
    /// Whether a listing of the kernel's links is waited for.
    pub awaits_listing: watch::Receiver<bool>,
    /// Whether pods can be served.
    pub readiness: watch::Receiver<Readiness>,
}

impl Brain {
    /// The brain, a way to it, and what it publishes.
    pub fn new(parts: Parts) -> (Self, Handle, Published) {
        let (sender, receiver) = mpsc::channel(1024);
        let (hurry, hurries) = watch::channel(true);
        let (listing, awaits_listing) = watch::channel(true);
        let (ready, readiness) = watch::channel(Readiness::starting());
        let Parts { mut core, store, ec2, counters, vpc, steering, kernel, probes, elsewhere } = parts;
        let families = steering.policy.families().into();
        let handle = Handle::new(sender, families);
        let told = handle.clone();
        let forgetting = Forgetting::start(&elsewhere, move |addresses| {
            let told = told.clone();
            async move { drop(told.sender.send(Message::Forgotten(addresses)).await) }
        });
        if probes {
            core.set_blocked(Some(Refusal::new(Cause::Starting, "it is not known yet whether the host forwards")));
        }
        let brain = Brain {
            core,
            store,
            ec2,
            counters,
            carrier: Carrier::new(kernel, steering, vpc),
            elsewhere,
            receiver,
            handle: handle.clone(),
            open: BTreeMap::new(),
            forgetting,
            hurry,
            listing,
            rule: Rule::new(),
            ready,
            look_again: None,
            unwritten: Vec::new(),
            store_failure: None,
        };
        (brain, handle, Published { hurries, awaits_listing, readiness })
    }

    /// Runs until every handle has gone, which is when the daemon ends.
    pub async fn run(mut self) {
        loop {
            let messages = self.wait().await;
            let mut effects = Vec::new();
            let tick = messages.is_empty() || messages.iter().any(leaves_work);
            for message in messages {
                self.take(message, &mut effects);
            }
            if tick {
                // The batch is complete: what it needs is ordered together.
                effects.extend(self.core.step(now(), Event::Tick));
            }
            self.perform(effects).await;
            self.carry();
            self.publish();
            if self.receiver.is_closed() && self.receiver.is_empty() {
                break;
            }
        }
    }

    async fn wait(&mut self) -> Vec<Message> {
        let at = now();
        let due = self.core.next_due(at).map_or(PERIOD, |due| Duration::from_millis(due.since(at).max(1)));
        let due = self.carrier.due(at).map_or(due, |again| due.min(Duration::from_millis(again.since(at).max(1))));
        // A link that has not shown up yet is looked for soon.
        let due = self.look_again.map_or(due, |again| due.min(Duration::from_millis(again.since(at).max(1))));
        let due = if *self.hurry.borrow() { due.min(Duration::from_millis(100)) } else { due };
        let mut messages = Vec::new();
        let _ = timeout(due, self.receiver.recv_many(&mut messages, BATCH)).await;
        messages
    }

    fn take(&mut self, message: Message, effects: &mut Vec<Effect>) {
        match message {
            Message::Event(event) => {
                let gone = if let Event::Closed { ticket } = &event { self.open.remove(ticket) } else { None };
                if !gone.is_some_and(|caller| caller.answered) {
                    effects.extend(self.core.step(now(), event));
                }
            }
            Message::Open(ticket, answers) => {
                self.open.insert(ticket, Caller { answers, offered: None, answered: false });
            }
            Message::Lookup(key, reply) => drop(reply.send(self.find(&key))),
            Message::View(reply) => {
                let mut view = self.core.view(now());
                view.blocked = self.obstacle();
                drop(reply.send(view));
            }
            Message::KernelFailed(failure) => self.carrier.failed(failure),
            Message::Carried(attempt) => {
                let (up, waited) = self.carrier.end(*attempt, now());
                waited.into_iter().for_each(|ticket| self.verdict_after_wait(ticket));
                // It may serve those who wait.
                up.into_iter().for_each(|eni| effects.extend(self.core.step(now(), Event::EniConfigured { eni })));
            }
            Message::Vpc(cidrs) => self.carrier.set_vpc(cidrs),
            Message::Forwarding(dropped) => {
                self.core.set_blocked(dropped.map(|words| Refusal::new(Cause::ForwardDropped, words)));
            }
            Message::Forgotten(addresses) => {
                for (ticket, (key, offered)) in self.forgetting.end(&addresses) {
                    // A DEL may have come in between.
                    let mine = self.core.lease(&key).is_some_and(|lease| lease.addresses().eq(offered));
                    self.answer(ticket, Answer::Verdict(mine));
                }
            }
        }
    }

    /// Carries a batch of effects out: offers, then the disk, then all the rest.
    async fn perform(&mut self, effects: Vec<Effect>) {
        let mut writes = Vec::new();
        let mut offered = Vec::new();
        let mut rest = Vec::new();
        for effect in effects {
            match effect {
                Effect::Record(write) => writes.push(write),
                Effect::Offer { ticket, key, lease } => {
                    offered.push(ticket);
                    if let Some(caller) = self.open.get_mut(&ticket) {
                        caller.offered = Some((key, lease.addresses().collect()));
                    }
                    self.answer(ticket, Answer::Offer(lease));
                }
                other => rest.push(other),
            }
        }
        match self.write(writes).await {
            Ok(()) => rest.into_iter().for_each(|effect| self.act(effect)),
            Err(failure) => self.give_up(&format!("{failure:#}"), offered, rest),
        }
    }

    /// Makes records durable, those first that could not be written before.
    async fn write(&mut self, writes: Vec<Write>) -> anyhow::Result<()> {
        self.unwritten.extend(writes);
        if self.unwritten.is_empty() {
            return Ok(());
        }
        let store = self.store.clone();
        let writes = std::mem::take(&mut self.unwritten);
        let (writes, written) = tokio::task::spawn_blocking(move || {
            let written = store.write(&writes);
            (writes, written)
        })
        .await?;
        match &written {
            Ok(()) => self.store_failure = None,
            Err(failure) => {
                self.unwritten = writes;
                self.store_failure = Some(format!("{failure:#}"));
            }
        }
        written
    }

    /// The disk refused: whoever was offered an address hears that it is not theirs, and no call goes out.
    fn give_up(&mut self, failure: &str, offered: Vec<Ticket>, effects: Vec<Effect>) {
        warn!(failure, "the store cannot be written: requests are refused");
        for ticket in offered {
            let refusal = Refusal::new(Cause::Internal, format!("the store cannot be written: {failure}"));
            self.answer(ticket, Answer::Refused(refusal));
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
            let error = CallError { cause: Cause::Internal, message, request_id: None, not_found: false };
            let handle = self.handle.clone();
            tokio::spawn(async move { handle.tell(Event::Answered { id, answer: Err(error) }).await });
        }
    }

    /// Has the kernel carry the ENIs, if it does not.
    fn carry(&mut self) {
        if let Some(attempt) = self.carrier.start(&self.core, now()) {
            let handle = self.handle.clone();
            // A closed channel means that the daemon is ending.
            self.elsewhere.spawn(async move {
                drop(handle.sender.send(Message::Carried(Box::new(attempt.await))).await);
            });
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
            Effect::Refuse { ticket, refusal } => self.answer(ticket, Answer::Refused(self.in_full(refusal))),
            Effect::Verdict { ticket, mine } => self.verdict(ticket, mine),
            Effect::Released { ticket, address } => self.answer(ticket, Answer::Released(address)),
            Effect::ForgetConnections { addresses } => self.forgetting.begin(addresses),
            Effect::Call { id, call, .. } => {
                let (ec2, handle, counters) = (self.ec2.clone(), self.handle.clone(), self.counters.clone());
                info!(action = call.action(), "EC2 call");
                self.elsewhere.spawn(async move {
                    let answer = ec2.call(&call).await;
                    counters.ec2(call.action(), answer.as_ref().err());
                    if let Err(failure) = &answer {
                        warn!(cause = %failure.cause, request_id = failure.request_id.as_deref(), "{}", failure.message);
                    }
                    handle.tell(Event::Answered { id, answer }).await;
                });
            }
        }
    }

    /// Answers with a verdict, unless the kernel or connection tracking is not ready for the address yet.
    fn verdict(&mut self, ticket: Ticket, mine: bool) {
        if mine && self.carrier.keeps(ticket) {
            return;
        }
        let offered = self.open.get(&ticket).and_then(|caller| caller.offered.as_ref()).filter(|_| mine);
        if !offered.is_some_and(|offered| self.forgetting.keeps(ticket, offered)) {
            self.answer(ticket, Answer::Verdict(mine));
        }
    }

    fn verdict_after_wait(&mut self, ticket: Ticket) {
        let offered = self.open.get(&ticket).and_then(|caller| caller.offered.as_ref());
        // A DEL may have come in between.
        let is_lease = |(key, offered): &Offered| {
            self.core.lease(key).is_some_and(|lease| lease.addresses().eq(offered.iter().copied()))
        };
        let mine = offered.is_some_and(is_lease);
        self.verdict(ticket, mine);
    }

    fn answer(&mut self, ticket: Ticket, answer: Answer) {
        if let Some(caller) = self.open.get_mut(&ticket) {
            caller.answered = matches!(answer, Answer::Verdict(true) | Answer::Released(_));
            let _ = caller.answers.send(answer);
        }
    }

    /// Why an ADD would fail now.
    fn obstacle(&self) -> Option<Refusal> {
        let of_store =
            |failure: &String| Refusal::new(Cause::Internal, format!("the store cannot be written: {failure}"));
        let of_core = || self.core.blocked(now()).map(|refusal| self.in_full(refusal));
        self.store_failure.as_ref().map(of_store).or_else(of_core)
    }

    /// What is on its way for the core is so because the kernel refuses it, if it does.
    fn in_full(&self, refusal: Refusal) -> Refusal {
        let waits = matches!(refusal.cause, Cause::Starting | Cause::StillGrowing);
        self.carrier.failure().filter(|_| waits).map_or(refusal, refused_by_kernel)
    }

    fn publish(&mut self) {
        let expects = self.core.awaits_metadata() || !configuring(&self.core).is_empty();
        self.hurry.send_if_modified(|hurry| std::mem::replace(hurry, expects) != expects);
        let awaits = self.core.awaits_listing();
        self.listing.send_if_modified(|listing| std::mem::replace(listing, awaits) != awaits);
        let seen = Readiness { obstacle: self.obstacle(), risk: self.risk() };
        let (said, look_again) = self.rule.look(now(), seen);
        self.look_again = look_again;
        let said = said.clone();
        self.ready.send_if_modified(|known| {
            let changed = known.causes() != said.causes();
            *known = said;
            if changed {
                known.log();
            }
            changed
        });
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
    )
}

fn refused_by_kernel(words: &str) -> Refusal {
    Refusal::new(Cause::KernelRefused, format!("the kernel refused: {words}"))
}
