//! Files of ours on the host that somebody removes or damages: put back, counted, and told where they cannot be.
//!
//! The kind: what the runtime needs of us on the host's disk, plugins, network configuration and sockets, lies where others
//! write too; and what the daemon itself needs there, its lock and its store.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{fs, path::PathBuf, time::Duration};

use enid_tests::{Backend, Call, Daemon, Lab, LabConfig, Place, Pod, plugin, pod, program, wait_until};

const BOUND: Duration = Duration::from_secs(30);
const CONFLIST: &str = "/etc/cni/net.d/05-enid.conflist";
const SETTINGS: [(&str, &str); 3] =
    [("WARM_IP_TARGET", "4"), ("IP_COOLDOWN_PERIOD", "0"), ("ENABLE_BANDWIDTH_PLUGIN", "true")];

fn lab(name: &str) -> Lab {
    let name = format!("{name}{}", std::process::id());
    Lab::up(&LabConfig { name, nodes: 1, ec2: Backend::Model, ..LabConfig::default() }).unwrap()
}

/// A folder with what an image has: the daemon, the plugin, and standard plugins beside them.
struct Image(PathBuf);

impl Image {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("enid-image-{name}-{}", std::process::id()));
        let standard = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.tools/cni-plugins"));
        fs::create_dir_all(folder.join("plugins")).unwrap();
        fs::copy(program("enid").unwrap(), folder.join("enid")).unwrap();
        fs::copy(plugin().unwrap(), folder.join("enid-cni")).unwrap();
        for name in ["portmap", "bandwidth"] {
            fs::copy(standard.join(name), folder.join("plugins").join(name)).unwrap();
        }
        Image(folder)
    }

    /// The daemon, after `enid init`.
    fn start(&self, place: Place<'_>) -> Daemon {
        let enid = self.0.join("enid");
        place.sh(&format!("{} init", enid.display())).unwrap();
        let daemon = Daemon::spawn_program(place, &enid, &SETTINGS).unwrap();
        wait_until(BOUND, || place.serves() && place.sh(&format!("test -f {CONFLIST}")).is_ok())
            .unwrap_or_else(|_| panic!("{}", daemon.log()));
        daemon
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// How many files were put back.
fn put_back(place: Place<'_>) -> u64 {
    let page = place.metrics().unwrap();
    let line = page.lines().find_map(|line| line.strip_prefix("enid_repairs_total{kind=\"file\"} "));
    line.map_or(0, |number| number.parse().unwrap())
}

fn serves_a_pod(place: Place<'_>, name: &str) {
    let pod = Pod::new(0, name);
    pod.add(place).unwrap();
    pod.del(place).unwrap();
}

fn health(place: Place<'_>, arguments: &str) -> anyhow::Result<String> {
    place.sh(&format!("{} health {arguments}", program("enid").unwrap().display()))
}

#[test]
fn what_is_removed_or_damaged_is_put_back() {
    let (lab, image) = (lab("files"), Image::new("files"));
    let place = Place::node(&lab, 0);
    let daemon = image.start(place);
    serves_a_pod(place, "before");
    let said = place.sh(&format!("cat {CONFLIST}")).unwrap();
    assert!(said.contains("portmap") && said.contains("bandwidth"), "{said}");
    let damages = [
        ("rm -f /opt/cni/bin/enid-cni", 1),
        ("rm -rf /opt/cni/bin/*", 3),
        ("truncate -s 1000 /opt/cni/bin/enid-cni", 1),
        (": > /opt/cni/bin/portmap", 1),
        ("echo '#!/bin/sh' > /opt/cni/bin/bandwidth", 1),
        ("chmod 000 /opt/cni/bin/enid-cni", 1),
        ("rm /etc/cni/net.d/05-enid.conflist", 1),
        ("echo '{}' > /etc/cni/net.d/05-enid.conflist", 1),
        ("rm /run/enid/cni.sock", 1),
        ("rm /run/enid/debug.sock", 1),
        ("rm /run/enid/cni.sock; python3 -c 'import socket as s; s.socket(s.AF_UNIX).bind(\"/run/enid/cni.sock\")'", 1),
        ("rm -rf /run/enid", 3),
        ("rm /var/lib/enid/enid.redb", 1),
    ];
    for (damage, files) in damages {
        // Sockets that are gone are waited for: the numbers are read over one of them.
        let before = put_back(place);
        place.sh(damage).unwrap();
        wait_until(BOUND, || put_back(place) == before + files)
            .unwrap_or_else(|_| panic!("{damage}: {} of {files}: {}", put_back(place) - before, daemon.log()));
        assert_eq!(place.sh(&format!("cat {CONFLIST}")).unwrap(), said, "{damage}");
        health(place, "--ready").unwrap_or_else(|failure| panic!("{damage}: {failure:#}"));
        serves_a_pod(place, "after");
    }
    // What was put back is not put back again.
    let known = put_back(place);
    serves_a_pod(place, "quiet");
    assert_eq!(put_back(place), known, "{}", daemon.log());
    // The store has what it had.
    let kept = Pod::new(0, "kept");
    let (address, _) = kept.add(place).unwrap();
    place.sh("rm /var/lib/enid/enid.redb").unwrap();
    wait_until(BOUND, || put_back(place) == known + 1).unwrap_or_else(|_| panic!("{}", daemon.log()));
    daemon.kill().unwrap();
    let _daemon = image.start(place);
    assert_eq!(place.leases().unwrap()[0]["address"], address);
}

#[test]
fn a_plugin_that_works_is_accepted_whoever_brought_it() {
    let (lab, image) = (lab("other"), Image::new("other"));
    let place = Place::node(&lab, 0);
    let daemon = image.start(place);
    // An older one serves no 1.1.0, so the chain does not either.
    place
        .sh("grep -q cniVersions /etc/cni/net.d/05-enid.conflist; cp /usr/lib/cni/portmap /opt/cni/bin/portmap")
        .unwrap();
    wait_until(BOUND, || place.sh(&format!("grep -q cniVersions {CONFLIST}")).is_err()).unwrap();
    assert_eq!(put_back(place), 0, "{}", daemon.log());
    place.sh("cmp /usr/lib/cni/portmap /opt/cni/bin/portmap").unwrap();
}

#[test]
fn what_cannot_be_put_back_is_a_cause_and_no_matter_for_status() {
    let (lab, image) = (lab("gone"), Image::new("gone"));
    let place = Place::node(&lab, 0);
    let daemon = image.start(place);
    fs::remove_file(image.0.join("plugins/bandwidth")).unwrap();
    place.sh("rm /opt/cni/bin/bandwidth").unwrap();
    wait_until(BOUND, || place.enid("status").unwrap()["cause"] == "host_files")
        .unwrap_or_else(|_| panic!("{}", daemon.log()));
    let status = place.enid("status").unwrap();
    assert!(status["ready"] == true && status["cause_message"].to_string().contains("bandwidth"), "{status}");
    let refused = Pod::new(0, "refused");
    refused.make_namespace(place).unwrap();
    let error = format!("{:#}", refused.call(place, "ADD").unwrap_err());
    assert!(error.contains("host_files") && error.contains("/opt/cni/bin/bandwidth"), "{error}");
    assert!(daemon.log().matches("the image has none to put back").count() < 4, "{}", daemon.log());
    place.sh(&format!("cp {}/../.tools/cni-plugins/bandwidth /opt/cni/bin/", env!("CARGO_MANIFEST_DIR"))).unwrap();
    wait_until(BOUND, || place.serves()).unwrap_or_else(|_| panic!("{}", daemon.log()));
    serves_a_pod(place, "served");
}

#[test]
fn health_asks_by_the_plugins_socket() {
    let (lab, image) = (lab("health"), Image::new("health"));
    let place = Place::node(&lab, 0);
    let _daemon = image.start(place);
    health(place, "").unwrap();
    // Something that nobody can make room for.
    place.sh("rm /run/enid/cni.sock; mkdir /run/enid/cni.sock").unwrap();
    let failure = format!("{:#}", health(place, "").unwrap_err());
    assert!(failure.contains("the daemon does not answer on /run/enid/cni.sock"), "{failure}");
    wait_until(BOUND, || place.enid("status").unwrap()["cause"] == "host_files").unwrap();
    place.sh("rmdir /run/enid/cni.sock").unwrap();
    wait_until(BOUND, || health(place, "--ready").is_ok()).unwrap();
    serves_a_pod(place, "served");
}

/// A container's mount of a host's folder keeps the folder that was there: of one that is removed and made anew, what is
/// written by way of the mount reaches nobody.
#[test]
fn a_folder_that_was_removed_under_its_mount_ends_the_daemon() {
    let (lab, image) = (lab("mount"), Image::new("mount"));
    let place = Place::node(&lab, 0);
    place.sh("mkdir -p /run/host/bin /opt/cni/bin; mount --bind /run/host/bin /opt/cni/bin").unwrap();
    let daemon = image.start(place);
    place.sh("rm -r /run/host/bin; mkdir /run/host/bin").unwrap();
    let (code, log) = daemon.wait(BOUND).unwrap();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("/opt/cni/bin (HOST_CNI_BIN_PATH) was removed under its mount"), "{log}");
    place.sh("umount /opt/cni/bin; mount --bind /run/host/bin /opt/cni/bin").unwrap();
    let _daemon = image.start(place);
    serves_a_pod(place, "served");
}

/// As when an older version is installed again, and cannot read what the newer one wrote.
#[test]
fn a_store_of_another_schema_is_refused_and_pods_are_left_alone() {
    let (lab, image) = (lab("schema"), Image::new("schema"));
    let place = Place::node(&lab, 0);
    let daemon = image.start(place);
    let [kept, gone, late] = ["kept", "gone", "late"].map(|name| Pod::new(0, name));
    let (address, _) = kept.add(place).unwrap();
    gone.add(place).unwrap();
    daemon.kill().unwrap();
    let set_schema = |to: &str| {
        let copy = image.0.join("enid.redb");
        place.sh(&format!("cp /var/lib/enid/enid.redb {}", copy.display())).unwrap();
        let database = redb::Database::create(&copy).unwrap();
        let change = database.begin_write().unwrap();
        change.open_table(redb::TableDefinition::<&str, &str>::new("meta")).unwrap().insert("schema", to).unwrap();
        change.commit().unwrap();
        drop(database);
        place.sh(&format!("cp {} /var/lib/enid/enid.redb", copy.display())).unwrap();
    };
    set_schema("9");
    let before = place.kernel().unwrap();
    let enid = image.0.join("enid");
    let (code, log) = Daemon::spawn_program(place, &enid, &SETTINGS).unwrap().wait(BOUND).unwrap();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("/var/lib/enid/enid.redb") && log.contains("start the version that wrote it again"), "{log}");
    assert_eq!(place.kernel().unwrap(), before);
    // Meanwhile: pods have their network, the node is Ready, pods can go, and new ones are told to come again.
    place.sh(&format!("ping -c 1 -W 2 {address}")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&pod::config("1.1.0", 1)).unwrap();
    config["bootId"] = place.sh("cat /proc/sys/kernel/random/boot_id").unwrap().trim().into();
    Call::bare("STATUS").stdin(&config.to_string()).make(place).unwrap().silent().unwrap();
    gone.del(place).unwrap();
    late.make_namespace(place).unwrap();
    late.refused(place, 11, &["the enid daemon does not answer"]).unwrap();
    set_schema("1");
    let _daemon = image.start(place);
    wait_until(BOUND, || place.leases().unwrap().len() == 1).unwrap();
    assert_eq!(place.leases().unwrap()[0]["address"], address);
    serves_a_pod(place, "served");
}
