//! What needs a daemon of its own: it is stopped, killed, started on another boot, or loses its ENIs.

use std::{sync::OnceLock, time::Duration};

use enid_tests::{Call, Daemon, Lab, LabConfig, Place, Pod, pod, wait_until};
use serde_json::json;
use vpclab::Faults;

use super::{BOUND, with};

const SETTINGS: [(&str, &str); 2] = [("MINIMUM_IP_TARGET", "12"), ("IP_COOLDOWN_PERIOD", "0")];

fn place(index: usize) -> Place<'static> {
    static LAB: OnceLock<Lab> = OnceLock::new();
    let lab = LAB.get_or_init(|| {
        let name = format!("apart{}", std::process::id());
        Lab::up(&LabConfig { name, nodes: 4, ..LabConfig::default() }).unwrap()
    });
    Place::node(lab, index)
}

fn newest(node: usize, name: &str) -> Pod {
    Pod { config: pod::config("1.1.0", 2), ..Pod::new(node, name) }
}

fn status(place: Place<'_>) -> enid_tests::call::Answer {
    Call::bare("STATUS").stdin(&pod::config("1.1.0", 2)).make(place).unwrap()
}

// D53 D80
#[test]
fn a_daemon_that_hangs_costs_the_deadline_and_no_more() {
    let place = place(0);
    let daemon = Daemon::start(place, &SETTINGS).unwrap();
    let pod = newest(0, "patient");
    pod.make_namespace(place).unwrap();
    daemon.hang(true).unwrap();
    // `timeout` ends with 124 if it has to end the plugin.
    let within = |verb: &str, bound: &str| Call::new(&pod, verb).under(&["timeout", bound]).make(place).unwrap();
    within("STATUS", "2").refused(50, &["daemon_silent"]).unwrap();
    within("ADD", "20").refused(11, &["daemon_silent"]).unwrap();
    within("CHECK", "20").refused(7, &["prevResult"]).unwrap();
    within("GC", "20").silent().unwrap();
    within("DEL", "20").silent().unwrap();
    daemon.hang(false).unwrap();
    // What the hung daemon was asked for meanwhile is undone.
    wait_until(BOUND, || place.leases().is_ok_and(|leases| leases.is_empty())).unwrap();
    Call::new(&pod, "ADD").make(place).unwrap().fine().unwrap();
    pod.del(place).unwrap();
}

// D64 D67 D75 D83
#[test]
fn with_the_daemon_away_del_removes_the_link_and_the_lease_ends_before_its_address_is_given_again() {
    let place = place(1);
    let daemon = Daemon::start(place, &SETTINGS).unwrap();
    let pods: Vec<Pod> = (0..3).map(|n| newest(1, &format!("away-{n}"))).collect();
    pods.iter().for_each(|pod| drop(pod.add(place).unwrap()));
    daemon.kill().unwrap();
    status(place).refused(50, &["daemon_down"]).unwrap();
    Call::new(&pods[0], "ADD").make(place).unwrap().refused(11, &["daemon_down"]).unwrap();
    let links = |ns: &str| place.sh(&format!("ip -n {ns} -o link show eth0"));
    Call::new(&pods[0], "DEL").make(place).unwrap().silent().unwrap();
    assert!(links("away-0").is_err() && links("away-1").is_ok());
    let _daemon = Daemon::start(place, &SETTINGS).unwrap();
    wait_until(Duration::from_secs(60), || place.leases().unwrap().len() == 2).unwrap();
    pods[0].call(place, "ADD").unwrap();
    pods.iter().for_each(|pod| pod.del(place).unwrap());
}

// D106
#[test]
fn the_network_is_announced_when_it_is_there_and_hidden_after_a_reboot() {
    let place = place(2);
    let announced = || place.sh("test -f /etc/cni/net.d/05-enid.conflist").is_ok();
    let deaf = Faults { down: true, ..Faults::default() };
    let settings = [("ENID_START_WAIT", "60"), SETTINGS[0], SETTINGS[1]];
    place.lab.set_imds(&deaf).unwrap();
    let daemon = Daemon::spawn(place, &settings).unwrap();
    wait_until(BOUND, || daemon.log().contains("instance metadata")).unwrap();
    assert!(!announced(), "nothing can be given yet");
    place.lab.set_imds(&Faults::default()).unwrap();
    wait_until(BOUND, announced).unwrap();
    // Somebody chains a plugin of theirs.
    place.sh("f=/etc/cni/net.d/05-enid.conflist; python3 - $f <<'E'\nimport json, sys\nf = sys.argv[1]\nd = json.load(open(f))\nd['plugins'].append({'type': 'mesh-cni'})\njson.dump(d, open(f, 'w'))\nE").unwrap();
    let pod = newest(2, "before");
    let (address, _) = pod.add(place).unwrap();
    daemon.kill().unwrap();
    assert!(announced(), "it stays when the daemon ends");
    place.reboot().unwrap();
    place.lab.set_imds(&deaf).unwrap();
    let daemon = Daemon::spawn(place, &settings).unwrap();
    wait_until(BOUND, || !announced()).unwrap();
    wait_until(BOUND, || daemon.log().matches("instance metadata").count() > 1).unwrap();
    assert!(!announced());
    place.lab.set_imds(&Faults::default()).unwrap();
    wait_until(BOUND, announced).unwrap();
    assert!(place.sh("cat /etc/cni/net.d/05-enid.conflist").unwrap().contains("mesh-cni"));
    // The boot took the pods; their addresses are free, and the new ones work.
    wait_until(BOUND, || place.leases().unwrap().is_empty()).unwrap();
    let again = newest(2, "after");
    let (new, _) = again.add(place).unwrap();
    println!("{address} before the reboot, {new} after it");
    enid_tests::traffic::Spot { place, netns: Some("after") }.ping(&place.lab.node(2).address, 56).unwrap();
    again.del(place).unwrap();
    status(place).silent().unwrap();
}

// D77 D83
#[test]
fn what_ec2_takes_away_is_said_by_check_and_enid_status() {
    let place = place(3);
    let settings = [("MINIMUM_IP_TARGET", "27"), SETTINGS[1]];
    let _daemon = Daemon::start(place, &settings).unwrap();
    wait_until(BOUND, || place.number("available").unwrap() == 27).unwrap();
    let mut pods: Vec<Pod> = (0..27).map(|n| newest(3, &format!("full-{n}"))).collect();
    for pod in &mut pods {
        pod.make_namespace(place).unwrap();
        let (result, _) = pod.call(place, "ADD").unwrap();
        pod.config = with(pod, &[("prevResult", result)]);
    }
    // Full: no ADD, and everything else goes on.
    wait_until(BOUND, || place.enid("status").unwrap()["cause"] == "eni_limit").unwrap();
    status(place).silent().unwrap();
    Call::new(&pods[0], "CHECK").make(place).unwrap().silent().unwrap();
    let leases = place.leases().unwrap();
    let on_primary =
        place.enid("enis").unwrap().as_array().unwrap().iter().find(|eni| eni["slot"] == 0).cloned().unwrap();
    let of = |pod: &Pod| leases.iter().find(|lease| lease["container"] == pod.container.as_str()).unwrap();
    let (local, remote): (Vec<&Pod>, Vec<&Pod>) = pods.iter().partition(|pod| of(pod)["eni"] == on_primary["id"]);
    // One address of a live pod.
    let (eni, address) = (of(local[0])["eni"].as_str().unwrap(), of(local[0])["address"].as_str().unwrap());
    let taken = [("NetworkInterfaceId", eni), ("PrivateIpAddress.1", address)];
    place.lab.ec2("UnassignPrivateIpAddresses", &taken).unwrap();
    let check = |pod: &Pod| Call::new(pod, "CHECK").make(place).unwrap();
    wait_until(Duration::from_secs(120), || check(local[0]).refused(101, &["EC2", address]).is_ok()).unwrap();
    check(local[1]).silent().unwrap();
    // A whole ENI under live pods.
    let eni = of(remote[0])["eni"].as_str().unwrap();
    let described = place.lab.ec2("DescribeNetworkInterfaces", &[("NetworkInterfaceId.1", eni)]).unwrap();
    let attachment = vpclab::ec2::first(&described, "attachmentId").unwrap();
    place.lab.ec2("DetachNetworkInterface", &[("AttachmentId", &attachment)]).unwrap();
    let risk = || place.enid("status").unwrap()["risk"].as_str().unwrap().to_owned();
    wait_until(Duration::from_secs(120), || risk().starts_with("eni_lost: ") && risk().contains(eni)).unwrap();
    status(place).silent().unwrap(); // the pods of the other ENI have their network
    check(remote[0]).refused(101, &[eni]).unwrap();
    check(local[1]).silent().unwrap();
    let valid =
        json!(pods.iter().map(|pod| json!({"containerID": pod.container, "ifname": "eth0"})).collect::<Vec<_>>());
    let list = with(&newest(3, "none"), &[("cni.dev/valid-attachments", valid)]);
    Call::bare("GC").stdin(&list).make(place).unwrap().silent().unwrap();
    pods.iter().for_each(|pod| pod.del(place).unwrap());
    wait_until(Duration::from_secs(120), || risk().is_empty()).unwrap();
    assert!(place.leases().unwrap().is_empty());
}
