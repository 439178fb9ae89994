//! The address brain of Enid: which address a pod gets, when the pool grows, what EC2 is asked.
//!
//! A state machine without I/O: [`Core::step`] takes the time and one [`Event`] and returns
//! [`Effect`]s, which the process carries out in order. It has no clock, no randomness of its own, no
//! await and no logging; order never depends on a hash map. So a test can drive it event by event, and a
//! failure replays exactly.
//!
//! A pod's request passes through it once: [`Event::Ask`] reserves an address (or parks the request and
//! starts growth), [`Effect::Record`] makes the lease durable before [`Effect::Offer`] answers,
//! [`Event::Wired`] turns it into a held one, [`Event::Release`] sends it to rest.
//!
//! Here: leases, waiting requests, rest, the peer's warm targets, growth in secondary-address mode.
//! Not here: giving addresses or ENIs back to EC2, prefixes, IPv6.

mod attach;
mod calls;
mod cause;
mod check;
mod event;
mod grow;
mod ids;
mod policy;
mod pool;
mod view;

pub use cause::{Cause, Refusal};
pub use check::Broken;
pub use event::{AuditedEni, Call, CallError, CallId, Done, Effect, Event, Ticket, Write};
pub use ids::{AttachmentKey, EniId, Millis, PodRef};
pub use policy::{Counts, Limits, Policy};
pub use pool::{Eni, EniFacts, EniState};
pub use view::{AddressState, AddressView, EniView, LeaseView, View};

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;

/// What does not change while the process runs.
#[derive(Clone, Debug)]
pub struct Node {
    /// EC2's id of this instance.
    pub instance_id: String,
    /// ENIs and addresses that the instance type can carry.
    pub limits: Limits,
    /// The settings.
    pub policy: Policy,
    /// Mixed into client tokens, so that two lives of a node never share one.
    pub token_seed: String,
}

/// What the store remembered from before.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Leases by attachment.
    pub leases: BTreeMap<AttachmentKey, Lease>,
    /// Addresses that rest, and until when.
    pub resting: BTreeMap<Ipv4Addr, Millis>,
    /// Slots given to ENIs.
    pub slots: BTreeMap<EniId, u32>,
    /// Creations whose end is not known, by client token.
    pub intents: BTreeSet<String>,
}

/// An address in the hands of an attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The pod's address.
    pub address: Ipv4Addr,
    /// The ENI that carries it.
    pub eni: EniId,
    /// Slot of that ENI when the lease was made.
    pub slot: u32,
    /// What the runtime told about the pod.
    pub pod: Option<PodRef>,
    /// Number of this interface among those of the same pod in our network.
    pub index: u32,
    /// The link has been seen; otherwise the address is only reserved.
    pub wired: bool,
    /// First of two complete listings in which the link of a wired lease was missing.
    pub missing_since: Option<Millis>,
    /// The request that made it, while its plugin is connected.
    pub(crate) ticket: Option<Ticket>,
}

impl Lease {
    /// A lease that the store remembers; whether its link stands is the kernel's to say.
    pub fn remembered(address: Ipv4Addr, eni: EniId, slot: u32, pod: Option<PodRef>, index: u32) -> Self {
        Lease { address, eni, slot, pod, index, wired: false, missing_since: None, ticket: None }
    }
}

#[derive(Clone, Debug)]
struct Waiter {
    ticket: Ticket,
    key: AttachmentKey,
    pod: Option<PodRef>,
    deadline: Millis,
}

/// The state machine.
#[derive(Clone, Debug)]
pub struct Core {
    node: Node,
    enis: BTreeMap<EniId, Eni>,
    leases: BTreeMap<AttachmentKey, Lease>,
    holders: BTreeMap<Ipv4Addr, AttachmentKey>,
    resting: BTreeMap<Ipv4Addr, Millis>,
    slots: BTreeMap<EniId, u32>,
    /// Creations whose end is not known, and what EC2 answered to them.
    intents: BTreeMap<String, Option<EniId>>,
    waiters: VecDeque<Waiter>,
    calls: BTreeMap<CallId, Call>,
    next_call: u64,
    /// Growth waits until then, and why.
    pause: Option<(Millis, Refusal)>,
    failures: u32,
    /// What EC2 knows of this instance's ENIs has been read once in this life.
    audited: bool,
    /// Invariants that a step would have broken; the state was kept as it was before.
    broken: Vec<Broken>,
    links_listed: bool,
    /// What EC2 has confirmed and instance metadata does not show yet.
    expected: BTreeMap<EniId, Expected>,
}

/// Addresses that EC2 confirmed for an ENI, until metadata shows them or its word has to do.
#[derive(Clone, Debug)]
struct Expected {
    addresses: BTreeSet<Ipv4Addr>,
    since: Millis,
}

impl Core {
    /// A core that remembers a ledger and has not looked at anything yet.
    pub fn new(node: Node, ledger: Ledger) -> Self {
        let holders = ledger.leases.iter().map(|(key, lease)| (lease.address, key.clone())).collect();
        Core {
            node,
            enis: BTreeMap::new(),
            leases: ledger.leases,
            holders,
            resting: ledger.resting,
            slots: ledger.slots,
            intents: ledger.intents.into_iter().map(|token| (token, None)).collect(),
            waiters: VecDeque::new(),
            calls: BTreeMap::new(),
            next_call: 1,
            pause: None,
            failures: 0,
            audited: false,
            broken: Vec::new(),
            links_listed: false,
            expected: BTreeMap::new(),
        }
    }

    /// Takes one event and says what to do, in order. A step that would break an invariant is not
    /// carried out: its effects are dropped and [`View::broken`] names it.
    pub fn step(&mut self, now: Millis, event: Event) -> Vec<Effect> {
        let before = self.clone();
        let mut effects = Vec::new();
        self.handle(now, event, &mut effects);
        self.take_expected(now);
        self.serve(now, &mut effects);
        self.grow(now, &mut effects);
        self.refuse_hopeless(now, &mut effects);
        let broken = self.check();
        if broken.is_empty() {
            return effects;
        }
        *self = before;
        self.broken.extend(broken);
        Vec::new()
    }

    /// When the next step is due even if nothing happens.
    pub fn next_due(&self, now: Millis) -> Option<Millis> {
        let deadlines = self.waiters.iter().map(|waiter| waiter.deadline);
        let pause = self.pause.iter().map(|(until, _)| *until);
        let rested = self.next_rested(now);
        let expected = self.expected.values().map(|expected| expected.since.plus(pool::IMDS_LAG_MS));
        deadlines.chain(pause).chain(rested).chain(expected).filter(|at| *at > now).min()
    }

    fn handle(&mut self, now: Millis, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Ask { ticket, key, pod, patience } => self.ask(now, ticket, key, pod, patience, effects),
            Event::Wired { ticket, key, seen } => self.wired(ticket, &key, seen, effects),
            Event::Gone { ticket } => self.gone(now, ticket, effects),
            Event::Release { ticket, key } => self.release(now, ticket, &key, effects),
            Event::Links { seen } => self.links(now, &seen, effects),
            Event::Imds { enis } => self.imds(enis, effects),
            Event::Done { id, answer } => self.done(now, id, answer, effects),
            Event::EniUp { eni } => self.eni_up(&eni),
            Event::Tick => {}
        }
    }
}
