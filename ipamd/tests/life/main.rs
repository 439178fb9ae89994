//! Histories of a node with a small EC2 that keeps limits, answers late, and sometimes refuses.
//!
//! The properties hold for every order of events: an address has one owner, what was answered is what is
//! recorded, and whoever waits is answered in the end.

mod bound;
mod ec2;
mod families;
mod groups;
mod subnets;
mod world;

use std::collections::BTreeSet;

use enid_ipamd::{
    Call, Cause, EniFacts, EniId, Event, Intent, Kind, Millis, Place, Placement, Policy, Refusal, Second, Target,
};
use proptest::prelude::*;
use world::{LIMITS, Move, THREE_CARDS, World, key, moves, policy};

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_run_keeps_the_invariants_and_settles(moves in moves(), mode in 0..7_usize) {
        let v6 = Policy { kind: Kind::V6Prefix, second: Second::NodeLocal, ..policy() };
        let dual = Policy { second: Second::V6OfEni, ..policy() };
        let modes = [
            (policy(), LIMITS),
            (Policy { second: Second::NodeLocal, ..policy() }, LIMITS),
            (v6, LIMITS),
            (dual.clone(), LIMITS),
            (Policy { multi_card: true, ..dual }, THREE_CARDS),
            (Policy { placement: Placement::Tagged { cluster: None }, ..policy() }, LIMITS),
            (Policy { placement: Placement::EniConfig, ..policy() }, LIMITS),
        ];
        let (policy, limits) = modes[mode].clone();
        let mut world = World::with(policy, limits);
        for step in moves {
            world.play(step);
            if world.next > 200 {
                break;
            }
        }
        world.subnets.values_mut().for_each(|subnet| subnet.left = None);
        world.settle();
        // Nobody waits for ever, leases and links agree, nothing ownerless is left in EC2.
        prop_assert!(world.asked.is_empty(), "{:?} still wait", world.asked);
        let held: BTreeSet<_> = world.ledger.leases.keys().cloned().collect();
        prop_assert_eq!(&held, &world.links);
        let unfinished = |intent: &Intent| matches!(intent, Intent::Create(_) | Intent::Delete(_));
        prop_assert!(!world.ledger.intents.values().any(unfinished), "{:?}", world.ledger.intents);
        prop_assert!(world.enis.values().all(|eni| eni.place.is_some() && eni.protected), "{:?}", world.enis);
    }
}

/// A listing that was begun before an ADD says nothing about it, whatever the runtime says alongside.
#[test]
fn a_listing_older_than_a_lease_does_not_end_it() {
    let mut world = World::new();
    world.settle();
    world.ask(1);
    world.wire(false);
    let old = Event::Links { begun: world.now, asked: Vec::new(), seen: Vec::new(), used: Vec::new() };
    world.step(Event::Gc { network: key(1).network, alive: Vec::new() });
    world.step(old);
    assert!(world.core.lease(&key(1)).is_some(), "the lease of a live pod has ended");
    world.links.clear();
    world.step(Event::Gc { network: key(1).network, alive: Vec::new() });
    world.listing();
    assert!(world.core.lease(&key(1)).is_none(), "neither runtime nor kernel know it");
}

#[test]
fn a_first_boot_costs_three_calls_and_a_hundred_waiting_adds_one_order() {
    let mut world = World::new();
    world.settle();
    assert_eq!(world.sent[..3], ["DescribeNetworkInterfaces", "CreateTags", "AssignPrivateIpAddresses"]);
    assert_eq!(world.sent[3..], ["DescribeNetworkInterfaces"], "minutes later, all that is ours");
    world.sent.clear();
    (0..2).for_each(|pod| world.ask(pod));
    world.pass(0);
    assert_eq!(world.sent.len(), 1, "one order for all: {:?}", world.sent);
}

#[test]
fn a_quiet_node_calls_nobody() {
    let mut world = World::new();
    world.settle();
    world.sent.clear();
    for _ in 0..1_000 {
        world.pass(86_400);
        world.metadata();
        world.listing();
        world.answer();
    }
    // A day and nobody came: one audit in two hours, nothing else.
    assert!(
        world.sent.len() <= 12 && world.sent.iter().all(|action| *action == "DescribeNetworkInterfaces"),
        "{:?}",
        world.sent
    );
}

#[test]
fn an_address_is_cooling_before_it_is_assigned_again_and_cooldown_survives_a_restart() {
    let mut world = World::new();
    world.settle();
    world.ask(1);
    world.wire(false);
    let first = world.ledger.leases[&key(1)].address;
    world.del(1, true);
    world.restart(true);
    assert!(world.ledger.cooling.contains_key(&first));
    world.ask(2);
    assert_ne!(world.ledger.leases.get(&key(2)).map(|lease| lease.address), Some(first));
}

#[test]
fn a_crash_between_create_and_attach_leaves_no_eni_behind() {
    let mut world = World::new();
    world.settle();
    (0..4).for_each(|pod| world.ask(pod));
    while world.calls.front().is_none_or(|(_, call)| !matches!(call, Call::Attach { .. })) {
        world.answer();
        world.metadata();
        world.pass(10);
    }
    world.calls.clear();
    world.restart(false);
    assert!(world.enis.values().any(|eni| eni.place.is_none()));
    world.settle();
    assert!(world.enis.values().all(|eni| eni.place.is_some()));
}

#[test]
fn single_addresses_in_place_of_prefixes_leave_room_for_these() {
    let mut world = World::new();
    world.fragmented = true;
    let target = Target::Warm { enis: 0, addresses: 0, minimum: 0, prefixes: 1 };
    world.step(Event::Settings { policy: Policy { kind: Kind::Prefix, target, ..policy() } });
    world.ask(1);
    for _ in 0..100 {
        world.answer();
        world.metadata();
        world.wire(false);
        world.listing();
        world.pass(700);
    }
    assert!(world.ledger.leases.contains_key(&key(1)));
    let taken: usize = world.enis.values().map(|eni| eni.blocks.len()).sum();
    assert!(taken <= 5, "one in use, four ahead, and {taken} of nine places are taken");
    assert_eq!(world.calls.len(), 0);
}

/// Found by the property above: an audit took an ENI back into service while its detaching was put off.
#[test]
fn an_eni_that_is_being_detached_serves_nobody() {
    use Move::{Answer, Ask, Del, Metadata, Refuse, Restart, Wire};
    let mut world = World::new();
    let moves = [
        [Ask(3), Answer, Ask(6), Answer, Answer, Ask(4), Metadata, Answer, Ask(2), Answer, Answer, Answer, Metadata],
        [
            Answer,
            Wire(false),
            Restart(false),
            Answer,
            Del(2, true),
            Refuse(Some(Cause::SubnetFull)),
            Ask(0),
            Ask(1),
            Answer,
            Refuse(Some(Cause::Throttled)),
            Answer,
            Answer,
            Metadata,
        ],
    ];
    moves.into_iter().flatten().for_each(|step| world.play(step));
    world.settle();
    assert!(world.asked.is_empty() && world.enis.values().all(|eni| eni.place.is_some()));
}

/// Neither metadata nor EC2 shows the block of a lease any more: its ENI looks idle, and stays.
#[test]
fn an_eni_that_a_lease_names_is_not_chosen_for_release() {
    let mut world = World::new();
    world.settle();
    (0..8).for_each(|pod| world.ask(pod));
    world.settle();
    let secondary = |lease: &&enid_ipamd::Lease| &*lease.eni.0 != "eni-0";
    let lease = world.ledger.leases.values().find(secondary).expect("three addresses fit an ENI").clone();
    let (kept, _) = world.ledger.leases.iter().find(|(_, other)| other.address == lease.address).expect("it is held");
    let kept = kept.clone();
    let block = |net: &ipnet::IpNet| net.contains(&lease.address);
    world.enis.get_mut(&lease.eni).expect("known").blocks.retain(|net| !block(net));
    (0..8).filter(|pod| key(*pod) != kept).for_each(|pod| world.del(pod, true));
    world.restart(true);
    // The first audit of a run says which ENIs are ours.
    (0..5).for_each(|_| world.settle());
    assert!(world.sent.contains(&"DetachNetworkInterface"), "what is really idle goes");
    assert!(world.enis[&lease.eni].place.is_some(), "a pod has its address");
}

/// The kind: what is ours by the record waits for an audit that nobody has a reason to hold back, and one ENI for another.
#[test]
fn surplus_goes_after_its_minute_in_a_new_run_too_and_all_of_it_at_once() {
    let mut world = World::new();
    world.settle();
    (0..8).for_each(|pod| world.ask(pod));
    world.settle();
    let all = world.enis.len();
    assert_eq!(all, 3, "{:?}", world.enis);
    (0..8).for_each(|pod| world.del(pod, true));
    world.pass(2_000); // the cooldown
    world.restart(true);
    world.sent.clear();
    for _ in 0..160 {
        world.calm();
        if let Some(detached) = world.sent.iter().position(|action| *action == "DetachNetworkInterface") {
            let asked = world.sent.iter().filter(|action| **action == "DescribeNetworkInterfaces").count();
            assert_eq!(asked, 1, "EC2 says first that they are ours: {:?}", &world.sent[..detached]);
        }
    }
    // 160 times 0.7 s: a minute for its age, which is also that of the surplus, and what four calls take.
    assert_eq!(world.enis.len(), 1, "{:?}", world.sent);
    let left = world.enis.values().next().expect("the primary").blocks.len();
    assert_eq!(left, 1, "WARM_IP_TARGET is 1: {:?}", world.sent);
}

/// Metadata that leaves an ENI out at the start of a run is no reason to take the rules from the pods behind it.
#[test]
fn what_leases_name_is_retained_until_metadata_shows_it() {
    let mut world = World::new();
    world.settle();
    for pod in 0..6 {
        world.ask(pod);
        world.settle();
        world.wire(false);
    }
    let second =
        world.ledger.leases.values().find(|lease| lease.slot != 0).cloned().expect("more than one ENI's worth");
    let behind = world.ledger.leases.values().filter(|lease| lease.slot == second.slot).count();
    assert!(world.core.retained_slots().is_empty());
    let place = world.enis.get_mut(&second.eni).and_then(|eni| eni.place.take());
    world.restart(false);
    assert_eq!(world.core.retained_slots().len(), behind);
    assert!(world.core.retained_slots().contains(&(second.slot, second.address)));
    let (carried, topology) = (world.core.host_enis().count(), world.core.topology());
    world.enis.get_mut(&second.eni).expect("known").place = place;
    world.metadata();
    assert!(world.core.retained_slots().is_empty() && world.core.topology() != topology);
    assert_eq!(world.core.host_enis().count(), carried + 1);
}

#[test]
fn what_metadata_says_of_a_known_eni_is_news_for_the_kernel() {
    let mut world = World::new();
    world.settle();
    let facts = |world: &World| world.core.host_enis().map(|(eni, _)| eni.facts.clone()).collect::<Vec<_>>();
    let before = world.core.topology();
    let same = facts(&world);
    let listed: BTreeSet<EniId> = same.iter().map(|eni| eni.id.clone()).collect();
    world.step(Event::Imds { enis: same.clone(), listed: listed.clone(), addressless: Vec::new() });
    assert_eq!(world.core.topology(), before);
    let other = same.into_iter().map(|eni| EniFacts { own_v6: "2001:db8::7".parse().ok(), ..eni }).collect();
    world.step(Event::Imds { enis: other, listed, addressless: Vec::new() });
    assert_ne!(world.core.topology(), before);
}

#[test]
fn nobody_is_given_an_address_while_the_host_cannot_forward() {
    let mut world = World::new();
    world.settle();
    let blocked = |refusal| Event::Blocked { blocked: refusal };
    world.step(blocked(Some(Refusal::new(Cause::Starting, "it is not known yet"))));
    world.ask(1);
    world.listing();
    assert!(world.ledger.leases.is_empty() && world.refused.is_empty(), "it waits");
    world.step(blocked(None));
    assert_eq!(world.ledger.leases.len(), 1);
    world.step(blocked(Some(Refusal::new(Cause::ForwardDropped, "a firewall drops"))));
    world.ask(2);
    assert_eq!(world.refused.last().map(|(_, cause)| *cause), Some(Cause::ForwardDropped));
}

#[test]
fn cooldowns_of_a_block_that_is_never_used_up_are_forgotten() {
    let v6 = Policy { kind: Kind::V6Prefix, second: Second::NodeLocal, ..policy() };
    let mut world = World::with(v6, LIMITS);
    world.settle();
    world.ask(1);
    world.wire(false);
    let address = world.ledger.leases[&key(1)].address;
    world.del(1, true);
    assert!(world.ledger.cooling.contains_key(&address));
    world.settle();
    assert!(!world.ledger.cooling.contains_key(&address));
}

/// The kind: state that belongs to another identity, or contradicts itself: what is doubtful is withheld, the rest serves.
#[test]
fn a_record_that_gives_a_slot_twice_keeps_nobody_from_an_address() {
    let mut world = World::new();
    world.settle();
    (0..8).for_each(|pod| world.ask(pod));
    world.settle();
    (0..8).for_each(|pod| world.del(pod, true));
    world.ledger.cooling.clear();
    let foreign = [("eni-a", 0), ("eni-b", 99)];
    world.ledger.slots.extend(foreign.map(|(eni, slot)| (EniId(eni.into()), slot)));
    world.ledger.slots.iter_mut().filter(|(eni, _)| eni.0.len() > 5).for_each(|(_, slot)| *slot = 1);
    assert!(world.ledger.slots.values().filter(|slot| **slot == 1).count() > 1);
    world.restart(true);
    (10..18).for_each(|pod| world.ask(pod));
    world.settle();
    assert!(world.core.broken().is_none());
    assert_eq!(world.ledger.leases.len(), 8);
    let slots: BTreeSet<u32> = world.ledger.leases.values().map(|lease| lease.slot).collect();
    let enis: BTreeSet<&EniId> = world.ledger.leases.values().map(|lease| &lease.eni).collect();
    assert_eq!(slots.len(), enis.len());
}

/// The kind: what is over stays over. At another boot only addresses of pods that ran then, and those in their cooldown,
/// cool; the pods that come back with the machine get no further ENI.
#[test]
fn a_node_that_boots_again_serves_with_what_it_had() {
    let mut world = World::new();
    world.settle();
    (0..3).for_each(|pod| world.ask(pod));
    world.settle();
    (0..3).for_each(|pod| world.del(pod, true));
    world.pass(2 * world.node.policy.cooldown_ms);
    world.settle();
    assert!(world.ledger.cooling.is_empty(), "what is over is off the record");
    (0..5).for_each(|pod| world.ask(pod));
    world.settle();
    let enis = world.enis.len();
    world.ledger = world.ledger.clone().at_another_boot(world.node.policy.cooldown_ms);
    assert_eq!(world.ledger.cooling.len(), 5);
    world.now = Millis(1);
    world.restart(true);
    (10..15).for_each(|pod| world.ask(pod));
    world.step(Event::Tick);
    assert_eq!(world.core.plan(world.now).actions.len() + world.calls.len(), 0, "what they need comes back");
    world.pass(world.node.policy.cooldown_ms);
    world.settle();
    assert_eq!((world.ledger.leases.len(), world.enis.len()), (5, enis));
}

/// The kind: a refusal that teaches nothing is met again and again.
#[test]
fn an_eni_whose_place_is_taken_is_attached_at_the_next() {
    let mut world = World::new();
    let at = |device_index| Place { card: 0, device_index };
    world.foreign = Some(at(1));
    world.settle();
    (0..5).for_each(|pod| world.ask(pod));
    world.settle();
    assert_eq!(world.ledger.leases.len(), 5);
    assert_eq!(world.sent.iter().filter(|action| **action == "CreateNetworkInterface").count(), 1, "it is kept");
    assert!(!world.sent.contains(&"DeleteNetworkInterface"), "{:?}", world.sent);
    let places: Vec<Place> = world.enis.values().filter_map(|eni| eni.place).collect();
    assert!(places.contains(&at(2)) && !places.contains(&at(1)), "{places:?}");
}

/// The kind: an amount that EC2 refuses is asked for again and again, though less is there.
#[test]
fn who_waits_gets_what_a_subnet_that_is_short_still_has() {
    for (left, waiting) in [(2, 2), (1, 1), (1, 2), (0, 1), (3, 3)] {
        let policy = Policy { target: Target::Warm { enis: 0, addresses: 3, minimum: 0, prefixes: 0 }, ..policy() };
        let mut world = World::with(policy, LIMITS);
        world.start();
        world.subnet(1).left = Some(left);
        (0..waiting).for_each(|pod| world.ask(pod));
        world.step(Event::Tick);
        world.settle();
        let served = u32::try_from(world.ledger.leases.len()).unwrap();
        assert_eq!(served, left.min(u32::from(waiting)), "{left} addresses for {waiting} pods");
        let asked = world.sent.iter().filter(|action| **action == "AssignPrivateIpAddresses").count();
        assert!(asked <= 20, "{asked} calls");
    }
}

#[test]
fn a_refusal_for_want_of_addresses_says_what_the_subnet_has_left() {
    let mut world = World::new();
    world.settle();
    world.subnet(1).left = Some(0);
    world.sent.clear();
    (0..4).for_each(|pod| world.ask(pod));
    world.settle();
    let refusal = world.core.plan(world.now).refusal(world.now, 0).expect("nobody can be served");
    assert_eq!(
        (refusal.cause, &*refusal.message),
        (Cause::SubnetFull, "no (addresses asked for in subnet-1: 1); the subnet subnet-1 has no free addresses left")
    );
    // 350 seconds.
    let asked = world.sent.iter().filter(|action| **action == "DescribeSubnets").count();
    assert!((2..=7).contains(&asked), "{asked} times: {:?}", world.sent);
    world.subnet(1).left = None;
    world.settle();
    world.ask(9);
    world.settle();
    assert!(world.ledger.leases.contains_key(&key(9)));
}

/// The kind: a repair that hits who lives. An address of a pod whose lease was lost is in no cooldown's list.
#[test]
fn connections_of_a_pod_whose_lease_was_lost_are_not_forgotten() {
    let mut world = World::new();
    world.settle();
    world.ask(1);
    world.settle();
    let address = world.ledger.leases[&key(1)].address;
    world.ledger.leases.clear();
    world.ledger.cooling.insert(address, Millis(1));
    world.links.clear();
    world.used = vec![address];
    for _ in 0..2 {
        world.restart(true);
        world.pass(2 * world.node.policy.cooldown_ms);
        assert!(!world.forgotten.contains(&address) && world.core.view(world.now).orphans == [address]);
    }
    // Once the pod is gone they are.
    world.used.clear();
    world.listing();
    world.pass(2 * world.node.policy.cooldown_ms);
    assert!(world.forgotten.contains(&address));
}
