//! A node that Enid leaves: `enid uninstall` takes every trace away, and gives the ENIs back.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use enid_tests::{Backend, Daemon, Lab, LabConfig, Place, Pod, kernel, program, wait_until};

const BOUND: Duration = Duration::from_secs(30);
/// Three ENIs of both families.
const SETTINGS: [(&str, &str); 3] = [("MINIMUM_IP_TARGET", "20"), ("ENABLE_IPv6", "true"), ("IP_COOLDOWN_PERIOD", "0")];

/// Runs it as `kubectl debug` would; what it prints, or its refusal.
fn uninstall(place: Place<'_>, arguments: &str) -> anyhow::Result<String> {
    let enid = program("enid").unwrap();
    let endpoint = &place.lab.state().ec2_endpoint;
    let keys = "AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test";
    place.sh(&format!("{keys} AWS_EC2_ENDPOINT={endpoint} {} uninstall {arguments} 2>&1", enid.display()))
}

/// What is left of Enid on the host, and of its ENIs in EC2.
fn traces(place: Place<'_>) -> String {
    place
        .sh("nft list tables | grep enid || true
            ip rule | grep -v -e '^0:' -e '^32766:' -e '^32767:' || true
            ip -6 rule | grep -v -e '^0:' -e '^32766:' || true
            for table in 1 2 3; do ip route show table $table; ip -6 route show table $table; done 2>/dev/null
            ip neigh show proxy
            ls -A /etc/cni/net.d /opt/cni/bin /run/enid /var/lib/enid 2>/dev/null | grep -i -e enid -e sock -e lock -e store || true")
        .unwrap()
}

#[test]
fn nothing_is_left_on_the_host_and_in_ec2() {
    let name = format!("uninst{}", std::process::id());
    let lab = Lab::up(&LabConfig { name, nodes: 1, ec2: Backend::Model, ipv6: true, ..LabConfig::default() }).unwrap();
    let place = Place::node(&lab, 0);
    let untouched = kernel::state(place).unwrap();
    let settings = [&SETTINGS[..], &[("AWS_EC2_ENDPOINT", lab.state().ec2_endpoint.as_str())]].concat();
    let daemon = Daemon::start(place, &settings).unwrap();
    wait_until(BOUND, || place.number("enis").is_ok_and(|enis| enis == 3)).unwrap();
    let pod = Pod::new(0, "last");
    pod.add(place).unwrap();

    // Neither under a daemon nor under a pod.
    let refused = format!("{:#}", uninstall(place, "--enis").unwrap_err());
    assert!(refused.contains("another enid agent runs"), "{refused}");
    daemon.kill().unwrap();
    let refused = format!("{:#}", uninstall(place, "--enis").unwrap_err());
    assert!(
        refused.contains("pods have their network by Enid (eni") && refused.contains("drain the node"),
        "{refused}"
    );
    assert!(place.sh("test -f /etc/cni/net.d/05-enid.conflist && ip rule | grep -q ^512:").is_ok());
    assert_eq!(lab.enis().unwrap().len(), 3);

    pod.del(place).unwrap();
    let told = uninstall(place, "--enis").unwrap();
    assert!(told.contains("remove the rule 512") && told.contains("detach eni-"), "{told}");
    assert_eq!(traces(place), "", "{told}");
    let enis = lab.enis().unwrap();
    assert!(enis.len() == 1 && enis[0].addresses.len() == 1 && enis[0].prefixes.is_empty(), "{enis:?}");
    // The links of the ENIs have gone with them; the host is as it was, but for sysctls, which it may have wanted so itself.
    let without_sysctls =
        |state: String| state.lines().filter(|line| !line.contains("net.")).map(str::to_owned).collect::<Vec<_>>();
    wait_until(BOUND, || {
        kernel::state(place).is_ok_and(|now| without_sysctls(now) == without_sysctls(untouched.clone()))
    })
    .unwrap_or_else(|_| panic!("{}\n--- was:\n{untouched}", kernel::state(place).unwrap()));
    // Once more finds nothing to do, and the node can have Enid again.
    assert_eq!(uninstall(place, "--enis").unwrap(), "");
    let _daemon = Daemon::start(place, &settings).unwrap();
    pod.add(place).unwrap();
    pod.del(place).unwrap();
}
