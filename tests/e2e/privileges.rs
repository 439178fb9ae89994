//! The daemon without privileges but those that the chart gives it, and what fails when each is taken away.
//!
//! What a container runtime does is done by hand: /proc/sys is read-only, /proc/sys/net is mounted writable elsewhere, and
//! capabilities are dropped.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use enid_tests::{Backend, Daemon, Lab, LabConfig, Place, Pod, program, wait_until};

const BOUND: Duration = Duration::from_secs(30);
const SYS_NET: &str = "/run/host/proc/sys/net";
const BOTH_FAMILIES: (&str, &str) = ("ENABLE_IPv6", "true");
/// Two ENIs: what belongs to a secondary one is set too.
const TWO_ENIS: (&str, &str) = ("MINIMUM_IP_TARGET", "12");

/// A program that runs the daemon with these capabilities and no others.
struct Confined(PathBuf);

impl Confined {
    fn new(name: &str, capabilities: &[&str]) -> Self {
        let path = std::env::temp_dir().join(format!("enid-confined-{name}-{}", std::process::id()));
        let set: String = capabilities.iter().map(|capability| format!(",+{capability}")).collect();
        let enid = program("enid").unwrap();
        let confine = format!(
            "#!/bin/sh
mkdir -p {SYS_NET}
exec unshare -m sh -ec 'mount --bind /proc/sys/net {SYS_NET}
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
exec setpriv --bounding-set=-all{set} --inh-caps=-all --no-new-privs {} \"$@\"' enid \"$@\"
",
            enid.display()
        );
        fs::write(&path, confine).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Confined(path)
    }

    fn spawn(&self, place: Place<'_>, settings: &[(&str, &str)]) -> Daemon {
        // A host that has set nothing yet.
        place
            .sh("for name in all default eth0; do
                echo 1 > /proc/sys/net/ipv4/conf/$name/rp_filter; echo 0 > /proc/sys/net/ipv4/conf/$name/forwarding
            done
            echo 0 > /proc/sys/net/ipv4/ip_forward")
            .unwrap();
        Daemon::spawn_program(place, &self.0, settings).unwrap()
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn lab(name: &str) -> Lab {
    let name = format!("{name}{}", std::process::id());
    Lab::up(&LabConfig { name, nodes: 1, ec2: Backend::Model, ipv6: true, ..LabConfig::default() }).unwrap()
}

fn waits_for(daemon: &Daemon, words: &str) {
    wait_until(BOUND, || daemon.log().contains(words)).unwrap_or_else(|_| panic!("no {words:?} in {}", daemon.log()));
}

/// A base chain that drops what it does not know: reason enough for a probe.
fn drop_forwarded(place: Place<'_>) {
    place.sh("nft 'add table ip other; add chain ip other forward { type filter hook forward priority 0; policy drop; }'").unwrap();
}

#[test]
fn the_charts_privileges_are_enough() {
    let lab = lab("confined");
    let place = Place::node(&lab, 0);
    let confined = Confined::new("enough", &["net_admin", "net_raw", "sys_admin"]);
    let settings = [BOTH_FAMILIES, TWO_ENIS, ("HOST_PROC_SYS_NET_PATH", SYS_NET)];
    let daemon = confined.spawn(place, &settings);
    wait_until(BOUND, || place.serves() && place.number("enis").is_ok_and(|enis| enis == 2))
        .unwrap_or_else(|_| panic!("{}", daemon.log()));
    let pod = Pod::new(0, "confined");
    pod.add(place).unwrap();
    let values = "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/eth[01]/rp_filter \
                  /proc/sys/net/ipv4/conf/eth[01]/forwarding /proc/sys/net/ipv6/conf/all/forwarding \
                  /proc/sys/net/ipv6/conf/eth1/use_oif_addrs_only | tr '\\n' ' '";
    let wanted = "1 2 2 1 1 1 1 ";
    wait_until(BOUND, || place.sh(values).is_ok_and(|found| found == wanted))
        .unwrap_or_else(|_| panic!("{:?}, {}", place.sh(values), daemon.log()));
    // What somebody changes is put back.
    place
        .sh("echo 1 > /proc/sys/net/ipv4/conf/eth1/rp_filter; echo 0 > /proc/sys/net/ipv6/conf/eth1/use_oif_addrs_only")
        .unwrap();
    wait_until(BOUND * 2, || place.sh(values).is_ok_and(|found| found == wanted))
        .unwrap_or_else(|_| panic!("{:?}, {}", place.sh(values), daemon.log()));
    // A firewall that drops is found by a probe.
    drop_forwarded(place);
    wait_until(BOUND, || place.enid("status").is_ok_and(|status| status["cause"] == "forward_dropped"))
        .unwrap_or_else(|_| panic!("{}", daemon.log()));
    place.sh("nft delete table ip other").unwrap();
    wait_until(BOUND, || place.serves()).unwrap();
    pod.del(place).unwrap();
}

#[test]
fn without_net_admin_nothing_is_set_up() {
    let lab = lab("noadmin");
    let confined = Confined::new("noadmin", &["sys_admin"]);
    let daemon = confined.spawn(Place::node(&lab, 0), &[("HOST_PROC_SYS_NET_PATH", SYS_NET)]);
    waits_for(&daemon, "Operation not permitted");
    assert!(!Place::node(&lab, 0).serves());
}

#[test]
fn without_sys_admin_firewalls_are_not_probed() {
    let lab = lab("noprobe");
    let place = Place::node(&lab, 0);
    drop_forwarded(place);
    let confined = Confined::new("noprobe", &["net_admin"]);
    let daemon = confined.spawn(place, &[("HOST_PROC_SYS_NET_PATH", SYS_NET)]);
    waits_for(&daemon, "cannot be probed");
    // Nothing else needs it.
    wait_until(BOUND, || place.serves()).unwrap_or_else(|_| panic!("{}", daemon.log()));
    let pod = Pod::new(0, "noprobe");
    pod.add(place).unwrap();
    pod.del(place).unwrap();
}

#[test]
fn without_the_mount_the_hosts_values_are_not_set() {
    let lab = lab("nomount");
    let confined = Confined::new("nomount", &["net_admin", "sys_admin"]);
    let daemon = confined.spawn(Place::node(&lab, 0), &[BOTH_FAMILIES]);
    waits_for(&daemon, "cannot write 1 to /proc/sys/net/ipv6/conf/all/forwarding: Read-only file system");
}

#[test]
fn without_net_raw_rules_of_the_older_iptables_stay() {
    let lab = lab("noraw");
    let place = Place::node(&lab, 0);
    let rules = "iptables-legacy-save | grep -c AWS || true";
    let comment = "-m comment --comment 'AWS SNAT CHAIN'";
    place
        .sh(&format!(
            "iptables-legacy -t nat -N AWS-SNAT-CHAIN-0
             iptables-legacy -t nat -A POSTROUTING {comment} -j AWS-SNAT-CHAIN-0
             mkdir -p /etc/cni/net.d; echo {{}} > /etc/cni/net.d/10-aws.conflist"
        ))
        .unwrap();
    let confined = Confined::new("noraw", &["net_admin", "sys_admin"]);
    let settings = [("HOST_PROC_SYS_NET_PATH", SYS_NET)];
    let daemon = confined.spawn(place, &settings);
    waits_for(&daemon, "what Amazon's VPC CNI has left is still there");
    assert!(daemon.log().contains("Permission denied"), "{}", daemon.log());
    // Nothing else needs it.
    wait_until(BOUND, || place.serves()).unwrap_or_else(|_| panic!("{}", daemon.log()));
    assert_eq!(place.sh(rules).unwrap().trim(), "2");
    daemon.kill().unwrap();
    let confined = Confined::new("raw", &["net_admin", "net_raw", "sys_admin"]);
    let daemon = confined.spawn(place, &settings);
    wait_until(BOUND, || place.sh(rules).is_ok_and(|left| left.trim() == "0"))
        .unwrap_or_else(|_| panic!("{}", daemon.log()));
    wait_until(BOUND, || place.sh("test -e /etc/cni/net.d/10-aws.conflist").is_err()).unwrap();
}
