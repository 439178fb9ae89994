//! What an operator asks at the command line, mostly read through debug.sock.

use std::{io::Write, time::Duration};

use anyhow::{Context, bail};
use comfy_table::{Table, presets::NOTHING};
use enid_api::v1::{Eni, GetPoolRequest, ListEnisRequest, ListLeasesRequest, Pool, Setting, debug_client::DebugClient};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::{net::UnixStream, time::timeout};
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tower::service_fn;

use crate::{
    handback,
    host::sockets,
    kubernetes,
    serve::{debug::CNI_HEALTH, health},
    settings::{SETTINGS, Settings},
    takeover::report,
};

/// How long an operator waits for a daemon that does not answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Takes the taint off that says that there are no addresses: whoever ends may not leave it behind.
pub fn untaint(settings: &Settings) -> anyhow::Result<()> {
    let asked = async { timeout(TIMEOUT, kubernetes::untaint(settings)).await };
    runtime()?.block_on(asked).context("the API server does not answer")?
}

/// What a take-over of this node would do.
pub fn takeover(settings: &Settings, as_json: bool) -> anyhow::Result<()> {
    runtime()?.block_on(report::check(settings, as_json))
}

/// Gives this node back to Amazon's VPC CNI, or takes that back.
pub fn handback(settings: &Settings, cancel: bool) -> anyhow::Result<()> {
    if cancel { handback::command::cancel(settings) } else { runtime()?.block_on(handback::command::run(settings)) }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")
}

/// Runs one of the reading commands.
pub fn run(name: &str, settings: &Settings, as_json: bool) -> anyhow::Result<()> {
    let answer = async {
        let channel = connect(settings).await?;
        let mut debug = DebugClient::new(channel.clone());
        anyhow::Ok(match name {
            "status" => show(as_json, &debug.get_pool(GetPoolRequest {}).await?.into_inner(), status)?,
            "enis" => show(as_json, &debug.list_enis(ListEnisRequest {}).await?.into_inner().enis, |enis| {
                let rows = enis.iter().map(|eni| {
                    let used = format!("{}/{}", eni.assigned, many(eni.addresses));
                    [&eni.id, &eni.state, &device(eni), &eni.slot.to_string(), &eni.primary_address, &used, &eni.mac]
                        .map(String::clone)
                });
                table(["ENI", "STATE", "DEVICE", "SLOT", "PRIMARY ADDRESS", "ASSIGNED", "MAC"], rows)
            })?,
            "pods" => show(as_json, &debug.list_leases(ListLeasesRequest {}).await?.into_inner().leases, |leases| {
                let rows = leases.iter().map(|lease| {
                    let pod = if lease.pod_name.is_empty() {
                        "-".to_owned()
                    } else {
                        format!("{}/{}", lease.pod_namespace, lease.pod_name)
                    };
                    [
                        &pod,
                        &lease.container,
                        &lease.ifname,
                        &[lease.address.as_str(), lease.second_address.as_str()].join(" ").trim_end().to_owned(),
                        &lease.eni,
                        &lease.state,
                        &lease.host_ifname,
                    ]
                    .map(String::clone)
                });
                table(["POD", "CONTAINER", "INTERFACE", "ADDRESS", "ENI", "STATE", "HOST LINK"], rows)
            })?,
            "health" | "ready" => {
                health::ask(&sockets::cni(&settings.run_dir), TIMEOUT)?;
                let service = if name == "ready" { CNI_HEALTH } else { "" }.to_owned();
                let answer = HealthClient::new(channel).check(HealthCheckRequest { service }).await?.into_inner();
                if answer.status() != ServingStatus::Serving {
                    bail!("the daemon answers {:?}", answer.status());
                }
                show(as_json, &"serving", |text| (*text).to_owned())?
            }
            other => bail!("there is no command {other:?}"),
        })
    };
    let text = runtime()?
        .block_on(async { timeout(TIMEOUT, answer).await })
        .with_context(|| format!("the daemon does not answer within {} s", TIMEOUT.as_secs()))??;
    // A reader that has seen enough is no fault.
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("cannot print"),
        _ => Ok(()),
    }
}

async fn connect(settings: &Settings) -> anyhow::Result<Channel> {
    let path = sockets::debug(&settings.run_dir);
    let at = path.clone();
    let connector = service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://enid.local").connect_with_connector(connector).await.with_context(|| {
        match handback::mark::read(settings) {
            Ok(Some(_)) => "the daemon serves no pods: this node is given back to Amazon's VPC CNI".to_owned(),
            _ => format!("the daemon does not answer on {}", at.display()),
        }
    })
}

/// A number of addresses; a /80 is not counted out.
fn many(addresses: u32) -> String {
    if addresses > u32::MAX / 2 { "many".to_owned() } else { addresses.to_string() }
}

/// Its index, behind the network card's if that is not the first.
fn device(eni: &Eni) -> String {
    match eni.network_card {
        0 => eni.device_index.to_string(),
        card => format!("{card}/{}", eni.device_index),
    }
}

fn show<T: Serialize>(as_json: bool, value: &T, text: impl Fn(&T) -> String) -> anyhow::Result<String> {
    if as_json { serde_json::to_string_pretty(value).context("cannot write JSON") } else { Ok(text(value)) }
}

fn status(pool: &Pool) -> String {
    let obstacle = format!("{}: {}", pool.cause, pool.cause_message);
    let new_pods = if pool.cause.is_empty() { "get an address at once" } else { obstacle.as_str() };
    let ready = match (pool.ready, pool.outage.is_empty()) {
        (true, _) => "yes".to_owned(),
        (false, true) => "no: no address could be given since this boot".to_owned(),
        (false, false) => format!("no: pods are cut off: {}", pool.outage),
    };
    let enis = match pool.eni_max {
        0 => format!("{}; how many the instance type carries is not known", pool.enis),
        max => format!("{} of {max}", pool.enis),
    };
    let mut rows = vec![
        ["node".to_owned(), format!("{} ({}, {})", pool.node, pool.instance_id, pool.instance_type)],
        ["ready".to_owned(), ready],
        ["new pods".to_owned(), new_pods.to_owned()],
        ["ENIs".to_owned(), enis],
        [
            "addresses".to_owned(),
            format!(
                "{}: {} assigned, {} cooling, {} available",
                many(pool.total),
                pool.assigned,
                pool.cooling,
                many(pool.available)
            ),
        ],
        ["waiting ADDs".to_owned(), pool.waiting.to_string()],
        ["pods on their way".to_owned(), pool.bound.to_string()],
    ];
    let plan = pool.plan.clone().unwrap_or_default();
    for action in &plan.actions {
        let when = if action.in_flight { format!(", in flight for {} ms", action.since_ms) } else { String::new() };
        rows.push(["action".to_owned(), format!("{}{when}: {}", action.step, action.reason)]);
    }
    for wait in &plan.waits {
        let until = if wait.until_ms > 0 { format!(", for {} ms more", wait.until_ms) } else { String::new() };
        let cause = if wait.cause.is_empty() { String::new() } else { format!("{}: ", wait.cause) };
        rows.push(["waits for".to_owned(), format!("{}{until}: {cause}{}", wait.awaited, wait.message)]);
    }
    let troubles =
        [("risk", &pool.risk), ("metadata", &pool.source), ("host", &pool.host), ("metrics", &pool.metrics_fault)];
    let troubles = troubles.into_iter().filter(|(_, words)| !words.is_empty());
    rows.extend(troubles.map(|(name, words)| [name.to_owned(), words.clone()]));
    rows.extend(pool.api_server.iter().map(|fault| ["API server".to_owned(), fault.clone()]));
    let is_default = |it: &Setting| SETTINGS.iter().any(|known| known.name == it.name && known.default == it.value);
    let by_config = |it: &Setting| it.origin.starts_with("NodeConfig ");
    let given = pool.settings.iter().filter(|it| !is_default(it) || by_config(it) || it.next.is_some());
    rows.extend(given.map(|it| {
        let next = it.next.as_ref().map(|next| format!("; at the next start {:?} ({})", next.value, next.origin));
        ["setting".to_owned(), format!("{} {:?} ({}){}", it.name, it.value, it.origin, next.unwrap_or_default())]
    }));
    rows.extend(pool.conflicts.iter().map(|conflict| ["conflict".to_owned(), conflict.clone()]));
    table(["", ""], rows.into_iter())
}

fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    if head.iter().any(|title| !title.is_empty()) {
        table.set_header(head);
    }
    table.add_rows(rows);
    table.trim_fmt()
}
