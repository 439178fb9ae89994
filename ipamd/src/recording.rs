//! A part of a core's life: the state that it began with, the events that it took, and the state at its end. Since a step
//! depends on nothing else, who takes the same events on the same state gets the same effects, plans and state.

use serde::{Deserialize, Serialize};

use crate::{
    core::Core,
    event::{Effect, Event},
    ids::Millis,
    plan::Plan,
};

/// The part.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Recording {
    /// The version of the daemon: another one may decide otherwise.
    pub version: String,
    /// The state before the first event.
    pub start: Core,
    /// The events, each with its time.
    pub events: Vec<(Millis, Event)>,
    /// When it was taken.
    pub at: Millis,
    /// The state then.
    pub end: Core,
    /// What the plan was then, in words.
    pub plan: String,
}

impl Recording {
    /// A recording that ends at this moment with this state.
    pub fn new(start: Core, events: Vec<(Millis, Event)>, at: Millis, end: Core) -> Self {
        let plan = in_words(&end.plan(at));
        Recording { version: env!("CARGO_PKG_VERSION").to_owned(), start, events, at, end, plan }
    }

    /// Takes the events again, and tells of each; the state and the plan at the end.
    ///
    /// # Errors
    ///
    /// State or plan are others than those that were recorded, or the recording is another version's.
    pub fn replay(&self, mut tell: impl FnMut(Millis, &Event, &[Effect], &Plan)) -> Result<(Core, Plan), String> {
        let version = env!("CARGO_PKG_VERSION");
        if self.version != version {
            return Err(format!("the recording is of version {}, and this is {version}", self.version));
        }
        let mut core = self.start.clone();
        for (now, event) in &self.events {
            let (effects, plan) = core.step_and_plan(*now, event.clone());
            tell(*now, event, &effects, &plan);
        }
        let plan = core.plan(self.at);
        if in_words(&plan) != self.plan {
            return Err(format!("the plan is another one: {}; recorded: {}", in_words(&plan), self.plan));
        }
        let text = |core: &Core| serde_json::to_string(core).map_err(|error| error.to_string());
        if text(&core)? != text(&self.end)? {
            return Err("the state is another one than the recorded one".to_owned());
        }
        Ok((core, plan))
    }
}

/// A plan's actions and waits, a line for each.
fn in_words(plan: &Plan) -> String {
    let actions = plan.actions.iter().map(|action| format!("next: {}: {}", action.step, action.reason));
    let waits = plan.waits.iter().map(|wait| {
        let cause = wait.cause.map(|cause| format!("{cause}: ")).unwrap_or_default();
        let until = wait.until.map(|until| format!(" until {}", until.0)).unwrap_or_default();
        format!("waits for {}{until}: {cause}{}", wait.awaited, wait.message)
    });
    actions.chain(waits).collect::<Vec<_>>().join("\n")
}
