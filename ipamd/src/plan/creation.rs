//! The next step of ENIs that are being created.

use super::{
    state::State,
    value::{Action, Reason, Wait},
};
use crate::{
    ec2::{Call, CreationStage},
    ids::Millis,
};

/// Takes one of them a step further, where nothing holds it up.
pub(super) fn steps(state: &State<'_>, now: Millis, waits: &mut Vec<Wait>) -> Vec<Action> {
    if !state.has_looked() || !state.node.provisions() {
        return Vec::new();
    }
    for (token, pending) in state.creations.iter() {
        let (creation, home) = (pending.creation, pending.home.clone());
        let call = match pending.stage.clone() {
            CreationStage::ToCreate => Call::Create { token: token.clone(), creation, home },
            CreationStage::ToAttach(eni) => Call::Attach { eni, place: state.free_place(creation.card) },
            CreationStage::ToProtect(eni, attachment) => Call::DeleteOnTermination { eni, attachment },
            _ => continue,
        };
        if state.may_call(now, call.action(), state.class(), waits) {
            return vec![Action::call(call, state.class(), Reason::NextStep)];
        }
    }
    Vec::new()
}
