//! ADD and DEL on real parts: addresses assigned and returned, and nothing left behind.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{collections::BTreeSet, sync::OnceLock, time::Duration};

use enid_tests::{
    Daemon, Lab, LabConfig, Place, Pod, pod, program,
    traffic::{PORT, Spot, serve},
    wait_until,
};
use serde_json::Value;

const BOUND: Duration = Duration::from_secs(30);

/// Four m5.large nodes (3 ENIs with 9 pod addresses each), one for each test that needs its own.
fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(|| Lab::up(&LabConfig { nodes: 4, ..LabConfig::default() }).unwrap())
}

fn leases(place: Place<'_>) -> Vec<Value> {
    place.leases().unwrap()
}

fn number(status: &Value, key: &str) -> u64 {
    status[key].as_u64().unwrap()
}

#[test]
fn after_del_and_cooldown_the_host_is_as_before() {
    let place = Place::node(lab(), 0);
    let _daemon = Daemon::start(place, &[("MINIMUM_IP_TARGET", "9"), ("IP_COOLDOWN_PERIOD", "1")]).unwrap();
    wait_until(BOUND, || number(&place.enid("status").unwrap(), "available") == 9).unwrap();
    let before = place.snapshot().unwrap();
    let pods: Vec<Pod> = (0..9).map(|n| Pod::new(0, &format!("snap-{n}"))).collect();
    let addresses: BTreeSet<String> = pods.iter().map(|pod| pod.add(place).unwrap().0).collect();
    assert_eq!(addresses.len(), 9);
    assert_ne!(place.snapshot().unwrap(), before);
    for pod in &pods {
        pod.del(place).unwrap();
    }
    assert_eq!(number(&place.enid("status").unwrap(), "total"), 9);
    wait_until(BOUND, || number(&place.enid("status").unwrap(), "available") == 9).unwrap();
    assert_eq!(place.snapshot().unwrap(), before);
}

#[test]
fn a_late_del_leaves_the_successor_of_the_same_name_alone() {
    let place = Place::node(lab(), 1);
    let settings = [("WARM_IP_TARGET", "3")];
    let daemon = Daemon::start(place, &settings).unwrap();
    let old = Pod::new(1, "web-0");
    old.add(place).unwrap();
    // The StatefulSet's next pod has the same name, another sandbox and another namespace.
    place.sh("ip netns del web-0").unwrap();
    let new = Pod { container: "sandbox-second".to_owned(), ..old.clone() };
    let (address, _) = new.add(place).unwrap();
    let _servers = serve(place, &["web-0"]).unwrap();
    let works = || Spot { place, netns: None }.ask(&address, PORT).is_ok();
    assert!(works());
    old.call(place, "DEL").unwrap();
    assert!(works(), "a late DEL with the daemon up hit the successor");
    daemon.kill().unwrap();
    old.call(place, "DEL").unwrap();
    assert!(works(), "a late DEL with the daemon down hit the successor");
    // DEL needs no daemon, and the daemon releases the lease at its next start.
    new.call(place, "DEL").unwrap();
    assert!(!works());
    let _daemon = Daemon::start(place, &settings).unwrap();
    wait_until(BOUND, || leases(place).is_empty()).unwrap();
    new.call(place, "DEL").unwrap(); // once more: nothing to do
    place.sh("ip netns del web-0").unwrap();
}

#[test]
fn two_interfaces_and_pods_without_names() {
    let place = Place::node(lab(), 2);
    let _daemon = Daemon::start(place, &[("WARM_IP_TARGET", "4")]).unwrap();
    let first = Pod::new(2, "multi");
    let second = Pod { ifname: "net1".to_owned(), ..first.clone() };
    let (a, _) = first.add(place).unwrap();
    let b = pod::address(&second.call(place, "ADD").unwrap().0).unwrap();
    assert_ne!(a, b);
    let nameless = Pod { named: false, ..Pod::new(2, "nameless") };
    nameless.add(place).unwrap();
    let names: BTreeSet<String> =
        leases(place).iter().map(|lease| lease["host_ifname"].as_str().unwrap().to_owned()).collect();
    assert_eq!(names.len(), 3);
    for name in &names {
        place.sh(&format!("ip link show {name}")).unwrap();
    }
    // Each answers, and sends, over its own interface; the pod's default route is on the first.
    let _servers = serve(place, &["multi"]).unwrap();
    let far = Spot { place: Place::node(lab(), 3), netns: None };
    let answers = |address: &str| far.ask(address, PORT).unwrap().expect(&lab().node(3).address, address).unwrap();
    [&a, &b].iter().for_each(|address| answers(address));
    let route = |from: &str| place.sh(&format!("ip -n multi route get 192.0.2.1 {from}")).unwrap();
    assert!(route("").contains("dev eth0") && route(&format!("from {a}")).contains("dev eth0"), "{}", route(""));
    assert!(route(&format!("from {b}")).contains("dev net1"), "{}", route(&format!("from {b}")));
    // One interface goes, the other stays.
    second.call(place, "DEL").unwrap();
    answers(&a);
    second.call(place, "ADD").unwrap();
    first.call(place, "DEL").unwrap();
    answers(&pod::address(&second.call(place, "ADD").unwrap().0).unwrap());
    second.call(place, "DEL").unwrap();
    first.call(place, "ADD").unwrap();
    assert_eq!(leases(place).len(), 2);
    place.sh("ip netns exec multi ip link show eth0").unwrap();
    // An ADD that the runtime repeats gets the same address and one interface.
    let again = || pod::address(&first.call(place, "ADD").unwrap().0).unwrap();
    assert_eq!(again(), again());
    first.del(place).unwrap();
    nameless.del(place).unwrap();
    assert!(leases(place).is_empty());
}

#[test]
fn every_version_adds_checks_and_deletes() {
    let place = Place::node(lab(), 3);
    let _daemon = Daemon::start(place, &[("WARM_IP_TARGET", "2"), ("IP_COOLDOWN_PERIOD", "0")]).unwrap();
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let pod = Pod { config: pod::config(version, 30), ..Pod::new(3, "versions") };
        pod.make_namespace(place).unwrap();
        let (result, _) = pod.call(place, "ADD").unwrap();
        assert_eq!(result["cniVersion"], version);
        let mut config: Value = serde_json::from_str(&pod.config).unwrap();
        config["prevResult"] = result;
        let checked = Pod { config: config.to_string(), ..pod.clone() };
        let check = |pod: &Pod| pod.try_call(place, "CHECK").unwrap();
        if version.starts_with("0.3") {
            assert_eq!(check(&checked).1["code"], 1);
        } else {
            assert!(check(&checked).0, "{version}: {}", check(&checked).1);
            // What somebody has removed by hand is named.
            place.sh("ip netns exec versions ip route del default").unwrap();
            let (ok, error, _) = check(&checked);
            assert!(!ok && error["msg"].as_str().unwrap().contains("default route"), "{error}");
        }
        pod.del(place).unwrap();
        if !version.starts_with("0.3") {
            assert!(!check(&checked).0);
        }
    }
}

#[test]
fn operators_read_the_daemon_with_plain_tools() {
    let place = Place::node(lab(), 3);
    let _daemon = Daemon::start(
        place,
        &[("WARM_IP_TARGET", "2"), ("IP_COOLDOWN_PERIOD", "0"), ("ENID_DEBUG_ADDRESS", "127.0.0.1:61681")],
    )
    .unwrap();
    let pod = Pod::new(3, "seen");
    let (address, _) = pod.add(place).unwrap();
    let grpcurl = concat!(env!("CARGO_MANIFEST_DIR"), "/../.tools/bin/grpcurl");
    let ask = |what: &str| place.sh(&format!("{grpcurl} -plaintext -unix /run/enid/debug.sock {what}")).unwrap();
    let services = ask("list");
    for service in ["enid.v1.Debug", "grpc.health.v1.Health"] {
        assert!(services.contains(service), "{services}");
    }
    assert!(ask("grpc.health.v1.Health/Check").contains("SERVING"));
    assert!(ask("enid.v1.Debug/ListLeases").contains(&address));
    assert!(ask("enid.v1.Debug/GetPool").contains("\"assigned\": 1"));
    let addresses: Value = serde_json::from_str(&ask("enid.v1.Debug/ListAddresses")).unwrap();
    assert!(addresses["addresses"].as_array().unwrap().iter().any(|seen| seen["state"] == "assigned"));
    // On the address, too, where that is asked for; with reflection.
    let by_address = place.sh(&format!("{grpcurl} -plaintext 127.0.0.1:61681 enid.v1.Debug/GetPool")).unwrap();
    assert!(by_address.contains("\"assigned\": 1"), "{by_address}");
    let metrics = place.metrics().unwrap();
    // Those that dashboards of Amazon's daemon read (docs/differences.md names the ones that are not there).
    for name in [
        "build_info",
        "ipamd_error_count",
        "ipamd_action_inprogress",
        "eni_max",
        "ip_max",
        "eni_allocated",
        "total_ip_addresses",
        "assigned_ip_addresses",
        "total_ipv4_prefixes",
        "assigned_ip_per_cidr",
        "assigned_ip_per_eni",
        "no_available_ip_addresses",
        "force_removed_enis",
        "force_removed_ips",
        "reconcile_count",
        "add_ip_req_count",
        "del_ip_req_count",
        "pod_eni_error_count",
        "aws_api_latency_ms",
        "aws_api_error_count",
        "aws_utils_error_count",
        "ec2api_req_count",
        "ec2api_error_count",
    ] {
        assert!(metrics.contains(&format!("# TYPE awscni_{name} ")), "{name}: {metrics}");
    }
    for line in ["awscni_assigned_ip_addresses 1", "awscni_eni_max 3", "awscni_ip_max 27", "awscni_add_ip_req_count 1"]
    {
        assert!(metrics.lines().any(|seen| seen == line), "{line} is not in\n{metrics}");
    }
    let enid = program("enid").unwrap();
    for command in ["status", "enis", "pods", "health"] {
        assert!(!place.lab.run(place.name, &enid.to_string_lossy(), &[command]).unwrap().is_empty());
    }
    let conflist = place.sh("cat /etc/cni/net.d/05-enid.conflist").unwrap();
    assert!(conflist.contains("\"cniVersion\": \"1.0.0\""), "{conflist}");
    // The installer puts the plugin in place, and leaves one that is up to date alone.
    let init = || place.lab.run(place.name, &enid.to_string_lossy(), &["init"]).unwrap();
    assert!(init().contains("installed /opt/cni/bin/enid-cni"));
    assert_eq!(place.sh("stat -c %a /opt/cni/bin/enid-cni; ls -A /opt/cni/bin").unwrap(), "755\nenid-cni\n");
    assert!(init().contains("up to date"));
    pod.del(place).unwrap();
}

#[test]
fn the_host_has_no_rule_per_pod_and_a_killed_daemon_loses_nothing() {
    // 8 ENIs with 29 pod addresses each: one test after the other, on a node each.
    let config = LabConfig {
        name: format!("big{}", std::process::id()),
        instance_type: "m5.4xlarge".to_owned(),
        ..LabConfig::default()
    };
    let lab = Lab::up(&config).unwrap();
    no_rule_per_pod(Place::node(&lab, 0));
    killed_in_the_middle(Place::node(&lab, 1));
    assert_eq!(lab.drops().unwrap().foreign_source, 0);
}

fn no_rule_per_pod(place: Place<'_>) {
    let _daemon = Daemon::start(place, &[("MINIMUM_IP_TARGET", "232"), ("AWS_VPC_K8S_CNI_LOGLEVEL", "debug")]).unwrap();
    let all = || {
        let status = place.enid("status").unwrap();
        number(&status, "enis") == 8 && number(&status, "available") + number(&status, "assigned") == 232
    };
    wait_until(Duration::from_secs(60), all).unwrap();
    let rules = || format!("{}{}", place.sh("ip rule").unwrap(), place.sh("nft list table ip enid").unwrap());
    place.sh("for n in $(seq 0 99); do ip netns add many-$n; done").unwrap();
    let pods: Vec<Pod> = (0..100).map(|n| Pod::new(0, &format!("many-{n}"))).collect();
    pods[0].call(place, "ADD").unwrap();
    let one = rules();
    assert_eq!(one.matches("1536:").count(), 8, "one rule per ENI: {one}");
    for pod in &pods[1..] {
        pod.call(place, "ADD").unwrap();
    }
    assert_eq!(leases(place).len(), 100);
    assert_eq!(rules(), one);
    for pod in &pods {
        pod.call(place, "DEL").unwrap();
    }
    assert_eq!(rules(), one);
}

fn killed_in_the_middle(place: Place<'_>) {
    let settings = [("WARM_IP_TARGET", "60")];
    let daemon = Daemon::start(place, &settings).unwrap();
    place.sh("for n in $(seq 0 49); do ip netns add killed-$n; done").unwrap();
    let pods: Vec<Pod> = (0..50).map(|n| Pod::new(1, &format!("killed-{n}"))).collect();
    let mut daemon = Some(daemon);
    let mut answered: Vec<(Pod, String)> = Vec::new();
    std::thread::scope(|scope| {
        let calls: Vec<_> = pods
            .chunks(13)
            .map(|some| {
                scope.spawn(move || {
                    some.iter().map(|pod| (pod.clone(), pod.try_call(place, "ADD").unwrap())).collect::<Vec<_>>()
                })
            })
            .collect();
        wait_until(BOUND, || leases(place).len() >= 10).unwrap();
        daemon.take().unwrap().kill().unwrap();
        for call in calls {
            for (pod, (ok, document, _)) in call.join().unwrap() {
                if ok {
                    answered.push((pod, pod::address(&document).unwrap()));
                } else {
                    assert_eq!(document["code"], 11, "{document}");
                }
            }
        }
    });
    assert!(answered.len() >= 5 && answered.len() < 50, "{} were answered", answered.len());
    let _daemon = Daemon::start(place, &settings).unwrap();
    // Every pod whose ADD was answered has its address, and no other pod has it.
    let kept = leases(place);
    let addresses: BTreeSet<&str> = kept.iter().map(|lease| lease["address"].as_str().unwrap()).collect();
    assert_eq!(addresses.len(), kept.len());
    let names: Vec<&str> = answered.iter().map(|(pod, _)| pod.name.as_str()).collect();
    let servers = serve(place, &names).unwrap();
    for (pod, address) in &answered {
        assert!(addresses.contains(address.as_str()), "{} lost its lease", pod.name);
        Spot { place, netns: None }.ask(address, PORT).unwrap().expect(&place.lab.node(1).address, address).unwrap();
    }
    drop(servers);
    // The runtime deletes the others and adds them again: all of them run, and nothing leaks.
    for pod in pods.iter().filter(|pod| !names.contains(&pod.name.as_str())) {
        pod.call(place, "DEL").unwrap();
        pod.call(place, "ADD").unwrap();
    }
    let kept = leases(place);
    let addresses: BTreeSet<&str> = kept.iter().map(|lease| lease["address"].as_str().unwrap()).collect();
    assert_eq!((kept.len(), addresses.len()), (50, 50));
    for pod in &pods {
        pod.call(place, "DEL").unwrap();
    }
    assert!(leases(place).is_empty());
    assert_eq!(place.sh("ip -o link show type veth | grep -c ': eni' || true").unwrap().trim(), "0");
}
