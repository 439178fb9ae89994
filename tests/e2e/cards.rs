//! Network cards above the first: a pool on each, and pods with an interface on all of them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{sync::OnceLock, time::Duration};

use enid_tests::{
    Backend, Daemon, Lab, LabConfig, Place, Pod,
    kernel::Notifications,
    pod,
    traffic::{PORT, Spot, serve},
    wait_until,
};
use serde_json::{Value, json};

const BOUND: Duration = Duration::from_secs(45);
const SETTINGS: &[(&str, &str)] = &[("ENABLE_MULTI_NIC", "true"), ("WARM_IP_TARGET", "2")];

/// p4d.24xlarge has four network cards; the last carries an EFA-only ENI.
fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(|| {
        Lab::up(&LabConfig {
            nodes: 2,
            ec2: Backend::Model,
            instance_type: "p4d.24xlarge".to_owned(),
            efa_only_cards: vec![3],
            ..LabConfig::default()
        })
        .unwrap()
    })
}

/// The configuration as a runtime passes it to a pod with this annotation.
fn annotated(pod: Pod, value: &str) -> Pod {
    let mut config: Value = serde_json::from_str(&pod::config("1.0.0", 30)).unwrap();
    config["runtimeConfig"] = json!({ "io.kubernetes.cri.pod-annotations": { "k8s.amazonaws.com/nicConfig": value } });
    Pod { config: config.to_string(), ..pod }
}

fn cards(place: Place<'_>) -> Vec<u64> {
    let enis = place.enid("enis").unwrap();
    let mut cards: Vec<u64> =
        enis.as_array().unwrap().iter().map(|eni| eni["network_card"].as_u64().unwrap()).collect();
    cards.sort();
    cards
}

fn ips(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().unwrap();
    ips.iter().map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().to_owned()).collect()
}

#[test]
fn a_pod_gets_an_interface_on_every_card_and_sends_from_each_by_its_own_eni() {
    let (here, there) = (Place::node(lab(), 0), Place::node(lab(), 1));
    let efa = || here.sh("ip addr show dev eth301");
    wait_until(BOUND, || efa().is_ok()).unwrap();
    let untouched = efa().unwrap();
    let daemons = [here, there].map(|place| Daemon::start(place, SETTINGS).unwrap());
    for place in [here, there] {
        wait_until(BOUND, || cards(place) == [0, 1, 2]).unwrap_or_else(|_| panic!("{:?}", cards(place)));
    }
    // The EFA-only ENI is no link of ours, and its card is left alone.
    assert_eq!(efa().unwrap(), untouched);
    assert!(!here.sh("ip rule").unwrap().contains("1030"));
    let announced = || here.sh("cat /etc/cni/net.d/05-enid.conflist");
    wait_until(BOUND, || announced().is_ok_and(|list| list.contains("io.kubernetes.cri.pod-annotations"))).unwrap();
    let before = here.snapshot().unwrap();
    let plain = Pod::new(0, "plain");
    plain.make_namespace(here).unwrap();
    assert_eq!(ips(&plain.call(here, "ADD").unwrap().0).len(), 1);
    let ours = annotated(Pod::new(0, "wide"), "multi-nic-attachment");
    ours.make_namespace(here).unwrap();
    let (result, _) = ours.call(here, "ADD").unwrap();
    let addresses = ips(&result);
    assert_eq!(addresses.len(), 3, "{result}");
    let inside: Vec<&str> = result["interfaces"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|it| it["sandbox"].is_string())
        .map(|it| it["name"].as_str().unwrap())
        .collect();
    assert_eq!(inside, ["eth0", "mNicIf1", "mNicIf2"]);
    let rules = here.sh("ip rule").unwrap();
    for table in ["lookup 10101", "lookup 10201"] {
        assert!(rules.contains(table), "{table} is not in {rules}");
    }
    // From each address by its own ENI: the VPC drops and counts what is sent by another.
    let far = Pod::new(1, "far");
    let (server, _) = far.add(there).unwrap();
    let _servers = [serve(there, &["far"]).unwrap(), serve(here, &["wide"]).unwrap()];
    let drops = lab().drops().unwrap();
    for address in &addresses {
        let ping = here.sh(&format!("ip netns exec wide ping -n -q -c 2 -W 2 -I {address} {server}"));
        assert!(ping.is_ok(), "{address}: {ping:?}");
        let from = Spot { place: there, netns: Some("far") };
        from.ask(address, PORT).unwrap().expect(&server, address).unwrap();
    }
    assert_eq!(lab().drops().unwrap(), drops, "the VPC dropped packets of a foreign source");
    // A further interface that the runtime asks for is deleted alone; eth0 is deleted with those of the cards.
    let further = Pod { ifname: "net1".to_owned(), config: pod::config("1.0.0", 30), ..ours.clone() };
    further.call(here, "ADD").unwrap();
    assert_eq!(here.leases().unwrap().len(), 5);
    further.call(here, "DEL").unwrap();
    assert_eq!(here.leases().unwrap().len(), 4);
    assert!(here.sh("ip -n wide link show net1").is_err());
    for address in &addresses {
        here.sh(&format!("ip netns exec wide ping -n -q -c 1 -W 2 -I {address} {server}")).unwrap();
    }
    // CHECK examines all of them, GC keeps those that the runtime does not list, and DEL deletes them together.
    let mut config: Value = serde_json::from_str(&ours.config).unwrap();
    config["prevResult"] = result.clone();
    let checked = Pod { config: config.to_string(), ..ours.clone() };
    checked.call(here, "CHECK").unwrap();
    config["cniVersion"] = json!("1.1.0");
    config["cni.dev/valid-attachments"] =
        json!(["plain", "wide"].map(|name| json!({ "containerID": format!("sandbox-{name}"), "ifname": "eth0" })));
    Pod { config: config.to_string(), ..ours.clone() }.call(here, "GC").unwrap();
    assert_eq!(here.leases().unwrap().len(), 4);
    here.sh("ip netns exec wide ip link set mNicIf2 down").unwrap();
    assert!(!checked.try_call(here, "CHECK").unwrap().0, "CHECK accepts an interface that is down");
    // A restart under a repeated ADD changes nothing.
    let [first, _second] = daemons;
    first.kill().unwrap();
    let again = Daemon::start(here, SETTINGS).unwrap();
    assert_eq!(ips(&ours.call(here, "ADD").unwrap().0), addresses);
    ours.del(here).unwrap();
    plain.del(here).unwrap();
    assert!(here.leases().unwrap().is_empty());
    let without_pools = |text: &str| {
        let pools = |line: &&str| !line.contains("10.0.") && !line.contains("comment");
        text.lines().filter(pools).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(without_pools(&here.snapshot().unwrap()), without_pools(&before));
    assert_eq!(efa().unwrap(), untouched);
    pods_keep_their_enis_without_the_store(here, again, &server);
}

/// The slot of each ENI is read back from the kernel, and the links of running pods name slots.
fn pods_keep_their_enis_without_the_store(place: Place<'_>, daemon: Daemon, server: &str) {
    let pod = annotated(Pod::new(0, "keeps"), "multi-nic-attachment");
    pod.make_namespace(place).unwrap();
    let addresses = ips(&pod.call(place, "ADD").unwrap().0);
    let slots = || {
        let enis = place.enid("enis").unwrap();
        let slot = |eni: &Value| (eni["id"].to_string(), eni["slot"].as_u64().unwrap());
        enis.as_array().unwrap().iter().map(slot).collect::<Vec<_>>()
    };
    let before = slots();
    let rules = place.sh("ip rule").unwrap();
    daemon.kill().unwrap();
    place.sh("rm -rf /var/lib/enid/*").unwrap();
    let notifications = Notifications::record(place).unwrap();
    let _again = Daemon::start(place, SETTINGS).unwrap();
    wait_until(BOUND, || slots() == before).unwrap_or_else(|_| panic!("{:?}, not {before:?}", slots()));
    for address in &addresses {
        place.sh(&format!("ip netns exec keeps ping -n -q -c 2 -W 2 -I {address} {server}")).unwrap();
    }
    // Nor did they lose them for the time until EC2 had answered whose ENIs these are.
    let changes = notifications.end().unwrap();
    let of_rules: Vec<&str> = changes.lines().filter(|line| line.contains("lookup")).collect();
    assert_eq!((place.sh("ip rule").unwrap(), of_rules), (rules, vec![]));
    pod.remove_namespace(place).unwrap();
}

#[test]
fn what_is_not_configured_is_refused_and_leaves_nothing() {
    let place = Place::node(lab(), 1);
    // The daemon of the other test has gone, or is still there with the same pools.
    let wide = annotated(Pod::new(1, "refused"), "multi-nic-attachment");
    wide.make_namespace(place).unwrap();
    let _daemon = Daemon::start(place, &[("WARM_IP_TARGET", "2")]).unwrap();
    wide.refused(place, 11, &["provisioning_off", "ENABLE_MULTI_NIC"]).unwrap();
    // Another value is ignored.
    let odd = annotated(Pod::new(1, "odd"), "every-nic");
    odd.make_namespace(place).unwrap();
    let (result, _) = odd.call(place, "ADD").unwrap();
    assert_eq!(ips(&result).len(), 1);
}
