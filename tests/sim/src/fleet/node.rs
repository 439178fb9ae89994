//! One well-behaved node: its core, its pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use enid_ipamd::{
    AttachmentKey, Core, Effect, EniId, EniState, Event, Ledger, Limits, Millis, Node as Facts, PodRef, Policy,
    Restrictions, Ticket, Told,
};

/// A pod from its creation to its deletion.
#[derive(Clone, Debug)]
struct Pod {
    /// When its first ADD came.
    since: u64,
    /// Its ADD under way.
    ticket: Option<Ticket>,
    /// It has its address.
    runs: bool,
}

/// A node.
pub struct Node {
    pub instance: String,
    number: usize,
    /// Its clock is ahead by so many milliseconds.
    pub clock_error: u64,
    core: Option<Core>,
    pods: BTreeMap<u64, Pod>,
    tickets: u64,
    bound: BTreeSet<PodRef>,
    /// When it is woken next, and when it reads metadata next, if that is planned.
    pub ticks_at: Option<u64>,
    pub reads_at: Option<u64>,
    /// Milliseconds times addresses that no pod used, up to `accounted`.
    pub idle_ms: u64,
    accounted: u64,
    /// What its status object says, and how often that was written.
    told: Told<(usize, u64, u64, u64)>,
    pub writes: u64,
}

fn reference(pod: u64) -> PodRef {
    PodRef { namespace: "default".into(), name: format!("{pod}") }
}

fn key(pod: u64) -> AttachmentKey {
    AttachmentKey { network: "enid".into(), container: format!("{pod}"), ifname: "eth0".into() }
}

impl Node {
    pub fn new(instance: String, number: usize, clock_error: u64) -> Self {
        Node {
            instance,
            number,
            clock_error,
            core: None,
            pods: BTreeMap::new(),
            tickets: 0,
            bound: BTreeSet::new(),
            ticks_at: None,
            reads_at: None,
            idle_ms: 0,
            accounted: 0,
            told: Told::default(),
            writes: 0,
        }
    }

    pub fn boot(&mut self, now: u64, limits: Limits, policy: Policy) {
        let facts = Facts {
            instance_id: self.instance.clone(),
            limits,
            policy,
            restrictions: Restrictions::default(),
            token_seed: format!("n{}-{now}", self.number),
        };
        self.core = Some(Core::new(facts, Ledger::default()));
        self.accounted = now;
    }

    /// The instance is terminated: EC2 takes all back.
    pub fn end(&mut self, now: u64) {
        self.account(now);
        self.core = None;
        self.pods.clear();
    }

    /// Adds up what was idle since the last time.
    pub fn account(&mut self, now: u64) {
        let Some(core) = &self.core else { return };
        let counts = core.counts();
        // A secondary ENI's own address is taken from the subnet as well.
        let enis = core.host_enis().count();
        let own = u64::try_from(enis.saturating_sub(1)).unwrap_or(0);
        self.idle_ms += (counts.total - counts.assigned + own) * (now - self.accounted);
        self.accounted = now;
        let figures = (enis, counts.assigned, counts.available, counts.cooling);
        if self.told.due(Millis(now), &figures).is_some_and(|due| due.0 <= now) {
            self.told.tell(Millis(now), Some(figures));
            self.writes += 1;
        }
    }

    pub fn step(&mut self, now: u64, event: Event) -> Vec<Effect> {
        self.core.as_mut().map(|core| core.step(Millis(now), event)).unwrap_or_default()
    }

    /// When the core wants to be woken, and whether it expects something of metadata.
    pub fn due(&self, now: u64) -> (Option<u64>, bool) {
        let Some(core) = &self.core else { return (None, false) };
        (core.next_due(Millis(now)).map(|due| due.0), core.awaits_metadata())
    }

    /// All links are there, and nobody else's.
    pub fn links(&self, now: u64) -> Option<Event> {
        let core = self.core.as_ref()?;
        let running: BTreeSet<AttachmentKey> =
            self.pods.iter().filter(|(_, pod)| pod.runs).map(|(pod, _)| key(*pod)).collect();
        let used: Vec<IpAddr> = running.iter().filter_map(|key| Some(core.lease(key)?.address)).collect();
        let asked = core.leases().map(|(key, _)| key.clone()).collect();
        Some(Event::Links { begun: Millis(now), asked, seen: running.into_iter().collect(), used })
    }

    pub fn joining(&self) -> Vec<EniId> {
        let Some(core) = &self.core else { return Vec::new() };
        let joining = core.host_enis().filter(|(eni, _)| eni.state == EniState::Configuring);
        joining.map(|(eni, _)| eni.facts.id.clone()).collect()
    }

    /// ADD of a pod, the first or one more.
    pub fn ask(&mut self, pod: u64, now: u64, timeout_ms: u64) -> Option<Event> {
        self.core.as_ref()?;
        let ticket = Ticket(self.tickets);
        let known = self.pods.entry(pod).or_insert(Pod { since: now, ticket: None, runs: false });
        if known.runs || known.ticket.is_some() {
            return None;
        }
        self.tickets += 1;
        known.ticket = Some(ticket);
        Some(Event::Ask { ticket, key: key(pod), pod: Some(reference(pod)), timeout_ms, card: None })
    }

    /// DEL of a pod.
    pub fn stop(&mut self, pod: u64) -> Option<Event> {
        self.pods.remove(&pod)?;
        self.tickets += 1;
        Some(Event::Release { ticket: Ticket(self.tickets - 1), key: key(pod) })
    }

    /// The pod that an offer is for, if it still wants one.
    pub fn offered(&self, ticket: Ticket, of: &AttachmentKey) -> Option<u64> {
        let pod = of.container.parse().ok()?;
        (self.pods.get(&pod)?.ticket == Some(ticket)).then_some(pod)
    }

    pub fn wired(&self, ticket: Ticket, pod: u64) -> Option<Event> {
        let wanted = self.pods.get(&pod)?.ticket == Some(ticket);
        wanted.then(|| Event::Wired { ticket, key: key(pod), seen: true })
    }

    fn of(&mut self, ticket: Ticket) -> Option<(u64, &mut Pod)> {
        let (number, pod) = self.pods.iter_mut().find(|(_, pod)| pod.ticket == Some(ticket))?;
        pod.ticket = None;
        Some((*number, pod))
    }

    /// The verdict on a pod's attachment: which pod, and since when it has waited.
    pub fn judged(&mut self, ticket: Ticket, mine: bool) -> Option<(u64, u64)> {
        let (number, pod) = self.of(ticket)?;
        pod.runs = mine;
        Some((number, pod.since))
    }

    pub fn refused(&mut self, ticket: Ticket) -> Option<u64> {
        self.of(ticket).map(|(number, _)| number)
    }

    /// The pods that hold no lease yet, if that has changed.
    pub fn bound_has_changed(&mut self) -> Option<BTreeSet<PodRef>> {
        let core = self.core.as_ref()?;
        let waiting = self.pods.keys().filter(|pod| core.lease(&key(**pod)).is_none());
        let bound: BTreeSet<PodRef> = waiting.map(|pod| reference(*pod)).collect();
        (std::mem::replace(&mut self.bound, bound.clone()) != bound).then_some(bound)
    }

    pub fn explain(&self, now: Millis) -> String {
        let waiting = self.pods.values().filter(|pod| !pod.runs).count();
        let view = self.core.as_ref().map(|core| core.view(now));
        let counts = self.core.as_ref().map(Core::counts);
        let pauses = view.map(|view| view.pacing.pauses);
        format!("{waiting} pods wait on {}: {counts:?}, pauses {pauses:?}", self.instance)
    }
}
