//! Plugin and daemon of different versions: what an older pair said to each other (`recordings`), played to either
//! side of today's, as it was and with fields that nobody knows; and bytes that are no conversation at all.
//!
//! A recording is made with
//! `ENID_RECORDING=PATH cargo test -p enid-tests --test cni -- --ignored skew::a_conversation_is_recorded`.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
};

use enid_api::v1::{
    AttachReply, CollectReply, LookupReply, Offer, ReleaseReply, StatusReply, Verdict, attach_reply::Step,
};
use enid_tests::{
    Call, Lab, LabConfig, Place, Pod,
    wire::{Plugin, Recording, Side, Stage},
};
use prost::Message;
use serde_json::{Value, json};
use tonic::Code;

use super::{add, daemon_pid, del, has_lease, node, pod_of, with};

/// The pod of the recordings.
const POD: &str = "skew";
const SOCKET: &str = "/run/skew.sock";

/// Each as it was said, and as a later version might say it.
fn recordings() -> Vec<(&'static str, Recording)> {
    let kept = [
        ("DEL deletes the link itself", include_str!("recordings/plugin-deletes.txt")),
        ("the daemon deletes the link", include_str!("recordings/daemon-deletes.txt")),
    ];
    let both = |(name, text): (&'static str, &str)| {
        let recording: Recording = text.parse().unwrap();
        [(name, recording.clone()), (name, recording.with_unknown_fields())]
    };
    kept.into_iter().flat_map(both).collect()
}

/// A path of a node, as the test sees it.
fn seen_from_outside(place: Place<'_>, path: &str) -> PathBuf {
    let pid = place.lab.state().pid_of(place.name).unwrap();
    format!("/proc/{pid}/root{path}").into()
}

fn said(recording: &Recording, method: &str, from: Side) -> Vec<Vec<u8>> {
    recording.of(method).into_iter().filter(|message| message.from == from).map(|message| message.bytes).collect()
}

fn said_once(recording: &Recording, method: &str) -> Vec<u8> {
    said(recording, method, Side::Plugin).remove(0)
}

fn step(bytes: &[u8]) -> Step {
    AttachReply::decode(bytes).unwrap().step.unwrap()
}

fn offer(bytes: &[u8]) -> Offer {
    match step(bytes) {
        Step::Offer(offer) => offer,
        other => panic!("no offer: {other:?}"),
    }
}

fn hex(mac: &[u8]) -> String {
    mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

#[test]
fn other_plugins_get_what_they_ask_for() {
    let socket = seen_from_outside(node(), "/run/enid/cni.sock");
    for (name, recording) in recordings() {
        let pod = pod_of("1.1.0", POD);
        let plugin = Plugin::connect(&socket).unwrap();
        let [ask, wired] = said(&recording, "Attach", Side::Plugin).try_into().unwrap();
        let before = offer(&said(&recording, "Attach", Side::Daemon)[0]);
        let mut attachment = plugin.open("Attach", &ask).unwrap();
        let now = offer(&attachment.hear().unwrap());
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
        attachment.say(&wired).unwrap();
        assert_eq!(step(&attachment.hear().unwrap()), Step::Verdict(Verdict { mine: true }), "{name}");
        drop(attachment);

        let held = plugin.ask("Lookup", &said_once(&recording, "Lookup")).unwrap();
        assert_eq!(LookupReply::decode(&*held).unwrap().address, address, "{name}");
        let status = plugin.ask("Status", &said_once(&recording, "Status")).unwrap();
        assert!(StatusReply::decode(&*status).unwrap().ready, "{name}");
        let collected = plugin.ask("Collect", &said_once(&recording, "Collect")).unwrap();
        let kept = CollectReply::decode(&*collected).unwrap().kept;
        assert!(kept.iter().any(|kept| kept.container == pod.container), "{name}: {kept:?}");
        let released = plugin.ask("Release", &said_once(&recording, "Release")).unwrap();
        assert_eq!(ReleaseReply::decode(&*released).unwrap().address, address, "{name}");
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
        let offered = offer(&said(&recording, "Attach", Side::Daemon)[0]).address;
        assert_eq!(result["ips"][0]["address"], format!("{offered}/32"), "{name}");
        call(&pod, "CHECK", &[socket(), ("prevResult", result)]).silent().unwrap();
        call(&pod, "STATUS", &[socket()]).silent().unwrap();
        let collected = call(&pod, "GC", &[socket(), ("cni.dev/valid-attachments", json!([]))]);
        collected.silent().unwrap();
        assert!(collected.stderr.contains("is kept, since its link stands"), "{name}: {collected:?}");
        let deleted = call(&pod, "DEL", &[socket()]);
        deleted.silent().unwrap();
        // Who says that the link is gone is believed; there is nobody here who deletes it.
        if ReleaseReply::decode(&*said(&recording, "Release", Side::Daemon)[0]).unwrap().link_deleted {
            assert_eq!(deleted.stderr, "");
        } else {
            assert_eq!(links(), before, "{name}");
        }
        drop(stage);
        std::fs::remove_file(&path).unwrap();
        pod.remove_namespace(place).unwrap();
    }

    // Each call left out in turn: one clear message, and DEL helps itself.
    pod.make_namespace(place).unwrap();
    let before = place.sh("ip -o link | sed 's/^[0-9]*: //'").unwrap();
    let (_, whole) = recordings().remove(0);
    let verbs = [("ADD", "Attach", 11), ("CHECK", "Lookup", 11), ("STATUS", "Status", 50), ("GC", "Collect", 11)];
    let result = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "sandbox": format!("/run/netns/{POD}")}],
        "ips": [{"address": "10.0.1.9/32", "interface": 0}]
    });
    for (verb, method, code) in verbs {
        let without = whole.0.iter().filter(|message| message.method != method).cloned().collect();
        let stage = Stage::play(&path, Recording(without)).unwrap();
        let keys = [socket(), ("prevResult", result.clone()), ("cni.dev/valid-attachments", json!([]))];
        let keys = if verb == "CHECK" { &keys[..2] } else { &[keys[0].clone(), keys[2].clone()] };
        let words = ["is not an enid daemon of this kind: it cannot", "cause=daemon_refused"];
        call(&pod, verb, keys).refused(code, &words).unwrap();
        drop(stage);
        std::fs::remove_file(&path).unwrap();
    }
    let stage = Stage::play(&path, Recording(whole.of("Attach"))).unwrap();
    call(&pod, "ADD", &[socket()]).fine().unwrap();
    let deleted = call(&pod, "DEL", &[socket()]);
    deleted.silent().unwrap();
    assert!(deleted.stderr.contains("the link is removed"), "{deleted:?}");
    assert_eq!(place.sh("ip -o link | sed 's/^[0-9]*: //'").unwrap(), before);
    drop(stage);
    std::fs::remove_file(&path).unwrap();

    // A step that only a later daemon knows (field 9 of the answer).
    let mut later = whole.of("Attach");
    later[1].bytes = vec![0x4a, 0];
    let _stage = Stage::play(&path, Recording(later)).unwrap();
    call(&pod, "ADD", &[socket()]).refused(102, &["a step that this plugin does not know"]).unwrap();
}

#[test]
fn bytes_that_are_no_conversation_end_only_themselves() {
    let socket = seen_from_outside(node(), "/run/enid/cni.sock");
    let files = || std::fs::read_dir(format!("/proc/{}/fd", daemon_pid())).unwrap().count();
    let before = files();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let mut noise = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |length: usize| -> Vec<u8> {
        std::iter::repeat_with(|| {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            noise.to_le_bytes()[0]
        })
        .take(length)
        .collect()
    };
    let mut blobs = vec![
        Vec::new(),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        preface[..10].to_vec(),
        preface.to_vec(),
        // A frame that claims sixteen megabytes, one of stream 0 that must not be, headers that do not end.
        [&preface[..], &settings, &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]].concat(),
        [&preface[..], &settings, &[0, 0, 1, 0, 0, 0, 0, 0, 0, 7]].concat(),
        [&preface[..], &settings, &[0, 0, 1, 1, 0, 0, 0, 0, 1, 0x82]].concat(),
    ];
    blobs.extend((0..100).map(|number| random(number * 20)));
    blobs.extend((0..100).map(|number| [&preface[..], &settings, &random(number * 20)].concat()));
    for blob in blobs {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // The daemon may hang up in the middle.
        let _ = stream.write_all(&blob);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let ended = stream.read_to_end(&mut answer).map_err(|error| error.kind());
        assert!(!matches!(ended, Err(std::io::ErrorKind::WouldBlock)), "the daemon keeps {blob:?} open");
    }
    let plugin = Plugin::connect(&socket).unwrap();
    // Nothing at all is a list of nobody in a network without name.
    assert_eq!(plugin.ask("Collect", &[]).unwrap(), Vec::<u8>::new());
    let nobody = ["Attach", "Release", "Lookup"].map(|method| (method, Vec::new()));
    let garbage = [vec![0x0a], vec![0x0a, 0x7f, 1], vec![0xff; 40], random(300)];
    let garbled = ["Attach", "Release", "Lookup", "Collect"]
        .into_iter()
        .flat_map(|method| garbage.iter().map(move |message| (method, message.clone())));
    for (method, message) in nobody.into_iter().chain(garbled) {
        let refused = plugin.ask(method, &message).unwrap_err();
        assert!([Code::InvalidArgument, Code::Internal].contains(&refused.code()), "{method}: {refused:?}");
    }
    assert_eq!(plugin.ask("Renew", &[]).unwrap_err().code(), Code::Unimplemented);
    drop(plugin);
    Call::bare("STATUS").stdin(&enid_tests::pod::config("1.1.0", 5)).make(node()).unwrap().silent().unwrap();
    enid_tests::wait_until(super::BOUND, || files() == before).unwrap();
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
    let result = add(&pod);
    call("CHECK", &[("prevResult", result)]).silent().unwrap();
    call("STATUS", &[]).silent().unwrap();
    call("GC", &[("cni.dev/valid-attachments", json!([]))]).silent().unwrap();
    del(&pod);
    std::fs::write(path, stage.recording().to_string()).unwrap();
}
