//! What the node intends to do next, why, and what it waits for: a pure function of the state.
//!
//! [`next`] looks at the state and returns the actions that come next, or, if nothing is to be done, what is waited for.
//! The core repeats it on a copy of itself until nothing is left ([`crate::Core::plan`]), so a [`Plan`] holds all actions of
//! a step in order; with them in flight, planning again yields no action and the same waits. ADD's refusals, `enid status`,
//! the logs and the simulator's trace read this one value.
//!
//! Each file decides about one thing: [`audit`] what EC2 is asked, [`creation`] and [`growth`] what is created and assigned,
//! [`release`] what is unassigned, detached and deleted, [`groups`] whose security groups are set, [`blocked`] why an ADD waits.

mod audit;
mod blocked;
mod creation;
mod groups;
mod growth;
mod release;
mod state;
mod value;

pub(crate) use audit::next_due as next_audit;
pub(crate) use blocked::next_cooled;
pub(crate) use groups::next_due as next_groups;
pub(crate) use growth::{HOLD_MS, holds_order};
pub(crate) use release::{SURPLUS_MS, awaits_listing, is_known};
pub(crate) use state::{Guards, Observed, State};
pub use value::{Action, Awaited, Plan, Reason, Step, Wait};

use crate::ids::Millis;

/// What comes next: actions, or else what is waited for.
pub(crate) enum Next {
    Act(Vec<Action>),
    Wait(Vec<Wait>),
}

/// Decides about one thing: what is to be done for it, and what it waits for.
type Stage = fn(&State<'_>, Millis, &mut Vec<Wait>) -> Vec<Action>;

/// Decides one stage after the other. The first that has something to do is carried out before the next is looked at.
pub(crate) fn next(state: &State<'_>, now: Millis) -> Next {
    let stages: [Stage; 11] = [
        audit::leak_search,
        audit::audits,
        audit::claims,
        audit::subnets,
        creation::steps,
        growth::growth,
        release::drain,
        release::deletions,
        release::releases,
        release::surplus,
        groups::follow,
    ];
    let mut waits = Vec::new();
    for stage in stages {
        let actions = stage(state, now, &mut waits);
        if !actions.is_empty() {
            return Next::Act(actions);
        }
    }
    blocked::waits(state, now, &mut waits);
    Next::Wait(waits)
}
