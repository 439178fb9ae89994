//! Plugin and daemon of different versions: what an older pair said to each other (`recordings`), played to either
//! side of today's, as it was and with fields that nobody knows.
//!
//! A recording is made with
//! `ENID_RECORDING=PATH cargo test -p enid-tests --test cni -- --ignored skew::a_conversation_is_recorded`.

use std::path::PathBuf;

use enid_api::{
    packet,
    v1::{LookupReply, Offer, ReleaseReply, Verdict, from_daemon::Kind},
};
use enid_tests::{
    Call, Lab, LabConfig, Place, Pod, wait_until,
    wire::{Connection, Packet, Recording, Side, Stage},
};
use serde_json::{Value, json};

use super::{BOUND, has_lease, node, pod_of, with};

/// The pod of the recordings.
const POD: &str = "skew";
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const SOCKET: &str = "/run/skew.sock";

/// Each as it was said, and as a later version might say it.
fn recordings() -> Vec<(&'static str, Recording)> {
    let kept = [
        ("DEL deletes the link itself", include_str!("recordings/plugin-deletes.txt")),
        ("the daemon deletes the link", include_str!("recordings/daemon-deletes.txt")),
        ("the runtime names a trace", include_str!("recordings/traced.txt")),
    ];
    let both = |(name, text): (&'static str, &str)| {
        let recording: Recording = text.parse().unwrap();
        [(name, recording.clone()), (name, recording.with_unknown_fields())]
    };
    kept.into_iter().flat_map(both).collect()
}

/// A path of a node, as the test sees it.
pub fn seen_from_outside(place: Place<'_>, path: &str) -> PathBuf {
    let pid = place.lab.state().pid_of(place.name).unwrap();
    format!("/proc/{pid}/root{path}").into()
}

fn said(recording: &Recording, verb: &str, from: Side) -> Vec<Vec<u8>> {
    recording.of(verb).into_iter().filter(|packet| packet.from == from).map(|packet| packet.bytes).collect()
}

fn said_once(recording: &Recording, verb: &str) -> Vec<u8> {
    said(recording, verb, Side::Plugin).remove(0)
}

fn kind(packet: &[u8]) -> Kind {
    packet::read_daemon(packet, packet.len()).unwrap()
}

fn offer(packet: &[u8]) -> Offer {
    match kind(packet) {
        Kind::Offer(offer) => offer,
        other => panic!("no offer: {other:?}"),
    }
}

fn released(packet: &[u8]) -> ReleaseReply {
    match kind(packet) {
        Kind::Released(reply) => reply,
        other => panic!("not released: {other:?}"),
    }
}

fn hex(mac: &[u8]) -> String {
    mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

#[test]
fn other_plugins_get_what_they_ask_for() {
    let socket = seen_from_outside(node(), "/run/enid/cni.sock");
    let answer = |recording: &Recording, verb: &str| {
        Connection::to(&socket).unwrap().ask(&said_once(recording, verb)).unwrap().unwrap()
    };
    for (name, recording) in recordings() {
        let pod = pod_of("1.1.0", POD);
        let [ask, wired] = said(&recording, "ADD", Side::Plugin).try_into().unwrap();
        let before = offer(&said(&recording, "ADD", Side::Daemon)[0]);
        let attachment = Connection::to(&socket).unwrap();
        let now = offer(&attachment.ask(&ask).unwrap().unwrap());
        // What is derived stays: a pod that an older version wired is found again by these.
        let derived = |offer: &Offer| (offer.host_ifname.clone(), offer.host_mac.clone(), offer.pod_mac.clone());
        assert_eq!(derived(&now), derived(&before), "{name}");
        let Offer { address, mtu, host_ifname, host_mac, pod_mac, device_group, .. } = now;
        let (host_mac, pod_mac) = (hex(&host_mac), hex(&pod_mac));
        node()
            .sh(&format!(
                "ip link add {host_ifname} address {host_mac} group {device_group} mtu {mtu} type veth \
                 peer name eth0 netns {POD} address {pod_mac} mtu {mtu}"
            ))
            .unwrap();
        let verdict = attachment.ask(&wired).unwrap().unwrap();
        assert_eq!(kind(&verdict), Kind::Verdict(Verdict { mine: true }), "{name}");
        drop(attachment);

        match kind(&answer(&recording, "CHECK")) {
            Kind::Found(LookupReply { address: held, .. }) => assert_eq!(held, address, "{name}"),
            other => panic!("{name}: {other:?}"),
        }
        match kind(&answer(&recording, "STATUS")) {
            Kind::Status(status) => assert!(status.ready, "{name}"),
            other => panic!("{name}: {other:?}"),
        }
        match kind(&answer(&recording, "GC")) {
            Kind::Collected(collected) => {
                let kept = collected.kept;
                assert!(kept.iter().any(|kept| kept.container == pod.container), "{name}: {kept:?}");
            }
            other => panic!("{name}: {other:?}"),
        }
        assert_eq!(released(&answer(&recording, "DEL")).address, address, "{name}");
        assert!(!has_lease(&pod), "{name}");
        pod.remove_namespace(node()).unwrap();
    }
}

#[test]
fn the_plugin_understands_other_daemons() {
    let lab = Lab::up(&LabConfig { name: format!("skew{}", std::process::id()), nodes: 1, ..LabConfig::default() });
    let lab = lab.unwrap();
    let place = Place::node(&lab, 0);
    let call = |pod: &Pod, verb: &str, keys: &[(&str, Value)]| {
        Call::new(pod, verb).stdin(&with(pod, keys)).make(place).unwrap()
    };
    let socket = || ("socket", json!(SOCKET));
    let path = seen_from_outside(place, SOCKET);
    let pod = Pod { config: enid_tests::pod::config("1.1.0", 5), ..Pod::new(0, POD) };
    for (name, recording) in recordings() {
        pod.make_namespace(place).unwrap();
        let links = || place.sh("ip -o link | sed 's/^[0-9]*: //'; ip route show table all").unwrap();
        let before = links();
        let stage = Stage::play(&path, recording.clone()).unwrap();
        let result = call(&pod, "ADD", &[socket()]).fine().unwrap();
        let offered = offer(&said(&recording, "ADD", Side::Daemon)[0]).address;
        assert_eq!(result["ips"][0]["address"], format!("{offered}/32"), "{name}");
        call(&pod, "CHECK", &[socket(), ("prevResult", result)]).silent().unwrap();
        call(&pod, "STATUS", &[socket()]).silent().unwrap();
        let collected = call(&pod, "GC", &[socket(), ("cni.dev/valid-attachments", json!([]))]);
        collected.silent().unwrap();
        assert!(collected.stderr.contains("is kept, since its link stands"), "{name}: {collected:?}");
        let deleted = call(&pod, "DEL", &[socket()]);
        deleted.silent().unwrap();
        // Who says that the link is gone is believed; there is nobody here who deletes it.
        if released(&said(&recording, "DEL", Side::Daemon)[0]).link_deleted {
            assert_eq!(deleted.stderr, "");
        } else {
            assert_eq!(links(), before, "{name}");
        }
        drop(stage);
        pod.remove_namespace(place).unwrap();
        // The kernel ends a namespace, and the links in it, after `ip netns del` has returned.
        wait_until(BOUND, || links() == before).unwrap();
    }

    // Each conversation left out in turn: one clear message, and DEL helps itself.
    pod.make_namespace(place).unwrap();
    let before = place.sh("ip -o link | sed 's/^[0-9]*: //'").unwrap();
    let (_, whole) = recordings().remove(0);
    let verbs = [("ADD", 11), ("CHECK", 11), ("STATUS", 50), ("GC", 11)];
    let result = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "sandbox": format!("/run/netns/{POD}")}],
        "ips": [{"address": "10.0.1.9/32", "interface": 0}]
    });
    for (verb, code) in verbs {
        let without = whole.0.iter().filter(|packet| packet.verb != verb).cloned().collect();
        let _stage = Stage::play(&path, Recording(without)).unwrap();
        let keys = [socket(), ("prevResult", result.clone()), ("cni.dev/valid-attachments", json!([]))];
        let keys = if verb == "CHECK" { &keys[..2] } else { &[keys[0].clone(), keys[2].clone()] };
        let words = ["is not an enid daemon of this kind: it cannot", "cause=daemon_refused"];
        call(&pod, verb, keys).refused(code, &words).unwrap();
    }
    let stage = Stage::play(&path, Recording(whole.of("ADD"))).unwrap();
    call(&pod, "ADD", &[socket()]).fine().unwrap();
    let deleted = call(&pod, "DEL", &[socket()]);
    deleted.silent().unwrap();
    assert!(deleted.stderr.contains("the link is removed"), "{deleted:?}");
    assert_eq!(place.sh("ip -o link | sed 's/^[0-9]*: //'").unwrap(), before);
    drop(stage);

    // A daemon that has no address yet says so, as often as it likes.
    let mut later = whole.of("ADD");
    let pending = Packet { bytes: vec![0x08, 1, 0x12, 0], ..later[1].clone() };
    later.splice(1..1, [pending.clone(), pending]);
    let stage = Stage::play(&path, Recording(later)).unwrap();
    call(&pod, "ADD", &[socket()]).fine().unwrap();
    call(&pod, "DEL", &[socket()]).silent().unwrap();
    drop(stage);

    // Answers that this plugin does not know, or not now: one clear message each.
    let asked = |answer: Vec<u8>| {
        let mut other = whole.of("ADD");
        other[1].bytes = answer;
        let _stage = Stage::play(&path, Recording(other)).unwrap();
        call(&pod, "ADD", &[socket()])
    };
    asked(vec![0x08, 1, 0x7a, 0]).refused(102, &["a kind that is not known"]).unwrap();
    asked(vec![0x08, 1]).refused(102, &["a kind that is not known"]).unwrap();
    asked(vec![0x08, 2, 0x1a, 0]).refused(102, &["version 2"]).unwrap();
    asked(vec![0xff; 40]).refused(102, &["cannot be decoded"]).unwrap();
    asked(vec![0x08, 1, 0x22, 0]).refused(102, &["a verdict out of turn"]).unwrap();
    // More than this plugin has room for: it is cut, and so it is not read.
    let padded = [&[0x08, 1, 0xd2, 0x3e][..], &[0x80, 0x80, 2], &[0; 0x8000]].concat();
    asked(padded).refused(102, &["a packet of 32775 bytes"]).unwrap();
    assert_eq!(place.sh("ip -o link | sed 's/^[0-9]*: //'").unwrap(), before);
}

#[test]
#[ignore = "writes a file of the repository"]
fn a_conversation_is_recorded() {
    let path = std::env::var_os("ENID_RECORDING").unwrap();
    let pod = pod_of("1.1.0", POD);
    let pod = Pod { config: with(&pod, &[("socket", json!(SOCKET))]), ..pod };
    let (socket, daemon) = (seen_from_outside(node(), SOCKET), seen_from_outside(node(), "/run/enid/cni.sock"));
    let stage = Stage::relay(&socket, &daemon).unwrap();
    let call = |verb, keys: &[(&str, Value)]| Call::new(&pod, verb).stdin(&with(&pod, keys)).make(node()).unwrap();
    // A runtime that names a trace: the plugin says more then.
    let traced = |verb| Call::new(&pod, verb).env("TRACEPARENT", TRACEPARENT).make(node()).unwrap();
    let result = traced("ADD").fine().unwrap();
    call("CHECK", &[("prevResult", result)]).silent().unwrap();
    call("STATUS", &[]).silent().unwrap();
    call("GC", &[("cni.dev/valid-attachments", json!([]))]).silent().unwrap();
    traced("DEL").silent().unwrap();
    pod.remove_namespace(node()).unwrap();
    std::fs::write(path, stage.recording().to_string()).unwrap();
}
