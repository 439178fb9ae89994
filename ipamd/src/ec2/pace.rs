//! When an action may be called: a bucket for each action and class, and how a refusal is waited out.
//!
//! EC2 counts calls per account, region and action ("Request throttling for the Amazon EC2 API"), so a node
//! shares what is refilled with nodes it does not know of. Its own buckets keep a single node small; how
//! many nodes there are it can only guess from refusals. So two rules stand behind a refusal for the rate:
//!
//! - The next try is at a slot, a multiple of a few seconds by the wall clock, the same ones on every node.
//!   In between the account's bucket fills undisturbed, and a refusal at the slot costs nothing, since the
//!   bucket is empty then. Tries spread evenly would drain every token that a refused call is charged.
//! - How many slots are left out is drawn anew each time, from a span that grows with the time waited so
//!   far: who has waited long can wait a tenth more. So crowds thin out, and every node gets its turn.
//!
//! Lower classes step back much further than calls that a pod waits for.

use std::{borrow::Borrow, cell::Cell, num::NonZeroU32, rc::Rc, time::Duration};

use governor::{Quota, RateLimiter, clock::Clock};
use imbl::{OrdMap, Vector};
use serde::{Deserialize, Deserializer, Serialize, de::Error};

use super::call::{ACTIONS, Class};
use crate::{
    cause::{Cause, Refusal},
    ids::Millis,
};

/// Calls of one action in a row, and milliseconds per call after them; how many times slower at the most.
const LANES: [(Class, Lane); 3] = [
    (Class::PodWaits, Lane { burst: 16, period_ms: 1_000, slowest: 2 }),
    (Class::PoolShort, Lane { burst: 8, period_ms: 4_000, slowest: 16 }),
    (Class::Background, Lane { burst: 8, period_ms: 4_000, slowest: 64 }),
];

/// Slots after the first refusals, and after [`CROWDED`]: no longer than EC2 needs to fill any bucket that we
/// draw from (100 tokens at 20 a second are the fastest).
const FIRST_SLOT_MS: u64 = 1_000;
const SLOT_MS: u64 = 5_000;
/// The part of the time waited so far by which the next try may be put off.
const SPAN: u64 = 10;
/// After this many refusals in a row the account is taken to be crowded: for a while every action is called at slots only.
const CROWDED: u32 = 2;
const CROWD_MS: u64 = 60_000;
/// A slot is as long as a daemon may need to wake up.
const WINDOW_MS: u64 = 50;

/// Refusals for other reasons: the first pause, the longest, and that after a lack of rights, which somebody
/// has to mend first.
const FIRST_PAUSE_MS: u64 = 1_000;
const LONGEST_PAUSE_MS: u64 = 60_000;
const DENIED_PAUSE_MS: u64 = 5_000;

#[derive(Clone, Copy, Debug)]
struct Lane {
    burst: u32,
    period_ms: u64,
    slowest: u64,
}

/// Calls of one action and class: a value, out of which `governor` computes what may be called.
///
/// `governor`'s own state is shared by its copies, and the core copies itself to plan ahead; so the calls that still
/// count are kept here, and a limiter is made of them when a question is asked.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Bucket {
    /// When calls were made that still count.
    made: Vector<Millis>,
    /// How many times slower than usual, as a power of two.
    slowdown: u32,
}

/// What an action waits for after a refusal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Pause {
    /// Until when, for calls that a pod waits for.
    pub(crate) until: Millis,
    pub(crate) refusal: Refusal,
    pub(crate) failures: u32,
    first: Millis,
    /// Until when, for each class.
    untils: OrdMap<Class, Millis>,
}

/// The buckets and pauses of all actions.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Pace {
    /// What has to be added to the core's time for the wall clock's.
    to_wall: u64,
    /// Until when EC2 is taken to be crowded.
    crowded: Option<Millis>,
    #[serde(with = "crate::serial")]
    buckets: OrdMap<(ActionName, Class), Bucket>,
    pauses: OrdMap<ActionName, Pause>,
}

/// The name of an action. What reads one takes it out of the list of those that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct ActionName(&'static str);

impl Borrow<str> for ActionName {
    fn borrow(&self) -> &str {
        self.0
    }
}

impl<'de> Deserialize<'de> for ActionName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read = String::deserialize(deserializer)?;
        let known = ACTIONS.iter().find(|action| **action == read);
        known.map(|action| ActionName(action)).ok_or_else(|| Error::custom(format!("there is no action {read:?}")))
    }
}

impl Pace {
    /// What the wall clock shows now, in milliseconds since 1970.
    pub(crate) fn wall(&mut self, now: Millis, wall_ms: u64) {
        self.to_wall = wall_ms.wrapping_sub(now.0);
    }

    /// How many calls of this class may be made now.
    pub(crate) fn permits(&self, now: Millis, action: &'static str, class: Class) -> u32 {
        match self.opens_at(now, action, class) {
            Some(_) => 0,
            None => self.bucket(action, class).permits(class, now),
        }
    }

    /// When a call of this class may be made; `None`: now.
    pub(crate) fn opens_at(&self, now: Millis, action: &'static str, class: Class) -> Option<Millis> {
        let pause = self.pauses.get(action).and_then(|pause| pause.untils.get(&class)).copied();
        let pause = pause.filter(|until| *until > now);
        let bucket = self.bucket(action, class).opens_at(class, now);
        pause.into_iter().chain(bucket).chain(self.next_slot(now)).max()
    }

    fn bucket(&self, action: &'static str, class: Class) -> Bucket {
        self.buckets.get(&(ActionName(action), class)).cloned().unwrap_or_default()
    }

    /// Whether EC2 is taken to have too much to do.
    pub(crate) fn is_crowded(&self, now: Millis) -> bool {
        self.crowded.is_some_and(|until| now < until)
    }

    /// Of each bucket that was used: the calls that may be made now, and those that it has when it is full.
    pub(crate) fn fill(&self, now: Millis) -> impl Iterator<Item = (&'static str, Class, u32, u32)> {
        self.buckets.iter().map(move |((action, class), bucket)| {
            (action.0, *class, bucket.permits(*class, now), Bucket::lane(*class).burst)
        })
    }

    /// When the next slot is, if calls have to wait for one.
    fn next_slot(&self, now: Millis) -> Option<Millis> {
        let into = now.0.wrapping_add(self.to_wall) % SLOT_MS;
        let waits = self.is_crowded(now) && into >= WINDOW_MS;
        waits.then(|| now.plus(SLOT_MS - into))
    }

    /// A call is made.
    pub(crate) fn take(&mut self, now: Millis, action: &'static str, class: Class) {
        self.buckets.entry((ActionName(action), class)).or_default().take(class, now);
    }

    /// A call was answered.
    pub(crate) fn answered(&mut self, action: &'static str) {
        self.pauses.remove(action);
        for (class, _) in LANES {
            if let Some(bucket) = self.buckets.get_mut(&(ActionName(action), class))
                && bucket.slowdown > 0
            {
                *bucket = Bucket { slowdown: bucket.slowdown - 1, made: Vector::new() };
            }
        }
    }

    /// A call was refused; `chance` is any number.
    pub(crate) fn refused(&mut self, now: Millis, action: &'static str, refusal: Refusal, chance: u64) {
        let before = self.pauses.get(action);
        let first = before.map_or(now, |pause| pause.first);
        let failures = before.map_or(0, |pause| pause.failures);
        if refusal.cause == Cause::Throttled && failures >= CROWDED {
            self.crowded = Some(now.plus(CROWD_MS));
        }
        let mut untils = OrdMap::new();
        for (class, lane) in LANES {
            let until = if refusal.cause == Cause::Throttled {
                let slowest = lane.slowest.trailing_zeros();
                let slowdown = (self.bucket(action, class).slowdown + 1).min(slowest);
                let bucket = Bucket { slowdown, made: Vector::unit(now) };
                let ready = bucket.opens_at(class, now).unwrap_or(now);
                self.buckets.insert((ActionName(action), class), bucket);
                self.slot(now, ready, now.since(first), failures, chance)
            } else {
                let longest = (FIRST_PAUSE_MS << failures.min(10)).min(LONGEST_PAUSE_MS);
                let least = if refusal.cause == Cause::Denied { DENIED_PAUSE_MS } else { longest / 4 };
                // Jitter over nearly all of it: nodes that were refused together do not come back together.
                now.plus((chance % longest).max(least))
            };
            untils.insert(class, until);
        }
        let until = untils.get(&Class::PodWaits).copied().unwrap_or(now);
        self.pauses.insert(ActionName(action), Pause { until, refusal, failures: failures + 1, first, untils });
    }

    /// The slot of the next try.
    fn slot(&self, now: Millis, ready: Millis, waited: u64, failures: u32, chance: u64) -> Millis {
        let slot = if failures < CROWDED { FIRST_SLOT_MS } else { SLOT_MS };
        let earliest = ready.max(now.plus(1 + chance % (waited / SPAN + 1)));
        let wall = earliest.0.wrapping_add(self.to_wall);
        earliest.plus(wall.next_multiple_of(slot) - wall)
    }

    /// Actions that were refused and have not succeeded since.
    pub(crate) fn pauses(&self) -> impl Iterator<Item = (&'static str, &Pause)> {
        self.pauses.iter().map(|(action, pause)| (action.0, pause))
    }

    /// What an action waits for.
    pub(crate) fn pause(&self, action: &str) -> Option<&Pause> {
        self.pauses.get(action)
    }

    /// When something opens that is closed.
    pub(crate) fn opens(&self, now: Millis) -> impl Iterator<Item = Millis> {
        let untils = self.pauses.values().flat_map(|pause| pause.untils.values().copied());
        let buckets = self.buckets.iter().filter_map(move |((_, class), bucket)| bucket.opens_at(*class, now));
        untils.chain(buckets).chain(self.next_slot(now))
    }
}

/// The clock of a limiter that is made of past calls.
#[derive(Clone, Debug, Default)]
struct Replayed(Rc<Cell<u64>>);

impl Clock for Replayed {
    type Instant = Duration;

    fn now(&self) -> Duration {
        Duration::from_millis(self.0.get())
    }
}

impl Bucket {
    fn lane(class: Class) -> Lane {
        LANES.iter().find(|(of, _)| *of == class).map_or(LANES[2].1, |(_, lane)| *lane)
    }

    /// Calls in a row, and the milliseconds of each call after them: one that was slowed down has a single call to give.
    fn rate(&self, class: Class) -> (u32, u64) {
        let lane = Self::lane(class);
        (if self.slowdown > 0 { 1 } else { lane.burst }, lane.period_ms << self.slowdown)
    }

    /// Counts the calls that may be made now, up to `most`; or tells when the next one may be made.
    fn check(&self, class: Class, now: Millis, most: u32) -> Result<u32, Millis> {
        let (burst, period_ms) = self.rate(class);
        let quota = Quota::with_period(Duration::from_millis(period_ms)).unwrap_or(Quota::per_second(NonZeroU32::MIN));
        let quota = quota.allow_burst(NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN));
        let clock = Replayed::default();
        clock.0.set(self.made.front().copied().unwrap_or(now).0);
        let limiter = RateLimiter::direct_with_clock(quota, clock.clone());
        for made in &self.made {
            clock.0.set(made.0);
            let _ = limiter.check(); // it was made, whatever the limiter says of it now
        }
        clock.0.set(now.0);
        let mut permits = 0;
        while permits < most {
            match limiter.check() {
                Ok(()) => permits += 1,
                Err(_) if permits > 0 => break,
                Err(not_until) => {
                    let wait = not_until.wait_time_from(Duration::from_millis(now.0));
                    return Err(now.plus(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1)));
                }
            }
        }
        Ok(permits)
    }

    fn permits(&self, class: Class, now: Millis) -> u32 {
        if self.made.is_empty() {
            return self.rate(class).0;
        }
        self.check(class, now, self.rate(class).0).unwrap_or(0)
    }

    /// When the next call may be made; `None`: now.
    fn opens_at(&self, class: Class, now: Millis) -> Option<Millis> {
        if self.made.is_empty() {
            return None;
        }
        self.check(class, now, 1).err()
    }

    fn take(&mut self, class: Class, now: Millis) {
        let (burst, period_ms) = self.rate(class);
        // Earlier ones have been refilled.
        let counts = u64::from(burst + 1) * period_ms;
        while self.made.front().is_some_and(|made| now.since(*made) > counts) {
            self.made.pop_front();
        }
        self.made.push_back(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACTION: &str = "CreateNetworkInterface";

    fn throttled() -> Refusal {
        Refusal::new(Cause::Throttled, "Request limit exceeded.")
    }

    #[test]
    fn a_node_calls_in_bursts_and_then_slowly() {
        let mut pace = Pace::default();
        let made = (0..10_000_u64).step_by(10).filter(|at| {
            let open = pace.permits(Millis(*at), ACTION, Class::PodWaits) > 0;
            if open {
                pace.take(Millis(*at), ACTION, Class::PodWaits);
            }
            open
        });
        let made = made.count();
        assert!((24..=26).contains(&made), "{made}: a burst of 16, then one a second");
        assert_eq!(pace.permits(Millis(10_000), ACTION, Class::Background), 8, "each class has its own");
    }

    #[test]
    fn who_is_refused_tries_again_at_a_slot_of_the_wall_clock() {
        for chance in 0..50 {
            let mut pace = Pace::default();
            let mut now = Millis(123);
            pace.wall(now, 1_000_000_777);
            for failures in 0..6_u32 {
                pace.refused(now, ACTION, throttled(), chance * 7_919);
                let until = pace.pause(ACTION).unwrap().until;
                let wall = until.0 + 1_000_000_777 - 123;
                let slot = if failures < CROWDED { FIRST_SLOT_MS } else { SLOT_MS };
                assert!(until > now && wall.is_multiple_of(slot), "{wall} after {failures}");
                assert_eq!(pace.permits(now, ACTION, Class::PodWaits), 0);
                assert!(pace.opens(now).any(|at| at == until));
                now = until;
                assert_eq!(pace.permits(now, ACTION, Class::PodWaits), 1, "the bucket is ready at the slot");
            }
        }
    }

    #[test]
    fn the_lower_the_class_the_further_it_steps_back() {
        let mut pace = Pace::default();
        let mut now = Millis(50);
        for _ in 0..6 {
            pace.refused(now, ACTION, throttled(), 0);
            now = pace.pause(ACTION).unwrap().until;
        }
        let untils = pace.pause(ACTION).unwrap().untils.clone();
        assert!(untils[&Class::PodWaits] < untils[&Class::PoolShort]);
        assert!(untils[&Class::PoolShort] < untils[&Class::Background]);
        // Success brings it back step by step.
        for _ in 0..8 {
            pace.answered(ACTION);
        }
        assert!(LANES.iter().all(|(class, lane)| pace.permits(now, ACTION, *class) == lane.burst));
        assert!(pace.buckets.values().all(|bucket| bucket.slowdown == 0));
    }

    #[test]
    fn other_refusals_are_waited_out_longer_each_time() {
        let mut pace = Pace::default();
        let refusal = Refusal::new(Cause::Ec2Unreachable, "no answer");
        let waits: Vec<u64> = (0..9)
            .map(|_| {
                pace.refused(Millis(0), ACTION, refusal.clone(), 0);
                pace.pause(ACTION).unwrap().until.0
            })
            .collect();
        assert_eq!(waits, [250, 500, 1_000, 2_000, 4_000, 8_000, 15_000, 15_000, 15_000]);
    }

    #[test]
    fn a_copy_draws_from_a_bucket_of_its_own() {
        let mut pace = Pace::default();
        let mut copy = pace.clone();
        (0..16).for_each(|_| copy.take(Millis(5), ACTION, Class::PodWaits));
        assert_eq!(copy.permits(Millis(5), ACTION, Class::PodWaits), 0);
        assert_eq!(pace.permits(Millis(5), ACTION, Class::PodWaits), 16);
        pace.take(Millis(5), ACTION, Class::PodWaits);
        assert_eq!(pace.permits(Millis(5), ACTION, Class::PodWaits), 15);
        assert_eq!(copy.opens_at(Millis(5), ACTION, Class::PodWaits), Some(Millis(1_005)));
    }
}
