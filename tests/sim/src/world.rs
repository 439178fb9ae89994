//! One node in its surroundings: the real core; disk, kernel, runtime, plugins, EC2 and metadata simulated.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
};

use enid_ipamd::{
    AttachmentKey, Call, CallId, Core, Effect, EniId, Event, Intent, Kind, Lease, Ledger, Limits, Millis, Mutation,
    Node, PodRef, Policy, Provisioning, Target, Ticket, Write,
};
use vpclab::model::{Options, Request};

use crate::{
    cloud::{Cloud, Reply, is_ours},
    story::{Boundary, Move},
};

/// How long an address rests here.
pub const REST_MS: u64 = 5_000;
/// How long a plugin waits for an address.
const PATIENCE_MS: u64 = 60_000;
/// The kernel's links are listed this often, metadata is read this often when nothing is expected.
const LISTING_MS: u64 = 5_000;
const METADATA_MS: u64 = 30_000;
/// More EC2 calls within a minute are too many, whatever happens.
const MOST_CALLS: usize = 90;
const KIND: &str = "m5.large";

/// What a plugin does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It waits for an offer.
    Waits,
    /// It has an offer and makes the pair.
    Creates,
    /// The pair is there; it tells so.
    Tells,
    /// It waits for the verdict.
    Awaits,
    /// The verdict is good: it makes the address reachable and prints.
    Prints,
}

/// A plugin that carries out an ADD.
#[derive(Clone, Debug)]
struct Plugin {
    ticket: Ticket,
    key: AttachmentKey,
    step: Step,
    lease: Option<Lease>,
    /// It does nothing before that.
    at: u64,
    /// Its connection to the daemon; a daemon that ends closes it.
    connected: bool,
}

/// A pod's link in the kernel.
#[derive(Clone, Debug)]
struct Link {
    address: IpAddr,
    /// The host routes the address over it.
    routed: bool,
}

/// A pod whose ADD has been answered.
#[derive(Clone, Debug)]
struct Pod {
    address: IpAddr,
    eni: EniId,
}

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
    pub core: Core,
    pub cloud: Cloud,
    pub instance: String,
    limits: Limits,
    policy: Policy,
    lives: u64,
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
    kill: Option<Boundary>,
    lost_store: bool,
    /// ENIs that an operator detached.
    by_hand: BTreeSet<EniId>,
    /// Every event and effect is printed (SIM_TRACE).
    traces: bool,
    /// Addresses of pods whose lease was on a disk that was lost: nobody knows when they go.
    unrecorded: BTreeSet<IpAddr>,
    pub tally: Tally,
    /// The first thing that must not be.
    pub broken: Option<String>,
}

impl World {
    /// A node that has just booted, in an account with these ways.
    pub fn new(options: Options, policy: Policy, mutation: Option<Mutation>) -> anyhow::Result<Self> {
        let mut cloud = Cloud::new(options, 20);
        let now = 1_000;
        let instance = cloud.run(now, KIND)?;
        let limits = cloud.limits(now, KIND).unwrap_or(Limits { enis: 3, addresses_per_eni: 10, prefixes: true });
        let node = Node { instance_id: instance.clone(), limits, policy: policy.clone(), token_seed: "0".into() };
        let mut world = World {
            now,
            boot: 0,
            core: Core::new(node, Ledger::default()),
            cloud,
            instance,
            limits,
            policy,
            lives: 0,
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
            kill: None,
            lost_store: false,
            by_hand: BTreeSet::new(),
            traces: std::env::var_os("SIM_TRACE").is_some(),
            unrecorded: BTreeSet::new(),
            tally: Tally::default(),
            broken: None,
        };
        world.start();
        Ok(world)
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

    /// A new life of the daemon: it remembers what the disk says.
    fn start(&mut self) {
        self.lives += 1;
        let node = Node {
            instance_id: self.instance.clone(),
            limits: self.limits,
            policy: self.policy.clone(),
            token_seed: format!("{}-{}", self.lives, self.now),
        };
        self.core = Core::new(node, self.disk.clone());
        if let Some(mutation) = self.mutation {
            self.core.mutate(mutation);
        }
        self.calls.clear();
        self.next_listing = self.now;
        self.next_metadata = self.now;
        for plugin in self.plugins.values_mut() {
            plugin.connected = false;
        }
    }

    /// One event for the core, and what follows from it.
    fn tell(&mut self, event: Event) {
        self.tally.steps += 1;
        let before = self.core.view(self.clock());
        let told = if self.traces { format!("{event:?}") } else { String::new() };
        let effects = self.core.step(self.clock(), event);
        if self.traces && (!effects.is_empty() || !told.starts_with("Tick")) {
            eprintln!("{:>9} {told:.900}", self.now);
            effects.iter().for_each(|effect| eprintln!("{:>9}   -> {:.900}", "", format!("{effect:?}")));
        }
        let after = self.core.view(self.clock());
        if let Some(broken) = after.broken.first() {
            let broken = broken.clone();
            return self.wrong(format!("the core: {broken}"));
        }
        drop(before);
        self.carry_out(effects);
    }

    /// The daemon's order: offers, then the disk, then the rest. A kill can come between any two.
    fn carry_out(&mut self, effects: Vec<Effect>) {
        let kill = if effects.is_empty() { None } else { self.kill.take() };
        let mut writes = Vec::new();
        let mut rest = Vec::new();
        for effect in effects {
            match effect {
                Effect::Record(write) => writes.push(write),
                Effect::Offer { ticket, key, lease } => self.offered(ticket, &key, lease),
                other => rest.push(other),
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
            _ => rest.len(),
        };
        for effect in rest.into_iter().take(done) {
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
            // What rested was on that disk and nowhere else, and so were the leases of those who live.
            self.released.clear();
            self.unrecorded = self.pods.values().map(|pod| pod.address).collect();
        }
        self.start();
    }

    fn write(&mut self, write: Write) {
        match write {
            Write::Lease(key, Some(lease)) => drop(self.disk.leases.insert(key, lease)),
            Write::Lease(key, None) => drop(self.disk.leases.remove(&key)),
            Write::Rest(address, Some(until)) => drop(self.disk.resting.insert(address, until)),
            Write::Rest(address, None) => drop(self.disk.resting.remove(&address)),
            Write::Slot(eni, Some(slot)) => drop(self.disk.slots.insert(eni, slot)),
            Write::Slot(eni, None) => drop(self.disk.slots.remove(&eni)),
            Write::Intent(token, Some(intent)) => drop(self.disk.intents.insert(token, intent)),
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

    /// Judged from outside: what EC2 is asked must not hurt anybody.
    fn check_call(&mut self, call: &Call) {
        let enis = self.cloud.enis(self.now);
        let used = |net: &ipnet::IpNet| self.pods.values().any(|pod| net.contains(&pod.address));
        let wrong = match call {
            Call::Create { token, .. } if !self.disk.intents.contains_key(token) => {
                Some(format!("a creation that is not written down: {token}"))
            }
            Call::Unassign { blocks, .. } => {
                blocks.iter().find(|net| used(net)).map(|net| format!("{net} is given back, and a live pod uses it"))
            }
            Call::Detach { eni, .. } | Call::Delete { eni }
                if !self.by_hand.contains(eni) && self.pods.values().any(|pod| pod.eni == *eni) =>
            {
                Some(format!("{eni} is given back, and a live pod is on it"))
            }
            Call::Assign { eni, .. } => {
                let ours =
                    enis.iter().find(|found| found.id == eni.0).is_none_or(|found| is_ours(found, &self.instance));
                (!ours).then(|| format!("{eni} is changed before it is ours"))
            }
            _ => None,
        };
        if let Some(wrong) = wrong {
            self.wrong(wrong);
        }
    }

    fn offered(&mut self, ticket: Ticket, key: &AttachmentKey, lease: Lease) {
        let address = lease.address;
        let protected = |eni: &vpclab::model::EniTruth| eni.delete_on_termination();
        let eni = self.cloud.enis(self.now).into_iter().find(|eni| eni.id == lease.eni.0);
        match eni {
            Some(eni) if !protected(&eni) && eni.attachment.is_some() => {
                self.wrong(format!("{} serves {address} and outlives its instance", eni.id));
            }
            _ => {}
        }
        if let Some((other, _)) = self.pods.iter().find(|(other, pod)| pod.address == address && *other != key) {
            let other = other.container.clone();
            self.wrong(format!("{address} is offered to {}, and {other} lives with it", key.container));
        }
        let rested = self.released.get(&address).is_none_or(|at| self.now - at >= REST_MS);
        let held = self.pods.get(key).is_some_and(|pod| pod.address == address);
        if !rested && !held && !self.links.contains_key(key) {
            self.wrong(format!("{address} is offered before it has rested"));
        }
        if let Some(plugin) = self.plugins.values_mut().find(|plugin| plugin.ticket == ticket && plugin.connected) {
            plugin.step = Step::Creates;
            plugin.lease = Some(lease);
            plugin.at = plugin.at.max(self.now + 1);
        }
    }

    /// The plugin undoes what it made and ends with an error.
    fn give_up(&mut self, at: u64) {
        let Some(plugin) = self.plugins.remove(&at) else { return };
        if !self.pods.contains_key(&plugin.key) {
            self.links.remove(&plugin.key);
        }
        if plugin.connected {
            self.tell(Event::Gone { ticket: plugin.ticket });
        }
        // The runtime sends DEL after a failed ADD.
        self.delete(&plugin.key);
    }

    fn ask(&mut self, key: AttachmentKey) {
        self.tickets += 1;
        let ticket = Ticket(self.tickets + self.lives * 1_000_000);
        let plugin = Plugin { ticket, key: key.clone(), step: Step::Waits, lease: None, at: self.now, connected: true };
        self.plugins.insert(self.tickets, plugin);
        let pod = PodRef { namespace: "default".into(), name: key.container.clone() };
        self.tell(Event::Ask { ticket, key, pod: Some(pod), patience: PATIENCE_MS });
    }

    fn delete(&mut self, key: &AttachmentKey) {
        self.links.remove(key);
        self.release(key);
        self.tickets += 1;
        let ticket = Ticket(self.tickets + self.lives * 1_000_000);
        self.tell(Event::Release { ticket, key: key.clone() });
    }

    /// A pod is not there any more: its address rests from now on, if anybody knew that it had one.
    fn release(&mut self, key: &AttachmentKey) {
        if let Some(pod) = self.pods.remove(key)
            && !self.unrecorded.contains(&pod.address)
        {
            self.released.insert(pod.address, self.now);
        }
    }

    /// Every plugin that may goes on by one step.
    fn run_plugins(&mut self) {
        let due: Vec<u64> =
            self.plugins.iter().filter(|(_, plugin)| plugin.at <= self.now).map(|(at, _)| *at).collect();
        for at in due {
            let Some(plugin) = self.plugins.get_mut(&at) else { continue };
            let (key, lease) = (plugin.key.clone(), plugin.lease.clone());
            if !plugin.connected && plugin.step != Step::Creates && plugin.step != Step::Prints {
                self.give_up(at); // the daemon has closed the stream
                continue;
            }
            match (plugin.step, lease) {
                (Step::Creates, Some(lease)) => {
                    plugin.step = Step::Tells;
                    plugin.at = self.now + 1;
                    // What an earlier try of the same attachment left behind is replaced.
                    if self.links.get(&key).is_some_and(|link| link.address != lease.address) {
                        self.links.remove(&key);
                        self.release(&key);
                    }
                    self.links.entry(key).or_insert(Link { address: lease.address, routed: false });
                }
                (Step::Tells, Some(_)) => {
                    plugin.step = Step::Awaits;
                    let ticket = plugin.ticket;
                    let seen = self.links.contains_key(&key);
                    self.tell(Event::Wired { ticket, key, seen });
                }
                (Step::Prints, Some(lease)) => self.print(at, key, &lease),
                _ => {}
            }
        }
    }

    fn print(&mut self, at: u64, key: AttachmentKey, lease: &Lease) {
        let address = lease.address;
        let taken = self.links.iter().any(|(other, link)| *other != key && link.routed && link.address == address);
        if taken || !self.links.contains_key(&key) {
            // The host routes the address elsewhere: the plugin leaves it there.
            return self.give_up(at);
        }
        if let Some(link) = self.links.get_mut(&key) {
            link.routed = true;
            link.address = address;
        }
        let Some(plugin) = self.plugins.remove(&at) else { return };
        self.tally.added += 1;
        if let Some((other, _)) = self.pods.iter().find(|(other, pod)| pod.address == address && **other != key) {
            let other = other.container.clone();
            self.wrong(format!("{address} has two owners: {} and {other}", key.container));
        }
        self.pods.insert(key, Pod { address, eni: lease.eni.clone() });
        if plugin.connected {
            self.tell(Event::Gone { ticket: plugin.ticket });
        }
    }

    fn list_links(&mut self) {
        let held: BTreeSet<AttachmentKey> = self.core.leases().keys().cloned().collect();
        let seen = self.links.keys().filter(|key| held.contains(*key)).cloned().collect();
        let routed = self.links.values().filter(|link| link.routed).map(|link| link.address).collect();
        self.next_listing = self.now + LISTING_MS;
        self.tell(Event::Links { seen, routed });
    }

    fn read_metadata(&mut self) {
        let instance = self.instance.clone();
        let enis = self.cloud.imds(self.now, &instance);
        let hurry = self.core.expects_imds();
        self.next_metadata = self.now + if hurry { 500 } else { METADATA_MS };
        if !enis.is_empty() {
            self.tell(Event::Imds { enis });
        }
        // The host takes on what it is to carry, if EC2 has really attached it.
        let attached: BTreeSet<String> = self
            .cloud
            .enis(self.now)
            .into_iter()
            .filter(|eni| eni.instance() == Some(&instance))
            .map(|eni| eni.id)
            .collect();
        let joining: Vec<EniId> = self.core.carried().map(|(eni, _)| eni.facts.id.clone()).collect();
        for eni in joining.into_iter().filter(|eni| attached.contains(&eni.0)) {
            self.tell(Event::EniUp { eni });
        }
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
                self.tell(Event::Done { id, answer: reply.answer });
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

    /// What a live pod lives on is there, and it is its own.
    fn check_pods(&mut self) {
        let enis = self.cloud.enis(self.now);
        let on_node = |address: IpAddr| {
            enis.iter().any(|eni| {
                eni.instance() == Some(&self.instance)
                    && crate::cloud::blocks(eni).iter().any(|net| net.contains(&address))
            })
        };
        // Who comes to an ENI before metadata has told that somebody detached it is nobody's fault here.
        let lost = self.pods.iter().find(|(_, pod)| !self.by_hand.contains(&pod.eni) && !on_node(pod.address));
        if let Some((key, pod)) = lost {
            let what = format!("{} lives with {}, which EC2 has taken away", key.container, pod.address);
            self.wrong(what);
        }
    }

    fn nth(&self, number: u32) -> Option<AttachmentKey> {
        let length = u32::try_from(self.pods.len()).ok().filter(|length| *length > 0)?;
        self.pods.keys().nth(usize::try_from(number % length).ok()?).cloned()
    }

    fn nth_plugin(&self, number: u32) -> Option<u64> {
        let length = u32::try_from(self.plugins.len()).ok().filter(|length| *length > 0)?;
        self.plugins.keys().nth(usize::try_from(number % length).ok()?).copied()
    }

    /// Lets one thing happen.
    pub fn play(&mut self, step: &Move) {
        let part = |percent: u8| f64::from(percent) / 100.0;
        let actions = [
            "CreateNetworkInterface",
            "AttachNetworkInterface",
            "AssignPrivateIpAddresses",
            "ModifyNetworkInterfaceAttribute",
            "DetachNetworkInterface",
            "DeleteNetworkInterface",
            "UnassignPrivateIpAddresses",
            "DescribeNetworkInterfaces",
            "CreateTags",
        ];
        let all = |percent: u8| -> BTreeMap<String, f64> {
            actions.iter().filter(|_| percent > 0).map(|action| ((*action).to_owned(), part(percent))).collect()
        };
        match step {
            Move::Pass(millis) => self.pass(*millis),
            Move::Start(pods) => {
                for _ in 0..*pods {
                    self.names += 1;
                    let container = format!("c{}", self.names);
                    self.ask(AttachmentKey { network: "enid".into(), container, ifname: "eth0".into() });
                }
            }
            Move::Stop(number) => {
                if let Some(key) = self.nth(*number) {
                    self.delete(&key);
                    self.gone.push(key);
                }
            }
            Move::StopAgain(number) => {
                self.fault("DEL repeated");
                let number = usize::try_from(*number).unwrap_or(0);
                if let Some(key) = self.gone.get(number % self.gone.len().max(1)).cloned() {
                    self.delete(&key);
                }
            }
            Move::StartAgain(number) => {
                if let Some(key) = self.nth(*number) {
                    self.fault("ADD repeated");
                    self.ask(key);
                }
            }
            Move::Pause(number, millis) => {
                if let Some(at) = self.nth_plugin(*number) {
                    self.fault("plugin paused");
                    if let Some(plugin) = self.plugins.get_mut(&at) {
                        plugin.at = self.now + millis;
                    }
                }
            }
            Move::KillPlugin(number) => {
                if let Some(at) = self.nth_plugin(*number) {
                    self.fault("plugin killed");
                    let Some(plugin) = self.plugins.remove(&at) else { return };
                    if plugin.connected {
                        self.tell(Event::Gone { ticket: plugin.ticket });
                    }
                    self.delete(&plugin.key);
                }
            }
            Move::Crash(number) => {
                if let Some(key) = self.nth(*number) {
                    self.fault("link vanished");
                    self.links.remove(&key);
                    self.release(&key);
                }
            }
            Move::Kill(boundary) => self.kill = Some(*boundary),
            Move::Reboot => self.reboot(),
            Move::LoseStore => {
                self.fault("store lost");
                // A lost store and stale metadata together leave no witness at all. So the daemon is down for
                // longer than metadata and EC2 lag, and metadata is not stale.
                self.cloud.faults().imds_stale = false;
                self.now += 15_000;
                self.lost_store = true;
                self.restart();
            }
            Move::Collect(partial) => {
                let living = self.pods.keys().chain(self.plugins.values().map(|plugin| &plugin.key)).cloned();
                let alive: Vec<AttachmentKey> = if *partial { living.step_by(2).collect() } else { living.collect() };
                self.fault(if *partial { "GC with a partial list" } else { "GC" });
                self.tell(Event::Collect { network: "enid".into(), alive });
            }
            Move::LoseAnswers(percent) => {
                self.fault("answers lost");
                self.cloud.faults().lose_answer = all(*percent);
            }
            Move::LoseRequests(percent) => {
                self.fault("requests lost");
                self.cloud.faults().lose_request = all(*percent);
            }
            Move::Refuse(percent) => {
                self.fault("EC2 refuses");
                let codes = ["RequestLimitExceeded", "InternalError", "InsufficientFreeAddressesInSubnet"];
                let code = codes[usize::from(*percent) % codes.len()];
                self.cloud.faults().fail =
                    all(*percent).into_iter().map(|(action, chance)| (action, (chance, code.to_owned()))).collect();
            }
            Move::Down(down) => {
                self.fault("EC2 down");
                self.cloud.faults().down = *down;
            }
            Move::Deny(denied) => {
                self.fault("rights taken away");
                let some = actions.iter().step_by(2).map(|action| (*action).to_owned());
                self.cloud.faults().deny = if *denied { some.collect() } else { BTreeSet::new() };
            }
            Move::Partial(percent) => {
                self.fault("partial success");
                self.cloud.faults().partial_assign = part(*percent);
            }
            Move::Stale(stale) => {
                self.fault("metadata stale");
                self.cloud.faults().imds_stale = *stale;
            }
            Move::Torn(percent) => {
                self.fault("metadata partial");
                self.cloud.faults().imds_partial = part(*percent);
            }
            Move::Fragment(fragment) => {
                self.fault("subnet fragmented");
                if *fragment { self.cloud.fragment() } else { self.cloud.defragment() }
            }
            Move::Detach(number) => self.detach(*number),
            Move::Settings(number) => {
                self.fault("settings changed");
                self.policy = settings(*number);
                let policy = self.policy.clone();
                self.tell(Event::Settings { policy });
            }
            Move::Cordon(cordoned) => self.tell(Event::Cordoned { cordoned: *cordoned }),
            Move::Bound(pods) => self.tell(Event::Bound { pods: *pods }),
        }
    }

    fn reboot(&mut self) {
        self.fault("reboot");
        self.plugins.clear();
        self.links.clear();
        let all: Vec<AttachmentKey> = self.pods.keys().cloned().collect();
        all.iter().for_each(|key| self.release(key));
        // As the store does it: the clock began anew, what was held or rested rests from now on.
        self.boot = self.now;
        let until = Millis(REST_MS);
        self.disk.resting.values_mut().for_each(|at| *at = until);
        for lease in std::mem::take(&mut self.disk.leases).into_values() {
            self.disk.resting.insert(lease.address, until);
        }
        self.start();
    }

    /// An operator detaches a secondary ENI on which no pod lives.
    fn detach(&mut self, number: u32) {
        let enis = self.cloud.enis(self.now);
        let idle: Vec<(EniId, String)> = enis
            .iter()
            .filter(|eni| eni.instance() == Some(&self.instance))
            .filter_map(|eni| {
                eni.attachment.clone().filter(|attachment| attachment.device_index > 0).map(|it| (eni, it))
            })
            .filter(|(eni, _)| {
                let nets = crate::cloud::blocks(eni);
                let used = |address: &IpAddr| nets.iter().any(|net| net.contains(address));
                !self.pods.values().any(|pod| used(&pod.address))
                    && !self
                        .plugins
                        .values()
                        .any(|plugin| plugin.lease.as_ref().is_some_and(|lease| used(&lease.address)))
            })
            .map(|(eni, attachment)| (EniId(eni.id.clone()), attachment.id))
            .collect();
        if let Some((eni, attachment)) = idle.get(usize::try_from(number).unwrap_or(0)).cloned() {
            self.fault("ENI detached by hand");
            self.by_hand.insert(eni);
            self.cloud.operator(self.now, &Request::DetachNetworkInterface { attachment, force: false });
        }
    }

    /// The weather clears and everybody goes home: nobody may wait for ever, nothing may be left behind.
    pub fn settle(&mut self) {
        *self.cloud.faults() = vpclab::model::Faults::default();
        self.cloud.defragment();
        self.kill = None;
        self.tell(Event::Cordoned { cordoned: false });
        self.tell(Event::Bound { pods: 0 });
        self.pass(600_000);
        if self.broken.is_some() {
            return;
        }
        if let Some(plugin) = self.plugins.values().next() {
            let what = format!("{} still waits ({:?})", plugin.key.container, plugin.step);
            return self.wrong(what);
        }
        let held: BTreeSet<_> = self.core.leases().keys().cloned().collect();
        let living: BTreeSet<_> = self.pods.keys().cloned().collect();
        if let Some(key) = held.difference(&living).next() {
            return self.wrong(format!("{} holds a lease and is gone", key.container));
        }
        self.check_enis();
    }

    /// No ENI of ours hangs nowhere, no intent is open.
    fn check_enis(&mut self) {
        let enis = self.cloud.enis(self.now);
        // What somebody detached under a pod that lives on it is kept for that pod's sake.
        let kept = |eni: &&vpclab::model::EniTruth| self.pods.values().any(|pod| pod.eni.0 == eni.id);
        let mut loose = enis.iter().filter(|eni| is_ours(eni, &self.instance) && eni.attachment.is_none());
        let loose = loose.find(|eni| !kept(eni));
        if let Some(eni) = loose {
            let what = format!("{} is ours and hangs nowhere", eni.id);
            return self.wrong(what);
        }
        let unfinished = |intent: &Intent| matches!(intent, Intent::Create(_) | Intent::Leave(_));
        let open = self.disk.intents.iter().find(|(_, intent)| unfinished(intent));
        if let Some((token, intent)) = open {
            let what = format!("the intent {token} stays open: {intent:?}");
            self.wrong(what);
        }
    }
}

/// A few settings that a node may have.
pub fn settings(number: u8) -> Policy {
    let warm = |enis, addresses, minimum, prefixes| Target::Warm { enis, addresses, minimum, prefixes };
    let (target, kind) = match number % 8 {
        0 => (Target::Auto, Kind::Single),
        1 => (warm(1, 0, 0, 0), Kind::Single),
        2 => (warm(1, 2, 0, 0), Kind::Single),
        3 => (warm(1, 1, 6, 0), Kind::Single),
        4 => (Target::Auto, Kind::Prefix),
        5 => (warm(1, 0, 0, 1), Kind::Prefix),
        6 => (warm(1, 3, 0, 1), Kind::Prefix),
        _ => (warm(0, 0, 0, 0), Kind::Single),
    };
    Policy {
        target,
        kind,
        max_enis: None,
        max_pods: Some(110),
        rest_ms: REST_MS,
        manage_untagged: true,
        provisioning: Provisioning::On,
        clean_leaked: true,
        manage_cordoned: false,
    }
}
