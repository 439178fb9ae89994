//! A node that was taken over is given back, and taken over again, under running pods.

use std::{collections::BTreeMap, time::Duration};

use enid_tests::{
    Daemon, Place, Pod, kernel,
    peer::{self, Backend, PeerPod},
    program,
    traffic::{Ping, Stream, serve},
    wait_until,
};
use serde_json::Value;

use super::{
    BOUND, DONE,
    flows::{Silent, macs, streams},
    lab, with_enis,
};

/// Rounds of three pods that come and go, before the way back and after the second take-over: as many as in an hour of three a
/// minute. Their addresses are in their cooldown for a second.
const ROUNDS: usize = 30;
/// It is off on these nodes, which have no address of that family, and stands in no way.
const NO_V6: (&str, &str) = ("ENABLE_V6_EGRESS", "true");
/// What the kernel and NATs remember of connections and neighbours for a minute only is forgotten then.
const SILENCE: Duration = Duration::from_secs(60);

/// Runs `enid handback` as in the daemon's pod of this name: what it prints, and whether it succeeds.
fn hand_back(place: Place<'_>, pod: &str, args: &str) -> (String, bool) {
    hand_back_with(place, &[("MY_POD_NAME", pod), NO_V6], args)
}

/// The same with these settings, which a container's programs all have.
pub fn hand_back_with(place: Place<'_>, settings: &[(&str, &str)], args: &str) -> (String, bool) {
    let enid = program("enid").unwrap();
    let settings: Vec<String> = settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let line = format!("{} {} handback {args} 2>&1 && echo fine || true", settings.join(" "), enid.display());
    let said = place.sh(&line).unwrap();
    let is_fine = said.trim_end().ends_with("fine");
    (said, is_fine)
}

/// The node, with its older iptables, without what these names and addresses are of, and without its pods' neighbours.
pub fn state(place: Place<'_>, without: &[&str]) -> Vec<String> {
    let legacy = place.sh("iptables-legacy-save | grep -v '^[#:]' || true").unwrap();
    let state = kernel::state(place).unwrap() + &legacy;
    let is_left_out = |line: &&str| without.iter().any(|word| line.contains(word)) || line.contains(" lladdr ");
    let mut lines: Vec<String> =
        state.lines().filter(|line| !is_left_out(line)).map(|line| line.trim().to_owned()).collect();
    lines.sort();
    lines
}

/// Each pod's address, by the container that the other system's file gives it to.
pub fn of_file(place: Place<'_>) -> BTreeMap<String, String> {
    let text = place.sh("cat /var/run/aws-node/ipam.json").unwrap();
    let file: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(file["version"], "vpc-cni-ipam/1");
    let word = |entry: &Value, name: &str| entry[name].as_str().unwrap().to_owned();
    let entries = file["allocations"].as_array().unwrap().iter();
    let family = |entry: &Value| if entry["ipv6"].is_null() { "ipv4" } else { "ipv6" };
    entries.map(|entry| (word(entry, "containerID"), word(entry, family(entry)))).collect()
}

pub fn of_pods(pods: &[PeerPod]) -> BTreeMap<String, String> {
    pods.iter().map(|pod| (pod.pod.container.clone(), pod.address.clone())).collect()
}

fn probe(place: Place<'_>, path: &str) -> String {
    let url = format!("http://127.0.0.1:61680/{path}");
    place.sh(&format!("curl -s -o /dev/null -w '%{{http_code}}' {url} || true")).unwrap().trim().to_owned()
}

fn ended(name: &str, (running, pings): (Vec<Stream>, Vec<Ping>)) {
    for ping in pings {
        let (sent, back) = ping.end().unwrap();
        println!("{name}: {sent} echoes, {} lost", sent - back);
        assert_eq!(sent, back);
    }
    running.into_iter().for_each(|stream| drop(stream.end().unwrap()));
}

/// Pods come and go beside those that stay, whose addresses nobody else gets.
fn churn(place: Place<'_>, rounds: usize, staying: &BTreeMap<String, String>) {
    for round in 0..rounds {
        let pods = [0, 1, 2].map(|number| {
            let name = format!("churn-{round}-{number}");
            Pod { config: peer::config(), ..Pod::new(0, &name) }
        });
        for pod in &pods {
            let (address, _) = pod.add(place).unwrap();
            assert!(staying.values().all(|held| *held != address), "{address} has two owners");
        }
        pods.iter().for_each(|pod| pod.del(place).unwrap());
    }
}

fn there_and_back(name: &str, backend: Backend, of_prefixes: bool) {
    let lab = lab(name);
    let place = Place::node(&lab, 0);
    let settings = |pod: &'static str| {
        [
            ("ENID_TAKE_OVER", "true"),
            ("IP_COOLDOWN_PERIOD", "1"),
            ("WARM_ENI_TARGET", "0"),
            ("WARM_IP_TARGET", "3"),
            ("MAX_ENI", "3"),
            ("MY_POD_NAME", pod),
            NO_V6,
            ("ENABLE_PREFIX_DELEGATION", if of_prefixes { "true" } else { "false" }),
        ]
    };
    with_enis(place, &[("MINIMUM_IP_TARGET", "42"), ("WARM_ENI_TARGET", "0")]);
    if of_prefixes {
        peer::to_prefixes(place).unwrap();
    }
    let mut pods = peer::make(place, &[10, 10, 10], backend).unwrap();
    if backend == Backend::Legacy {
        // kube-proxy's, say: by them the other system tells which of both it uses.
        let kube = "for n in 1 2 3; do iptables-legacy -t nat -N KUBE-$n; iptables-legacy -t nat -A POSTROUTING -j KUBE-$n; done";
        place.sh(kube).unwrap();
    }
    let conflist = place.sh("cat /etc/cni/net.d/10-aws.conflist").unwrap();
    let left = pods.remove(9);
    let before = state(place, &[&left.address, &left.ifname]);
    let macs_before = macs(place, &pods);
    let names: Vec<&str> = pods.iter().map(|pod| pod.pod.name.as_str()).collect();
    let servers = (serve(place, &names).unwrap(), serve(Place { lab: &lab, name: "inet" }, &[]).unwrap());
    let of_each = [&pods[0], &pods[10], &pods[20]];
    let first = streams(place, &of_each);
    let silent = Silent::open(place, &[&pods[11], &pods[21]], 10);

    // Nothing to give back yet.
    let (said, is_fine) = hand_back(place, "enid-first", "");
    assert!(!is_fine && said.contains("the node was not taken over"), "{said}");
    let (said, is_fine) = hand_back(place, "enid-first", "--cancel");
    assert!(is_fine && said.contains("nothing is changed"), "{said}");

    let daemon = Daemon::start(place, &settings("enid-first")).unwrap();
    wait_until(BOUND, || daemon.log().contains(DONE)).unwrap_or_else(|_| panic!("{}", daemon.log()));
    left.pod.call(place, "DEL").unwrap();
    let new = Pod { config: peer::config(), ..Pod::new(0, "new") };
    let (address, _) = new.add(place).unwrap();
    let new_link = place.sh(&format!("ip -o route show {address} | grep -o 'eni[0-9a-f]*'")).unwrap().trim().to_owned();
    churn(place, ROUNDS, &of_pods(&pods));
    let under_enid = Silent::open(place, &[&pods[12], &pods[22]], 5);

    let (said, is_fine) = hand_back(place, "enid-first", "");
    assert!(is_fine, "{said}, {}", daemon.log());
    assert_eq!((probe(place, "healthz"), probe(place, "readyz")), ("200".to_owned(), "503".to_owned()), "it waits");
    let differs = |what: &str| {
        let after = state(place, &[&left.address, &left.ifname, &address, &new_link]);
        // Each as often as before.
        let mut more = after.clone();
        let mut missing =
            |line: &&String| more.iter().position(|there| there == *line).map(|at| more.remove(at)).is_none();
        let less: Vec<String> = before.iter().filter(|line| missing(line)).cloned().collect();
        assert!(more.is_empty() && less.is_empty(), "{what}: more {more:#?}, less {less:#?}, {}", daemon.log());
    };
    differs("given back");
    let mut expected = of_pods(&pods);
    expected.insert(new.container.clone(), address.clone());
    assert_eq!(of_file(place), expected);
    assert_eq!(
        place.sh("cat /etc/cni/net.d/10-aws.conflist; ls -A /etc/cni/net.d").unwrap(),
        format!("{conflist}10-aws.conflist\n")
    );
    let (said, is_fine) = hand_back(place, "enid-first", "");
    assert!(is_fine && said.contains("given back already"), "{said}");

    // A container that starts again in the same pod waits.
    daemon.kill().unwrap();
    let daemon = Daemon::spawn(place, &settings("enid-first")).unwrap();
    wait_until(BOUND, || probe(place, "readyz") == "503").unwrap();
    assert_eq!(of_file(place), expected);
    ended(name, first);
    if backend == Backend::Nft && !of_prefixes {
        silent.stay_silent(SILENCE); // in one of the modes: it is time that nothing else uses
    }
    let public = &lab.node(0).public_address;
    assert!(silent.speak().iter().chain(&under_enid.speak()).all(|seen| seen == public), "they went on as the node");
    daemon.kill().unwrap();

    // Another one takes the node over again.
    let second = streams(place, &of_each);
    let daemon = Daemon::start(place, &settings("enid-second")).unwrap();
    wait_until(BOUND, || daemon.log().matches(DONE).count() == 2).unwrap_or_else(|_| panic!("{}", daemon.log()));
    assert_eq!(peer::traces(place).unwrap(), "", "{}", daemon.log());
    let leases = place.leases().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let leased: BTreeMap<String, String> =
        leases.iter().map(|lease| (text(&lease["container"]), text(&lease["address"]))).collect();
    assert_eq!(leased, expected);
    assert_eq!(macs(place, &pods), macs_before, "pods have them as permanent neighbours");
    churn(place, ROUNDS, &expected);

    // The mark can be taken away, too.
    let (said, is_fine) = hand_back(place, "enid-second", "");
    assert!(is_fine, "{said}, {}", daemon.log());
    let (said, is_fine) = hand_back(place, "enid-second", "--cancel");
    assert!(is_fine && said.contains("takes this node over again"), "{said}");
    let (code, _) = daemon.wait(BOUND).unwrap();
    assert_eq!(code, Some(0), "its container starts again");
    let daemon = Daemon::start(place, &settings("enid-second")).unwrap();
    wait_until(BOUND, || daemon.log().matches(DONE).count() == 3).unwrap_or_else(|_| panic!("{}", daemon.log()));
    ended(name, second);
    drop(servers);
    for pod in pods.iter().map(|pod| &pod.pod).chain([&new]) {
        pod.call(place, "DEL").unwrap();
    }
    wait_until(BOUND, || place.leases().is_ok_and(|leases| leases.is_empty())).unwrap();
    assert_eq!(place.sh("ip -o link | grep -c ': eni' || true").unwrap().trim(), "0");
    assert_eq!(lab.drops().unwrap().foreign_source, 0);
}

#[test]
fn there_and_back_with_iptables_of_nftables() {
    there_and_back("backnft", Backend::Nft, false);
}

#[test]
fn there_and_back_with_iptables_of_old() {
    there_and_back("backold", Backend::Legacy, false);
}

#[test]
fn there_and_back_with_prefixes() {
    there_and_back("backpd", Backend::Nft, true);
}
