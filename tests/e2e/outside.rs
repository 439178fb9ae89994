//! What operators, disks and other programs do to a running node: the daemon reports it, and no pod is affected.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{sync::OnceLock, time::Duration};

use enid_tests::{
    Daemon, Lab, LabConfig, Place, Pod,
    traffic::{PORT, Spot, serve},
    wait_until,
};

const BOUND: Duration = Duration::from_secs(45);

fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(|| Lab::up(&LabConfig { nodes: 4, ..LabConfig::default() }).unwrap())
}

#[test]
fn a_second_daemon_is_refused_and_the_first_goes_on() {
    let place = Place::node(lab(), 0);
    let _daemon = Daemon::start(place, &[("WARM_IP_TARGET", "2")]).unwrap();
    let second = Daemon::spawn(place, &[("ENID_STORE_DIR", "/var/lib/enid-2"), ("DISABLE_METRICS", "true")]).unwrap();
    let (code, log) = second.wait(BOUND).unwrap();
    assert_eq!(code, Some(1));
    assert!(log.contains("another enid agent runs with ENID_RUN_DIR /run/enid"), "{log}");
    let pod = Pod::new(0, "first");
    pod.add(place).unwrap();
    pod.del(place).unwrap();
}

#[test]
fn a_lost_store_gives_no_live_address_away() {
    let place = Place::node(lab(), 1);
    let settings = [("MINIMUM_IP_TARGET", "3"), ("IP_COOLDOWN_PERIOD", "0")];
    let daemon = Daemon::start(place, &settings).unwrap();
    let live = Pod::new(1, "live");
    let (address, _) = live.add(place).unwrap();
    let _server = serve(place, &["live"]).unwrap();
    // As a plugin leaves it that is stopped before its last step, through all that follows.
    let half = Pod::new(1, "half");
    let (half_address, _) = half.add(place).unwrap();
    let lease = place.leases().unwrap().into_iter().find(|lease| lease["address"] == half_address.as_str()).unwrap();
    let half_link = lease["host_ifname"].as_str().unwrap().to_owned();
    place.sh(&format!("ip route del {half_address}; ip link set {half_link} alias ''")).unwrap();
    // And one that somebody took the route of: its alias still tells whose address it is.
    let cut = Pod::new(1, "cut");
    let (cut_address, _) = cut.add(place).unwrap();
    place.sh(&format!("ip route del {cut_address}")).unwrap();
    daemon.kill().unwrap();
    place.sh("rm /var/lib/enid/enid.redb").unwrap();
    let daemon = Daemon::start(place, &settings).unwrap();
    assert!(daemon.log().contains(&format!("link=\"{half_link}\"")), "{}", daemon.log());
    assert!(place.sh(&format!("ip link show {half_link}")).is_err());
    let others: Vec<Pod> = (0..4).map(|n| Pod::new(1, &format!("other-{n}"))).collect();
    for pod in &others {
        let given = pod.add(place).unwrap().0;
        assert!(given != address && given != cut_address);
    }
    Spot { place, netns: None }.ask(&address, PORT).unwrap().expect(&lab().node(1).address, &address).unwrap();
    // Its DEL works too, and then the address is free.
    others.iter().chain([&live, &half, &cut]).for_each(|pod| pod.del(place).unwrap());
    wait_until(BOUND, || place.enid("status").is_ok_and(|status| status["assigned"] == 0)).unwrap();
}

#[test]
fn a_damaged_store_is_set_aside_and_said_so() {
    let place = Place::node(lab(), 1);
    place.sh("mkdir -p /var/lib/enid-3; head -c 300000 /dev/urandom > /var/lib/enid-3/enid.redb").unwrap();
    let settings = [("WARM_IP_TARGET", "2"), ("ENID_STORE_DIR", "/var/lib/enid-3"), ("ENID_RUN_DIR", "/run/enid-3")];
    let daemon = Daemon::spawn(place, &[&settings[..], &[("DISABLE_METRICS", "true")]].concat()).unwrap();
    let aside = || place.sh("ls /var/lib/enid-3").is_ok_and(|list| list.contains("damaged"));
    wait_until(BOUND, aside).unwrap();
    wait_until(BOUND, || daemon.log().contains("it is renamed to")).unwrap();
    wait_until(BOUND, || place.sh("test -S /run/enid-3/cni.sock").is_ok()).unwrap();
}

#[test]
fn a_full_disk_refuses_and_recovers_by_itself() {
    let place = Place::node(lab(), 2);
    place.sh("mkdir -p /var/lib/enid; mount -t tmpfs -o size=8m tmpfs /var/lib/enid").unwrap();
    // What is written and taken back within one transaction fits: a cooldown keeps it from being taken back at once.
    let _daemon = Daemon::start(place, &[("WARM_IP_TARGET", "3"), ("IP_COOLDOWN_PERIOD", "3")]).unwrap();
    place.sh("head -c 20m /dev/zero > /var/lib/enid/filler || true").unwrap();
    // Until the file has to grow, writes fit into it.
    let pods: Vec<Pod> = (0..200).map(|n| Pod::new(2, &format!("disk-{n}"))).collect();
    let refusal = pods.iter().find_map(|pod| {
        pod.make_namespace(place).unwrap();
        let (ok, answer, _) = pod.try_call(place, "ADD").unwrap();
        pod.del(place).unwrap();
        (!ok).then_some(answer)
    });
    let refusal = refusal.expect("a full disk refuses in the end");
    assert_eq!(refusal["code"], 11, "{refusal}");
    assert!(refusal["msg"].as_str().unwrap().contains("the store cannot be written"), "{refusal}");
    wait_until(BOUND, || place.enid("status").is_ok_and(|status| status["cause"] == "store_failed")).unwrap();
    place.sh("rm /var/lib/enid/filler").unwrap();
    wait_until(BOUND, || place.serves()).unwrap();
    let pod = Pod::new(2, "after");
    pod.add(place).unwrap();
    pod.del(place).unwrap();
}

#[test]
fn an_eni_that_somebody_detaches_serves_nobody_any_more() {
    let place = Place::node(lab(), 3);
    let settings = [("MINIMUM_IP_TARGET", "12"), ("IP_COOLDOWN_PERIOD", "0")];
    let _daemon = Daemon::start(place, &settings).unwrap();
    let secondary = || {
        let enis = place.enid("enis").unwrap();
        enis.as_array().unwrap().iter().find(|eni| eni["slot"] == 1 && eni["state"] == "ready").cloned()
    };
    wait_until(BOUND, || secondary().is_some()).unwrap();
    let eni = secondary().unwrap()["id"].as_str().unwrap().to_owned();
    let described = lab().ec2("DescribeNetworkInterfaces", &[("NetworkInterfaceId.1", &eni)]).unwrap();
    let attachment = vpclab::ec2::first(&described, "attachmentId").unwrap();
    lab().ec2("DetachNetworkInterface", &[("AttachmentId", &attachment)]).unwrap();
    wait_until(BOUND, || {
        let enis = place.enid("enis").unwrap();
        enis.as_array().unwrap().iter().all(|found| found["id"] != eni.as_str() || found["state"] != "ready")
    })
    .unwrap();
    // Who comes now gets an address that works.
    let pods: Vec<Pod> = (0..11).map(|n| Pod::new(3, &format!("late-{n}"))).collect();
    for pod in &pods {
        pod.add(place).unwrap();
        let lease = place.enid("pods").unwrap();
        let mine = lease.as_array().unwrap().iter().find(|lease| lease["pod_name"] == pod.name.as_str()).cloned();
        assert_ne!(mine.unwrap()["eni"], eni.as_str());
    }
    pods.iter().for_each(|pod| pod.del(place).unwrap());
}

#[test]
fn an_interrupted_demo_leaves_nothing() {
    use std::io::{BufRead, BufReader};
    let mut demo = std::process::Command::new(enid_tests::program("demo").unwrap())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // The table is printed once the pods run, so the interrupt comes in the middle of the checks.
    let lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    let seen = lines.map_while(Result::ok).any(|line| line.contains("web-0-3"));
    assert!(seen, "the demo printed no pods");
    std::process::Command::new("kill").args(["-INT", &demo.id().to_string()]).status().unwrap();
    assert!(!demo.wait().unwrap().success());
    wait_until(BOUND, || !vpclab::folder("demo").exists()).unwrap();
    let links = std::process::Command::new("ip").args(["-o", "link"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&links.stdout).contains("web-0"));
}

/// The kind: state that belongs to another identity (a golden image, a copied volume).
#[test]
fn the_store_of_another_instance_is_set_aside() {
    let name = format!("image{}", std::process::id());
    let lab = Lab::up(&LabConfig { name, nodes: 2, ..LabConfig::default() }).unwrap();
    let [first, second] = [0, 1].map(|node| Place::node(&lab, node));
    let settings = [("WARM_IP_TARGET", "2")];
    let daemon = Daemon::start(first, &settings).unwrap();
    (0..12).for_each(|n| drop(Pod::new(0, &format!("there-{n}")).add(first).unwrap()));
    daemon.kill().unwrap();
    let root = |place: Place<'_>| format!("/proc/{}/root/var/lib/enid", lab.state().pid_of(place.name).unwrap());
    std::fs::create_dir_all(root(second)).unwrap();
    std::fs::copy(format!("{}/enid.redb", root(first)), format!("{}/enid.redb", root(second))).unwrap();
    let daemon = Daemon::start(second, &settings).unwrap();
    assert!(daemon.log().contains("is of another instance"), "{}", daemon.log());
    second.sh("test -e /var/lib/enid/enid.redb.foreign-1").unwrap();
    assert!(second.leases().unwrap().is_empty());
    let pod = Pod::new(1, "here");
    pod.add(second).unwrap();
    pod.del(second).unwrap();
    // Where it belongs it goes on.
    drop(daemon);
    let _daemon = Daemon::start(first, &settings).unwrap();
    assert_eq!(first.leases().unwrap().len(), 12);
}

/// The kind: an auxiliary listener decides whether pods get addresses. Amazon's daemon has the same port.
#[test]
fn a_metrics_port_that_is_taken_is_reported_and_tried_again() {
    let name = format!("port{}", std::process::id());
    let lab = Lab::up(&LabConfig { name, nodes: 1, ..LabConfig::default() }).unwrap();
    let place = Place::node(&lab, 0);
    let program = "import socket, sys; s = socket.create_server((\"\", 61678)); print(1, flush=True); sys.stdin.read()";
    let mut other = place.command("python3").unwrap();
    other.args(["-c", program]).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut other = other.spawn().unwrap();
    std::io::Read::read_exact(other.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    let _daemon = Daemon::start(place, &[("WARM_IP_TARGET", "2")]).unwrap();
    let fault = || place.enid("status").unwrap()["metrics_fault"].as_str().unwrap().to_owned();
    assert!(fault().contains("0.0.0.0:61678 (ENID_METRICS_ADDRESS)"), "{}", fault());
    let pod = Pod::new(0, "unmeasured");
    pod.add(place).unwrap();
    pod.del(place).unwrap();
    drop(other.stdin.take());
    other.wait().unwrap();
    wait_until(BOUND, || place.metrics().is_ok()).unwrap();
    assert_eq!(fault(), "");
}
