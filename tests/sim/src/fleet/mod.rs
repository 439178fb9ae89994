//! Many nodes under one account: each the real core, all before the same EC2 model; everybody behaves.
//!
//! Where [`crate::world`] looks for what must never be, this asks what it costs: calls, waiting, idle
//! addresses. One agenda of things to come keeps everybody's time.

pub mod crowd;
pub mod groups;
mod meter;
mod node;
mod number;
pub mod plot;
pub mod trace;
pub mod waste;

use std::collections::BTreeMap;

use enid_ipamd::{Call, CallError, CallId, Class, Ec2Answer, Effect, Event, Limits, Millis, Policy, Ticket};
use vpclab::model::{Counted, Options};

use crate::cloud::Cloud;
use meter::Meter;
use node::Node;
use number::float;

/// A request needs this long to reach EC2, in milliseconds, ends included.
const ON_THE_WAY_MS: (u64, u64) = (5, 60);
/// Clocks of nodes differ by so much at the most (NTP within a region is far better).
const CLOCK_ERROR_MS: u64 = 20;
/// A runtime makes a pair in that time.
const WIRING_MS: u64 = 20;
/// The kubelet tries a pod again after a failed ADD.
const RETRY_MS: u64 = 10_000;
/// How long a plugin waits for an address.
const PATIENCE_MS: u64 = 60_000;
/// Metadata is read again while something is expected of it.
const METADATA_MS: u64 = 500;

/// What is the same for all nodes.
#[derive(Clone, Debug)]
pub struct Setting {
    /// EC2's instance type.
    pub kind: &'static str,
    /// The settings of every node.
    pub policy: Policy,
    /// EC2's ways.
    pub options: Options,
    /// The kernel's links are listed this often.
    pub listing_ms: u64,
    /// Whether nodes know which pods are bound to them, as the API server tells.
    pub knows_bound: bool,
    /// Length of the subnet's prefix.
    pub subnet: u8,
}

/// Something to come at a node.
#[derive(Clone, Debug)]
enum What {
    Boot,
    Tick,
    Metadata,
    Links,
    /// A call reaches EC2; whether a pod waits for it.
    Arrives(CallId, Call, bool),
    /// Its answer reaches the node.
    Answered(CallId, Box<Result<Ec2Answer, CallError>>),
    /// A pod is created, by its number.
    Start(u64),
    /// It is deleted.
    Stop(u64),
    /// The instance is terminated.
    End,
    /// Its pair is there.
    Wired(Ticket, u64),
}

/// The nodes and their account.
pub struct Fleet {
    pub now: u64,
    setting: Setting,
    limits: Limits,
    cloud: Cloud,
    nodes: Vec<Node>,
    agenda: BTreeMap<(u64, u64), (usize, What)>,
    planned: u64,
    rng: fastrand::Rng,
    meter: Meter,
    /// When each pod that runs or ran had its address: milliseconds after it was first asked for.
    pub waits: Vec<u64>,
    /// When the last pod got its address.
    pub last: u64,
}

impl Fleet {
    /// So many nodes, off as yet.
    pub fn new(setting: Setting, nodes: usize, seed: u64) -> anyhow::Result<Self> {
        let mut cloud = Cloud::new(setting.options.clone(), setting.subnet);
        let limits = Limits::of_one_card(3, 10, true);
        let limits = cloud.limits(0, setting.kind).unwrap_or(limits);
        let meter = Meter::new(&setting.options);
        let mut rng = fastrand::Rng::with_seed(seed);
        let nodes: Result<Vec<Node>, anyhow::Error> = (0..nodes)
            .map(|number| {
                let error = rng.u64(0..=2 * CLOCK_ERROR_MS);
                Ok(Node::new(cloud.run(0, setting.kind)?, number, error))
            })
            .collect();
        Ok(Fleet {
            now: 0,
            limits,
            cloud,
            nodes: nodes?,
            agenda: BTreeMap::new(),
            planned: 0,
            rng,
            meter,
            waits: Vec::new(),
            last: 0,
            setting,
        })
    }

    fn plan(&mut self, at: u64, node: usize, what: What) {
        self.planned += 1;
        self.agenda.insert((at.max(self.now), self.planned), (node, what));
    }

    /// The daemon of a node starts then.
    pub fn boot(&mut self, at: u64, node: usize) {
        self.plan(at, node, What::Boot);
    }

    /// The instance of a node is terminated then, and its pods are gone.
    pub fn end(&mut self, at: u64, node: usize) {
        self.plan(at, node, What::End);
    }

    /// A pod is created then; numbers are the caller's.
    pub fn start(&mut self, at: u64, node: usize, pod: u64) {
        self.plan(at, node, What::Start(pod));
    }

    /// A pod is deleted then.
    pub fn stop(&mut self, at: u64, node: usize, pod: u64) {
        self.plan(at, node, What::Stop(pod));
    }

    /// The daemon of a node reads metadata then, beside when it expects something of it.
    pub fn read(&mut self, at: u64, node: usize) {
        self.plan(at, node, What::Metadata);
    }

    /// An operator gives all instances these security groups.
    pub fn set_groups(&mut self, groups: &[&str]) {
        let instances: Vec<String> = self.nodes.iter().map(|node| node.instance.clone()).collect();
        instances.iter().for_each(|instance| self.cloud.set_groups(self.now, instance, groups));
    }

    /// How many secondary ENIs there are, and how many of them have other groups.
    pub fn enis_without(&self, groups: &[&str]) -> (usize, usize) {
        let all = self.cloud.enis(self.now);
        let secondary = all.iter().filter(|eni| eni.attachment.as_ref().is_some_and(|it| it.device_index > 0));
        let differs: Vec<bool> = secondary.map(|eni| eni.groups != groups).collect();
        (differs.len(), differs.into_iter().filter(|differs| *differs).count())
    }

    /// Runs until then, or until so many pods have had their address.
    pub fn run(&mut self, until: u64, pods: usize) {
        while self.waits.len() < pods
            && let Some(entry) = self.agenda.first_entry()
            && entry.key().0 <= until
        {
            let ((at, _), (node, what)) = entry.remove_entry();
            self.now = at;
            self.happens(node, what);
        }
        if self.waits.len() < pods {
            self.now = until;
        }
        for node in &mut self.nodes {
            node.account(self.now);
        }
    }

    fn happens(&mut self, node: usize, what: What) {
        match what {
            What::Boot => {
                let Setting { policy, .. } = self.setting.clone();
                let limits = self.limits;
                self.nodes[node].boot(self.now, limits, policy);
                let wall = Event::Wall { ms: self.now + self.nodes[node].clock_error };
                self.tell(node, wall);
                self.happens(node, What::Links);
                self.happens(node, What::Metadata);
            }
            What::Tick => {
                self.nodes[node].ticks_at = None;
                self.tell(node, Event::Tick);
            }
            What::Metadata => self.read_metadata(node),
            What::Links => {
                if let Some(event) = self.nodes[node].links(self.now) {
                    self.plan(self.now + self.setting.listing_ms, node, What::Links);
                    self.tell(node, event);
                }
            }
            What::Arrives(id, call, waits) => {
                let instance = self.nodes[node].instance.clone();
                let reply = self.cloud.call(self.now, &instance, &call);
                self.meter.called(self.now, node, call.action(), &reply.answer, waits);
                let back = self.now + reply.takes_ms;
                self.plan(back, node, What::Answered(id, Box::new(reply.answer)));
            }
            What::Answered(id, answer) => self.tell(node, Event::Answered { id, answer: *answer }),
            What::Start(pod) => {
                let since = self.now;
                if let Some(event) = self.nodes[node].ask(pod, since, PATIENCE_MS) {
                    self.tell_bound(node);
                    self.tell(node, event);
                }
            }
            What::Stop(pod) => {
                if let Some(event) = self.nodes[node].stop(pod) {
                    self.tell(node, event);
                    self.tell_bound(node);
                }
            }
            What::End => self.nodes[node].end(self.now),
            What::Wired(ticket, pod) => {
                if let Some(event) = self.nodes[node].wired(ticket, pod) {
                    self.tell(node, event);
                }
            }
        }
    }

    fn tell_bound(&mut self, node: usize) {
        if self.setting.knows_bound
            && let Some(pods) = self.nodes[node].bound_has_changed()
        {
            self.tell(node, Event::Bound { pods });
        }
    }

    fn tell(&mut self, node: usize, event: Event) {
        self.nodes[node].account(self.now);
        // Requests that come in the same millisecond are a batch.
        let batch = matches!(event, Event::Ask { .. } | Event::Bound { .. });
        let effects = self.nodes[node].step(self.now, event);
        let offers = effects.iter().any(|effect| matches!(effect, Effect::Offer { .. }));
        for effect in effects {
            self.carry_out(node, effect);
        }
        if offers {
            self.tell_bound(node);
        }
        // What the core wants carried the host can take on at once.
        for eni in self.nodes[node].joining() {
            self.tell(node, Event::EniConfigured { eni });
        }
        self.wake(node, if batch { Some(self.now + 1) } else { None });
    }

    fn carry_out(&mut self, node: usize, effect: Effect) {
        match effect {
            Effect::Offer { ticket, key, .. } => {
                if let Some(pod) = self.nodes[node].offered(ticket, &key) {
                    self.plan(self.now + WIRING_MS, node, What::Wired(ticket, pod));
                }
            }
            Effect::Verdict { ticket, mine } => {
                if let Some((pod, since)) = self.nodes[node].judged(ticket, mine) {
                    if mine {
                        self.waits.push(self.now - since);
                        self.last = self.now;
                    } else {
                        self.plan(self.now + RETRY_MS, node, What::Start(pod));
                    }
                    self.tell(node, Event::Closed { ticket });
                }
            }
            Effect::Refuse { ticket, .. } => {
                if let Some(pod) = self.nodes[node].refused(ticket) {
                    self.plan(self.now + RETRY_MS, node, What::Start(pod));
                    self.tell(node, Event::Closed { ticket });
                }
            }
            Effect::Call { id, call, class } => {
                let waits = class == Class::PodWaits;
                let takes = self.rng.u64(ON_THE_WAY_MS.0..=ON_THE_WAY_MS.1);
                self.plan(self.now + takes, node, What::Arrives(id, call, waits));
            }
            Effect::Record(_) | Effect::Released { .. } | Effect::ForgetConnections { .. } => {}
        }
    }

    fn read_metadata(&mut self, node: usize) {
        self.nodes[node].reads_at = None;
        let instance = self.nodes[node].instance.clone();
        let enis = self.cloud.imds(self.now, &instance);
        if let Some(primary) = enis.iter().find(|eni| (eni.place.card, eni.place.device_index) == (0, 0)) {
            self.tell(node, Event::Groups { groups: primary.groups.clone() });
        }
        let listed = enis.iter().map(|eni| eni.id.clone()).collect();
        self.tell(node, Event::Imds { enis, listed, addressless: Vec::new() });
    }

    /// Plans when the node is to be woken, and when it reads metadata.
    fn wake(&mut self, node: usize, soon: Option<u64>) {
        let (due, expects) = self.nodes[node].due(self.now);
        let due = [due, soon].into_iter().flatten().min();
        if let Some(due) = due
            && self.nodes[node].ticks_at.is_none_or(|at| at > due)
        {
            self.nodes[node].ticks_at = Some(due);
            self.plan(due, node, What::Tick);
        }
        if expects && self.nodes[node].reads_at.is_none() {
            let at = self.now + METADATA_MS;
            self.nodes[node].reads_at = Some(at);
            self.plan(at, node, What::Metadata);
        }
    }

    /// Calls so far, by action.
    pub fn counts(&self) -> BTreeMap<String, Counted> {
        self.cloud.counted()
    }

    /// Seconds in which an address of the subnet was taken and no pod used it, over all nodes.
    pub fn idle_seconds(&self) -> f64 {
        self.nodes.iter().map(|node| float(node.idle_ms) / 1000.0).sum()
    }

    /// How often status objects were written, over all nodes.
    pub fn writes(&self) -> u64 {
        self.nodes.iter().map(|node| node.writes).sum()
    }

    /// Where a node stands, in words.
    pub fn explain(&self, node: usize) -> String {
        self.nodes[node].explain(Millis(self.now))
    }
}
