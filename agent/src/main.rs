//! `enid`: the node daemon, its installer and the operator's commands.

mod aws;
mod cli;
mod clock;
mod commands;
mod core;
mod daemon;
mod families;
#[cfg(test)]
mod fuzz;
mod handback;
mod host;
mod kubernetes;
mod log;
mod metrics;
mod print;
mod proxy;
mod reconcile;
mod record;
mod runtime;
mod serve;
mod settings;
mod store;
mod takeover;
mod uninstall;

use std::process::ExitCode;

use clap::ArgMatches;

use crate::{
    commands::{Ended, connect::NoDaemon},
    settings::{Settings, given::Given, remembered::as_on_node},
};

fn main() -> ExitCode {
    match run(&cli::cli().get_matches()) {
        Ok(Ended::Well) => ExitCode::SUCCESS,
        Ok(Ended::SomethingIsWrong) => ExitCode::FAILURE,
        // Who reads has seen enough.
        Err(error) if error.is::<print::ReaderGone>() => ExitCode::SUCCESS,
        Err(error) => {
            // The whole chain, outermost first: every cause once.
            eprintln!("enid: {error:#}");
            ExitCode::from(if error.is::<NoDaemon>() { 3 } else { 1 })
        }
    }
}

fn run(matches: &ArgMatches) -> anyhow::Result<Ended> {
    let (name, matches) = matches.subcommand().ok_or_else(|| anyhow::anyhow!("no command given"))?;
    if let Some(ended) = commands::without_settings(name, matches) {
        return ended;
    }
    // A command has flags for some of the settings, or for all.
    let flag = |flag: &str| matches.try_get_one::<String>(flag).ok().flatten().cloned();
    let given = Given::new(&|setting| flag(setting.flag), &variable);
    // The operator's commands run in the same environment, and have no use for it.
    let (refused, ignored) = if name == "agent" { settings::peer::look(&variable) } else { Default::default() };
    let settings = match given.read() {
        Ok(settings) if refused.is_empty() => Settings { ignored, ..settings },
        read => {
            let mistakes = read.err().unwrap_or_default().into_iter().map(|mistake| mistake.text);
            anyhow::bail!("{}", mistakes.chain(refused).collect::<Vec<_>>().join("\n      "))
        }
    };
    let done = |()| Ended::Well;
    // Who asks metadata, for credentials too, or the API server.
    if ["agent", "bundle", "doctor", "takeover", "uninstall", "untaint"].contains(&name) {
        proxy::keep_off()?;
    }
    match name {
        "agent" => daemon::run(given, settings).map(done),
        "init" => runtime::install::plugins(&settings).map(done),
        "uninstall" => uninstall::run(&as_on_node(&given, settings), matches.get_flag("enis")).map(done),
        _ => commands::run(name, matches, &given, settings),
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}
