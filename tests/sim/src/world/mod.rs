//! One node in its surroundings: the real core; disk, kernel, runtime, plugins, EC2 and metadata simulated.

mod metadata;
mod moves;
mod places;
mod plugins;
mod pods;
mod rules;
mod settings;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
};

use enid_ipamd::{
    Action, AttachmentKey, Call, CallId, Core, Effect, EniId, Event, Lease, Ledger, Limits, Millis, Mutation, Node,
    Policy, Recording, Restrictions, Write,
};
use vpclab::model::Options;

pub use settings::{COOLDOWN_MS, settings};

use crate::{
    cloud::{Cloud, Reply},
    story::Boundary,
};
use metadata::Metadata;
use places::Places;
use pods::{Link, Plugin, Pod, Step};

/// The kernel's links are listed this often, metadata is read this often when nothing is expected.
const LISTING_MS: u64 = 5_000;
const METADATA_MS: u64 = 30_000;
/// Every so many steps the plan is made a second time.
const PLAN_AGAIN: u64 = 8;
/// More EC2 calls within a minute are too many, whatever happens; a daemon that is killed forgets its pauses.
const MOST_CALLS: usize = 120;
const KIND: &str = "m5.large";

/// What was counted.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Steps of the core.
    pub steps: u64,
    /// Simulated milliseconds.
    pub millis: u64,
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// ADDs that got an address, and those that were refused.
    pub added: u64,
    pub refused: u64,
}

/// The node and all around it.
pub struct World {
    pub now: u64,
    /// The core's clock began then.
    boot: u64,
    /// The wall clock is ahead of the simulation by so much.
    wall: u64,
    pub core: Core,
    pub cloud: Cloud,
    pub instance: String,
    limits: Limits,
    policy: Policy,
    /// What an operator restricts; it outlives the daemon, and not the machine.
    restrictions: Restrictions,
    runs: u64,
    disk: Ledger,
    mutation: Option<Mutation>,
    /// EC2 calls on their way: when the answer comes.
    calls: BTreeMap<(u64, u64), (CallId, Reply)>,
    sent: u64,
    /// When calls of the last minute were sent.
    recent: VecDeque<u64>,
    plugins: BTreeMap<u64, Plugin>,
    links: BTreeMap<AttachmentKey, Link>,
    pods: BTreeMap<AttachmentKey, Pod>,
    gone: Vec<AttachmentKey>,
    /// When an address was last released.
    released: BTreeMap<IpAddr, u64>,
    tickets: u64,
    names: u64,
    next_listing: u64,
    next_metadata: u64,
    metadata: Metadata,
    places: Places,
    /// Metadata refuses to answer.
    unreadable: bool,
    kill: Option<Boundary>,
    lost_store: bool,
    /// ENIs that an operator detached.
    by_hand: BTreeSet<EniId>,
    /// Every event and effect is printed (SIM_TRACE).
    traces: bool,
    /// Addresses of pods whose lease was on a disk that was lost: nothing records when they go.
    unrecorded: BTreeSet<IpAddr>,
    /// Pods without a lease that no listing has shown yet.
    orphans: BTreeSet<AttachmentKey>,
    /// What the core has taken since its start, if it is to be taken again.
    recorded: Option<(Core, Vec<(Millis, Event)>)>,
    pub tally: Tally,
    /// The first thing that must not be.
    pub broken: Option<String>,
}

impl World {
    /// A node that has just booted, in an account with these ways.
    pub fn new(options: Options, policy: Policy, mutation: Option<Mutation>) -> anyhow::Result<Self> {
        Self::of_kind(KIND, options, policy, mutation)
    }

    /// The same of another instance type.
    pub fn of_kind(kind: &str, options: Options, policy: Policy, mutation: Option<Mutation>) -> anyhow::Result<Self> {
        let mut cloud = Cloud::new(options, 20);
        let now = 1_000;
        let instance = cloud.run(now, kind)?;
        let limits = cloud.limits(now, kind).unwrap_or(Limits::of_one_card(3, 10, true));
        let restrictions = Restrictions::default();
        let (instance_id, token_seed) = (instance.clone(), "0".to_owned());
        let node = Node { instance_id, limits, policy: policy.clone(), restrictions: restrictions.clone(), token_seed };
        let mut world = World {
            now,
            boot: 0,
            wall: 1_700_000_000_000,
            core: Core::new(node, Ledger::default()),
            cloud,
            instance,
            limits,
            policy,
            restrictions,
            runs: 0,
            disk: Ledger::default(),
            mutation,
            calls: BTreeMap::new(),
            sent: 0,
            recent: VecDeque::new(),
            plugins: BTreeMap::new(),
            links: BTreeMap::new(),
            pods: BTreeMap::new(),
            gone: Vec::new(),
            released: BTreeMap::new(),
            tickets: 0,
            names: 0,
            next_listing: now,
            next_metadata: now,
            metadata: Metadata::default(),
            places: Places::default(),
            unreadable: false,
            kill: None,
            lost_store: false,
            by_hand: BTreeSet::new(),
            traces: std::env::var_os("SIM_TRACE").is_some(),
            unrecorded: BTreeSet::new(),
            orphans: BTreeSet::new(),
            recorded: None,
            tally: Tally::default(),
            broken: None,
        };
        world.places.set_up(&mut world.cloud, &world.policy.placement);
        world.start();
        Ok(world)
    }

    /// From now on what the core takes is recorded, anew in each run of the daemon.
    pub fn record(&mut self) {
        self.recorded = Some((self.core.clone(), Vec::new()));
    }

    /// What was recorded, taken again from the file that it would be, ends as it did.
    pub fn check_replay(&mut self) {
        let Some((start, events)) = self.recorded.take() else { return };
        let recording = Recording::new(start, events, self.clock(), self.core.clone());
        let read = serde_json::to_string(&recording).and_then(|text| serde_json::from_str::<Recording>(&text));
        let replayed = match &read {
            Ok(read) => read.replay(|_, _, _, _| ()).map(drop),
            Err(error) => Err(format!("it cannot be read: {error}")),
        };
        if let Err(what) = replayed {
            self.wrong(format!("a recording is not replayed: {what}"));
        }
    }

    fn fault(&mut self, kind: &'static str) {
        *self.tally.faults.entry(kind).or_default() += 1;
    }

    fn wrong(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }

    fn clock(&self) -> Millis {
        Millis(self.now - self.boot)
    }

    /// A new run of the daemon: it remembers what the disk says.
    fn start(&mut self) {
        self.runs += 1;
        let node = Node {
            instance_id: self.instance.clone(),
            limits: self.limits,
            policy: self.policy.clone(),
            restrictions: self.restrictions.clone(),
            token_seed: format!("{}-{}", self.runs, self.now),
        };
        self.core = Core::new(node, self.disk.clone());
        if let Some(mutation) = self.mutation {
            self.core.mutate(mutation);
        }
        if let Some(recorded) = &mut self.recorded {
            *recorded = (self.core.clone(), Vec::new());
        }
        // The kernel's part of a start: links that no lease knows and no route leads to are half-made.
        self.links.retain(|key, link| link.routed || self.core.lease(key).is_some());
        self.calls.clear();
        self.next_listing = self.now;
        self.next_metadata = self.now;
        self.metadata = Metadata::default();
        self.places.forget_told();
        for plugin in self.plugins.values_mut() {
            plugin.connected = false;
        }
    }

    /// One event for the core, and what follows from it.
    fn tell(&mut self, event: Event) {
        self.tally.steps += 1;
        let now = self.clock();
        let is_in_batch = matches!(event, Event::Ask { .. });
        let event_text = if self.traces { format!("{event:?}") } else { String::new() };
        if let Some(recorded) = &mut self.recorded {
            recorded.1.push((now, event.clone()));
        }
        let (effects, plan) = self.core.step_and_plan(now, event);
        if self.traces && (!effects.is_empty() || !event_text.starts_with("Tick")) {
            eprintln!("{:>9} {event_text:.9000}", self.now);
            for Action { step, reason } in &plan.actions {
                eprintln!("{:>9}   {step}: {reason}", "");
            }
            effects.iter().for_each(|effect| eprintln!("{:>9}   -> {:.900}", "", format!("{effect:?}")));
        }
        if let Some(broken) = self.core.broken() {
            return self.wrong(format!("the core: {}", broken.message));
        }
        if !is_in_batch && self.tally.steps.is_multiple_of(PLAN_AGAIN) {
            self.check_plan(&plan, &effects);
        }
        self.carry_out(effects);
    }

    /// The daemon's order: offers, then the disk, then the rest. A kill can come between any two.
    fn carry_out(&mut self, effects: Vec<Effect>) {
        let kill = if effects.is_empty() { None } else { self.kill.take() };
        let mut writes = Vec::new();
        let mut others = Vec::new();
        for effect in effects {
            match effect {
                Effect::Record(write) => writes.push(write),
                Effect::Offer { ticket, key, lease } => self.offered(ticket, &key, lease),
                other => others.push(other),
            }
        }
        if kill == Some(Boundary::BeforeDisk) {
            return self.restart();
        }
        for write in writes {
            self.write(write);
        }
        let done = match kill {
            Some(Boundary::AfterDisk) => 0,
            Some(Boundary::After(count)) => usize::from(count),
            _ => others.len(),
        };
        for effect in others.into_iter().take(done) {
            self.act(effect);
        }
        if kill.is_some() {
            self.restart();
        }
    }

    fn restart(&mut self) {
        self.fault("daemon killed");
        if std::mem::take(&mut self.lost_store) {
            self.disk = Ledger::default();
            // What was cooling was on that disk and nowhere else, and so were the leases of running pods.
            self.released.clear();
            let promised = self.plugins.values().filter_map(|plugin| plugin.lease.as_ref());
            let promised = promised.flat_map(Lease::addresses);
            self.unrecorded = self.pods.values().flat_map(|pod| pod.addresses.clone()).chain(promised).collect();
        }
        self.start();
    }

    fn write(&mut self, write: Write) {
        match write {
            Write::Lease(key, Some(lease)) => drop(self.disk.leases.insert(key, lease)),
            Write::Lease(key, None) => drop(self.disk.leases.remove(&key)),
            Write::Cooldown(address, Some(until)) => drop(self.disk.cooling.insert(address, until)),
            Write::Cooldown(address, None) => drop(self.disk.cooling.remove(&address)),
            Write::Slot(eni, Some(slot)) => drop(self.disk.slots.insert(eni, slot)),
            Write::Slot(eni, None) => drop(self.disk.slots.remove(&eni)),
            Write::Intent(token, Some(intent)) => {
                self.check_intent(&token, &intent);
                self.disk.intents.insert(token, intent);
            }
            Write::Intent(token, None) => drop(self.disk.intents.remove(&token)),
        }
    }

    fn act(&mut self, effect: Effect) {
        match effect {
            Effect::Call { id, call, .. } => self.send(id, &call),
            Effect::Refuse { ticket, .. } => {
                let found = self.plugins.iter().find(|(_, plugin)| plugin.ticket == ticket).map(|(at, _)| *at);
                if let Some(at) = found
                    && self.plugins.get(&at).is_some_and(|plugin| plugin.connected)
                {
                    self.tally.refused += 1;
                    self.give_up(at);
                }
            }
            Effect::Verdict { ticket, mine } => {
                let found = self.plugins.iter_mut().find(|(_, plugin)| plugin.ticket == ticket && plugin.connected);
                if let Some((at, plugin)) = found {
                    if mine {
                        plugin.step = Step::Prints;
                    } else {
                        let at = *at;
                        self.give_up(at);
                    }
                }
            }
            _ => {}
        }
    }

    fn send(&mut self, id: CallId, call: &Call) {
        self.check_call(call);
        let instance = self.instance.clone();
        let reply = self.cloud.call(self.now, &instance, call);
        self.sent += 1;
        if matches!(call, Call::Subnets { ids } if ids.is_empty()) && reply.answer.is_ok() {
            self.places.list(self.now, self.now + reply.takes_ms);
        }
        self.recent.push_back(self.now);
        while self.recent.front().is_some_and(|at| *at + 60_000 < self.now) {
            self.recent.pop_front();
        }
        if self.recent.len() > MOST_CALLS {
            self.wrong(format!(
                "EC2 is hammered: {} calls within a minute, the last {}",
                self.recent.len(),
                call.action()
            ));
        }
        self.calls.insert((self.now + reply.takes_ms, self.sent), (id, reply));
    }

    fn list_links(&mut self) {
        let held: BTreeSet<AttachmentKey> = self.core.leases().map(|(key, _)| key.clone()).collect();
        let seen = self.links.keys().filter(|key| held.contains(*key)).cloned().collect();
        let routed = self.links.values().filter(|link| link.routed);
        let used = routed.flat_map(|link| link.addresses.clone()).collect();
        self.next_listing = self.now + LISTING_MS;
        self.orphans.clear();
        self.tell(Event::Links { begun: self.clock(), asked: held.into_iter().collect(), seen, used });
    }

    fn read_metadata(&mut self) {
        let instance = self.instance.clone();
        let soon = self.core.awaits_metadata();
        self.next_metadata = self.now + if soon { 500 } else { METADATA_MS };
        if self.unreadable {
            return self.tell(Event::ImdsFailed { message: "401".to_owned() });
        }
        let shown = self.cloud.imds(self.now, &instance);
        if shown.is_empty() {
            return;
        }
        self.tell(Event::Wall { ms: self.now + self.wall });
        for event in self.metadata.read(self.now, &self.core, self.clock(), shown) {
            let (before, runs) = (self.configured_enis(), self.runs);
            self.tell(event);
            if self.runs != runs {
                return; // another run has read nothing yet
            }
            self.check_configured(&before);
        }
        // The host takes on what it is to carry, if EC2 has really attached it.
        let attached: BTreeSet<String> = self
            .cloud
            .enis(self.now)
            .into_iter()
            .filter(|eni| eni.instance() == Some(&instance))
            .map(|eni| eni.id)
            .collect();
        for eni in self.configured_enis().into_iter().filter(|eni| attached.contains(&*eni.0)) {
            self.tell(Event::EniConfigured { eni });
        }
    }

    /// ENIs that the host has rules and routes for.
    fn configured_enis(&self) -> Vec<EniId> {
        self.core.host_enis().map(|(eni, _)| eni.facts.id.clone()).collect()
    }

    /// The next moment at which something is due, before `until`.
    fn next(&self, until: u64) -> u64 {
        let core = self.core.next_due(self.clock()).map(|due| due.0 + self.boot);
        let call = self.calls.keys().next().map(|(at, _)| *at);
        let plugin = self.plugins.values().filter(|plugin| plugin.at > self.now).map(|plugin| plugin.at).min();
        let times = [core, call, plugin, Some(self.next_listing), Some(self.next_metadata), Some(until)];
        times.into_iter().flatten().filter(|at| *at > self.now).min().unwrap_or(until).min(until)
    }

    /// Time passes, and what is due happens.
    pub fn pass(&mut self, millis: u64) {
        let until = self.now + millis;
        self.tally.millis += millis;
        loop {
            self.run_plugins();
            while let Some(((at, number), _)) = self.calls.first_key_value()
                && *at <= self.now
            {
                let key = (*at, *number);
                let Some((id, reply)) = self.calls.remove(&key) else { break };
                self.next_metadata = self.next_metadata.min(self.now + 200);
                self.tell(Event::Answered { id, answer: reply.answer });
            }
            if let Some(config) = self.places.news() {
                self.tell(Event::EniConfig { config });
            }
            if self.next_listing <= self.now {
                self.list_links();
            }
            if self.next_metadata <= self.now {
                self.read_metadata();
            }
            self.tell(Event::Tick);
            self.check_pods();
            if self.now >= until || self.broken.is_some() {
                return;
            }
            self.now = self.next(until);
        }
    }
}
