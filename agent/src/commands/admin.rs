//! `enid admin`: what an operator has the daemon do, where ENID_ADMIN allows it.

use clap::ArgMatches;
use enid_api::v1::{ReconcileRequest, ReleaseSurplusRequest, RestrictRequest, Restrictions, admin_client::AdminClient};
use tonic::{Code, Response, Status};

use super::{
    connect::{answered, channel, within},
    plan,
};
use crate::{
    print::{Output, lines, show},
    settings::Settings,
};

/// Gives the order.
pub async fn run(settings: &Settings, matches: &ArgMatches, output: Output) -> anyhow::Result<()> {
    let Some((name, matches)) = matches.subcommand() else { anyhow::bail!("no order given") };
    let what = || matches.get_one::<String>("what").cloned().unwrap_or_default();
    let mut admin = AdminClient::new(channel(settings).await?);
    match name {
        "freeze" | "unfreeze" | "exclude" | "include" => {
            let lift = ["unfreeze", "include"].contains(&name);
            let asked = RestrictRequest { what: what(), lift };
            let said = within(async { ordered(admin.restrict(asked).await) }).await?;
            show(output, &said, || match in_words(&said) {
                words if words.is_empty() => "nothing is restricted".to_owned(),
                words => words.join("\n"),
            })
        }
        "release" => {
            let said = within(async { ordered(admin.release_surplus(ReleaseSurplusRequest {}).await) }).await?;
            show(output, &said, || {
                match plan::rows(&said) {
                rows if rows.is_empty() => "nothing is released: the pool has nothing that it could do without, or is not at rest \
                                            (an ADD waits, addresses are on their way, EC2 has failed within a minute, the node is cordoned)"
                    .to_owned(),
                rows => lines(rows),
            }
            })
        }
        "reconcile" => {
            let said = within(async { ordered(admin.reconcile(ReconcileRequest {}).await) }).await?;
            let words = "kernel and metadata are compared now, and EC2 with the next audit, within a minute; enid events shows what is repaired, enid doctor what is not";
            show(output, &said, || words.to_owned())
        }
        other => anyhow::bail!("there is no order {other:?}"),
    }
}

/// What is restricted, a sentence for each.
pub fn in_words(restrictions: &Restrictions) -> Vec<String> {
    let Restrictions { releases_frozen, writes_frozen, excluded_enis } = restrictions;
    let releases =
        "an operator has frozen releases: nothing is unassigned, detached or deleted (enid admin unfreeze releases)";
    let writes = "an operator has frozen writes: nothing is changed at EC2, and the pool does not grow (enid admin unfreeze writes)";
    let excluded = excluded_enis
        .iter()
        .map(|eni| format!("an operator has excluded {eni}: new pods get no address of it (enid admin include {eni})"));
    let frozen = [(releases_frozen, releases), (writes_frozen, writes)];
    let frozen = frozen.into_iter().filter(|(is_frozen, _)| **is_frozen).map(|(_, words)| words.to_owned());
    frozen.chain(excluded).collect()
}

fn ordered<T>(answer: Result<Response<T>, Status>) -> anyhow::Result<T> {
    if answer.as_ref().is_err_and(|status| status.code() == Code::Unimplemented) {
        anyhow::bail!("the daemon takes no orders: ENID_ADMIN is not true");
    }
    answered(answer)
}
