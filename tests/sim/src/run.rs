//! One run of a node from a seed.

use enid_ipamd::{Mutation, Second};
use vpclab::model::Options;

use crate::{
    story::{self, Move},
    world::{Tally, World, settings},
};

/// Moves of one run.
pub const MOVES: usize = 400;

/// In one run of so many, what the core took is taken again.
const RECORDED_IN: u64 = 10;

/// How EC2 behaves in a run of this seed.
fn options(seed: u64) -> Options {
    let slow = seed.is_multiple_of(3);
    Options {
        seed,
        imds_lag_ms: if slow { (500, 8_000) } else { (50, 500) },
        ec2_lag_ms: if seed.is_multiple_of(5) { (0, 2_000) } else { (0, 0) },
        ..Options::default()
    }
}

/// Plays a run; what broke, and what was counted.
pub fn play(seed: u64, story: &[Move], mutation: Option<Mutation>) -> (Option<String>, Tally) {
    let mut first = settings(u8::try_from(seed % 8).unwrap_or(0));
    if seed % 5 == 3 {
        first.second = Second::V6OfEni; // pods of both families
    }
    first.placement = story::placement(seed);
    let Ok(mut world) = World::new(options(seed), first, mutation) else {
        return (Some("the instance does not start".to_owned()), Tally::default());
    };
    let is_recorded = seed.is_multiple_of(RECORDED_IN);
    if is_recorded {
        world.record();
    }
    for step in story {
        world.play(step);
        if world.broken.is_some() {
            break;
        }
    }
    if world.broken.is_none() && is_recorded {
        world.check_replay();
    }
    if world.broken.is_none() {
        world.settle();
    }
    (world.broken, world.tally)
}
