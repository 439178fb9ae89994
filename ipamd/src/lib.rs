//! The address brain of Enid: which address a pod gets, when the pool grows and shrinks, what EC2 is asked.
//!
//! A state machine without I/O: [`Core::step`] takes the time and one [`Event`] and returns
//! [`Effect`]s, which the process carries out in order. It has no clock, no randomness of its own, no
//! await and no logging; order never depends on a hash map. So a test can drive it event by event, and a
//! failure replays exactly.
//!
//! A pod's request passes through it once: [`Event::Ask`] reserves an address (or parks the request and
//! starts growth), [`Effect::Record`] makes the lease durable, [`Effect::Offer`] says what to wire,
//! [`Event::Wired`] turns it into a held one, [`Event::Release`] sends it to rest.
//!
//! Its collections are persistent ones: a copy of the whole state costs next to nothing, so a step is taken
//! on the state itself and put back as it was if it would break an invariant.

mod attach;
mod audit;
mod block;
mod build;
mod calls;
mod cause;
mod check;
mod eni;
mod event;
mod give;
mod grow;
mod ids;
mod leaked;
mod learn;
mod mutation;
mod pace;
mod pool;
mod queue;
mod rest;
mod shrink;
mod supply;
mod view;

use std::{collections::BTreeMap, net::IpAddr};

use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;

pub use block::{Block, BlockState, Kind};
pub use cause::{Cause, Refusal};
pub use check::Broken;
pub use eni::{BareEni, Eni, EniFacts, EniState, Sums};
pub use event::{
    AuditedEni, Call, CallError, CallId, Class, Creation, Done, Effect, Event, Intent, LooseEni, Order, Place, Scope,
    Ticket, Write,
};
pub use ids::{AttachmentKey, EniId, Millis, PodRef};
#[cfg(feature = "mutations")]
pub use mutation::Mutation;

pub use supply::{Beside, Counts, LOCAL_V4, LOCAL_V6, Learnt, Limits, Policy, Provisioning, Target};
pub use view::{AddressState, AddressView, View};

use crate::{
    build::Build,
    calls::Flight,
    learn::Memory,
    pace::Pace,
    pool::Expected,
    queue::{Queue, Waiter},
};

/// What does not change while the process runs, and the settings.
#[derive(Clone, Debug)]
pub struct Node {
    /// EC2's id of this instance.
    pub instance_id: String,
    /// ENIs and addresses that the instance type can carry.
    pub limits: Limits,
    /// The settings.
    pub policy: Policy,
    /// Mixed into client tokens and jitter, so that two lives of a node never share them.
    pub token_seed: String,
}

/// What the store remembered from before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Leases by attachment.
    pub leases: BTreeMap<AttachmentKey, Lease>,
    /// Addresses that rest, and until when.
    pub resting: BTreeMap<IpAddr, Millis>,
    /// Slots given to ENIs.
    pub slots: BTreeMap<EniId, u32>,
    /// Slots that the kernel gives to links, by MAC: pods that run depend on them, whatever has become of the record.
    pub kernel_slots: BTreeMap<[u8; 6], u32>,
    /// What EC2 was about to be asked, by token.
    pub intents: BTreeMap<String, Intent>,
}

/// An address in the hands of an attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The pod's address.
    pub address: IpAddr,
    /// One of the other family: out of a block of the same ENI, or of the node's own range.
    pub second: Option<IpAddr>,
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
    pub fn remembered(
        (address, second): (IpAddr, Option<IpAddr>),
        eni: EniId,
        slot: u32,
        pod: Option<PodRef>,
        index: u32,
    ) -> Self {
        Lease { address, second, eni, slot, pod, index, wired: false, missing_since: None, ticket: None }
    }

    /// Both of its addresses, the pod's own first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        [Some(self.address), self.second].into_iter().flatten()
    }

    /// Its second address, if the VPC knows it.
    pub fn second_of_vpc(&self) -> Option<IpAddr> {
        self.second.filter(|address| !supply::is_local(*address))
    }

    /// Its second address, if only this node knows it.
    pub fn local(&self) -> Option<IpAddr> {
        self.second.filter(|address| supply::is_local(*address))
    }

    /// A plugin is making, or making again, its link.
    pub fn is_under_way(&self) -> bool {
        self.ticket.is_some()
    }
}

/// The state machine.
#[derive(Clone, Debug)]
pub struct Core {
    node: Node,
    enis: OrdMap<EniId, Eni>,
    blocks: OrdMap<IpNet, Block>,
    /// Addresses that only this node knows, where pods get one of them beside their own.
    local: Option<Block>,
    /// ENIs without any address, which take up a place.
    bare: OrdMap<EniId, Place>,
    /// Blocks that are withheld, by why.
    doubted: OrdSet<IpNet>,
    leaving: OrdSet<IpNet>,
    leases: OrdMap<AttachmentKey, Lease>,
    holders: OrdMap<IpAddr, AttachmentKey>,
    /// Leases with a second address.
    seconds: usize,
    /// Leases whose plugin is connected and has not wired yet.
    reserved: OrdMap<Ticket, AttachmentKey>,
    /// Addresses that pods' links carry though no lease says so.
    strangers: OrdSet<IpAddr>,
    resting: OrdMap<IpAddr, Millis>,
    rest_ends: OrdSet<(Millis, IpAddr)>,
    slots: OrdMap<EniId, u32>,
    kernel_slots: OrdMap<[u8; 6], u32>,
    /// The store began with nothing, and EC2 has not told yet what an earlier life left.
    looks_around: bool,
    /// Whether [`Intent::LookAround`] is open; it may be longer than the look takes.
    look_is_open: bool,
    /// ENIs that carry our tag, as EC2 has said in this life.
    vouched: OrdSet<EniId>,
    /// Changes with every ENI and block that comes or goes.
    topology: u64,
    queue: Queue,
    bound: u64,
    cordoned: bool,
    memory: Memory,

    calls: OrdMap<CallId, Flight>,
    next_call: u64,
    /// ENIs on their way, by the token of their creation.
    builds: OrdMap<String, Build>,
    /// When ENIs were created in this life: EC2 may deny for a while that it knows them.
    born: OrdMap<EniId, Millis>,
    /// ENIs that are detached and deleted.
    departures: OrdMap<EniId, shrink::Departure>,
    /// What EC2 has confirmed and instance metadata does not show yet.
    expected: OrdMap<EniId, Expected>,
    /// Blocks that went back to EC2, which stale metadata may still show: since when, and by which intent.
    given_back: OrdMap<IpNet, (Millis, String)>,
    /// When an action may be called, and why it may not.
    pace: Pace,
    /// Until when the subnet is taken to have no /28.
    no_prefix_until: Option<Millis>,
    /// The pool has been too large since then.
    surplus_since: Option<Millis>,

    /// When EC2 last told about our ENIs in this life.
    audited: Option<Millis>,
    /// ENIs that pods live on, and that are gone.
    lost: OrdSet<EniId>,
    /// Something was seen that only an audit can settle.
    audit_wanted: OrdSet<Scope>,
    leaked: leaked::Search,
    imds_read: bool,
    /// When metadata was first read.
    met: Option<Millis>,
    /// When EC2 is asked for all that is ours although nothing is in doubt.
    slow_audit: Option<Millis>,
    /// When the kernel's links were last listed.
    links_listed: Option<Millis>,
    /// Why what pods send would not arrive anyway.
    hindrance: Option<Refusal>,
    /// Invariants that a step would have broken; the state was kept as it was before.
    broken: imbl::Vector<Broken>,
    #[cfg(feature = "mutations")]
    mutation: Option<Mutation>,
}

impl Core {
    /// A core that remembers a ledger and has not looked at anything yet.
    pub fn new(node: Node, ledger: Ledger) -> Self {
        let mut core = Core {
            node,
            looks_around: false,
            look_is_open: false,
            enis: OrdMap::new(),
            blocks: OrdMap::new(),
            local: None,
            bare: OrdMap::new(),
            doubted: OrdSet::new(),
            leaving: OrdSet::new(),
            leases: OrdMap::new(),
            holders: OrdMap::new(),
            seconds: 0,
            reserved: OrdMap::new(),
            strangers: OrdSet::new(),
            resting: OrdMap::new(),
            rest_ends: OrdSet::new(),
            slots: ledger.slots.into_iter().collect(),
            kernel_slots: ledger.kernel_slots.into_iter().collect(),
            vouched: OrdSet::new(),
            topology: 0,
            queue: Queue::default(),
            bound: 0,
            cordoned: false,
            memory: Memory::new(),
            calls: OrdMap::new(),
            next_call: 1,
            builds: OrdMap::new(),
            born: OrdMap::new(),
            departures: OrdMap::new(),
            expected: OrdMap::new(),
            given_back: OrdMap::new(),
            pace: Pace::default(),
            no_prefix_until: None,
            surplus_since: None,
            audited: None,
            lost: OrdSet::new(),
            audit_wanted: OrdSet::new(),
            leaked: leaked::Search::default(),
            imds_read: false,
            met: None,
            slow_audit: None,
            links_listed: None,
            hindrance: None,
            broken: imbl::Vector::new(),
            #[cfg(feature = "mutations")]
            mutation: None,
        };
        for (key, lease) in ledger.leases {
            core.holders.extend(lease.addresses().map(|address| (address, key.clone())));
            core.seconds += usize::from(lease.second.is_some());
            let Lease { address, second, eni, slot, pod, index, .. } = lease;
            core.leases.insert(key, Lease::remembered((address, second), eni, slot, pod, index));
        }
        for (address, until) in ledger.resting {
            core.resting.insert(address, until);
            core.rest_ends.insert((until, address));
        }
        core.local = core.node.policy.local_range().map(|range| core.block_of_the_node(range));
        core.resume(ledger.intents);
        core
    }

    /// Takes one event and says what to do, in order. A step that would break an invariant is not
    /// carried out: its effects are dropped, the caller is refused, nothing is given back to EC2 from then
    /// on, and [`View::broken`] names it.
    pub fn step(&mut self, now: Millis, event: Event) -> Vec<Effect> {
        let before = self.clone();
        let caller = self.caller(&event);
        // Requests that come together are ordered for together: at the tick that ends the batch.
        let more_to_come = matches!(event, Event::Ask { .. });
        let mut effects = Vec::new();
        self.pace.at(now);
        self.end_rests(now, &mut effects);
        self.handle(now, event, &mut effects);
        self.take_expected(now);
        self.serve(now, &mut effects);
        self.look_after(now, &mut effects);
        if !more_to_come {
            self.grow(now, &mut effects);
        }
        self.shrink(now, &mut effects);
        self.refuse_hopeless(now, &mut effects);
        let broken = self.check(&before, &effects);
        if broken.is_empty() {
            return effects;
        }
        let known = std::mem::replace(self, before);
        self.broken = known.broken;
        self.broken.extend(broken);
        caller.into_iter().collect()
    }

    /// When the next step is due even if nothing happens.
    pub fn next_due(&self, now: Millis) -> Option<Millis> {
        let expected = self.expected.values().filter_map(|expected| Some(expected.since?.plus(pool::IMDS_LAG_MS)));
        let times = [
            self.queue.next_deadline(),
            self.rest_ends.get_min().map(|(until, _)| *until),
            self.surplus_since.map(|since| since.plus(shrink::PATIENCE_MS)),
            self.next_audit(),
            self.next_departure(now),
            self.leaked.next(),
            self.no_prefix_until,
            self.met.filter(|_| self.looks_around).map(|met| met.plus(attach::SETTLED_MS)),
        ];
        self.pace.opens(now).chain(expected).chain(times.into_iter().flatten()).filter(|at| *at > now).min()
    }

    fn handle(&mut self, now: Millis, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Ask { ticket, key, pod, patience, card } => {
                let waiter = Waiter { ticket, key, pod, deadline: now.plus(patience), card };
                self.ask(now, waiter, effects);
            }
            Event::Wired { ticket, key, seen } => self.wired(ticket, &key, seen, effects),
            Event::Gone { ticket } => self.gone(now, ticket, effects),
            Event::Release { ticket, key } => self.release(now, ticket, &key, effects),
            Event::Collect { network, alive } => self.collect(now, &network, &alive),
            Event::Links { asked, seen, routed } => self.links(now, &asked, &seen, routed, effects),
            Event::Imds { enis, bare } => self.imds(now, enis, bare, effects),
            Event::Done { id, answer } => self.done(now, id, answer, effects),
            Event::EniUp { eni } => self.eni_up(now, &eni),
            Event::Bound { pods } => self.bound = u64::from(pods),
            Event::Settings { policy } => self.node.policy = policy,
            Event::Cordoned { cordoned } => self.cordoned = cordoned,
            Event::Wall { ms } => self.pace.wall(now, ms),
            Event::Tick => {}
        }
    }

    /// What whoever waits for this event's answer hears if the step is dropped.
    fn caller(&self, event: &Event) -> Option<Effect> {
        match event {
            Event::Ask { ticket, .. } => {
                let message = "the request would have broken an invariant and was not carried out";
                Some(Effect::Refuse { ticket: *ticket, refusal: Refusal::new(Cause::Internal, message) })
            }
            Event::Wired { ticket, .. } => Some(Effect::Verdict { ticket: *ticket, mine: false }),
            Event::Release { ticket, .. } => Some(Effect::Released { ticket: *ticket, address: None }),
            _ => None,
        }
    }
}
