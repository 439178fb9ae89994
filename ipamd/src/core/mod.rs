//! The state machine: it owns the parts and tells the story of a step.
//!
//! A step takes the time and one event. Time passes (cooldowns end, what metadata has shown is no longer waited for), the
//! event is *observed*, ADDs that wait are *served*, the *plan* is made and *carried out*, and the result is *checked*: a
//! step that would break an invariant is undone.
//!
//! - `observe`: events; `imds`, `answers` and `audit`: what metadata and EC2 say.
//! - `serve`: from ADD to DEL.
//! - `carry_out`: the plan's actions as changes of the state and as effects.
//! - `check`: the invariants. `view`: the state, to be read.

mod answers;
mod audit;
mod carry_out;
mod check;
mod imds;
mod observe;
mod serve;
mod view;

use serde::{Deserialize, Serialize};

use crate::{
    cause::{Cause, Refusal},
    ec2::{Audits, Calls, Creations, Deletions, LeakSearch},
    event::{Effect, Event, Ledger},
    ids::Millis,
    integrity::Integrity,
    lease::{Cooldown, Leases, Queue},
    node::Node,
    observations::{Observations, SETTLED_MS},
    plan::{self, Guards, Next, Plan, State},
    pool::{Block, InUse, Pool, Slots, Unassigned},
    supply::{Demand, kind},
};
use ipnet::IpNet;

/// Rounds of planning after which a plan is carried out as far as it has come: more than any node has ENIs.
const ROUNDS: usize = 256;

/// The state machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Core {
    node: Node,
    leases: Leases,
    cooldown: Cooldown,
    queue: Queue,
    pool: Pool,
    slots: Slots,
    /// Blocks that were unassigned, which stale metadata may still show.
    unassigned: Unassigned,
    demand: Demand,
    calls: Calls,
    creations: Creations,
    deletions: Deletions,
    audits: Audits,
    leaks: LeakSearch,
    observed: Observations,
    integrity: Integrity,
}

impl Core {
    /// A core that remembers a ledger and has not looked at anything yet.
    pub fn new(node: Node, ledger: Ledger) -> Self {
        let Ledger { leases, cooling, slots, kernel_slots, intents } = ledger;
        let mut core = Core {
            leases: Leases::new(leases),
            cooldown: Cooldown::new(cooling),
            queue: Queue::default(),
            pool: Pool::default(),
            slots: Slots::new(slots, kernel_slots),
            unassigned: Unassigned::default(),
            demand: Demand::new(),
            calls: Calls::new(node.token_seed.clone(), node.instance_id.clone()),
            creations: Creations::default(),
            deletions: Deletions::default(),
            audits: Audits::default(),
            leaks: LeakSearch::default(),
            observed: Observations::default(),
            integrity: Integrity::default(),
            node,
        };
        let local = core
            .node
            .policy
            .local_range()
            .map(|range| Block::new(range, crate::ids::EniId("".into()), false, core.in_use(&range)));
        core.pool = Pool::new(local);
        core.resume(intents);
        core
    }

    /// Takes one event and says what to do, in order. A step that would break an invariant is not
    /// carried out: its effects are dropped, the caller is refused, nothing is released from then
    /// on, and [`crate::View::broken`] names it.
    pub fn step(&mut self, now: Millis, event: Event) -> Vec<Effect> {
        self.step_and_plan(now, event).0
    }

    /// The same, and the plan that was carried out with it; an empty one while a batch of ADDs is incomplete.
    pub fn step_and_plan(&mut self, now: Millis, event: Event) -> (Vec<Effect>, Plan) {
        let before = self.clone();
        let caller = refused_caller(&event);
        // Requests that come together are planned for together: at the tick that ends the batch.
        let is_in_batch = matches!(event, Event::Ask { .. });
        let (mut effects, mut plan) = (Vec::new(), Plan::default());
        self.end_cooldowns(now, &mut effects);
        self.observe(now, event, &mut effects);
        self.end_expected(now);
        self.exclude();
        self.serve(now, &mut effects);
        self.count_demand(now);
        if !is_in_batch {
            self.schedule(now);
            plan = self.plan(now);
            plan.actions.iter().for_each(|action| self.carry_out(now, action, &mut effects));
            if self.refuse(now, &plan, &mut effects) {
                // Who was refused is not planned for any more: what is left may be of another class.
                let Plan { actions, waits } = self.plan(now);
                actions.iter().for_each(|action| self.carry_out(now, action, &mut effects));
                plan.actions.extend(actions);
                plan.waits = waits;
            }
            self.demand.set_surplus(now, plan.has_surplus());
            let holds = plan::holds_order(&self.state(), now);
            self.demand.set_held(now, holds);
        }
        let broken = self.check(&before, &effects);
        if broken.is_empty() {
            return (effects, plan);
        }
        let known = std::mem::replace(self, before);
        self.integrity = known.integrity;
        self.integrity.add(broken);
        (caller.into_iter().collect(), Plan::default())
    }

    /// What is to be done now, in order, and what is waited for then. It changes nothing: the actions are carried out on a
    /// copy, until nothing is left to do.
    pub fn plan(&self, now: Millis) -> Plan {
        let mut plan = Plan::default();
        let mut ahead: Option<Core> = None;
        for _ in 0..ROUNDS {
            let core = ahead.as_ref().unwrap_or(self);
            match plan::next(&core.state(), now) {
                Next::Wait(waits) => {
                    plan.waits = waits;
                    break;
                }
                Next::Act(actions) => {
                    let ahead = ahead.get_or_insert_with(|| self.clone());
                    actions.iter().for_each(|action| ahead.carry_out(now, action, &mut Vec::new()));
                    plan.actions.extend(actions);
                }
            }
        }
        plan
    }

    /// When the next step is due even if nothing happens.
    pub fn next_due(&self, now: Millis) -> Option<Millis> {
        let state = self.state();
        let times = [
            self.queue.next_deadline(),
            self.cooldown.ends().next().map(|(until, _)| until),
            self.demand.surplus_since().map(|since| since.plus(plan::SURPLUS_MS)),
            self.demand.held_since().map(|since| since.plus(plan::HOLD_MS)),
            self.deletions.next(now),
            self.leaks.next(),
            self.demand.subnets().next_question(),
            self.observed.imds_read().filter(|_| self.audits.is_discovering()).map(|at| at.plus(SETTLED_MS)),
        ];
        let times = times.into_iter().flatten().chain(plan::next_audit(&state));
        let times = times.chain(self.calls.opens(now)).chain(self.pool.next_expected());
        let times = times.chain(self.demand.subnets().next_prefixes());
        let times = times.chain(plan::next_groups(&state, now));
        times.filter(|at| *at > now).min()
    }

    fn state(&self) -> State<'_> {
        State {
            node: &self.node,
            leases: &self.leases,
            cooldown: &self.cooldown,
            queue: &self.queue,
            pool: &self.pool,
            demand: &self.demand,
            calls: &self.calls,
            creations: &self.creations,
            deletions: &self.deletions,
            audits: &self.audits,
            leaks: &self.leaks,
            observed: self.observed.as_plan_input(self.integrity.is_broken()),
            guards: self.guards(),
        }
    }

    fn guards(&self) -> Guards {
        use crate::mutation::Mutation;
        Guards {
            unassigns_in_use: self.integrity.is_mutated(Mutation::UnassignInUse),
            detaches_in_use: self.integrity.is_mutated(Mutation::DetachInUse),
            ignores_kernel: self.integrity.is_mutated(Mutation::IgnoreKernel),
            changes_unmanaged: self.integrity.is_mutated(Mutation::ChangeUnmanaged),
            ignores_restrictions: self.integrity.is_mutated(Mutation::IgnoreRestrictions),
            ignores_places: self.integrity.is_mutated(Mutation::IgnorePlaces),
        }
    }

    /// How many addresses of a block are assigned and cooling.
    fn in_use(&self, net: &IpNet) -> InUse {
        let (first, last) = kind::ends(net);
        let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        InUse {
            assigned: number(self.leases.count_in(first, last)),
            cooling: number(self.cooldown.count_in(first, last)),
        }
    }
}

/// What whoever waits for this event's answer hears if the step is dropped.
fn refused_caller(event: &Event) -> Option<Effect> {
    match event {
        Event::Ask { ticket, .. } => {
            let message = "the request would have broken an invariant and was not carried out";
            Some(Effect::Refuse { ticket: *ticket, refusal: Refusal::new(Cause::Internal, message) })
        }
        Event::Wired { ticket, .. } => Some(Effect::Verdict { ticket: *ticket, mine: false }),
        Event::Release { ticket, .. } => Some(Effect::Released { ticket: *ticket, address: None }),
        _ => None,
    }
}
