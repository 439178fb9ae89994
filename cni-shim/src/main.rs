//! `enid-cni`, the CNI plugin: reads the request, asks the daemon over its Unix socket, wires the veth,
//! prints the result.
//!
//! It has no configuration of its own and decides nothing: the daemon's offer says what to wire. It
//! runs no program. DEL removes the link by itself and needs no daemon. Errors leave as CNI JSON on stdout,
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
mod result;
mod status;
mod version;

use std::{
    io::{Read, Write},
    process::ExitCode,
};

use crate::{config::Config, env::Env, error::Error};

/// Longest configuration we read; the largest in use are some kilobytes.
const STDIN_MAX: u64 = 1 << 20;

fn main() -> ExitCode {
    // A panic must still leave as one error document (profile: panic = abort).
    std::panic::set_hook(Box::new(|panic| {
        let error = Error::internal(format!("the plugin failed: {panic}"));
        let _ = std::io::stdout().write_all(error.json(version::NEWEST).as_bytes());
        std::process::exit(1);
    }));
    run(&|name| std::env::var_os(name), std::io::stdin(), &mut std::io::stdout())
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
    let asked = version::asked(&input);
    let answer = match read {
        Err(source) => Err(Error::io(format!("cannot read the configuration from stdin: {source}"))),
        Ok(_) => answer(&command.to_string_lossy(), var, &input),
    };
    let (text, code) = match answer {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(error) => (error.json(&asked), ExitCode::FAILURE),
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
            let config = Config::parse(input)?;
            add::add(&Env::for_add(var)?, &config)
        }
        "CHECK" => {
            let config = Config::parse(input)?;
            version::needs(config.cni_version, "CHECK", "0.4.0")?;
            check::check(&Env::for_add(var)?, &config).map(|()| String::new())
        }
        "DEL" => {
            let config = Config::for_del(input)?;
            del::del(&Env::for_del(var)?, &config).map(|()| String::new())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn plugin(command: &str, env: &[(&str, &str)], stdin: &str) -> (bool, serde_json::Value) {
        let var = |name: &str| {
            let named = env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).into());
            if name == "CNI_COMMAND" { Some(command.into()) } else { named }
        };
        let mut out = Vec::new();
        let code = run(&var, stdin.as_bytes(), &mut out);
        let json = if out.is_empty() { serde_json::Value::Null } else { serde_json::from_slice(&out).unwrap() };
        (code == ExitCode::SUCCESS, json)
    }

    const CONFIG: &str = r#"{"cniVersion":"1.0.0","name":"enid","type":"enid-cni"}"#;
    const POD: [(&str, &str); 3] =
        [("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", "/run/netns/none-such")];

    #[test]
    fn an_unset_command_is_a_greeting() {
        assert_eq!(run(&|_| None, std::io::empty(), &mut Vec::new()), ExitCode::SUCCESS);
    }

    /// Every refusal: (command, environment, stdin) -> (code, a word that must be in the message).
    #[test]
    fn bad_input_is_one_error_document() {
        type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str, u64, &'a str);
        let rows: [Row<'_>; 26] = [
            ("add", &POD, CONFIG, 4, "\"add\""),
            ("GC", &POD, CONFIG, 1, "1.1.0"),
            ("STATUS", &[], CONFIG, 1, "1.1.0"),
            ("ADD", &POD, "", 6, "empty"),
            ("ADD", &POD, "{", 6, "JSON"),
            ("ADD", &POD, "[]", 6, "JSON"),
            ("ADD", &POD, r#"{"cniVersion":"1.0.0"}"#, 7, "name"),
            ("ADD", &POD, r#"{"cniVersion":"1.0.0","name":"-x"}"#, 7, "-x"),
            ("ADD", &POD, r#"{"cniVersion":"2.0.0","name":"enid"}"#, 1, "2.0.0"),
            ("ADD", &POD, r#"{"name":"enid"}"#, 1, "0.1.0"),
            ("ADD", &POD, r#"{"cniVersion":"1.0.0","name":"enid","addWaitSeconds":-1}"#, 7, "addWaitSeconds"),
            ("ADD", &POD, r#"{"cniVersion":"1.0.0","name":"enid","socket":"cni.sock"}"#, 7, "cni.sock"),
            ("ADD", &[], CONFIG, 4, "CNI_CONTAINERID, CNI_IFNAME, CNI_NETNS"),
            ("ADD", &[("CNI_CONTAINERID", "../x"), POD[1], POD[2]], CONFIG, 4, "../x"),
            ("ADD", &[POD[0], ("CNI_IFNAME", "a-name-of-16-bytes"), POD[2]], CONFIG, 4, "a-name-of-16-bytes"),
            ("ADD", &[POD[0], ("CNI_IFNAME", "eth%d"), POD[2]], CONFIG, 4, "eth%d"),
            ("ADD", &[POD[0], ("CNI_IFNAME", "all"), POD[2]], CONFIG, 4, "all"),
            ("ADD", &POD, r#"{"cniVersion":"1.0.0","name":"enid","prevResult":5}"#, 7, "prevResult"),
            ("ADD", &POD, r#"{"cniVersion":"1.0.0","name":"enid","prevResult":{"ips":7}}"#, 7, "ips"),
            ("ADD", &[POD[0], POD[1], POD[2], ("CNI_ARGS", "K8S_POD_NAME")], CONFIG, 4, "K8S_POD_NAME"),
            ("CHECK", &POD, r#"{"cniVersion":"0.3.1","name":"enid"}"#, 1, "0.4.0"),
            ("ADD", &POD, r#"{"cniVersion":"one","name":"enid"}"#, 6, "one"),
            ("ADD", &POD, r#"{"cniVersion":"1.0.0","name":"enid","ipam":{"type":"host-local"}}"#, 2, "host-local"),
            ("GC", &[], r#"{"cniVersion":"1.1.0","name":"enid","cni.dev/valid-attachments":[5]}"#, 7, "holds 5"),
            ("GC", &[], r#"{"cniVersion":"1.1.0","name":"enid","cni.dev/valid-attachments":{}}"#, 7, "is {}"),
            ("STATUS", &[], r#"{"cniVersion":"1.1.0","name":"enid","socket":"/none/such"}"#, 50, "/none/such"),
        ];
        for (command, env, stdin, code, word) in rows {
            let (ok, json) = plugin(command, env, stdin);
            assert!(!ok, "{command} {stdin}");
            assert_eq!(json["code"], code, "{command} {stdin}: {json}");
            assert!(json["msg"].as_str().unwrap().contains(word), "{command} {stdin}: {json}");
            assert!(json["cniVersion"].is_string());
        }
    }

    #[test]
    fn a_namespace_that_is_not_there_is_named() {
        let (ok, json) = plugin("ADD", &POD, CONFIG);
        assert!(!ok);
        assert_eq!(json["code"], 4);
        assert!(json["msg"].as_str().unwrap().contains("/run/netns/none-such"), "{json}");
    }

    #[test]
    fn version_lists_and_echoes() {
        let (ok, json) = plugin("VERSION", &[], r#"{"cniVersion":"0.4.0"}"#);
        assert!(ok);
        assert_eq!(json["cniVersion"], "0.4.0");
        assert_eq!(json["supportedVersions"], serde_json::json!(version::SUPPORTED));
        assert_eq!(plugin("VERSION", &[], "").1["cniVersion"], version::NEWEST);
    }
}
