//! A way to the core's task, for everything else in the daemon: what can be asked and reported, and an open request.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use enid_datapath::Family;
use enid_ipamd::{AttachmentKey, Event, Lease, PodRef, Refusal, Ticket, View};
use ipnet::Ipv4Net;
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    oneshot,
};

use crate::{
    core::{carry::Attempt, recorded::Taken},
    host::kernel::Wanted,
};

/// What a request hears.
#[derive(Debug)]
pub enum Answer {
    /// An address.
    Offer(Lease),
    /// No.
    Refused(Refusal),
    /// Whether the attachment is still its own.
    Verdict(bool),
    /// What was released.
    Released(Option<IpAddr>),
}

/// What reaches the core's task.
pub enum Message {
    Event(Event),
    Open(Ticket, mpsc::UnboundedSender<Answer>),
    Lookup(AttachmentKey, oneshot::Sender<Option<Found>>),
    View(oneshot::Sender<View>),
    Wanted(oneshot::Sender<Wanted>),
    Recording(oneshot::Sender<Taken>),
    Forgotten(Vec<IpAddr>),
    KernelFailed(Option<String>),
    Carried(Box<Attempt>),
    Vpc(Vec<Ipv4Net>),
    Forwarding(Forwarding),
    Files(Option<Refusal>),
    Host(Option<Refusal>),
}

/// What probes say of packets between pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarding {
    /// Why those of a family do not pass, or are not known to.
    pub dropped: Option<Refusal>,
    /// None of any family pass, and that has lasted.
    pub is_outage: bool,
}

/// What CHECK compares with.
pub struct Found {
    /// The attachment's lease.
    pub lease: Lease,
    /// What is wrong with what carries it.
    pub fault: Option<String>,
    /// What host and table should carry for all leases.
    pub wanted: Wanted,
}

/// A way to the core's task.
#[derive(Clone)]
pub struct Handle {
    sender: mpsc::Sender<Message>,
    tickets: Arc<AtomicU64>,
    /// Those that pods' routes are of.
    pub families: Arc<[Family]>,
}

/// One open request; dropping it tells the core's task that the caller has gone.
pub struct Request {
    handle: Handle,
    ticket: Ticket,
    answers: mpsc::UnboundedReceiver<Answer>,
}

impl Handle {
    /// A way to whoever reads these messages; pods' routes are of these families.
    pub fn new(sender: mpsc::Sender<Message>, families: Arc<[Family]>) -> Self {
        Handle { sender, tickets: Arc::new(AtomicU64::new(1)), families }
    }

    /// Opens a request.
    pub async fn open(&self) -> Option<Request> {
        let ticket = Ticket(self.tickets.fetch_add(1, Ordering::Relaxed));
        let (sender, answers) = mpsc::unbounded_channel();
        self.sender.send(Message::Open(ticket, sender)).await.ok()?;
        Some(Request { handle: self.clone(), ticket, answers })
    }

    /// Tells the core's task that something happened.
    pub async fn tell(&self, event: Event) {
        // A closed channel means that the daemon is ending.
        let _ = self.sender.send(Message::Event(event)).await;
    }

    /// What the kernel refused to restore, if anything.
    pub async fn kernel_failed(&self, failure: Option<String>) {
        let _ = self.sender.send(Message::KernelFailed(failure)).await;
    }

    /// An attempt to have the kernel carry the ENIs has ended.
    pub async fn carried(&self, attempt: Attempt) {
        let _ = self.sender.send(Message::Carried(Box::new(attempt))).await;
    }

    /// Connection tracking has forgotten these addresses.
    pub async fn forgotten(&self, addresses: Vec<IpAddr>) {
        let _ = self.sender.send(Message::Forgotten(addresses)).await;
    }

    /// What probes say of packets between pods.
    pub async fn forwarding(&self, seen: Forwarding) {
        let _ = self.sender.send(Message::Forwarding(seen)).await;
    }

    /// Why pods cannot start for want of files on the host, if they cannot.
    pub async fn files(&self, missing: Option<Refusal>) {
        let _ = self.sender.send(Message::Files(missing)).await;
    }

    /// What is wrong with the host's own network, if something is.
    pub async fn host(&self, fault: Option<Refusal>) {
        let _ = self.sender.send(Message::Host(fault)).await;
    }

    /// The VPC's CIDRs, as metadata shows them now.
    pub async fn vpc(&self, cidrs: Vec<Ipv4Net>) {
        let _ = self.sender.send(Message::Vpc(cidrs)).await;
    }

    /// What is known of an attachment; the outer `None` when the daemon is ending.
    pub async fn lookup(&self, key: AttachmentKey) -> Option<Option<Found>> {
        let (sender, answer) = oneshot::channel();
        self.sender.send(Message::Lookup(key, sender)).await.ok()?;
        answer.await.ok()
    }

    /// Network cards that pods may have interfaces on, beside the first.
    pub async fn further_cards(&self) -> Option<Vec<u32>> {
        Some(self.view().await?.capacity.cards.into_iter().filter(|card| *card > 0).collect())
    }

    /// What host and table should carry.
    pub async fn wanted(&self) -> Option<Wanted> {
        let (sender, answer) = oneshot::channel();
        self.sender.send(Message::Wanted(sender)).await.ok()?;
        answer.await.ok()
    }

    /// What the core has taken lately.
    pub async fn recording(&self) -> Option<Taken> {
        let (sender, answer) = oneshot::channel();
        self.sender.send(Message::Recording(sender)).await.ok()?;
        answer.await.ok()
    }

    /// The state at this moment.
    pub async fn view(&self) -> Option<View> {
        let (sender, answer) = oneshot::channel();
        self.sender.send(Message::View(sender)).await.ok()?;
        answer.await.ok()
    }
}

impl Request {
    /// ADD's question, which waits so many milliseconds; `card`: the address has to be on that network card.
    pub async fn ask(&self, key: AttachmentKey, pod: Option<PodRef>, timeout_ms: u64, card: Option<u32>) {
        self.handle.tell(Event::Ask { ticket: self.ticket, key, pod, timeout_ms, card }).await;
    }

    /// The plugin says that the link stands; `seen`: the kernel shows it.
    pub async fn wired(&self, key: AttachmentKey, seen: bool) {
        self.handle.tell(Event::Wired { ticket: self.ticket, key, seen }).await;
    }

    /// DEL.
    pub async fn release(&self, key: AttachmentKey) {
        self.handle.tell(Event::Release { ticket: self.ticket, key }).await;
    }

    /// The next answer; `None` when the daemon is ending.
    pub async fn answer(&mut self) -> Option<Answer> {
        self.answers.recv().await
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let gone = Message::Event(Event::Closed { ticket: self.ticket });
        if let Err(TrySendError::Full(gone)) = self.handle.sender.try_send(gone) {
            let sender = self.handle.sender.clone();
            tokio::spawn(async move { drop(sender.send(gone).await) });
        }
    }
}
