//! What needs neither kernel nor daemon: the environment, the configuration, VERSION, refusals.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use serde_json::{Value, json};

use super::*;

type Vars<'a> = &'a [(&'a str, &'a str)];
/// Command, environment, stdin, code, a word that must be in the message.
type Row<'a> = (&'a str, Vars<'a>, &'a str, u64, &'a str);

fn plugin(command: &str, env: Vars<'_>, stdin: &[u8]) -> (bool, Value) {
    let var = |name: &str| {
        let named = env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).into());
        if name == "CNI_COMMAND" { Some(command.into()) } else { named }
    };
    let mut out = Vec::new();
    let code = run(&var, stdin, &mut out);
    // One document and nothing else, or nothing at all.
    let json = if out.is_empty() { Value::Null } else { serde_json::from_slice(&out).unwrap() };
    (code == ExitCode::SUCCESS, json)
}

fn refused(rows: &[Row<'_>]) {
    for (command, env, stdin, code, word) in rows {
        let (ok, json) = plugin(command, env, stdin.as_bytes());
        assert!(!ok, "{command} {stdin}");
        assert_eq!(json["code"], *code, "{command} {stdin}: {json}");
        assert!(json["msg"].as_str().unwrap().contains(word), "{command} {stdin}: {json}");
        assert!(json["cniVersion"].is_string());
    }
}

const CONFIG: &str = r#"{"cniVersion":"1.0.0","name":"enid","type":"enid-cni"}"#;
const NEWEST: &str = r#"{"cniVersion":"1.1.0","name":"enid","socket":"/none/such"}"#;
const ID: (&str, &str) = ("CNI_CONTAINERID", "c1");
const IFNAME: (&str, &str) = ("CNI_IFNAME", "eth0");
const NETNS: (&str, &str) = ("CNI_NETNS", "/run/netns/none-such");
const POD: [(&str, &str); 3] = [ID, IFNAME, NETNS];

// D1 D2 D3 D6
#[test]
fn an_unset_command_is_a_greeting() {
    for command in [None, Some("".into())] {
        let mut out = Vec::new();
        assert_eq!(run(&|_| command.clone(), std::io::empty(), &mut out), ExitCode::SUCCESS);
        assert!(out.is_empty());
    }
}

// D7 D8 D9 D10 D11 D12 D14
#[test]
fn an_environment_that_cannot_be_is_code_4() {
    let long = "c".repeat(4096);
    let mut rows: Vec<Row<'_>> = vec![
        ("add", &POD, CONFIG, 4, "\"add\""),
        ("FOO", &POD, CONFIG, 4, "\"FOO\""),
        ("ADD", &[], CONFIG, 4, "CNI_CONTAINERID, CNI_IFNAME, CNI_NETNS"),
        ("CHECK", &[], CONFIG, 4, "CNI_CONTAINERID, CNI_IFNAME, CNI_NETNS"),
        ("DEL", &[], CONFIG, 4, "CNI_CONTAINERID, CNI_IFNAME"),
        ("ADD", &[ID, NETNS], CONFIG, 4, "CNI_IFNAME"),
        ("ADD", &[ID, IFNAME], CONFIG, 4, "CNI_NETNS"),
        ("ADD", &[ID, IFNAME, ("CNI_NETNS", "")], CONFIG, 4, "CNI_NETNS"),
        ("ADD", &[ID, IFNAME, NETNS, ("CNI_ARGS", "K8S_POD_NAME")], CONFIG, 4, "K8S_POD_NAME"),
        ("ADD", &[ID, IFNAME, NETNS, ("CNI_ARGS", "=x")], CONFIG, 4, "=x"),
    ];
    let ids = ["../x", " ", "a b", "a\n", "-a", ".a", "a/b", "ü", long.as_str()]
        .map(|id| [("CNI_CONTAINERID", id), IFNAME, NETNS]);
    rows.extend(ids.iter().map(|env| -> Row<'_> { ("DEL", env, CONFIG, 4, "CNI_CONTAINERID") }));
    let names = ["a-name-of-16-bytes", ".", "..", "a/b", "a:b", "a b", "eth%d", "all", "default", "a\tb"];
    let names = names.map(|name| [ID, ("CNI_IFNAME", name), NETNS]);
    rows.extend(names.iter().map(|env| -> Row<'_> { ("ADD", env, CONFIG, 4, "CNI_IFNAME") }));
    refused(&rows);
}

// D19 D20 D21 D22 D23 D24 D36
#[test]
fn a_configuration_that_cannot_be_has_its_code() {
    refused(&[
        ("ADD", &POD, "", 6, "empty"),
        ("ADD", &POD, " \n", 6, "empty"),
        ("ADD", &POD, "{", 6, "JSON"),
        ("ADD", &POD, "[]", 6, "JSON"),
        ("ADD", &POD, r#"{"cniVersion":7}"#, 6, "JSON"),
        ("ADD", &POD, r#"{"cniVersion":"1.0.0"}"#, 7, "name"),
        ("ADD", &POD, r#"{"cniVersion":"1.0.0","name":"-x"}"#, 7, "-x"),
        ("ADD", &POD, r#"{"cniVersion":"1.0.0","name":""}"#, 7, "\"\""),
        ("ADD", &POD, r#"{"cniVersion":"0.9.9","name":"enid"}"#, 1, "0.9.9"),
        ("ADD", &POD, r#"{"cniVersion":"1.2.0","name":"enid"}"#, 1, "1.2.0"),
        ("DEL", &POD, r#"{"cniVersion":"2.0.0","name":"enid"}"#, 1, "2.0.0"),
        ("ADD", &POD, r#"{"cniVersion":"0.2.0","name":"enid"}"#, 1, "0.2.0"),
        ("ADD", &POD, r#"{"name":"enid"}"#, 1, "0.1.0"),
        ("ADD", &POD, r#"{"cniVersion":"one","name":"enid"}"#, 6, "one"),
        ("ADD", &POD, r#"{"cniVersion":"1.0.0","name":"enid","addWaitSeconds":-1}"#, 7, "addWaitSeconds"),
        ("ADD", &POD, r#"{"cniVersion":"1.0.0","name":"enid","socket":"cni.sock"}"#, 7, "cni.sock"),
        ("ADD", &POD, r#"{"cniVersion":"1.0.0","name":"enid","ipam":{"type":"host-local"}}"#, 2, "host-local"),
        ("ADD", &POD, r#"{"cniVersion":"1.0.0","name":"enid","prevResult":5}"#, 7, "prevResult"),
        ("ADD", &POD, r#"{"cniVersion":"1.0.0","name":"enid","prevResult":{"ips":7}}"#, 7, "ips"),
        ("GC", &[], r#"{"cniVersion":"1.1.0","name":"enid","cni.dev/valid-attachments":[5]}"#, 7, "holds 5"),
        ("GC", &[], r#"{"cniVersion":"1.1.0","name":"enid","cni.dev/attachments":{}}"#, 7, "is {}"),
    ]);
    let unknown = r#"{"cniVersion":"1.0.0","name":"enid","what":[{}],"cni.dev/x":1,"args":{},"ipam":{}}"#;
    let (_, json) = plugin("ADD", &POD, unknown.as_bytes());
    assert_eq!(json["code"], 4, "it gets as far as the namespace: {json}");
    let (_, json) = plugin("ADD", &POD, br#"{"cniVersion":"9.9.9","name":"enid"}"#);
    for version in version::SUPPORTED {
        assert!(json["details"].as_str().unwrap().contains(version), "{json}");
    }
    assert!(json["details"].as_str().unwrap().contains("9.9.9"), "{json}");
}

// D26
#[test]
fn neither_size_nor_depth_exhausts_it() {
    let mut large = CONFIG.trim_end_matches('}').to_owned();
    large.push_str(&format!(r#","x":"{}"}}"#, "x".repeat(1 << 20)));
    let (_, json) = plugin("ADD", &POD, large.as_bytes());
    assert_eq!(json["code"], 7, "{json}");
    let deep = |key: &str| {
        let (open, close) = ("[".repeat(100_000), "]".repeat(100_000));
        plugin("ADD", &POD, format!(r#"{{"cniVersion":"1.0.0","name":"enid","{key}":{open}1{close}}}"#).as_bytes()).1
    };
    assert_eq!(deep("prevResult")["code"], 6);
    assert_eq!(deep("unknown")["code"], 4, "skipped without a stack");
}

// D69 D78 D87
#[test]
fn verbs_are_older_and_younger() {
    refused(&[
        ("CHECK", &POD, r#"{"cniVersion":"0.3.1","name":"enid"}"#, 1, "0.4.0"),
        ("STATUS", &[], CONFIG, 1, "1.1.0"),
        ("GC", &[], CONFIG, 1, "1.1.0"),
    ]);
}

// D13 D16 D30 D80
#[test]
fn status_gc_and_version_need_no_attachment_and_mind_none() {
    let odd = [("CNI_CONTAINERID", "../x"), ("CNI_IFNAME", "a/b"), ("CNI_NETNS", "?"), ("CNI_ARGS", "x")];
    for env in [&[][..], &odd] {
        refused(&[("STATUS", env, NEWEST, 50, "/none/such")]);
        let (ok, json) = plugin("GC", env, NEWEST.as_bytes());
        assert!(ok && json.is_null(), "no list, nothing to do: {json}");
        assert!(plugin("VERSION", env, b"").0);
    }
}

// D18
#[test]
fn a_namespace_that_is_not_there_is_named() {
    let (ok, json) = plugin("ADD", &POD, CONFIG.as_bytes());
    assert!(!ok);
    assert_eq!(json["code"], 4);
    assert!(json["msg"].as_str().unwrap().contains("/run/netns/none-such"), "{json}");
}

// D28 D29
#[test]
fn version_lists_and_echoes() {
    for asked in version::SUPPORTED {
        let (ok, json) = plugin("VERSION", &[], format!(r#"{{"cniVersion":"{asked}"}}"#).as_bytes());
        assert!(ok);
        assert_eq!(json["cniVersion"], asked);
        assert_eq!(json["supportedVersions"], json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
    }
    assert_eq!(plugin("VERSION", &[], b"").1["cniVersion"], "1.1.0");
}

// D5
#[test]
fn a_panic_leaves_as_a_document() {
    const INSIDE: &str = "ENID_TEST_PANICS";
    if std::env::var_os(INSIDE).is_some() {
        tell_panics();
        panic!("on purpose");
    }
    let this = ["--exact", "tests::a_panic_leaves_as_a_document", "--nocapture", "--quiet"];
    let output =
        std::process::Command::new(std::env::current_exe().unwrap()).args(this).env(INSIDE, "1").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    let json: Value = serde_json::from_str(&text[text.find('{').unwrap()..]).unwrap();
    assert_eq!(json["code"], 102);
    assert!(json["msg"].as_str().unwrap().contains("on purpose"), "{json}");
}
