//! `enid-cni`, the CNI plugin: reads the request, asks the daemon over its Unix socket, wires the veth,
//! prints the result.
//!
//! It has no configuration of its own and decides nothing: the daemon's offer says what to wire. It
//! runs no program. DEL is the daemon's work, and needs no daemon. Errors leave as CNI JSON on stdout,
//! with the specification's codes (CNI spec 1.1.0, section 2, "Error").

#[macro_use]
mod note;

mod add;
mod check;
mod config;
mod daemon;
mod del;
mod env;
mod error;
mod gc;
mod packets;
mod result;
mod status;
mod version;

use std::{
    io::{Read, Write},
    process::ExitCode,
};

use crate::{
    config::{Config, STDIN_MAX},
    daemon::{Daemon, Report},
    env::Env,
    error::Error,
};

/// musl's own takes memory from the kernel and gives it back piece by piece, which slows an ADD down
/// (docs/decisions/0015-the-plugin-is-linked-with-musl.md).
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    tell_panics();
    run(&|name| std::env::var_os(name), std::io::stdin(), &mut std::io::stdout())
}

/// A panic must still leave as one error document (profile: panic = abort).
fn tell_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let error = Error::internal(format!("the plugin failed: {panic}"));
        let _ = std::io::stdout().write_all(error.json(version::NEWEST).as_bytes());
        std::process::exit(1);
    }));
}

/// The whole plugin, with its surroundings passed in.
fn run(var: env::Lookup<'_>, stdin: impl Read, stdout: &mut impl Write) -> ExitCode {
    let command = var("CNI_COMMAND").unwrap_or_default();
    if command.is_empty() {
        note!("gives pods addresses of the VPC. CNI versions: {}", version::SUPPORTED.join(", "));
        return ExitCode::SUCCESS;
    }
    let mut input = Vec::new();
    let read = stdin.take(STDIN_MAX + 1).read_to_end(&mut input);
    let answer = match read {
        Err(source) => Err(Error::io(format!("cannot read the configuration from stdin: {source}"))),
        Ok(_) => answer(&command.to_string_lossy(), var, &input),
    };
    let (text, code) = match answer {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(error) => (error.json(&version::asked(&input)), ExitCode::FAILURE),
    };
    if stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_err() {
        return ExitCode::FAILURE;
    }
    code
}

fn answer(command: &str, var: env::Lookup<'_>, input: &[u8]) -> Result<String, Error> {
    match command {
        "VERSION" => version::answer(input),
        "ADD" => {
            let (config, env) = (Config::parse(input)?, Env::for_add(var)?);
            add::add(&env, &config).inspect_err(|error| tell(command, &env, &config, error))
        }
        "CHECK" => {
            let config = Config::parse(input)?;
            version::needs(config.cni_version, "CHECK", "0.4.0")?;
            let env = Env::for_add(var)?;
            check::check(&env, &config).map(|()| String::new()).inspect_err(|error| tell(command, &env, &config, error))
        }
        "DEL" => {
            let (config, env) = (Config::for_del(input)?, Env::for_del(var)?);
            del::del(&env, &config).map(|()| String::new()).inspect_err(|error| tell(command, &env, &config, error))
        }
        "STATUS" => {
            let config = Config::parse(input)?;
            version::needs(config.cni_version, "STATUS", "1.1.0")?;
            status::status(&config).map(|()| String::new())
        }
        "GC" => {
            let config = Config::parse(input)?;
            version::needs(config.cni_version, "GC", "1.1.0")?;
            gc::gc(&config).map(|()| String::new())
        }
        other => Err(Error::environment(format!(
            "CNI_COMMAND is {other:?}; this plugin knows ADD, DEL, CHECK, STATUS, GC and VERSION"
        ))),
    }
}

/// Tells the daemon of an error that only the plugin knows: the runtime shows it of the pod, and the daemon's log and the pod's
/// story have it, too.
fn tell(command: &str, env: &Env, config: &Config, error: &Error) {
    if !error.is_told {
        Daemon::at(&config.socket).report(Report {
            attachment: Some(add::attachment(env, config)),
            pod: add::pod_of(env),
            verb: command.to_owned(),
            message: error.msg.clone(),
            failed: true,
        });
    }
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
