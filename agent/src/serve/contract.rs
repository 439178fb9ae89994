//! Values of the core as `enid.v1` has them, where more than one service says them.

use enid_api::v1::{Action, Plan, Restrictions, Wait};
use enid_ipamd::View;

/// The calls in flight and what comes next, and what is waited for.
pub fn plan(view: &View) -> Plan {
    let in_flight = view.in_flight.iter().map(|call| Action {
        step: [Some(call.action), call.eni.as_ref().map(|eni| &*eni.0)]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(" "),
        reason: call.reason.clone(),
        in_flight: true,
        since_ms: view.now.since(call.since),
    });
    let next = view.plan.actions.iter().map(|action| Action {
        step: action.step.to_string(),
        reason: action.reason.to_string(),
        in_flight: false,
        since_ms: 0,
    });
    let waits = view.plan.waits.iter().map(|wait| Wait {
        awaited: wait.awaited.to_string(),
        cause: wait.cause.map(|cause| cause.name().to_owned()).unwrap_or_default(),
        message: wait.message.clone(),
        aws_request_id: wait.request_id.clone().unwrap_or_default(),
        until_ms: wait.until.map_or(0, |until| until.since(view.now)),
    });
    Plan { actions: in_flight.chain(next).collect(), waits: waits.collect() }
}

/// What an operator restricts.
pub fn restricted(restrictions: &enid_ipamd::Restrictions) -> Restrictions {
    let enid_ipamd::Restrictions { releases_frozen, writes_frozen, excluded_enis } = restrictions;
    let excluded_enis = excluded_enis.iter().map(ToString::to_string).collect();
    Restrictions { releases_frozen: *releases_frozen, writes_frozen: *writes_frozen, excluded_enis }
}
