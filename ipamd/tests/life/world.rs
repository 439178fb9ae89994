//! The node around the core, and a small EC2 that keeps limits, answers late, and sometimes refuses.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use enid_ipamd::{
    AddresslessEni, AttachmentKey, AuditedEni, Call, CallError, CallId, Cause, Core, Ec2Answer, Effect, EniFacts,
    EniId, EniState, Event, Fact, Intent, Kind, LOCAL_V4, LOCAL_V6, Lease, Ledger, Limits, Millis, Node, Order, Place,
    PodRef, Policy, Provisioning, Scope, Second, SubnetId, Target, Ticket, UnattachedEni, Write,
};
use ipnet::{IpNet, Ipv6Net};
use proptest::prelude::*;

pub const LIMITS: Limits = Limits::of_one_card(3, 4, true);
/// The same twice more.
pub const THREE_CARDS: Limits = Limits { further_cards: 2, enis_per_further_card: 2, ..LIMITS };

pub fn policy() -> Policy {
    Policy {
        target: Target::Warm { enis: 0, addresses: 1, minimum: 0, prefixes: 0 },
        kind: Kind::Single,
        second: Second::None,
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
#[derive(Clone, Debug, Default)]
pub struct Cloud {
    pub tagged: bool,
    pub protected: bool,
    pub place: Option<Place>,
    pub token: Option<String>,
    pub blocks: BTreeSet<IpNet>,
    pub groups: BTreeSet<String>,
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
    /// Addresses that the subnet has left; any number, where it is none.
    pub left: Option<u32>,
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
        let primary = Cloud { place: Some(Place::default()), protected: true, ..Cloud::default() };
        let node = Node { instance_id: "i-1".into(), limits, policy, token_seed: "t".into() };
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
            foreign: None,
            left: None,
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

    /// EC2 answers the oldest call.
    pub fn answer(&mut self) {
        let Some((id, call)) = self.calls.pop_front() else { return };
        let prefix = matches!(&call, Call::Assign { order, .. } if order.kind == Kind::Prefix)
            || matches!(&call, Call::Create { creation, .. } if creation.order.kind == Kind::Prefix);
        let asked = match &call {
            Call::Assign { order, .. } => order.count,
            // The ENI's own address is out of the subnet as well.
            Call::Create { creation, .. } => creation.order.count + 1,
            _ => 0,
        };
        let is_short = self.left.is_some_and(|left| asked > left);
        let is_taken = matches!(&call, Call::Attach { place, .. } if Some(*place) == self.foreign);
        let refused = |cause, fact| Err(CallError { cause, message: "no".into(), request_id: None, fact });
        let answer = match self.refuse.or((self.fragmented && prefix).then_some(Cause::NoPrefix)) {
            Some(cause) => refused(cause, Fact::None),
            None if is_short => refused(Cause::SubnetFull, Fact::None),
            None if is_taken => refused(Cause::Ec2Error, Fact::PlaceTaken),
            None => {
                self.left = self.left.map(|left| left - asked);
                Ok(self.carry_out(&call))
            }
        };
        self.step(Event::Answered { id, answer });
    }

    /// EC2 refuses the oldest call.
    pub fn refuse_next(&mut self, cause: Cause, fact: Fact) {
        let Some((id, _)) = self.calls.pop_front() else { return };
        let error = CallError { cause, message: "no".into(), request_id: None, fact };
        self.step(Event::Answered { id, answer: Err(error) });
    }

    pub fn blocks(&mut self, order: Order) -> BTreeSet<IpNet> {
        (0..order.count)
            .map(|_| {
                self.next = self.next.checked_add(1).expect("enough addresses");
                match order.kind {
                    Kind::V6Prefix => {
                        let first = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, self.next.into(), 0, 0, 0);
                        IpNet::V6(Ipv6Net::new(first, 80).expect("a length"))
                    }
                    _ => IpNet::from(IpAddr::V4(Ipv4Addr::new(10, 0, 1, self.next))),
                }
            })
            .collect()
    }

    /// As many of each family as an ENI carries.
    pub fn fits(eni: &Cloud) {
        let v4 = eni.blocks.iter().filter(|net| matches!(net, IpNet::V4(_))).count();
        assert!(v4 < 4 && eni.blocks.len() - v4 <= 1, "more than an ENI carries or needs: {eni:?}");
    }

    pub fn carry_out(&mut self, call: &Call) -> Ec2Answer {
        match call {
            Call::Audit { scope } => {
                let attached = self.enis.iter().filter(|(_, eni)| eni.place.is_some());
                let attached = attached.filter(|(_, eni)| *scope == Scope::Attached || eni.tagged);
                let audited = |(id, eni): (&EniId, &Cloud)| AuditedEni {
                    id: id.clone(),
                    ours: eni.tagged,
                    no_manage: false,
                    delete_on_termination: eni.protected,
                    attachment: format!("att-{id}"),
                    place: eni.place.unwrap_or_default(),
                    token: eni.token.clone(),
                    blocks: eni.blocks.clone(),
                };
                let loose = self.enis.iter().filter(|(_, eni)| eni.place.is_none());
                let unattached =
                    loose.map(|(id, eni)| UnattachedEni { id: id.clone(), token: eni.token.clone() }).collect();
                Ec2Answer::Audited { attached: attached.map(audited).collect(), unattached }
            }
            Call::Tag { eni } => {
                self.enis.get_mut(eni).expect("known").tagged = true;
                Ec2Answer::Done
            }
            Call::Create { creation, token, home } => {
                if let Some((id, eni)) = self.enis.iter().find(|(_, eni)| eni.token.as_ref() == Some(token)) {
                    return Ec2Answer::Created { eni: id.clone(), blocks: eni.blocks.iter().copied().collect() };
                }
                let id = EniId(format!("eni-{}", self.next).into());
                assert!(creation.order.count < LIMITS.addresses_per_eni, "more than an ENI carries");
                let mut blocks = self.blocks(creation.order);
                if creation.with_v6 {
                    blocks.extend(self.blocks(Order { kind: Kind::V6Prefix, count: 1 }));
                }
                let created = blocks.iter().copied().collect();
                let token = Some(token.clone());
                let groups = home.groups.as_ref().clone();
                self.enis.insert(id.clone(), Cloud { tagged: true, blocks, token, groups, ..Cloud::default() });
                Ec2Answer::Created { eni: id, blocks: created }
            }
            Call::Attach { eni, place } => {
                let bare = self.bare.iter().map(|eni| eni.place);
                let attached = self.enis.values().filter_map(|eni| eni.place).chain(bare).collect::<Vec<_>>();
                assert!(!attached.contains(place), "{place:?} is taken");
                let there = attached.iter().filter(|other| other.card == place.card).count();
                assert!(there < if place.card == 0 { 3 } else { 2 }, "more ENIs than the card carries");
                self.enis.get_mut(eni).expect("known").place = Some(*place);
                Ec2Answer::Attached { attachment: format!("att-{eni}") }
            }
            Call::DeleteOnTermination { eni, .. } => {
                self.enis.get_mut(eni).expect("known").protected = true;
                Ec2Answer::Done
            }
            Call::Assign { eni, order } => {
                let new = self.blocks(*order);
                let eni = self.enis.get_mut(eni).expect("known");
                assert!(eni.tagged, "changed before it was ours");
                eni.blocks.extend(&new);
                Self::fits(eni);
                Ec2Answer::Assigned { blocks: new.into_iter().collect() }
            }
            Call::Unassign { eni, blocks } => {
                let cloud = self.enis.get_mut(eni).expect("known");
                for net in blocks {
                    let used = |lease: &Lease| lease.addresses().any(|address| net.contains(&address));
                    assert!(!self.ledger.leases.values().any(used), "an address in use goes back");
                    cloud.blocks.remove(net);
                }
                Ec2Answer::Done
            }
            Call::FindLeaked => Ec2Answer::Leaked { enis: Vec::new() },
            Call::Subnets { ids } => {
                let free = ids.iter().map(|id| (id.clone(), self.left.unwrap_or(200).into()));
                Ec2Answer::Subnets { free: free.collect() }
            }
            Call::SetGroups { eni, groups } => {
                self.enis.get_mut(eni).expect("known").groups = groups.as_ref().clone();
                Ec2Answer::Done
            }
            Call::Detach { eni, .. } => {
                self.enis.get_mut(eni).expect("known").place = None;
                Ec2Answer::Done
            }
            Call::Delete { eni } => {
                let gone = self.enis.remove(eni).expect("known");
                assert!(gone.place.is_none() && self.ledger.leases.values().all(|lease| lease.eni != *eni));
                Ec2Answer::Done
            }
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
                subnet_id: SubnetId("subnet-1".into()),
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
            Move::Bound(pods) => self.step(Event::Bound { pods: pods.into_iter().map(pod_ref).collect() }),
        }
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
    ];
    prop::collection::vec(one, 1..120)
}
