//! `enid status`: whether all is well, what is wrong, and what is going on; and `enid health`.

use anyhow::bail;
use enid_api::v1::{GetPoolRequest, Plan, Pool, Setting, Trouble};
use enid_ipamd::Cause;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{
    admin::in_words,
    connect::{self, NoDaemon, TIMEOUT, channel, reply},
    ended::Ended,
    lists::many,
    plan,
    words::{request, took},
};
use crate::{
    host::{pod_links, sockets},
    print::{Mood, Output, lines, print, show},
    serve::{debug::CNI_HEALTH, health},
    settings::{SETTINGS, Settings},
    store,
};

/// Prints the node's state. While no daemon answers, what store and kernel say.
pub async fn run(settings: &Settings, output: Output) -> anyhow::Result<Ended> {
    let said = async {
        let mut debug = connect::debug(settings).await?;
        reply(debug.get_pool(GetPoolRequest {})).await
    };
    let pool = match said.await {
        Err(failure) if failure.is::<NoDaemon>() && output.is_for_people() => {
            print(&without_daemon(settings).await)?;
            return Err(failure);
        }
        said => said?,
    };
    show(output, &pool, || lines(rows(&pool)))?;
    Ok(Ended::Well)
}

/// What can be seen on the node itself.
async fn without_daemon(settings: &Settings) -> String {
    let leases = match store::leases(&settings.store_dir, &settings.run_dir) {
        Ok(leases) => format!("{} leases, as the daemon has left them", leases.len()),
        Err(failure) => format!("it cannot be read: {failure:#}"),
    };
    let links = match pod_links::pod_ifnames().await {
        Ok(links) => format!("{} links of pods stand, and keep their network", links.len()),
        Err(failure) => format!("it cannot be asked: {failure:#}"),
    };
    let rows = [
        (Mood::Bad, "daemon", "no daemon answers: new pods wait".to_owned()),
        (Mood::Plain, "store", leases),
        (Mood::Plain, "kernel", links),
    ];
    lines(rows.map(|(mood, name, words)| (mood, name.to_owned(), words)))
}

/// `enid health`.
pub async fn health(settings: &Settings, ready: bool, output: Output) -> anyhow::Result<()> {
    health::ask(&sockets::cni(&settings.run_dir), TIMEOUT).map_err(|failure| NoDaemon(format!("{failure:#}")))?;
    let mut client = HealthClient::new(channel(settings).await?);
    let service = if ready { CNI_HEALTH } else { "" }.to_owned();
    let answer = reply(client.check(HealthCheckRequest { service })).await?;
    if answer.status() != ServingStatus::Serving {
        bail!("the daemon answers {:?}", answer.status());
    }
    show(output, &"serving", || "serving".to_owned())
}

/// Whether it is the ordinary state of a node that has as many pods as fit on it: nobody wants an address that it cannot have.
pub fn concerns_nobody(pool: &Pool, trouble: &Trouble) -> bool {
    let of_full = [Cause::EniLimit, Cause::ProvisioningOff, Cause::WritesFrozen, Cause::Cooldown].map(Cause::name);
    let is_of_full = trouble.kind == "obstacle" && of_full.contains(&&*trouble.cause);
    is_of_full && pool.waiting == 0 && pool.bound == 0 && pool.refused_adds == 0
}

/// What is wrong, each with what it means for pods.
pub fn troubles(pool: &Pool) -> Vec<(String, String)> {
    let meaning = |kind: &str| match kind {
        "obstacle" => "new pods get no address",
        "risk" => "pods may have no network",
        "source" => "metadata",
        "host" => "the host's own way out",
        "outage" => "pods are cut off",
        "rights" => "rights",
        _ => "",
    };
    let wrong = pool.troubles.iter().filter(|trouble| !concerns_nobody(pool, trouble));
    let with_cause = wrong.map(|Trouble { kind, cause, message, aws_request_id, for_ms }| {
        let name = Some(meaning(kind)).filter(|words| !words.is_empty()).unwrap_or(kind);
        let lasts = if *for_ms > 0 { format!(" (for {})", took(for_ms * 1_000)) } else { String::new() };
        (name.to_owned(), format!("{cause}{lasts}: {message}{}", request(aws_request_id)))
    });
    let of_metrics = Some(&pool.metrics_fault).filter(|words| !words.is_empty());
    let of_metrics = of_metrics.map(|words| ("metrics".to_owned(), words.clone()));
    let of_api_server = pool.api_server.iter().map(|words| ("API server".to_owned(), words.clone()));
    let conflicts = pool.conflicts.iter().map(|words| ("conflict".to_owned(), words.clone()));
    let restricted = pool.restrictions.iter().flat_map(in_words).map(|words| ("restricted".to_owned(), words));
    let max_pods = Some(&pool.max_pods_mismatch).filter(|words| !words.is_empty());
    let max_pods = max_pods.map(|words| ("max-pods".to_owned(), words.clone()));
    with_cause.chain(of_metrics).chain(of_api_server).chain(conflicts).chain(max_pods).chain(restricted).collect()
}

/// What a trouble has said already is not said again by what waits for it: it has the cause.
fn told_once(mut plan: Plan, pool: &Pool) -> Plan {
    for wait in &mut plan.waits {
        let is_told = |trouble: &Trouble| {
            let (told, waited) = (&trouble.aws_request_id, &wait.aws_request_id);
            !concerns_nobody(pool, trouble)
                && (&trouble.cause, &trouble.message, told) == (&wait.cause, &wait.message, waited)
        };
        if pool.troubles.iter().any(is_told) {
            (wait.message, wait.aws_request_id) = ("as above".to_owned(), String::new());
        }
    }
    plan
}

fn rows(pool: &Pool) -> Vec<(Mood, String, String)> {
    let troubles = troubles(pool);
    let health = match (troubles.len(), pool.ready) {
        (0, true) if !pool.troubles.is_empty() => {
            (Mood::Good, "healthy: every address is in use, and nobody waits for another".to_owned())
        }
        (0, true) => (Mood::Good, "healthy: pods get addresses, and have their network".to_owned()),
        (0, false) => (Mood::Bad, "not ready: no address could be given since this boot".to_owned()),
        (1, _) => (Mood::Bad, "one thing is wrong; docs/causes.md says what to do".to_owned()),
        (number, _) => (Mood::Bad, format!("{number} things are wrong; docs/causes.md says what to do")),
    };
    let wrong = troubles.into_iter().map(|(name, words)| (Mood::Bad, name, words));
    let plain = |name: &str, words: String| (Mood::Plain, name.to_owned(), words);
    let enis = match pool.eni_max {
        0 => format!("{}; how many the instance type carries is not known", pool.enis),
        max => format!("{} of {max}", pool.enis),
    };
    let addresses = format!(
        "{}: {} assigned, {} cooling, {} available",
        many(pool.total),
        pool.assigned,
        pool.cooling,
        many(pool.available)
    );
    let ready = match (pool.ready, pool.outage.is_empty()) {
        (true, _) => "yes: the node may be Ready",
        (false, true) => "no: no address could be given since this boot",
        (false, false) => "no: pods are cut off",
    };
    let state = [
        plain("node", format!("{} ({}, {})", pool.node, pool.instance_id, pool.instance_type)),
        plain("STATUS", ready.to_owned()),
        plain("ENIs", enis),
        plain("addresses", addresses),
        plain("ADDs that wait", pool.waiting.to_string()),
        plain("ADDs refused", format!("{} in the last two minutes", pool.refused_adds)),
        plain("pods on their way", pool.bound.to_string()),
    ];
    let plan = pool.plan.clone().map(|plan| plan::rows(&told_once(plan, pool))).unwrap_or_default();
    let is_default = |it: &Setting| SETTINGS.iter().any(|known| known.name == it.name && known.default == it.value);
    let by_config = |it: &Setting| it.origin.starts_with("NodeConfig ");
    let given = pool.settings.iter().filter(|it| !is_default(it) || by_config(it) || it.next.is_some());
    let given = given.map(|it| {
        let next = it.next.as_ref().map(|next| format!("; at the next start {:?} ({})", next.value, next.origin));
        plain("setting", format!("{} {:?} ({}){}", it.name, it.value, it.origin, next.unwrap_or_default()))
    });
    let first = (health.0, "health".to_owned(), health.1);
    [first].into_iter().chain(wrong).chain(state).chain(plan).chain(given).collect()
}

#[cfg(test)]
mod tests {
    use enid_api::v1::Wait;

    use super::*;

    #[test]
    fn the_first_line_says_whether_all_is_well() {
        let first = |pool: &Pool| rows(pool)[0].clone();
        let well = Pool { ready: true, ..Pool::default() };
        assert_eq!(first(&well).0, Mood::Good);
        let full = Trouble { kind: "obstacle".into(), cause: "subnet_full".into(), ..Trouble::default() };
        let wrong = Pool { troubles: vec![full], conflicts: vec!["a rule".into()], ..well.clone() };
        assert_eq!(first(&wrong).2, "2 things are wrong; docs/causes.md says what to do");
        assert_eq!(rows(&wrong)[1].1, "new pods get no address");
        let limit = Trouble { kind: "obstacle".into(), cause: "eni_limit".into(), ..Trouble::default() };
        let full = Pool { troubles: vec![limit], ..well.clone() };
        assert_eq!(first(&full).0, Mood::Good, "a node that is full is well");
        let wait = |pool: &Pool| {
            let waits = vec![Wait { cause: "eni_limit".into(), message: "9 of 9".into(), ..Wait::default() }];
            let troubles = vec![Trouble { message: "9 of 9".into(), ..pool.troubles[0].clone() }];
            let pool = Pool { plan: Some(Plan { waits, ..Plan::default() }), troubles, ..pool.clone() };
            rows(&pool).into_iter().find(|row| row.1 == "waits for").unwrap().2
        };
        assert!(wait(&full).ends_with("9 of 9"), "nobody has said it: {}", wait(&full));
        let refused = Pool { refused_adds: 1, ..full.clone() };
        assert!(wait(&refused).ends_with("as above"), "{}", wait(&refused));
        assert_eq!(first(&Pool { refused_adds: 1, ..full.clone() }).0, Mood::Bad);
        assert_eq!(first(&Pool { bound: 1, ..full }).0, Mood::Bad);
        assert_eq!(first(&Pool { ready: false, ..well }).0, Mood::Bad);
    }
}
