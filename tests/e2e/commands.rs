//! The operator's commands, on a node of the lab.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
    sync::OnceLock,
    time::Duration,
};

use enid_tests::{Daemon, Lab, LabConfig, Place, Pod, pod, program, wait_until};
use serde_json::Value;

const BOUND: Duration = Duration::from_secs(30);

fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(|| Lab::up(&LabConfig { nodes: 5, ..LabConfig::default() }).unwrap())
}

/// A command's words: what it prints, and how it ended.
fn ask(place: Place<'_>, arguments: &str) -> (String, i32) {
    let line = format!("code=0; {} {arguments} 2>&1 || code=$?; echo; echo $code", program("enid").unwrap().display());
    let said = place.sh(&line).unwrap();
    let (words, code) = said.trim_end().rsplit_once('\n').unwrap();
    (words.trim_end().to_owned(), code.parse().unwrap())
}

fn json(place: Place<'_>, arguments: &str) -> Value {
    let (said, code) = ask(place, &format!("{arguments} -o json"));
    assert_eq!(code, 0, "{said}");
    serde_json::from_str(&said).unwrap_or_else(|_| panic!("{said}"))
}

#[test]
fn a_pods_story_outlives_the_pod_and_the_daemon() {
    let place = Place::node(lab(), 0);
    let settings = [("WARM_IP_TARGET", "2"), ("IP_COOLDOWN_PERIOD", "0")];
    let daemon = Daemon::start(place, &settings).unwrap();
    let pod = Pod::new(0, "told");
    let (address, _) = pod.add(place).unwrap();
    let (story, code) = ask(place, "why default/told");
    assert_eq!(code, 0, "{story}");
    let lines: Vec<&str> = story.lines().collect();
    assert!(lines[0].contains("ADD") && lines[0].contains(&address) && lines[0].contains("wiring"), "{story}");
    assert!(lines[1].starts_with(&format!("now: it has {address} on eni-")), "{story}");
    pod.del(place).unwrap();
    let kinds = |story: &Value| -> Vec<String> {
        let operations = story["operations"].as_array().unwrap();
        operations
            .iter()
            .map(|it| format!("{} {}", it["kind"].as_str().unwrap(), it["outcome"].as_str().unwrap()))
            .collect()
    };
    assert_eq!(kinds(&json(place, "why told")), ["ADD done", "DEL done"]);
    let phases = json(place, "why told")["operations"][0]["phases"].clone();
    let names: Vec<&str> = phases.as_array().unwrap().iter().map(|phase| phase["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["address", "wiring", "verdict"]);
    // Written down within ten seconds: then it is known without a daemon.
    wait_until(BOUND, || place.sh("grep -qa default/told /var/lib/enid/stories.redb").is_ok()).unwrap();
    daemon.kill().unwrap();
    let (story, code) = ask(place, "why default/told");
    assert!(code == 0 && story.contains("does not answer") && story.contains("DEL"), "{story}");
    let (said, code) = ask(place, "status");
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("no daemon answers: new pods wait") && said.contains("0 leases"), "{said}");
    // What the store says is for people: a program would take it for the state.
    let (said, code) = ask(place, "pods");
    assert!(code == 3 && said.contains("the leases that the store has"), "{said}");
    let (said, code) = ask(place, "pods -o json");
    assert!(code == 3 && !said.contains('['), "{said}");
    let _daemon = Daemon::start(place, &settings).unwrap();
    assert_eq!(kinds(&json(place, "why told")), ["ADD done", "DEL done"], "a restart keeps it");
    let (said, _) = ask(place, "why default/unheard-of");
    assert!(said.starts_with("nothing is known of a pod default/unheard-of"), "{said}");
    let (said, code) = ask(place, "why a/b/c");
    assert!(code == 1 && said.contains("NAMESPACE/POD"), "{said}");
}

#[test]
fn what_is_done_is_listed_and_followed() {
    let place = Place::node(lab(), 1);
    let _daemon = Daemon::start(place, &[("WARM_IP_TARGET", "2"), ("IP_COOLDOWN_PERIOD", "0")]).unwrap();
    let mut follower = place.command(program("enid").unwrap()).unwrap();
    let mut follower = follower.args(["events", "-f", "-o", "json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let mut next = |kind: &str| loop {
        let operation: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        if operation["kind"] == kind {
            return operation;
        }
    };
    // What has been done already comes first.
    assert_eq!(next("EC2")["outcome"], "done");
    let pod = Pod::new(1, "followed");
    pod.add(place).unwrap();
    assert_eq!(next("ADD")["pod"], "default/followed");
    pod.del(place).unwrap();
    assert_eq!(next("DEL")["pod"], "default/followed");
    // Within ten seconds after a repair another one of its kind is only counted.
    let again = "for n in $(seq 30); do ip rule del pref 512 2>/dev/null; sleep 1; done";
    let mut again = place.command("sh").unwrap().args(["-c", again]).spawn().unwrap();
    let repaired = next("REPAIR");
    again.kill().unwrap();
    again.wait().unwrap();
    assert!(repaired["message"].as_str().unwrap().contains("rule"), "{repaired}");
    follower.kill().unwrap();
    follower.wait().unwrap();
    let (said, _) = ask(place, "events");
    let listed: Vec<&str> = said.lines().filter(|line| line.contains("default/followed")).collect();
    assert_eq!(listed.len(), 2, "{said}");
}

#[test]
fn every_command_prints_tables_and_values() {
    let place = Place::node(lab(), 2);
    let _daemon = Daemon::start(place, &[("WARM_IP_TARGET", "2")]).unwrap();
    let pod = Pod::new(2, "listed");
    let (address, _) = pod.add(place).unwrap();
    let (said, code) = ask(place, "status");
    assert!(code == 0 && said.contains("healthy: pods get addresses"), "{said}");
    assert!(!said.contains('\u{1b}'), "no colours in a pipe: {said:?}");
    let (pods, wide) = (ask(place, "pods").0, ask(place, "pods -o wide").0);
    assert!(pods.contains(&address) && !pods.contains("CONTAINER") && wide.contains("CONTAINER"), "{pods}{wide}");
    let yaml = ask(place, "pods -o yaml").0;
    assert!(yaml.contains(&format!("address: \"{address}\"")), "{yaml}");
    let config = json(place, "config");
    let warm = config.as_array().unwrap().iter().find(|it| it["name"] == "WARM_IP_TARGET").unwrap().clone();
    assert_eq!((&warm["value"], &warm["origin"]), (&"2".into(), &"environment".into()));
    wait_until(BOUND, || ask(place, "plan").0.contains("nothing is to be done")).unwrap();
    let top = ask(place, "top --times 2").0;
    assert!(top.matches("ADDs that wait").count() == 2, "{top}");
    // What needs no daemon and no settings.
    assert_eq!(ask(place, "max-pods --instance-type m5.large"), ("29".to_owned(), 0));
    let (said, code) = ask(place, "max-pods --instance-type m5.huge");
    assert!(code == 1 && said.contains("m5.large"), "{said}");
    assert!(ask(place, "completions bash").0.contains("complete"));
    let man = ask(place, "man").0;
    assert!(man.contains(".TH enid 1") && man.contains("enid why"), "{man}");
    let (said, code) = ask(place, "staus");
    assert!(code == 2 && said.contains("similar"), "{said}");
}

#[test]
fn an_operator_freezes_excludes_and_releases() {
    let place = Place::node(lab(), 3);
    let settings = [
        ("ENID_ADMIN", "true"),
        ("WARM_IP_TARGET", "2"),
        ("IP_COOLDOWN_PERIOD", "0"),
        ("ENID_DEBUG_ADDRESS", "127.0.0.1:61681"),
    ];
    let daemon = Daemon::start(place, &settings).unwrap();
    wait_until(BOUND, || json(place, "status")["available"] == 2).unwrap();
    let (said, code) = ask(place, "admin freeze writes");
    assert!(code == 0 && said.contains("frozen writes"), "{said}");
    let pods: Vec<Pod> = (0..3)
        .map(|number| Pod { config: pod::config("1.0.0", 1), ..Pod::new(3, &format!("ordered-{number}")) })
        .collect();
    pods.iter().for_each(|pod| pod.make_namespace(place).unwrap());
    pods[..2].iter().for_each(|pod| drop(pod.call(place, "ADD").unwrap()));
    let refused = |pod: &Pod| pod.try_call(place, "ADD").unwrap().1.to_string();
    assert!(refused(&pods[2]).contains("writes_frozen"), "{}", refused(&pods[2]));
    // A restart of the daemon lifts nothing, and who reads over TCP cannot either.
    daemon.kill().unwrap();
    let daemon = Daemon::spawn(place, &settings).unwrap();
    wait_until(BOUND, || ask(place, "status").0.contains("enid admin unfreeze writes")).unwrap();
    assert!(refused(&pods[2]).contains("writes_frozen"), "{}", refused(&pods[2]));
    let grpcurl = concat!(env!("CARGO_MANIFEST_DIR"), "/../.tools/bin/grpcurl");
    let order = r#"-d '{"what":"writes","lift":true}'"#;
    let proto = concat!("-import-path ", env!("CARGO_MANIFEST_DIR"), "/../api/proto -proto enid/v1/admin.proto");
    let by_address =
        format!("{grpcurl} -plaintext {proto} {order} 127.0.0.1:61681 enid.v1.Admin/Restrict 2>&1 || true");
    let by_address = place.sh(&by_address).unwrap();
    assert!(by_address.contains("Unimplemented"), "{by_address}");
    assert!(!place.sh(&format!("{grpcurl} -plaintext 127.0.0.1:61681 list")).unwrap().contains("Admin"));
    let (said, code) = ask(place, "admin unfreeze writes");
    assert_eq!((&*said, code), ("nothing is restricted", 0));
    wait_until(BOUND, || pods[2].call(place, "ADD").is_ok()).unwrap();
    // New pods get no address of an excluded ENI.
    let primary = json(place, "enis").as_array().unwrap().iter().find(|eni| eni["slot"] == 0).unwrap()["id"].clone();
    let primary = primary.as_str().unwrap().to_owned();
    assert_eq!(ask(place, &format!("admin exclude {primary}")).1, 0);
    let (said, code) = ask(place, "admin exclude eni-none");
    assert!(code == 1 && said.contains(&primary), "{said}");
    let elsewhere = Pod::new(3, "elsewhere");
    elsewhere.add(place).unwrap();
    let leases = json(place, "pods");
    let lease = leases.as_array().unwrap().iter().find(|lease| lease["pod_name"] == "elsewhere");
    assert_ne!(lease.unwrap()["eni"], *primary);
    assert_eq!(ask(place, &format!("admin include {primary}")).1, 0);
    // What is too much goes at once, and not after a minute; unless releases are frozen.
    pods.iter().chain([&elsewhere]).for_each(|pod| pod.del(place).unwrap());
    assert_eq!(ask(place, "admin freeze releases").1, 0);
    let (said, code) = ask(place, "admin release");
    assert!(code == 1 && said.contains("frozen"), "{said}");
    assert_eq!(ask(place, "admin unfreeze releases").1, 0);
    wait_until(BOUND, || {
        // An ENI that is younger than a minute stays.
        ask(place, "admin release");
        let status = json(place, "status");
        status["assigned"] == 0 && status["available"].as_u64().is_some_and(|available| available <= 4)
    })
    .unwrap();
    assert_eq!(ask(place, "admin reconcile").1, 0);
    let operations = json(place, "events");
    let operations: Vec<String> = operations
        .as_array()
        .unwrap()
        .iter()
        .filter(|operation| operation["kind"] == "ADMIN")
        .map(|operation| {
            format!("{} {}", operation["subject"].as_str().unwrap(), operation["outcome"].as_str().unwrap())
        })
        .collect();
    for order in ["unfreeze writes done", "exclude eni-none failed", "release failed", "release done", "reconcile done"]
    {
        assert!(operations.iter().any(|operation| operation == order), "{order}: {operations:?}");
    }
    // Without the switch nobody gives orders, and none holds.
    assert_eq!(ask(place, "admin freeze releases").1, 0);
    daemon.kill().unwrap();
    let _daemon = Daemon::start(place, &[("WARM_IP_TARGET", "2"), ("IP_COOLDOWN_PERIOD", "0")]).unwrap();
    let (said, code) = ask(place, "admin release");
    assert!(code == 1 && said.contains("ENID_ADMIN is not true"), "{said}");
    assert!(!ask(place, "status").0.contains("frozen"));
}

#[test]
fn a_probe_is_followed_to_its_destination() {
    let place = Place::node(lab(), 4);
    let _daemon = Daemon::start(place, &[("WARM_IP_TARGET", "3"), ("IP_COOLDOWN_PERIOD", "0")]).unwrap();
    let pods = ["asks", "answers"].map(|name| Pod::new(4, name));
    let [_, (to, _)] = pods.each_ref().map(|pod| pod.add(place).unwrap());
    let probe = |more: &str| {
        let (said, code) = ask(place, &format!("explain asks {to} {more} -o json"));
        (serde_json::from_str::<Value>(&said).unwrap_or_else(|_| panic!("{said}")), code)
    };
    // Nothing of it is there unless it is asked for.
    assert!(probe("").0.get("probe").is_none());
    let (said, code) = probe("--probe");
    assert_eq!((code, &said["probe"]["arrived"]), (0, &true.into()), "{said}");
    let trace = said["probe"]["trace"].to_string();
    assert!(trace.contains("ip enid"), "{trace}");
    let (said, code) = probe("--port 8080");
    assert!(code == 0 && said["probe"]["answer"].as_str().unwrap().contains("refuses the connection"), "{said}");
    // A firewall between them shows where.
    place
        .sh("nft add table ip other; nft add chain ip other forward '{ type filter hook forward priority 0; }'")
        .unwrap();
    place.sh(&format!("nft add rule ip other forward ip daddr {to} drop")).unwrap();
    let (said, code) = probe("--probe");
    assert_eq!((code, &said["probe"]["arrived"]), (1, &false.into()), "{said}");
    let trace = said["probe"]["trace"].to_string();
    assert!(trace.contains("ip other forward rule") && trace.contains("verdict drop"), "{trace}");
    // One that rejects answers in the destination's place, and is no arrival.
    place.sh("nft flush chain ip other forward").unwrap();
    place.sh(&format!("nft add rule ip other forward ip daddr {to} reject")).unwrap();
    let (said, code) = probe("--probe");
    assert_eq!((code, &said["probe"]["arrived"]), (1, &false.into()), "{said}");
    place.sh("nft delete table ip other").unwrap();
    let tables = place.sh("nft list tables").unwrap();
    assert!(!tables.contains("probe"), "{tables}");
    let (said, code) = ask(place, &format!("explain 10.9.9.9 {to} --probe"));
    assert!(code == 1 && said.contains("a probe is sent by its source"), "{said}");
    pods.iter().for_each(|pod| pod.del(place).unwrap());
}
