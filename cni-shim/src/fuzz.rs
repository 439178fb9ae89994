//! Every parser of the plugin, fed with corrupted input: a document of `corpus/`, cut, spliced and flipped.
//! Whatever comes, an answer comes; what breaks is kept beside the corpus by proptest and tried first from then on.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{ffi::OsString, os::unix::ffi::OsStringExt};

use enid_api::{
    packet,
    v1::{Offer, from_daemon::Kind},
};
use enid_datapath::{
    Mac,
    pod::{PodLink, Routes},
};
use proptest::prelude::*;

use super::*;
use crate::result::Wired;

/// One way to corrupt a document.
#[derive(Clone, Debug)]
enum Corruption {
    Cut(usize),
    Flip(usize, u8),
    Insert(usize, Vec<u8>),
    /// The part from here, put there.
    Splice(usize, usize, usize),
    Word(usize, &'static str),
}

fn corruptions() -> impl Strategy<Value = Vec<Corruption>> {
    let words = prop::sample::select(vec![
        "null",
        "[]",
        "{}",
        "-1",
        "1e400",
        "\"\"",
        "\u{0}",
        "\"\\u0000\"",
        "99999999999999999999",
        "[[[[",
        "true",
        ",",
        ":",
        "\"0.3.1\"",
    ]);
    let one = prop_oneof![
        any::<usize>().prop_map(Corruption::Cut),
        (any::<usize>(), any::<u8>()).prop_map(|(at, bits)| Corruption::Flip(at, bits)),
        (any::<usize>(), prop::collection::vec(any::<u8>(), 0..8))
            .prop_map(|(at, bytes)| Corruption::Insert(at, bytes)),
        (any::<usize>(), any::<usize>(), 0..64_usize)
            .prop_map(|(from, to, length)| Corruption::Splice(from, to, length)),
        (any::<usize>(), words).prop_map(|(at, word)| Corruption::Word(at, word)),
    ];
    prop::collection::vec(one, 0..6)
}

fn corrupted(mut bytes: Vec<u8>, corruptions: &[Corruption]) -> Vec<u8> {
    for corruption in corruptions {
        let place = |at: usize| at % (bytes.len() + 1);
        match corruption {
            Corruption::Cut(at) => bytes.truncate(place(*at)),
            Corruption::Flip(at, bits) => {
                let at = place(*at);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= bits;
                }
            }
            Corruption::Insert(at, more) => {
                let at = place(*at);
                bytes.splice(at..at, more.iter().copied());
            }
            Corruption::Splice(from, to, length) => {
                let (from, to) = (place(*from), place(*to));
                let part: Vec<u8> = bytes.iter().skip(from).take(*length).copied().collect();
                bytes.splice(to..to, part);
            }
            Corruption::Word(at, word) => {
                let at = place(*at);
                bytes.splice(at..at, word.bytes());
            }
        }
    }
    bytes
}

fn corpus() -> impl Strategy<Value = Vec<u8>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let texts: Vec<Vec<u8>> = files.iter().map(|path| std::fs::read(path).unwrap()).collect();
    (prop::sample::select(texts), corruptions()).prop_map(|(text, corruptions)| corrupted(text, &corruptions))
}

fn link() -> PodLink {
    PodLink {
        host_ifname: "eni0123456789a".to_owned(),
        host_mac: Mac([10, 0, 0, 0, 0, 1]),
        pod_ifname: "eth0".to_owned(),
        pod_mac: Mac([14, 0, 0, 0, 0, 1]),
        address: "10.0.1.20".parse().unwrap(),
        second: Some("2001:db8::5".parse().unwrap()),
        local: None,
        mtu: 9001,
        group: 0x656e_0000,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    /// A configuration is refused with a code of its own, or read; then a result can be made of it.
    #[test]
    fn a_configuration_is_read_or_refused(input in corpus()) {
        match Config::parse(&input) {
            Ok(config) => {
                let _ = config.valid_attachments();
                for routes in [Routes::Main, Routes::Own(100_003)] {
                    let text = result::render(&config, &[Wired { link: link(), routes }], "/run/netns/a");
                    let result: serde_json::Value = serde_json::from_str(&text).unwrap();
                    prop_assert_eq!(result["cniVersion"].as_str(), Some(config.cni_version));
                    // What it says of our own interface can be found again, whatever was there before.
                    let found = result::addresses_in(result.as_object().unwrap(), "eth0");
                    prop_assert!(!found.is_empty());
                }
                prop_assert!(Config::for_del(&input).is_ok(), "DEL is never stricter than ADD");
            }
            Err(error) => {
                let document: serde_json::Value = serde_json::from_str(&error.json(&version::asked(&input))).unwrap();
                prop_assert!([1, 2, 6, 7].contains(&document["code"].as_u64().unwrap()), "{document}");
            }
        }
    }

    /// The whole plugin, short of kernel and changes: one document or none.
    #[test]
    fn verbs_without_attachment_answer(verb in prop::sample::select(vec!["VERSION", "STATUS", "CHECK", "ADD", "add", "\u{fffd}"]), input in corpus()) {
        let mut out = Vec::new();
        let code = run(&|name| (name == "CNI_COMMAND").then(|| verb.into()), &input[..], &mut out);
        let one = serde_json::from_slice::<serde_json::Value>(&out);
        prop_assert!(one.is_ok() || (out.is_empty() && code == ExitCode::SUCCESS));
    }

    /// The environment holds any bytes but NUL.
    #[test]
    fn an_environment_is_read_or_refused(values in prop::collection::vec(prop::collection::vec(1_u8.., 0..40), 5)) {
        let names = ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS", "CNI_NETNS_OVERRIDE"];
        let var = |name: &str| names.iter().position(|known| *known == name).map(|at| OsString::from_vec(values[at].clone()));
        for read in [Env::for_add(&var), Env::for_del(&var)].into_iter().flatten() {
            prop_assert!(!read.container.is_empty() && read.ifname.len() <= 15);
        }
    }

    /// What a daemon of any version may send: noise, and a message that is nearly right.
    #[test]
    fn packets_are_decoded_or_refused(noise in prop::collection::vec(any::<u8>(), 0..80), more in 0..3_usize, corruptions in corruptions()) {
        let _ = packet::read_daemon(&noise, noise.len() + more);
        let offer = Offer { address: "10.0.1.20".to_owned(), host_mac: vec![10, 0, 0, 0, 0, 1], ..Offer::default() };
        let packet = corrupted(packet::from_daemon(Kind::Offer(offer)), &corruptions);
        let _ = packet::read_daemon(&packet, packet.len());
    }
}
