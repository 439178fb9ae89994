//! `enid`: the node daemon, its installer and the operator's commands.

mod aws;
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
mod proxy;
mod reconcile;
mod runtime;
mod serve;
mod settings;
mod store;
mod takeover;
mod uninstall;

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::settings::{SETTINGS, Settings, given::Given, remembered::as_on_node};

fn main() -> ExitCode {
    match run(&cli().get_matches()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The whole chain, outermost first: every cause once.
            eprintln!("enid: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let (name, matches) = matches.subcommand().ok_or_else(|| anyhow::anyhow!("no command given"))?;
    let given = Given::new(&|setting| matches.get_one::<String>(setting.flag).cloned(), &variable);
    // The operator's commands run in the same environment, and have no use for it.
    let (refused, ignored) = if name == "agent" { settings::peer::look(&variable) } else { Default::default() };
    let settings = match given.read() {
        Ok(settings) if refused.is_empty() => Settings { ignored, ..settings },
        read => {
            let mistakes = read.err().unwrap_or_default().into_iter().map(|mistake| mistake.text);
            anyhow::bail!("{}", mistakes.chain(refused).collect::<Vec<_>>().join("\n      "))
        }
    };
    match name {
        "agent" => {
            proxy::keep_off()?;
            daemon::run(given, settings)
        }
        "init" => runtime::install::plugins(&settings),
        "uninstall" => uninstall::run(&as_on_node(&given, settings), matches.get_flag("enis")),
        "untaint" => commands::untaint(&settings),
        "takeover" => commands::takeover(&as_on_node(&given, settings), is_json(matches)),
        "handback" => commands::handback(&as_on_node(&given, settings), matches.get_flag("cancel")),
        _ => {
            let as_json = is_json(matches);
            let ready = name == "health" && matches.get_flag("ready");
            commands::run(if ready { "ready" } else { name }, &settings, as_json)
        }
    }
}

fn is_json(matches: &ArgMatches) -> bool {
    matches.get_one::<String>("output").is_some_and(|output| output == "json")
}

fn variable(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

fn cli() -> Command {
    let settings = || {
        SETTINGS.iter().map(|setting| {
            Arg::new(setting.flag).long(setting.flag).value_name(setting.name).help(format!(
                "{} [default: {}]",
                setting.help,
                if setting.default.is_empty() { "none" } else { setting.default }
            ))
        })
    };
    let output = || {
        Arg::new("output")
            .short('o')
            .long("output")
            .value_parser(["table", "json"])
            .default_value("table")
            .help("Format")
    };
    let reading =
        |name: &'static str, about: &'static str| Command::new(name).about(about).args(settings()).arg(output());
    Command::new("enid")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Native VPC addresses for pods: the node daemon and its commands")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(Command::new("agent").about("Run the node daemon").args(settings()))
        .subcommand(Command::new("init").about("Install the plugin into the runtime's folder").args(settings()))
        .subcommand(
            Command::new("uninstall")
                .about("Remove every trace from a node that has no pods any more; no daemon may run")
                .args(settings())
                .arg(
                    Arg::new("enis")
                        .long("enis")
                        .action(ArgAction::SetTrue)
                        .help("Give the node's ENIs back to EC2, too"),
                ),
        )
        .subcommand(
            Command::new("untaint").about("Take the taint of ENID_NO_ADDRESSES_TAINT off this node").args(settings()),
        )
        .subcommand(
            reading("takeover", "What taking this node over from Amazon's VPC CNI would do; the daemon does it").arg(
                Arg::new("check")
                    .long("check")
                    .action(ArgAction::SetTrue)
                    .required(true)
                    .help("Change nothing; exit 1 if something stands against it"),
            ),
        )
        .subcommand(
            Command::new("handback")
                .about("Give this node back to Amazon's VPC CNI under running pods; the daemon waits from then on")
                .args(settings())
                .arg(
                    Arg::new("cancel")
                        .long("cancel")
                        .action(ArgAction::SetTrue)
                        .help("Let the daemon serve a node that was given back, once Amazon's has gone from it"),
                ),
        )
        .subcommand(reading("status", "The node, its pool, and what it waits for"))
        .subcommand(reading("enis", "The ENIs of this node"))
        .subcommand(reading("pods", "The pods and their addresses"))
        .subcommand(
            reading("health", "Exit 0 while the daemon serves").arg(
                Arg::new("ready").long("ready").action(ArgAction::SetTrue).help("Exit 0 only while STATUS says yes"),
            ),
        )
}
