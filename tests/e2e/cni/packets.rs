//! Packets that are no conversation, or not all of one: they end only themselves.

use std::{path::PathBuf, time::Duration};

use enid_api::{
    packet::{self, PACKET_MAX},
    v1::{
        Ask, Attachment, CollectRequest, LookupRequest, ReleaseRequest, StatusRequest, Wired, from_daemon,
        from_plugin::Kind,
    },
};
use enid_tests::{
    Call, Pod, wait_until,
    wire::{self, Connection},
};
use serde_json::json;

use super::{BOUND, add, daemon_pid, del, has_lease, host_link, node, pod_of, shared, skew::seen_from_outside, with};

fn socket() -> PathBuf {
    seen_from_outside(node(), "/run/enid/cni.sock")
}

/// What the daemon answers to the last of these; `None` if it closes without a word.
fn answered(packets: &[Vec<u8>]) -> Option<from_daemon::Kind> {
    let plugin = Connection::to(&socket()).unwrap();
    // The daemon may hang up in the middle.
    packets.iter().for_each(|packet| drop(plugin.say(packet)));
    let answer = plugin.hear().unwrap()?;
    assert_eq!(plugin.hear().unwrap(), None, "the daemon closes after its answer to {packets:02x?}");
    Some(packet::read_daemon(&answer, answer.len()).unwrap())
}

/// The connection was closed, with a last word.
fn closed(packets: &[Vec<u8>], understood: bool) {
    match answered(packets) {
        Some(from_daemon::Kind::Failure(failure)) => {
            assert_eq!(failure.not_understood, !understood, "{packets:02x?}: {failure:?}");
            assert!(!failure.message.is_empty(), "{packets:02x?}");
        }
        other => panic!("{packets:02x?}: {other:?}"),
    }
}

fn attachment(pod: &Pod) -> Attachment {
    Attachment { network: "enid".to_owned(), container: pod.container.clone(), ifname: pod.ifname.clone() }
}

fn ask(pod: &Pod, timeout_ms: u64) -> Vec<u8> {
    let ask = Ask { attachment: Some(attachment(pod)), timeout_ms, ..Ask::default() };
    packet::from_plugin(Kind::Ask(ask))
}

fn part(part: u32, parts: u32, valid: &[Attachment]) -> Vec<u8> {
    let list = CollectRequest { network: "enid".to_owned(), valid: valid.to_vec(), part, parts };
    packet::from_plugin(Kind::Collect(list))
}

#[test]
fn packets_that_are_no_conversation_end_only_themselves() {
    let files = || std::fs::read_dir(format!("/proc/{}/fd", daemon_pid())).unwrap().count();
    let lines = || shared().daemon.log().matches("a connection of cni.sock is closed").count();
    let (before, lines_before) = (files(), lines());
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
    let wired = packet::from_plugin(Kind::Wired(Wired { host_ifname: "eni0".to_owned() }));
    let status = packet::from_plugin(Kind::Status(StatusRequest {}));
    let mut refused = vec![
        vec![b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()],
        vec![b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()],
        // An empty envelope, a kind that only a later plugin knows, another version, none.
        vec![vec![0x08, 1]],
        vec![vec![0x08, 1, 0x7a, 0]],
        vec![vec![0x08, 2, 0x32, 0]],
        vec![vec![0x32, 0]],
        // A length beyond the end, and a packet that was cut on its way.
        vec![vec![0x08, 1, 0x12, 0x7f, 1]],
        vec![ask(&Pod::new(0, "cut"), 1)[..20].to_vec()],
        // Longer than a packet may be, and of a kind that is known.
        vec![[&status[..], &[0xd2, 0x3e, 0x80, 0x80, 0x08], &vec![0; PACKET_MAX]].concat()],
        vec![vec![0; PACKET_MAX + 1]],
        // Out of turn.
        vec![wired.clone()],
        vec![part(1, 2, &[]), status.clone()],
    ];
    refused.extend((1..100).map(|number| vec![random(number * 20)]));
    refused.extend((1..100).map(|number| vec![[&[0x08, 1][..], &random(number * 20)].concat()]));
    for packets in &refused {
        closed(packets, false);
    }
    wait_until(BOUND, || lines() == lines_before + refused.len()).unwrap();
    // A name that is none is understood.
    let nameless = [
        Kind::Ask(Ask::default()),
        Kind::Release(ReleaseRequest::default()),
        Kind::Lookup(LookupRequest { attachment: Some(Attachment::default()) }),
    ];
    nameless.into_iter().for_each(|kind| closed(&[packet::from_plugin(kind)], true));
    // An empty packet looks like the end of the connection.
    assert_eq!(answered(&[Vec::new()]), None);
    Call::bare("STATUS").stdin(&enid_tests::pod::config("1.1.0", 5)).make(node()).unwrap().silent().unwrap();
    wait_until(BOUND, || files() == before).unwrap();
}

#[test]
fn an_attachment_out_of_turn_is_given_back() {
    let pod = Pod::new(0, "turns");
    let again = |second: Vec<u8>| {
        let plugin = Connection::to(&socket()).unwrap();
        let offer = plugin.ask(&ask(&pod, 1_000)).unwrap().unwrap();
        assert!(matches!(packet::read_daemon(&offer, offer.len()), Ok(from_daemon::Kind::Offer(_))));
        plugin.ask(&second).unwrap().unwrap()
    };
    let failure = again(ask(&pod, 1_000));
    assert!(matches!(packet::read_daemon(&failure, failure.len()), Ok(from_daemon::Kind::Failure(_))));
    wait_until(BOUND, || !has_lease(&pod)).unwrap();
    // Wired, says the plugin, and nothing is there.
    let verdict = again(packet::from_plugin(Kind::Wired(Wired { host_ifname: "none".to_owned() })));
    match packet::read_daemon(&verdict, verdict.len()).unwrap() {
        from_daemon::Kind::Verdict(verdict) => assert!(!verdict.mine),
        other => panic!("{other:?}"),
    }
    wait_until(BOUND, || !has_lease(&pod)).unwrap();
}

#[test]
fn a_plugin_that_has_to_wait_hears_so_at_once() {
    let pod = Pod::new(0, "waits");
    let fill: Vec<Pod> = (0..27).map(|n| Pod::new(0, &format!("fill-{n}"))).collect();
    let held: Vec<Connection> = fill
        .iter()
        .map(|pod| {
            let plugin = Connection::to(&socket()).unwrap();
            plugin.ask(&ask(pod, 1_000)).unwrap().unwrap();
            plugin
        })
        .collect();
    let plugin = Connection::to(&socket()).unwrap();
    let first = plugin.ask(&ask(&pod, 60_000)).unwrap().unwrap();
    let first = packet::read_daemon(&first, first.len()).unwrap();
    drop(held);
    match first {
        // One of the others has given up, and the one that waits has its address.
        from_daemon::Kind::Pending(_) => {
            let next = plugin.hear().unwrap().unwrap();
            assert!(matches!(packet::read_daemon(&next, next.len()), Ok(from_daemon::Kind::Offer(_))));
        }
        // A full node that cannot grow refuses at once.
        from_daemon::Kind::Refusal(refusal) => assert_eq!(refusal.cause, "eni_limit"),
        other => panic!("{other:?}"),
    }
    drop(plugin);
    wait_until(BOUND, || !has_lease(&pod) && !fill.iter().any(has_lease)).unwrap();
}

#[test]
fn a_list_counts_only_when_all_of_its_parts_have_come() {
    let pods = ["part-gone", "part-lives"].map(|name| pod_of("1.1.0", name));
    let [gone, lives] = &pods;
    for pod in &pods {
        add(pod);
        let host = host_link(pod);
        node().sh(&format!("ip link del {host}")).unwrap();
    }
    let listed = [attachment(lives)];
    // Not all of it: the plugin dies, a part is missing, comes twice, comes too early, has no number.
    {
        let plugin = Connection::to(&socket()).unwrap();
        plugin.say(&part(1, 3, &[])).unwrap();
        plugin.say(&part(2, 3, &listed)).unwrap();
    }
    for parts in [
        vec![part(1, 3, &listed), part(3, 3, &[])],
        vec![part(1, 2, &listed), part(1, 2, &listed)],
        vec![part(2, 2, &listed), part(1, 2, &[])],
        vec![part(1, 2, &listed), part(2, 3, &[])],
        vec![part(0, 0, &[])],
    ] {
        closed(&parts, false);
        assert!(has_lease(gone) && has_lease(lives));
    }
    match answered(&[part(1, 3, &[]), part(2, 3, &listed), part(3, 3, &[])]) {
        Some(from_daemon::Kind::Collected(reply)) => assert_eq!(reply.released, 1, "{reply:?}"),
        other => panic!("{other:?}"),
    }
    assert!(!has_lease(gone) && has_lease(lives), "the list has come whole, and names one of them");
    // The plugin's own list, too long for one packet: the last of it counts as well.
    let others = (0..3_000).map(|n| json!({"containerID": format!("{n:064}"), "ifname": "eth0"}));
    let valid = others.chain([json!({"containerID": lives.container, "ifname": "eth0"})]);
    let list = with(lives, &[("cni.dev/valid-attachments", valid.collect())]);
    assert!(list.len() > 2 * PACKET_MAX);
    Call::bare("GC").stdin(&list).make(node()).unwrap().silent().unwrap();
    assert!(has_lease(lives));
    pods.iter().for_each(del);
    pods.iter().for_each(|pod| pod.remove_namespace(node()).unwrap());
}

#[test]
fn only_root_may_ask() {
    let status = |prefix: &str| {
        let config = enid_tests::pod::config("1.1.0", 5);
        node().sh(&format!("echo '{config}' | CNI_COMMAND=STATUS {prefix} /opt/cni/bin/enid-cni || true")).unwrap()
    };
    // The folder keeps others out; where it does not, the daemon does.
    let as_nobody = "setpriv --reuid 65534 --regid 65534 --clear-groups";
    assert!(status(as_nobody).contains("Permission denied"));
    node().sh("chmod 755 /run/enid; chmod 666 /run/enid/cni.sock").unwrap();
    let said = status(as_nobody);
    node().sh("chmod 700 /run/enid; chmod 600 /run/enid/cni.sock").unwrap();
    assert!(said.contains("closed the connection"), "{said}");
    assert!(shared().daemon.log().contains("only root may ask"));
    assert_eq!(status(""), "");
}

#[test]
fn a_daemon_that_accepts_nobody_costs_the_deadline_and_no_more() {
    let path = "/run/full.sock";
    let listener = wire::listener(&seen_from_outside(node(), path), 0).unwrap();
    // Its queue holds one.
    let _first = Connection::to(&seen_from_outside(node(), path)).unwrap();
    let pod = Pod { config: enid_tests::pod::config("1.1.0", 5), ..Pod::new(0, "full") };
    let pod = Pod { config: with(&pod, &[("socket", json!(path))]), ..pod };
    pod.make_namespace(node()).unwrap();
    // `timeout` ends with 124 if it has to end the plugin.
    let within = |verb: &str, bound: Duration| {
        let bound = bound.as_secs().to_string();
        Call::new(&pod, verb).under(&["timeout", &bound]).make(node()).unwrap()
    };
    within("STATUS", Duration::from_secs(3)).refused(50, &["accept a connection", "daemon_silent"]).unwrap();
    within("ADD", Duration::from_secs(10)).refused(11, &["accept a connection", "daemon_silent"]).unwrap();
    within("DEL", Duration::from_secs(10)).silent().unwrap();
    drop(listener);
    node().sh(&format!("rm {path}")).unwrap();
    pod.remove_namespace(node()).unwrap();
}
