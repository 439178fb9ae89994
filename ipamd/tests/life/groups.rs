//! Security groups: an operator changes those of the instance, and every ENI of ours follows.
//!
//! The kind: facts of the instance that were read once.

use std::collections::BTreeSet;

use enid_ipamd::{Awaited, Call, Cause, Event, Fact, Policy, Provisioning};

use super::world::{LIMITS, World, policy};

const READING_MS: u64 = 30_000;
const MINUTE_MS: u64 = 60_000;

/// A node with a second ENI, whose groups are these.
fn node(policy: Policy, groups: &[&str]) -> World {
    let mut world = World::with(policy, LIMITS);
    set(&mut world, groups);
    world.settle();
    (0..5).for_each(|pod| world.ask(pod));
    world.settle();
    assert!(world.enis.len() > 1, "{:?}", world.enis);
    read_for(&mut world, 6 * MINUTE_MS);
    world
}

fn list(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// An operator gives the instance these.
fn set(world: &mut World, groups: &[&str]) {
    world.enis.values_mut().next().expect("the primary").groups = list(groups);
}

/// Time passes, metadata is read as always, and EC2 answers.
fn read_for(world: &mut World, millis: u64) {
    for _ in 0..millis / READING_MS {
        world.pass(READING_MS);
        world.metadata();
        world.listing();
        while !world.calls.is_empty() {
            world.answer();
        }
    }
}

fn follow(world: &World, groups: &[&str]) -> bool {
    world.enis.values().all(|eni| eni.groups == list(groups))
}

#[test]
fn enis_follow_the_primary_once_a_list_was_read_twice() {
    let mut world = node(policy(), &["sg-a", "sg-b"]);
    assert!(follow(&world, &["sg-a", "sg-b"]), "a new ENI gets them: {:?}", world.enis);
    world.sent.clear();
    // A part of a list, and nothing, for one reading.
    for partial in [&["sg-a"][..], &[]] {
        set(&mut world, partial);
        read_for(&mut world, READING_MS);
        set(&mut world, &["sg-a", "sg-b"]);
        read_for(&mut world, 8 * MINUTE_MS);
    }
    assert!(!world.sent.contains(&"ModifyNetworkInterfaceAttribute"), "{:?}", world.sent);
    set(&mut world, &["sg-c"]);
    read_for(&mut world, MINUTE_MS + 5 * MINUTE_MS);
    assert!(follow(&world, &["sg-c"]), "{:?}", world.enis);
    let calls = world.sent.iter().filter(|action| **action == "ModifyNetworkInterfaceAttribute").count();
    assert_eq!(calls, world.enis.len() - 1, "one for each ENI: {:?}", world.sent);
    // Somebody changes one ENI alone.
    world.enis.values_mut().last().expect("a second one").groups = list(&["sg-x"]);
    read_for(&mut world, 6 * MINUTE_MS);
    assert!(follow(&world, &["sg-c"]), "{:?}", world.enis);
}

#[test]
fn a_refusal_is_told_and_not_repeated_for_five_minutes_and_growth_goes_on() {
    let mut world = node(policy(), &["sg-a"]);
    set(&mut world, &["sg-b"]);
    world.refuse = Some(Cause::Denied);
    world.sent.clear();
    read_for(&mut world, 6 * MINUTE_MS);
    let tries = || world.sent.iter().filter(|action| **action == "ModifyNetworkInterfaceAttribute").count();
    assert!((1..=2 * (world.enis.len() - 1)).contains(&tries()), "{:?}", world.sent);
    let wait = world.core.plan(world.now).waits.into_iter().find(|wait| matches!(wait.awaited, Awaited::Groups { .. }));
    assert_eq!(wait.map(|wait| (wait.cause, wait.message)), Some((Some(Cause::Denied), "no".to_owned())));
    assert!(world.core.view(world.now).pacing.pauses.is_empty(), "the pool grows whatever is said of groups");
    world.refuse = None;
    read_for(&mut world, 6 * MINUTE_MS);
    assert!(follow(&world, &["sg-b"]), "{:?}", world.enis);
}

#[test]
fn without_provisioning_nothing_is_changed() {
    let mut world = node(policy(), &["sg-a"]);
    for provisioning in [Provisioning::Off, Provisioning::ImdsOnly] {
        world.step(Event::Settings { policy: Policy { provisioning, ..policy() } });
        set(&mut world, &["sg-b"]);
        world.sent.clear();
        read_for(&mut world, 20 * MINUTE_MS);
        assert!(!world.sent.contains(&"ModifyNetworkInterfaceAttribute"), "{provisioning:?}: {:?}", world.sent);
    }
}

#[test]
fn a_group_that_ec2_does_not_know_is_read_again_at_once() {
    let mut world = World::new();
    set(&mut world, &["sg-gone"]);
    world.settle();
    read_for(&mut world, MINUTE_MS);
    set(&mut world, &["sg-new"]);
    (0..5).for_each(|pod| world.ask(pod));
    let created = |world: &World| {
        world.calls.iter().find_map(|(_, call)| match call {
            Call::Create { home, .. } => Some(home.groups.as_ref().clone()),
            _ => None,
        })
    };
    for _ in 0..100 {
        if created(&world).is_some() {
            break;
        }
        world.pass(100);
        world.answer();
    }
    assert_eq!(created(&world), Some(list(&["sg-gone"])));
    while created(&world).is_some() {
        world.refuse_next(Cause::Ec2Error, Fact::GroupGone);
    }
    assert!(world.core.awaits_groups() && world.core.awaits_metadata());
    world.metadata();
    assert!(!world.core.awaits_groups());
    for _ in 0..100 {
        if created(&world).is_some() {
            break;
        }
        world.pass(100);
    }
    assert_eq!(created(&world), Some(list(&["sg-new"])), "well before a second reading");
}

/// The kind: a request that can never succeed, repeated for ever.
#[test]
fn a_creation_whose_groups_are_gone_is_given_up_and_another_one_begun() {
    let mut world = World::new();
    set(&mut world, &["sg-gone"]);
    world.settle();
    read_for(&mut world, MINUTE_MS);
    (0..5).for_each(|pod| world.ask(pod));
    let creates = |world: &World| world.calls.iter().any(|(_, call)| matches!(call, Call::Create { .. }));
    for _ in 0..100 {
        if creates(&world) {
            break;
        }
        world.pass(100);
        world.answer();
    }
    // The daemon ends before its call goes out; the intent stays.
    world.restart(false);
    set(&mut world, &["sg-new"]);
    world.metadata();
    (0..5).for_each(|pod| world.ask(pod));
    for _ in 0..400 {
        world.pass(700);
        world.metadata();
        world.listing();
        let of_old = |call: &Call| matches!(call, Call::Create { home, .. } if home.groups.contains("sg-gone"));
        match world.calls.front() {
            Some((_, call)) if of_old(call) => world.refuse_next(Cause::Ec2Error, Fact::GroupGone),
            _ => world.answer(),
        }
    }
    let secondary: Vec<_> = world.enis.values().skip(1).map(|eni| eni.groups.clone()).collect();
    assert_eq!(secondary, [list(&["sg-new"])], "{:?}", world.sent);
    assert!(!world.ledger.intents.values().any(|intent| matches!(intent, enid_ipamd::Intent::Create(_))));
}
