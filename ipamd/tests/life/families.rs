//! Pods with an address of each family, and network cards with a pool each.

use std::collections::{BTreeMap, BTreeSet};

use enid_ipamd::{AddresslessEni, Cause, EniId, Kind, Ledger, Place, Policy, Second};

use crate::world::{Cloud, LIMITS, THREE_CARDS, World, key, policy};

#[test]
fn a_pod_of_two_families_gets_both_from_one_eni_and_a_new_eni_comes_with_both() {
    let mut world = World::with(Policy { second: Second::V6OfEni, ..policy() }, LIMITS);
    (0..5).for_each(|pod| world.ask(pod));
    world.settle();
    assert_eq!(world.ledger.leases.len(), 5);
    let enis: BTreeSet<&EniId> = world.ledger.leases.values().map(|lease| &lease.eni).collect();
    assert_eq!(enis.len(), 2, "three fit on an ENI");
    // The primary is asked for its /80; the other ENI is created with one.
    assert_eq!(world.sent.iter().filter(|action| **action == "AssignIpv6Addresses").count(), 1, "{:?}", world.sent);
    let lease = world.ledger.leases[&key(1)].clone();
    world.del(1, true);
    assert!(lease.addresses().all(|address| world.ledger.cooling.contains_key(&address)), "both are cooling");
}

#[test]
fn pods_of_one_family_live_on_when_the_second_comes() {
    let mut world = World::new();
    world.ask(1);
    world.settle();
    let before = world.ledger.leases[&key(1)].clone();
    world.node.policy.second = Second::V6OfEni;
    world.restart(true);
    world.ask(2);
    world.settle();
    assert_eq!(world.ledger.leases[&key(1)].addresses().collect::<Vec<_>>(), [before.address]);
    assert!(world.ledger.leases[&key(2)].second.is_some());
    // And back again: who has two keeps two.
    world.node.policy.second = Second::None;
    world.restart(true);
    world.ask(3);
    world.settle();
    assert!(world.ledger.leases[&key(2)].second.is_some() && world.ledger.leases[&key(3)].second.is_none());
}

#[test]
fn a_node_of_ipv6_asks_for_one_block_and_never_again() {
    let policy = Policy { kind: Kind::V6Prefix, second: Second::NodeLocal, ..policy() };
    let mut world = World::with(policy, LIMITS);
    (0..40).for_each(|pod| world.ask(pod));
    world.settle();
    assert_eq!(world.ledger.leases.len(), 40);
    let asked = |action: &str| world.sent.iter().filter(|sent| **sent == action).count();
    assert_eq!((asked("AssignIpv6Addresses"), asked("CreateNetworkInterface"), world.enis.len()), (1, 0, 1));
}

#[test]
fn each_card_has_its_own_pool_and_one_with_nothing_but_an_efa_is_left_alone() {
    let bare =
        |card| AddresslessEni { id: EniId(format!("efa-{card}").into()), place: Place { card, device_index: 1 } };
    let multi = Policy { multi_card: true, ..policy() };
    let mut world = World::beside(multi.clone(), THREE_CARDS, vec![bare(2)]);
    world.settle();
    let on =
        |world: &World, card| world.enis.values().filter(|eni| eni.place.is_some_and(|it| it.card == card)).count();
    assert_eq!([0, 1, 2].map(|card| on(&world, card)), [1, 1, 0], "one address is held ahead on every managed card");
    world.ask_on(1, Some(1));
    world.ask_on(2, Some(2));
    world.ask(3);
    world.settle();
    let card_of =
        |pod| world.ledger.leases.get(&key(pod)).map(|lease| world.enis[&lease.eni].place.expect("attached").card);
    assert_eq!([1, 2, 3].map(card_of), [Some(1), None, Some(0)]);
    assert_eq!(world.refused.last().map(|(_, cause)| *cause), Some(Cause::EniLimit));
    // With an ENI of ours beside it, the card is used, and the EFA's place is not.
    let mut world = World::beside(multi, THREE_CARDS, vec![bare(1)]);
    let ours = Cloud { place: Some(Place { card: 1, device_index: 2 }), protected: true, tagged: true, ..Cloud::new() };
    world.enis.insert(EniId("eni-1".into()), ours);
    world.metadata();
    world.ask_on(1, Some(1));
    world.settle();
    assert!(world.ledger.leases.contains_key(&key(1)));
}

#[test]
fn further_cards_are_left_alone_unless_asked_for() {
    let mut world = World::with(policy(), THREE_CARDS);
    let others = Cloud { place: Some(Place { card: 1, device_index: 1 }), ..Cloud::new() };
    world.enis.insert(EniId("eni-1".into()), others);
    world.settle();
    (0..12).for_each(|pod| world.ask(pod));
    world.settle();
    assert!(world.enis[&EniId("eni-1".into())].blocks.is_empty() && !world.enis[&EniId("eni-1".into())].tagged);
    assert_eq!(world.ledger.leases.len(), 9, "three ENIs of the first card");
}

#[test]
fn a_lost_store_gives_every_eni_the_slot_that_the_kernel_has_for_it() {
    let mut world = World::new();
    (0..8).for_each(|pod| world.ask(pod));
    world.settle();
    let macs: Vec<[u8; 6]> =
        world.core.host_enis().filter(|(_, slot)| *slot > 0).map(|(eni, _)| eni.facts.mac).collect();
    assert_eq!(macs.len(), 2);
    // Another order than that of their ids, and one that no ENI has any more.
    let kernel_slots = BTreeMap::from([(macs[0], 2), (macs[1], 1), ([2, 0, 0, 0, 0, 99], 3)]);
    world.ledger = Ledger { kernel_slots, ..Ledger::default() };
    world.links.clear();
    world.restart(true);
    // The host goes on with what it has, before EC2 has said whose ENIs these are.
    world.metadata();
    let carried: BTreeMap<[u8; 6], u32> = world.core.host_enis().map(|(eni, slot)| (eni.facts.mac, slot)).collect();
    assert_eq!((carried[&macs[0]], carried[&macs[1]]), (2, 1));
    (0..60).for_each(|_| world.calm());
    let slots: BTreeMap<[u8; 6], u32> = world.core.host_enis().map(|(eni, slot)| (eni.facts.mac, slot)).collect();
    assert_eq!((slots[&macs[0]], slots[&macs[1]]), (2, 1));
    // What comes anew takes neither a live slot nor one that the kernel still has.
    world.ledger = Ledger { kernel_slots: BTreeMap::from([(macs[0], 1)]), ..Ledger::default() };
    world.restart(true);
    (0..60).for_each(|_| world.calm());
    let slots: BTreeMap<[u8; 6], u32> = world.core.host_enis().map(|(eni, slot)| (eni.facts.mac, slot)).collect();
    assert_eq!((slots[&macs[0]], slots[&macs[1]]), (1, 2));
}
