//! Pods with host ports, which go after the take-over: nothing of portmap is left, nor a result that the runtime has kept.

use enid_tests::{
    Daemon, Lab, Place,
    peer::{self, Backend, PeerPod},
    traffic::{PORT, Spot, serve},
    wait_until,
};

use super::{BOUND, DONE, lab_of, with_enis};

/// The first host port.
const FIRST: u16 = 18080;

/// The CNI project's own library calls a verb for a pod, as a runtime does.
fn call(place: Place<'_>, verb: &str, pod: &PeerPod, host_port: u16) -> anyhow::Result<String> {
    let tools = concat!(env!("CARGO_MANIFEST_DIR"), "/../.tools");
    place.sh(&format!(
        r#"CNI_PATH=/opt/cni/bin NETCONFPATH=/etc/cni/net.d CNI_ARGS='IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name}' \
           CAP_ARGS='{{"portMappings":[{{"hostPort":{host_port},"containerPort":{PORT},"protocol":"tcp"}}]}}' \
           {tools}/bin/cnitool {verb} aws-cni /run/netns/{name}"#,
        name = pod.pod.name
    ))
}

/// The other plugin is not here: for pods that are wired, this says what it has said.
fn plugin(place: Place<'_>, pods: &[PeerPod]) {
    let mut cases = String::new();
    for PeerPod { pod, address, ifname, .. } in pods {
        let name = &pod.name;
        cases += &format!(
            r#"/run/netns/{name}) echo '{{"cniVersion":"0.4.0","interfaces":[{{"name":"{ifname}"}},{{"name":"eth0","mac":"254","sandbox":"/run/netns/{name}"}},{{"name":"dummy{}","mac":"0","sandbox":"0"}}],"ips":[{{"version":"4","interface":1,"address":"{address}/32"}}],"dns":{{}}}}';;
"#,
            ifname.trim_start_matches("eni")
        );
    }
    let tools = concat!(env!("CARGO_MANIFEST_DIR"), "/../.tools");
    place
        .sh(&format!(
            "mkdir -p /opt/cni/bin; cp {tools}/cni-plugins/portmap /opt/cni/bin/; cat > /opt/cni/bin/aws-cni <<'END'
#!/bin/sh
cat >/dev/null
case $CNI_COMMAND:$CNI_NETNS in
DEL:*) exit 0;;
VERSION:*) echo '{{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\"]}}'; exit 0;;
esac
case $CNI_NETNS in
{cases}esac
END
chmod 755 /opt/cni/bin/aws-cni"
        ))
        .unwrap();
}

/// All that portmap and the runtime's library have of these pods.
fn left(place: Place<'_>) -> String {
    place
        .sh("for kind in nft legacy; do iptables-$kind-save; done | grep -e '^:CNI-DN-' -e cnitool- || true
             nft list tables | grep -q cni_hostport && nft list table ip cni_hostport | grep dnat || true
             ls /var/lib/cni/results 2>/dev/null || true")
        .unwrap()
}

fn gone_with_their_pods(lab: &Lab, backend: &str) {
    let place = Place::node(lab, 0);
    let settings =
        [("ENID_TAKE_OVER", "true"), ("IP_COOLDOWN_PERIOD", "1"), ("WARM_ENI_TARGET", "0"), ("WARM_IP_TARGET", "1")];
    with_enis(place, &[("MINIMUM_IP_TARGET", "42"), ("WARM_ENI_TARGET", "0")]);
    let mut pods = peer::make(place, &[2, 1, 1], Backend::Nft).unwrap();
    // Containers as this library calls them.
    for pod in &mut pods {
        let netns = format!("/run/netns/{}", pod.pod.name);
        let hash = place.sh(&format!("printf %s {netns} | sha512sum | cut -c1-20")).unwrap();
        let container = format!("cnitool-{}", hash.trim());
        let (before, file) = (&pod.pod.container, "/var/run/aws-node/ipam.json");
        place.sh(&format!("sed -i 's/\"{before}\"/\"{container}\"/' {file}")).unwrap();
        pod.pod.container = container;
    }
    plugin(place, &pods);
    place
        .sh(&format!(
            "sed -i 's/\"snat\":true/\"snat\":true,\"backend\":\"{backend}\"/' /etc/cni/net.d/10-aws.conflist"
        ))
        .unwrap();
    let names: Vec<&str> = pods.iter().map(|pod| pod.pod.name.as_str()).collect();
    let servers = serve(place, &names).unwrap();
    let with_ports = || pods.iter().zip(FIRST..);
    with_ports().for_each(|(pod, port)| drop(call(place, "add", pod, port).unwrap()));
    let (other, node) = (Spot { place: Place::node(lab, 1), netns: None }, &lab.node(0).address);
    let served = |what: &str| {
        for (pod, port) in with_ports() {
            let answer = other.ask(node, port).unwrap_or_else(|failure| panic!("{what}: {failure:#}"));
            assert_eq!(answer.server, pod.address, "{what}");
        }
    };
    served("before");
    let made = left(place);
    for pod in &pods {
        assert!(made.contains(&format!("aws-cni-{}-eth0", pod.pod.container)), "{made}");
    }
    assert!(made.lines().count() >= 2 * pods.len(), "{made}");

    let daemon = Daemon::start(place, &settings).unwrap();
    wait_until(BOUND, || daemon.log().matches(DONE).count() == 1).unwrap_or_else(|_| panic!("{}", daemon.log()));
    served("taken over");
    drop(servers);
    daemon.kill().unwrap();
    let (first, second) = pods.split_at(2);
    // As a runtime ends them. One link in 64 has a MAC that Enid could have made: without the daemon it goes with its namespace.
    let end = |(pod, port): (&PeerPod, u16)| {
        call(place, "del", pod, port).unwrap();
        pod.pod.remove_namespace(place).unwrap();
    };
    first.iter().zip(FIRST..).for_each(end);
    let daemon = Daemon::start(place, &settings).unwrap();
    second.iter().zip(FIRST + 2..).for_each(end);
    assert_eq!(left(place), "", "{backend}, {}", daemon.log());
    wait_until(BOUND, || place.leases().is_ok_and(|leases| leases.is_empty()))
        .unwrap_or_else(|_| panic!("{}", daemon.log()));
    for pod in &pods {
        assert!(place.sh(&format!("ip link show {}", pod.ifname)).is_err(), "{}", pod.ifname);
    }
}

#[test]
fn of_iptables() {
    gone_with_their_pods(&lab_of("hostports", 2), "iptables");
}

#[test]
fn of_nftables() {
    gone_with_their_pods(&lab_of("hostnft", 2), "nftables");
}
