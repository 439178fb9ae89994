//! Pods that the scheduler has bound to the node, known before the runtime asks for them.

use std::collections::BTreeSet;

use enid_ipamd::{Event, Kind, PodRef, Policy, Target};

use crate::world::{LIMITS, World, pod_ref, policy};

fn bound(world: &mut World, pods: impl IntoIterator<Item = u8>) {
    let pods: BTreeSet<PodRef> = pods.into_iter().map(pod_ref).collect();
    world.step(Event::Bound { pods });
}

fn quiet() -> World {
    let target = Target::Warm { enis: 0, addresses: 1, minimum: 0, prefixes: 0 };
    let mut world = World::with(Policy { target, ..policy() }, LIMITS);
    world.settle();
    world.sent.clear();
    world
}

/// The kind: an order is placed when a pod asks, though the scheduler knew of it before.
#[test]
fn their_addresses_are_there_when_they_ask() {
    let mut world = quiet();
    bound(&mut world, 0..3);
    world.settle();
    assert!(world.core.counts().available >= 3, "{:?}", world.core.counts());
    (0..3).for_each(|pod| world.ask(pod));
    world.step(Event::Tick);
    assert_eq!(world.ledger.leases.len(), 3, "served in the step that they asked in");
}

/// The kind: one pod is counted twice, by what two sources say of it. Its status shows an address seconds after its lease.
#[test]
fn one_that_has_its_lease_is_on_its_way_no_more() {
    let mut world = quiet();
    bound(&mut world, 0..3);
    world.settle();
    (0..3).for_each(|pod| world.ask(pod));
    world.settle();
    let (counts, sent) = (world.core.counts(), world.sent.len());
    assert_eq!((counts.bound, counts.assigned), (0, 3));
    world.settle();
    assert_eq!((world.core.counts(), world.sent.len()), (counts, sent), "nothing more is ordered for them");
    // One of them is deleted and comes back under its name, as those of a StatefulSet do.
    world.del(1, true);
    assert_eq!(world.core.counts().bound, 1);
    bound(&mut world, []);
    assert_eq!(world.core.counts().bound, 0);
}

/// The kind: what is ordered for a pod that never asks (its Secret is missing) is given back after a minute, and ordered again,
/// for as long as it is bound.
#[test]
fn what_is_there_for_one_that_does_not_ask_stays() {
    let targets = [
        (Kind::Single, Target::Auto),
        (Kind::Single, Target::Warm { enis: 0, addresses: 5, minimum: 0, prefixes: 0 }),
        (Kind::Single, Target::Warm { enis: 0, addresses: 2, minimum: 4, prefixes: 0 }),
        (Kind::Prefix, Target::Warm { enis: 0, addresses: 0, minimum: 0, prefixes: 1 }),
        (Kind::Prefix, Target::Warm { enis: 0, addresses: 16, minimum: 0, prefixes: 0 }),
    ];
    for (kind, target) in targets {
        let mut world = World::with(Policy { kind, target, ..policy() }, LIMITS);
        world.settle();
        bound(&mut world, [0]);
        world.settle();
        world.sent.clear();
        for _ in 0..10 {
            world.pass(60_000);
            world.settle();
        }
        let moved = ["AssignPrivateIpAddresses", "UnassignPrivateIpAddresses", "CreateNetworkInterface"];
        let calls: Vec<_> = world.sent.iter().filter(|action| moved.contains(action)).collect();
        assert!(calls.is_empty(), "{kind:?} {target:?}: {calls:?}");
    }
}
