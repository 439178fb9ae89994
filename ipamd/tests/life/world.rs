//! The node around the core: metadata, kernel, store, and the plugins' side of it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
};

use enid_ipamd::{
    AddresslessEni, AttachmentKey, Call, CallId, Cause, Core, Effect, EniConfig, EniFacts, EniId, EniState, Event,
    Intent, Kind, LOCAL_V4, LOCAL_V6, Lease, Ledger, Limits, Millis, Node, Place, Placement, PodRef, Policy,
    Provisioning, Restrictions, Second, SubnetId, Target, Ticket, Write,
};
use ipnet::IpNet;
use proptest::prelude::*;

pub const LIMITS: Limits = Limits::of_one_card(3, 4, true);
/// The same twice more.
pub const THREE_CARDS: Limits = Limits { further_cards: 2, enis_per_further_card: 2, ..LIMITS };

pub fn policy() -> Policy {
    Policy {
        target: Target::Warm { enis: 0, addresses: 1, minimum: 0, prefixes: 0 },
        kind: Kind::Single,
        second: Second::None,
        placement: Placement::Primary,
        multi_card: false,
        max_enis: None,
        max_pods: None,
        cooldown_ms: 1_000,
        manage_untagged: true,
        provisioning: Provisioning::On,
        clean_leaked: false,
        manage_cordoned: false,
    }
}

/// One ENI in EC2.
#[derive(Clone, Debug)]
pub struct Cloud {
    pub tagged: bool,
    pub protected: bool,
    pub place: Option<Place>,
    pub token: Option<String>,
    pub subnet: SubnetId,
    pub blocks: BTreeSet<IpNet>,
    pub groups: BTreeSet<String>,
}

impl Cloud {
    /// Somebody's, unattached, in the first subnet.
    pub fn new() -> Self {
        Cloud {
            tagged: false,
            protected: false,
            place: None,
            token: None,
            subnet: subnet(1),
            blocks: BTreeSet::new(),
            groups: BTreeSet::new(),
        }
    }
}

/// One subnet in EC2.
#[derive(Clone, Debug, Default)]
pub struct Subnet {
    /// Addresses that it has left; any number, where it is none.
    pub left: Option<u32>,
    /// Its tag `kubernetes.io/role/cni`.
    pub role: Option<String>,
    /// The clusters that it is kept for.
    pub clusters: BTreeSet<String>,
}

/// The id of a subnet.
pub fn subnet(number: u8) -> SubnetId {
    SubnetId(format!("subnet-{number}").into())
}

/// The node around the core: EC2, metadata, kernel, store.
pub struct World {
    pub node: Node,
    pub lives: u64,
    pub core: Core,
    /// EFA-only ENIs.
    pub bare: Vec<AddresslessEni>,
    pub now: Millis,
    pub enis: BTreeMap<EniId, Cloud>,
    pub next: u8,
    pub calls: VecDeque<(CallId, Call)>,
    pub refuse: Option<Cause>,
    /// Addresses that links use.
    pub used: Vec<IpAddr>,
    /// Addresses whose connections were forgotten.
    pub forgotten: BTreeSet<IpAddr>,
    /// The subnets of the node's zone; the primary ENI is in the first.
    pub subnets: BTreeMap<SubnetId, Subnet>,
    /// The node's ENIConfig.
    pub config: Option<EniConfig>,
    /// Where an ENI of others is attached that metadata never shows.
    pub foreign: Option<Place>,
    /// The subnet has no free /28.
    pub fragmented: bool,
    pub ledger: Ledger,
    /// Links that stand, as the kernel would list them.
    pub links: BTreeSet<AttachmentKey>,
    pub offered: BTreeMap<Ticket, (AttachmentKey, Lease)>,
    pub asked: BTreeSet<Ticket>,
    pub refused: Vec<(Ticket, Cause)>,
    pub tickets: u64,
    pub sent: Vec<&'static str>,
    /// The last verdict.
    pub mine: bool,
}

pub fn key(pod: u8) -> AttachmentKey {
    AttachmentKey { network: "enid".into(), container: format!("c{pod}"), ifname: "eth0".into() }
}

pub fn pod_ref(pod: u8) -> PodRef {
    PodRef { namespace: "default".into(), name: format!("p{pod}") }
}

impl World {
    pub fn new() -> Self {
        World::with(policy(), LIMITS)
    }

    pub fn with(policy: Policy, limits: Limits) -> Self {
        World::beside(policy, limits, Vec::new())
    }

    pub fn beside(policy: Policy, limits: Limits, bare: Vec<AddresslessEni>) -> Self {
        let primary = Cloud { place: Some(Place::default()), protected: true, ..Cloud::new() };
        let node = Node {
            instance_id: "i-1".into(),
            limits,
            policy,
            restrictions: Restrictions::default(),
            token_seed: "t".into(),
        };
        let mut world = World {
            core: Core::new(node.clone(), Ledger::default()),
            node,
            lives: 0,
            bare,
            now: Millis(1),
            enis: BTreeMap::from([(EniId("eni-0".into()), primary)]),
            next: 10,
            calls: VecDeque::new(),
            refuse: None,
            config: None,
            foreign: None,
            subnets: BTreeMap::from([(subnet(1), Subnet::default())]),
            used: Vec::new(),
            forgotten: BTreeSet::new(),
            fragmented: false,
            ledger: Ledger::default(),
            links: BTreeSet::new(),
            offered: BTreeMap::new(),
            asked: BTreeSet::new(),
            refused: Vec::new(),
            tickets: 0,
            sent: Vec::new(),
            mine: false,
        };
        world.start();
        world
    }

    pub fn start(&mut self) {
        if let Some(config) = self.config.clone() {
            self.step(Event::EniConfig { config: Ok(config) });
        }
        self.metadata();
        self.listing();
    }

    pub fn step(&mut self, event: Event) {
        let is_in_batch = matches!(event, Event::Ask { .. });
        let (effects, plan) = self.core.step_and_plan(self.now, event);
        let again = self.core.plan(self.now);
        // With the plan's actions in flight and no answer yet there is nothing more to do, and the same is waited for.
        if !is_in_batch {
            assert_eq!(again.actions, [], "planned twice");
            assert_eq!(again.waits, plan.waits);
        }
        for effect in effects {
            match effect {
                Effect::Record(write) => self.record(write),
                Effect::Call { id, call, .. } => {
                    if let Call::Create { token, .. } = &call {
                        assert!(self.ledger.intents.contains_key(token), "created before it was written down");
                    }
                    if std::env::var_os("LIFE_TRACE").is_some() {
                        eprintln!("{:?} {call:?}", self.now);
                    }
                    self.sent.push(call.action());
                    self.calls.push_back((id, call));
                }
                Effect::Offer { ticket, key, lease } => {
                    let recorded = self.ledger.leases.get(&key).expect("the record goes with the offer");
                    assert!(recorded.addresses().eq(lease.addresses()));
                    assert!(
                        lease.addresses().all(|address| !self.ledger.cooling.contains_key(&address)),
                        "it is cooling"
                    );
                    self.is_whole(&lease);
                    self.asked.remove(&ticket);
                    self.offered.insert(ticket, (key, lease));
                }
                Effect::Refuse { ticket, refusal } => {
                    self.asked.remove(&ticket);
                    self.refused.push((ticket, refusal.cause));
                }
                Effect::Verdict { mine, .. } => self.mine = mine,
                Effect::Released { .. } => {}
                Effect::ForgetConnections { addresses } => self.forgotten.extend(addresses),
            }
        }
        assert_eq!(self.core.broken(), None);
        let held: Vec<IpAddr> = self.ledger.leases.values().flat_map(Lease::addresses).collect();
        assert_eq!(held.iter().collect::<BTreeSet<_>>().len(), held.len(), "two owners in the store");
    }

    /// A pod gets all that the settings promise, and all of it out of its own ENI.
    pub fn is_whole(&self, lease: &Lease) {
        let eni = &self.enis[&lease.eni];
        let on_it = |address: IpAddr| eni.blocks.iter().any(|net| net.contains(&address));
        assert!(on_it(lease.address), "{lease:?} is not on its ENI");
        match self.node.policy.second {
            Second::None => assert_eq!(lease.second, None),
            Second::V6OfEni => {
                assert!(
                    lease.address.is_ipv4() && lease.second.is_some_and(|second| second.is_ipv6() && on_it(second))
                );
            }
            Second::NodeLocal => {
                let range = if lease.address.is_ipv4() { LOCAL_V6 } else { LOCAL_V4 };
                assert!(lease.local().is_some_and(|local| range.contains(&local)));
            }
        }
    }

    pub fn record(&mut self, write: Write) {
        match write {
            Write::Lease(key, Some(lease)) => drop(self.ledger.leases.insert(key, lease)),
            Write::Lease(key, None) => drop(self.ledger.leases.remove(&key)),
            Write::Cooldown(address, Some(until)) => drop(self.ledger.cooling.insert(address, until)),
            Write::Cooldown(address, None) => drop(self.ledger.cooling.remove(&address)),
            Write::Slot(eni, Some(slot)) => drop(self.ledger.slots.insert(eni, slot)),
            Write::Slot(eni, None) => drop(self.ledger.slots.remove(&eni)),
            Write::Intent(token, Some(intent)) => drop(self.ledger.intents.insert(token, intent)),
            Write::Intent(token, None) => drop(self.ledger.intents.remove(&token)),
        }
    }

    pub fn metadata(&mut self) {
        let shown = self.enis.iter().filter_map(|(id, eni)| {
            let place = eni.place?;
            let number = place.card * 10 + place.device_index;
            Some(EniFacts {
                id: id.clone(),
                mac: [2, 0, 0, 0, 0, u8::try_from(number).ok()?],
                place,
                primary: format!("10.0.9.{}/24", number + 1).parse().ok()?,
                own_v6: None,
                subnet_id: eni.subnet.clone(),
                blocks: eni.blocks.clone(),
                groups: eni.groups.clone(),
            })
        });
        let enis: Vec<EniFacts> = shown.collect();
        let listed = enis.iter().map(|eni| eni.id.clone()).collect();
        let groups = self.enis.values().next().map(|primary| primary.groups.clone()).unwrap_or_default();
        self.step(Event::Groups { groups });
        self.step(Event::Imds { enis, listed, addressless: self.bare.clone() });
        let joining = self.core.host_enis().filter(|(eni, _)| eni.state == EniState::Configuring);
        let joined: Vec<EniId> = joining.map(|(eni, _)| eni.facts.id.clone()).collect();
        for eni in joined {
            assert!(self.enis[&eni].protected, "an ENI that outlives its instance serves pods");
            self.step(Event::EniConfigured { eni });
        }
    }

    pub fn listing(&mut self) {
        let asked = self.core.leases().map(|(key, _)| key.clone()).collect();
        let seen = self.links.iter().cloned().collect();
        self.step(Event::Links { begun: self.now, asked, seen, used: self.used.clone() });
    }

    pub fn ask(&mut self, pod: u8) {
        self.ask_on(pod, None);
    }

    pub fn ask_on(&mut self, pod: u8, card: Option<u32>) {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.asked.insert(ticket);
        self.step(Event::Ask { ticket, key: key(pod), pod: Some(pod_ref(pod)), timeout_ms: 60_000, card });
    }

    /// Each plugin that was offered an address wires its link, or dies before it could.
    pub fn wire(&mut self, dies: bool) {
        for (ticket, (key, _)) in std::mem::take(&mut self.offered) {
            if !dies {
                self.links.insert(key.clone());
                self.step(Event::Wired { ticket, key: key.clone(), seen: true });
                if !self.mine {
                    // The plugin undoes what it wired.
                    self.links.remove(&key);
                }
            }
            self.step(Event::Closed { ticket });
        }
    }

    pub fn del(&mut self, pod: u8, reported: bool) {
        self.links.remove(&key(pod));
        if reported {
            self.tickets += 1;
            self.step(Event::Release { ticket: Ticket(self.tickets), key: key(pod) });
        }
    }

    pub fn pass(&mut self, millis: u64) {
        self.now = self.now.plus(millis);
        self.step(Event::Tick);
    }

    /// kill −9: memory goes, the ledger, the links and EC2 stay. Calls under way may have arrived.
    pub fn restart(&mut self, arrived: bool) {
        while let Some((_, call)) = self.calls.pop_front() {
            if arrived {
                self.carry_out(&call);
            }
        }
        self.offered.clear();
        self.asked.clear();
        // No two runs share a client token, not even two of one moment.
        self.lives += 1;
        self.node.token_seed = format!("t{}", self.lives);
        self.core = Core::new(self.node.clone(), self.ledger.clone());
        self.start();
    }

    pub fn play(&mut self, step: Move) {
        match step {
            // Every third asks for a card of its own, where there are several.
            Move::Ask(pod) if self.node.policy.multi_card && pod % 3 > 0 => self.ask_on(pod, Some((pod % 3).into())),
            Move::Ask(pod) => self.ask(pod),
            Move::Wire(dies) => self.wire(dies),
            Move::Del(pod, reported) => self.del(pod, reported),
            Move::Answer => self.answer(),
            Move::Metadata => self.metadata(),
            Move::Listing => self.listing(),
            Move::Pass(millis) => self.pass(millis),
            Move::Refuse(cause) => self.refuse = cause,
            Move::Restart(arrived) => self.restart(arrived),
            Move::Tag(number, role) => self.subnet(number).role = role.map(str::to_owned),
            Move::Fill(number, left) => self.subnet(number).left = left,
            Move::Config(number, group) => self.configure(number, &[group]),
            Move::Bound(pods) => self.step(Event::Bound { pods: pods.into_iter().map(pod_ref).collect() }),
        }
    }

    /// A subnet of the zone, which is there from now on.
    pub fn subnet(&mut self, number: u8) -> &mut Subnet {
        self.subnets.entry(subnet(number)).or_default()
    }

    /// The node's ENIConfig says this from now on.
    pub fn configure(&mut self, number: u8, groups: &[&str]) {
        self.subnet(number);
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        let config = EniConfig { name: "zone-a".into(), subnet: subnet(number), groups };
        self.config = Some(config.clone());
        self.step(Event::EniConfig { config: Ok(config) });
    }

    pub fn settle(&mut self) {
        self.refuse = None;
        (0..400).for_each(|_| self.calm());
        // An ENI that nobody has missed for a minute may be on its way out just now.
        for _ in 0..100 {
            if self.calls.is_empty() && !self.ledger.intents.values().any(|it| matches!(it, Intent::Delete(_))) {
                break;
            }
            self.calm();
        }
    }

    pub fn calm(&mut self) {
        self.answer();
        self.metadata();
        self.wire(false);
        self.listing();
        self.pass(700);
    }
}

#[derive(Clone, Debug)]
pub enum Move {
    Ask(u8),
    Wire(bool),
    Del(u8, bool),
    Answer,
    Metadata,
    Listing,
    Pass(u64),
    Refuse(Option<Cause>),
    Restart(bool),
    Bound(Vec<u8>),
    Tag(u8, Option<&'static str>),
    Fill(u8, Option<u32>),
    Config(u8, &'static str),
}

pub fn moves() -> impl Strategy<Value = Vec<Move>> {
    let cause = prop_oneof![
        Just(Cause::Throttled),
        Just(Cause::SubnetFull),
        Just(Cause::NoCredentials),
        Just(Cause::Ec2Unreachable)
    ];
    let one = prop_oneof![
        6 => (0..12_u8).prop_map(Move::Ask),
        5 => prop::bool::weighted(0.2).prop_map(Move::Wire),
        4 => ((0..12_u8), any::<bool>()).prop_map(|(pod, reported)| Move::Del(pod, reported)),
        6 => Just(Move::Answer),
        4 => Just(Move::Metadata),
        2 => Just(Move::Listing),
        3 => (1..8_000_u64).prop_map(Move::Pass),
        1 => prop::option::of(cause).prop_map(Move::Refuse),
        1 => any::<bool>().prop_map(Move::Restart),
        1 => prop::collection::vec(0..12_u8, 0..8).prop_map(Move::Bound),
        1 => ((1..4_u8), prop::option::of(prop_oneof![Just("0"), Just("1")])).prop_map(|(n, role)| Move::Tag(n, role)),
        1 => ((1..4_u8), prop::option::of(0..4_u32)).prop_map(|(n, left)| Move::Fill(n, left)),
        1 => ((1..4_u8), prop_oneof![Just("sg-1"), Just("sg-2")]).prop_map(|(n, group)| Move::Config(n, group)),
    ];
    prop::collection::vec(one, 1..120)
}
