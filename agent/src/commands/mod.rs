//! What an operator asks at the command line, mostly read through debug.sock. A command is a file here; which there are, and
//! their flags, is in `cli.rs`.

mod admin;
mod bundle;
mod config;
pub mod connect;
mod doctor;
mod ended;
mod events;
mod explain;
mod lists;
mod manual;
mod max_pods;
mod plan;
mod status;
mod top;
mod why;
mod words;

use std::time::Duration;

use anyhow::{Context, bail};
use clap::ArgMatches;
use tokio::time::timeout;

use crate::{
    handback, kubernetes,
    print::Output,
    settings::{Settings, given::Given, remembered::as_on_node},
    takeover::report,
};

pub use ended::Ended;

/// How long the API server may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A command that reads no settings; `None` if `name` is another one.
pub fn without_settings(name: &str, matches: &ArgMatches) -> Option<anyhow::Result<Ended>> {
    let done = match name {
        "completions" => manual::completions(matches),
        "man" => manual::page(),
        _ => return None,
    };
    Some(done.map(|()| Ended::Well))
}

/// Any other command.
///
/// # Errors
///
/// It could not be carried out.
pub fn run(name: &str, matches: &ArgMatches, given: &Given, settings: Settings) -> anyhow::Result<Ended> {
    let output = Output::of(matches);
    if name == "max-pods" {
        return max_pods::run(matches, &as_on_node(given, settings), output).map(|()| Ended::Well);
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    let done = |()| Ended::Well;
    runtime.block_on(async {
        match name {
            "untaint" => untaint(&settings).await.map(done),
            "takeover" => report::check(&as_on_node(given, settings), output).await.map(done),
            "handback" if matches.get_flag("cancel") => {
                handback::command::cancel(&as_on_node(given, settings)).map(done)
            }
            "handback" => handback::command::run(&as_on_node(given, settings)).await.map(done),
            "admin" => admin::run(&settings, matches, output).await.map(done),
            "status" => status::run(&settings, output).await,
            "health" => status::health(&settings, matches.get_flag("ready"), output).await.map(done),
            "enis" => lists::enis(&settings, output).await.map(done),
            "pods" => lists::pods(&settings, output).await.map(done),
            "plan" => plan::run(&settings, output).await.map(done),
            "why" => {
                let pod = matches.get_one::<String>("pod").map(String::as_str).unwrap_or_default();
                why::run(&settings, pod, output).await.map(done)
            }
            "events" => events::run(&settings, matches.get_flag("follow"), output).await.map(done),
            "bundle" => {
                let file = matches.get_one::<String>("file").map_or("-", String::as_str);
                bundle::run(&as_on_node(given, settings), file).await.map(done)
            }
            "config" => config::run(given, &settings, output).await.map(done),
            "doctor" => doctor::run(&as_on_node(given, settings), output).await,
            "explain" => {
                let end = |name| matches.get_one::<String>(name).map(String::as_str).unwrap_or_default();
                let port = matches.get_one::<u16>("port").copied().map(explain::Port::Tcp);
                let probe = port.or(matches.get_flag("probe").then_some(explain::Port::Any));
                explain::run(&settings, (end("source"), end("destination")), probe, output).await
            }
            "top" => top::run(&settings, matches.get_one::<u64>("times").copied()).await.map(done),
            other => bail!("there is no command {other:?}"),
        }
    })
}

/// Takes the taint off that says that there are no addresses: whoever ends may not leave it behind.
async fn untaint(settings: &Settings) -> anyhow::Result<()> {
    timeout(TIMEOUT, kubernetes::untaint(settings)).await.context("the API server does not answer")?
}
