//! Where addresses come from: subnets by their tags, and the node's ENIConfig.

use std::collections::BTreeSet;

use enid_ipamd::{Cause, EniId, Event, Kind, Placement, Policy, SubnetId};

use crate::world::{LIMITS, Subnet, World, key, policy, subnet};

const MINUTE_MS: u64 = 60_000;

fn tagged() -> World {
    let mut world = World::with(Policy { placement: Placement::Tagged { cluster: None }, ..policy() }, LIMITS);
    for number in [2, 3] {
        world.subnet(number).role = Some("1".to_owned());
    }
    world
}

fn configured() -> World {
    let mut world = World::with(Policy { placement: Placement::EniConfig, ..policy() }, LIMITS);
    world.settle();
    world
}

/// Where pods have their addresses.
fn subnets_of_pods(world: &World) -> Vec<SubnetId> {
    world.ledger.leases.values().map(|lease| world.enis[&lease.eni].subnet.clone()).collect()
}

fn eni_in(world: &World, number: u8) -> Option<EniId> {
    world.enis.iter().find(|(_, eni)| eni.subnet == subnet(number)).map(|(id, _)| id.clone())
}

/// The kind: an ADD fails though a subnet that was selected has an address.
#[test]
fn subnets_are_used_up_one_by_one_and_nobody_is_refused_before_the_last() {
    for waits_at_once in [false, true] {
        let mut world = tagged();
        world.subnet(1).left = Some(2);
        // An ENI takes one for itself.
        world.subnet(2).left = Some(3);
        world.subnet(3).left = Some(2);
        world.settle();
        for pod in 0..5 {
            world.ask(pod);
            if !waits_at_once {
                world.settle();
            }
        }
        world.step(Event::Tick);
        world.settle();
        assert_eq!((world.ledger.leases.len(), world.refused.len()), (5, 0), "{:?}", world.enis);
        let mut used = subnets_of_pods(&world);
        used.sort();
        assert_eq!(used, [1, 1, 2, 2, 3].map(subnet));
        world.ask(5);
        world.settle();
        assert_eq!(world.ledger.leases.len(), 5);
        let (_, cause) = *world.refused.last().expect("there is nothing left");
        assert_eq!(cause, Cause::SubnetFull, "all of them are full");
        // One recovers: whoever asks a minute later is served.
        world.subnet(2).left = None;
        world.settle();
        world.ask(6);
        world.settle();
        assert_eq!(world.ledger.leases.len(), 6, "{:?}", world.sent);
    }
}

#[test]
fn subnets_without_a_tag_and_those_of_other_clusters_are_left_alone() {
    let mut world = tagged();
    world.node.policy.placement = Placement::Tagged { cluster: Some("mine".to_owned()) };
    world.restart(true);
    world.subnet(2).clusters = BTreeSet::from(["other".to_owned()]);
    world.subnet(3).role = None;
    (0..6).for_each(|pod| world.ask(pod));
    world.settle();
    assert_eq!(world.ledger.leases.len(), 6);
    assert!(world.enis.values().all(|eni| eni.subnet == subnet(1)), "{:?}", world.enis);
}

/// The kind: what is read when the daemon starts is true until the next start.
#[test]
fn a_subnet_that_is_excluded_gets_no_new_enis_within_a_minute_and_its_idle_ones_go() {
    let mut world = tagged();
    for (number, left) in [(1, 150), (2, 190), (3, 180)] {
        world.subnet(number).left = Some(left);
    }
    (0..4).for_each(|pod| world.ask(pod));
    world.settle();
    let old = eni_in(&world, 2).expect("it has the most free addresses");
    let pods = |world: &World| world.ledger.leases.values().filter(|lease| lease.eni == old).count();
    let before = pods(&world);
    assert!(before > 0, "{:?}", world.ledger.leases);
    world.subnet(2).role = Some("0".to_owned());
    world.pass(MINUTE_MS);
    (4..8).for_each(|pod| world.ask(pod));
    world.settle();
    assert!(eni_in(&world, 3).is_some(), "{:?}", world.enis);
    // What it had free may have gone to a pod before a creation had the subnets listed; since then nothing has.
    let live = pods(&world);
    world.sent.clear();
    world.ask(8);
    world.settle();
    assert_eq!(pods(&world), live, "pods that run keep their addresses, and no new one gets any");
    for pod in 0..9 {
        world.del(pod, true);
    }
    world.settle();
    assert!(!world.enis.contains_key(&old), "{:?}", world.enis);
}

#[test]
fn where_no_subnet_may_be_used_that_is_the_cause() {
    let mut world = tagged();
    for number in [1, 2, 3] {
        world.subnet(number).role = Some("0".to_owned());
    }
    world.ask(1);
    world.settle();
    assert_eq!(world.refused.last().map(|(_, cause)| *cause), Some(Cause::NoSubnet), "{:?}", world.sent);
    world.subnet(3).role = Some("1".to_owned());
    world.pass(MINUTE_MS);
    world.ask(2);
    world.settle();
    assert_eq!(subnets_of_pods(&world), [subnet(3)]);
}

/// The kind: of several subnets the one that has just been emptied is tried again and again, since it refused a prefix and no
/// single address.
#[test]
fn a_subnet_that_has_not_even_an_eni_s_own_address_is_left_for_the_next() {
    let placement = Placement::Tagged { cluster: None };
    let mut world = World::with(Policy { kind: Kind::Prefix, placement, ..policy() }, LIMITS);
    for (number, left) in [(1, 0), (2, 240), (3, 200)] {
        *world.subnet(number) = Subnet { left: Some(left), role: Some("1".to_owned()), ..Subnet::default() };
    }
    world.ask(0);
    for _ in 0..40 {
        if world.calls.front().is_some_and(|(_, call)| call.action() == "CreateNetworkInterface") {
            break;
        }
        world.calm();
    }
    world.subnet(2).left = Some(0);
    (0..40).for_each(|_| world.calm());
    assert_eq!((subnets_of_pods(&world), world.refused.len()), (vec![subnet(3)], 0), "{:?}", world.sent);
}

/// The kind: a creation that is sent again, since its answer never came, asks the subnet that is full meanwhile for ever.
#[test]
fn a_creation_that_is_sent_again_goes_to_another_subnet_where_its_own_is_full() {
    let mut world = tagged();
    for (number, left) in [(1, 0), (2, 240), (3, 200)] {
        world.subnet(number).left = Some(left);
    }
    world.ask(0);
    let is_creation =
        |world: &World| world.calls.front().is_some_and(|(_, call)| call.action() == "CreateNetworkInterface");
    for _ in 0..40 {
        if is_creation(&world) {
            break;
        }
        world.calm();
    }
    assert!(is_creation(&world), "{:?}", world.sent);
    world.refuse_next(Cause::Ec2Unreachable, enid_ipamd::Fact::None);
    world.subnet(2).left = Some(0);
    (0..60).for_each(|_| world.calm());
    assert_eq!((subnets_of_pods(&world), world.refused.len()), (vec![subnet(3)], 0), "{:?}", world.sent);
    assert!(eni_in(&world, 2).is_none() && world.ledger.intents.is_empty(), "{:?}", world.ledger.intents);
}

/// The kind: one refusal at the boot, and tags count for nothing until the next one; or a refusal is asked for in a loop.
#[test]
fn a_refused_list_of_subnets_is_asked_for_again_after_minutes() {
    let mut world = tagged();
    world.subnet(1).role = Some("0".to_owned());
    let lists = |world: &World| world.sent.iter().filter(|action| **action == "DescribeSubnets").count();
    for _ in 0..340 {
        let is_list = world.calls.front().is_some_and(|(_, call)| call.action() == "DescribeSubnets");
        if is_list { world.refuse_next(Cause::Denied, enid_ipamd::Fact::None) } else { world.calm() }
    }
    assert_eq!(lists(&world), 1, "within four minutes");
    world.settle();
    world.ask(0);
    world.settle();
    assert_eq!(subnets_of_pods(&world).first(), Some(&subnet(2)), "{:?}", world.sent);
}

/// The kind: creations wait for a list that EC2 throttles, though an older one is there.
#[test]
fn a_throttled_list_of_subnets_holds_nobody_up() {
    let mut world = tagged();
    world.subnet(1).left = Some(1);
    world.settle();
    world.pass(MINUTE_MS);
    (0..3).for_each(|pod| world.ask(pod));
    for _ in 0..60 {
        let is_list = world.calls.front().is_some_and(|(_, call)| call.action() == "DescribeSubnets");
        if is_list { world.refuse_next(Cause::Throttled, enid_ipamd::Fact::None) } else { world.calm() }
    }
    assert_eq!((world.ledger.leases.len(), world.refused.len()), (3, 0), "{:?}", world.sent);
}

#[test]
fn a_list_of_subnets_that_ec2_refuses_leaves_the_primary_s() {
    let mut world = tagged();
    world.ask(1);
    for _ in 0..20 {
        let is_list = world.calls.front().is_some_and(|(_, call)| call.action() == "DescribeSubnets");
        if is_list { world.refuse_next(Cause::Denied, enid_ipamd::Fact::None) } else { world.calm() }
    }
    assert_eq!(subnets_of_pods(&world), [subnet(1)], "{:?}", world.sent);
}

#[test]
fn pods_of_an_eniconfig_are_in_its_subnet_and_groups_and_never_on_the_primary() {
    let mut world = configured();
    world.ask(1);
    world.settle();
    assert_eq!(world.refused.last().map(|(_, cause)| *cause), Some(Cause::Starting), "nobody has read it yet");
    world.configure(2, &["sg-pods"]);
    (2..5).for_each(|pod| world.ask(pod));
    world.settle();
    assert_eq!(subnets_of_pods(&world), [subnet(2), subnet(2), subnet(2)], "{:?}", world.enis);
    let secondary = &world.enis[&eni_in(&world, 2).unwrap()];
    assert_eq!(secondary.groups, BTreeSet::from(["sg-pods".to_owned()]));
    // The primary's groups are its own.
    world.enis.values_mut().next().expect("the primary").groups = BTreeSet::from(["sg-node".to_owned()]);
    for _ in 0..10 {
        world.pass(MINUTE_MS);
        world.calm();
    }
    assert_eq!(world.enis[&eni_in(&world, 2).unwrap()].groups, BTreeSet::from(["sg-pods".to_owned()]));
}

#[test]
fn an_eniconfig_that_changes_counts_for_new_enis_and_drains_the_old_kind() {
    for (number, group) in [(3, "sg-pods"), (2, "sg-other")] {
        let mut world = configured();
        world.configure(2, &["sg-pods"]);
        (0..2).for_each(|pod| world.ask(pod));
        world.settle();
        let old = eni_in(&world, 2).unwrap();
        world.configure(number, &[group]);
        world.ask(2);
        world.settle();
        let new = world.ledger.leases[&key(2)].eni.clone();
        assert_ne!(new, old);
        assert_eq!((&world.enis[&new].subnet, world.enis[&new].groups.contains(group)), (&subnet(number), true));
        assert_eq!(world.ledger.leases[&key(0)].eni, old, "a pod that runs keeps its address");
        for pod in [0, 1] {
            world.del(pod, true);
        }
        world.settle();
        assert!(!world.enis.contains_key(&old), "{:?}", world.enis);
        assert!(world.enis.contains_key(&new));
    }
}

/// The kind: what an excluded ENI has free counts as on its way, and nobody orders anything else.
#[test]
fn idle_addresses_of_an_excluded_eni_serve_nobody_and_are_not_counted_on() {
    let mut world = configured();
    world.configure(2, &[]);
    (0..3).for_each(|pod| world.ask(pod));
    world.settle();
    (0..3).for_each(|pod| world.del(pod, true));
    world.pass(2_000);
    world.configure(3, &[]);
    world.ask(3);
    // The node is at its limit until they are gone; the kubelet asks again.
    (0..20).for_each(|_| world.calm());
    world.ask(3);
    (0..10).for_each(|_| world.calm());
    assert_eq!(subnets_of_pods(&world), [subnet(3)], "{:?}", world.sent);
}

#[test]
fn an_eniconfig_that_is_gone_leaves_what_is_there_and_creates_nothing() {
    let mut world = configured();
    world.configure(2, &[]);
    (0..2).for_each(|pod| world.ask(pod));
    world.settle();
    let enis = world.enis.len();
    world.step(Event::EniConfig { config: Err("there is no ENIConfig \"zone-a\"".to_owned()) });
    (2..6).for_each(|pod| world.ask(pod));
    world.settle();
    assert_eq!(world.enis.len(), enis);
    assert_eq!(world.ledger.leases.len(), 3, "the ENI that is there carries three");
    let refusal = world.core.plan(world.now).refusal(world.now, 0).expect("nobody can be served");
    assert_eq!(refusal.cause, Cause::NoEniConfig);
}
