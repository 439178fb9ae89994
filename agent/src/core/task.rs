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
use tracing::{debug, info, warn};

use crate::{
    aws::ec2::Ec2,
    clock::now,
    core::handle::{Answer, Found, Handle, Message},
    core::readiness::{Readiness, Rule},
    host::conntrack::{Forgetting, Offered},
    host::kernel::{Kernel, Steering, Wanted},
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
    vpc: Vec<Ipv4Net>,
    steering: Steering,
    elsewhere: runtime::Handle,
    receiver: mpsc::Receiver<Message>,
    handle: Handle,
    open: BTreeMap<Ticket, Caller>,
    forgetting: Forgetting,
    kernel: Kernel,
    applied: Wanted,
    /// The topology that `applied` was made from.
    carried: Option<u64>,
    /// Set while something is expected that only metadata or the kernel can show.
    hurry: watch::Sender<bool>,
    rule: Rule,
    ready: watch::Sender<Readiness>,
    /// When readiness may change by itself.
    look_again: Option<Millis>,
    /// What the store has refused so far, and in which words.
    unwritten: Vec<Write>,
    store_failure: Option<String>,
    /// What the kernel refused last: told once.
    kernel_failure: Option<String>,
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

impl Brain {
    /// The brain, a way to it, whether metadata should be read in a hurry, and readiness.
    pub fn new(parts: Parts) -> (Self, Handle, watch::Receiver<bool>, watch::Receiver<Readiness>) {
        let (sender, receiver) = mpsc::channel(1024);
        let (hurry, hurries) = watch::channel(true);
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
            core.hinder(Some(Refusal::new(Cause::Starting, "it is not known yet whether the host forwards")));
        }
        let brain = Brain {
            core,
            store,
            ec2,
            counters,
            vpc,
            steering,
            elsewhere,
            receiver,
            handle: handle.clone(),
            open: BTreeMap::new(),
            forgetting,
            kernel,
            applied: Wanted::default(),
            carried: None,
            hurry,
            rule: Rule::new(),
            ready,
            look_again: None,
            unwritten: Vec::new(),
            store_failure: None,
            kernel_failure: None,
        };
        (brain, handle, hurries, readiness)
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
            self.carry().await;
            self.publish();
            if self.receiver.is_closed() && self.receiver.is_empty() {
                break;
            }
        }
    }

    async fn wait(&mut self) -> Vec<Message> {
        let at = now();
        let due = self.core.next_due(at).map_or(PERIOD, |due| Duration::from_millis(due.since(at).max(1)));
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
                let gone = if let Event::Gone { ticket } = &event { self.open.remove(ticket) } else { None };
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
                view.obstacle = self.obstacle();
                drop(reply.send(view));
            }
            Message::KernelFailed(failure) => self.kernel_failed(failure),
            Message::Vpc(cidrs) if cidrs != self.vpc => {
                info!(?cidrs, "the VPC has other CIDRs");
                self.vpc = cidrs;
                self.carried = None;
            }
            Message::Vpc(_) => {}
            Message::Forwarding(dropped) => {
                self.core.hinder(dropped.map(|words| Refusal::new(Cause::ForwardDropped, words)));
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
            tokio::spawn(async move { handle.tell(Event::Gone { ticket }).await });
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
            tokio::spawn(async move { handle.tell(Event::Done { id, answer: Err(error) }).await });
        }
    }

    /// Makes the kernel carry the ENIs before their addresses are answered.
    async fn carry(&mut self) {
        let joining = self.joining();
        if joining.is_empty() && self.carried == Some(self.core.topology()) {
            return;
        }
        let topology = self.core.topology();
        let wanted = self.wanted();
        if (wanted == self.applied && joining.is_empty()) || self.core.carried().next().is_none() {
            self.carried = Some(topology);
            return;
        }
        let (kernel, attempt) = (self.kernel.clone(), wanted.clone());
        let done = tokio::task::spawn_blocking(move || kernel.apply(&attempt)).await;
        let answer = done.unwrap_or_else(|failure| Err(anyhow::anyhow!("the kernel's task ended: {failure}")));
        match answer {
            Ok(applied) => {
                self.kernel_failure = None;
                for change in &applied.changes {
                    debug!(kind = change.kind.name(), "kernel: {}", change.what);
                }
                if let Some(reason) = &applied.waits_for {
                    debug!(reason, "kernel waits");
                } else {
                    self.applied = wanted;
                    self.carried = Some(topology);
                }
                let up = joining.into_iter().filter(|(_, slot)| applied.slots.contains(slot));
                for (eni, slot) in up {
                    info!(%eni, slot, "ENI is up");
                    // It may serve those who wait.
                    let effects = self.core.step(now(), Event::EniUp { eni });
                    self.perform(effects).await;
                }
            }
            Err(failure) => self.kernel_failed(Some(format!("{failure:#}"))),
        }
    }

    fn kernel_failed(&mut self, failure: Option<String>) {
        if let Some(words) = failure.as_ref().filter(|_| self.kernel_failure != failure) {
            warn!("the kernel refused: {words}");
        }
        self.kernel_failure = failure;
    }

    fn find(&self, key: &AttachmentKey) -> Option<Found> {
        let lease = self.core.lease(key)?;
        // What is only on its way into the kernel is no fault there.
        let carries = self.applied != Wanted::default();
        let wanted = if carries { self.applied.clone() } else { self.wanted() };
        Some(Found { lease: lease.clone(), fault: self.core.fault_under(lease), wanted })
    }

    fn wanted(&self) -> Wanted {
        Wanted::new(&self.core, &self.vpc, &self.steering)
    }

    fn joining(&self) -> Vec<(enid_ipamd::EniId, u32)> {
        let joining = |(eni, slot): (&enid_ipamd::Eni, u32)| {
            (eni.state == enid_ipamd::EniState::Joining).then(|| (eni.facts.id.clone(), slot))
        };
        self.core.carried().filter_map(joining).collect()
    }

    fn act(&mut self, effect: Effect) {
        match effect {
            Effect::Record(_) | Effect::Offer { .. } => {}
            Effect::Refuse { ticket, refusal } => self.answer(ticket, Answer::Refused(self.in_full(refusal))),
            Effect::Verdict { ticket, mine } => {
                let offered = self.open.get(&ticket).and_then(|caller| caller.offered.as_ref()).filter(|_| mine);
                if !offered.is_some_and(|offered| self.forgetting.keeps(ticket, offered)) {
                    self.answer(ticket, Answer::Verdict(mine));
                }
            }
            Effect::Released { ticket, address } => self.answer(ticket, Answer::Released(address)),
            Effect::Forget { addresses } => self.forgetting.begin(addresses),
            Effect::Call { id, call, .. } => {
                let (ec2, handle, counters) = (self.ec2.clone(), self.handle.clone(), self.counters.clone());
                info!(action = call.action(), "EC2 call");
                self.elsewhere.spawn(async move {
                    let answer = ec2.call(&call).await;
                    counters.ec2(call.action(), answer.as_ref().err());
                    if let Err(failure) = &answer {
                        warn!(cause = %failure.cause, request_id = failure.request_id.as_deref(), "{}", failure.message);
                    }
                    handle.tell(Event::Done { id, answer }).await;
                });
            }
        }
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
        let of_core = || self.core.obstacle(now()).map(|refusal| self.in_full(refusal));
        self.store_failure.as_ref().map(of_store).or_else(of_core)
    }

    /// What is on its way for the core is so because the kernel refuses it, if it does.
    fn in_full(&self, refusal: Refusal) -> Refusal {
        let waits = matches!(refusal.cause, Cause::Starting | Cause::StillGrowing);
        self.kernel_failure.as_ref().filter(|_| waits).map_or(refusal, |words| refused_by_kernel(words))
    }

    fn publish(&mut self) {
        let expects = self.core.expects_imds() || !self.joining().is_empty();
        self.hurry.send_if_modified(|hurry| std::mem::replace(hurry, expects) != expects);
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
        let refused = self.kernel_failure.as_ref().filter(|_| self.core.counts().held > 0);
        self.core.risk().or_else(|| refused.map(|words| refused_by_kernel(words)))
    }
}

/// Whether the core has something left to order when this has been dealt with. Such messages are most of what a pod's
/// ADD consists of, and a step costs as much as the rest of it.
fn leaves_work(message: &Message) -> bool {
    !matches!(
        message,
        Message::Event(Event::Wired { .. } | Event::Gone { .. })
            | Message::Open(..)
            | Message::Lookup(..)
            | Message::View(_)
    )
}

fn refused_by_kernel(words: &str) -> Refusal {
    Refusal::new(Cause::KernelRefused, format!("the kernel refused: {words}"))
}
