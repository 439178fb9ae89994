//! `enid plan`: what is done, what comes next, and what is waited for.

use enid_api::v1::{Action, GetPoolRequest, Plan, Wait};

use super::{
    connect::{debug, reply},
    words::{request, took},
};
use crate::{
    print::{Mood, Output, lines, show},
    settings::Settings,
};

/// Prints the plan.
pub async fn run(settings: &Settings, output: Output) -> anyhow::Result<()> {
    let mut debug = debug(settings).await?;
    let pool = reply(debug.get_pool(GetPoolRequest {})).await?;
    let plan = pool.plan.unwrap_or_default();
    show(output, &plan, || {
        let rows = rows(&plan);
        if rows.is_empty() { "nothing is to be done, and nothing is waited for".to_owned() } else { lines(rows) }
    })
}

/// A line for each of its actions and waits.
pub fn rows(plan: &Plan) -> Vec<(Mood, String, String)> {
    let actions = plan.actions.iter().map(|Action { step, reason, in_flight, since_ms }| {
        let (name, when) = match in_flight {
            true => ("in flight", format!(", for {} now", took(since_ms * 1_000))),
            false => ("next", String::new()),
        };
        (Mood::Plain, name.to_owned(), format!("{step}{when}: {reason}"))
    });
    let waits = plan.waits.iter().map(|Wait { awaited, cause, message, aws_request_id, until_ms }| {
        let until = if *until_ms > 0 { format!(", for {} more", took(until_ms * 1_000)) } else { String::new() };
        let cause = if cause.is_empty() { String::new() } else { format!("{cause}: ") };
        let request = request(aws_request_id);
        (Mood::Plain, "waits for".to_owned(), format!("{awaited}{until}: {cause}{message}{request}"))
    });
    actions.chain(waits).collect()
}
