//! Pods of the other system become ours, and their traffic goes on.

use enid_tests::{
    Daemon, Place, Pod,
    peer::{self, Backend, PeerPod},
    traffic::{PORT, Spot, serve},
    wait_until,
};

use super::{
    BOUND, DONE,
    flows::{Silent, macs, streams},
    lab, with_enis,
};

fn taken_over(name: &str, settings: &[(&str, &str)], backend: Backend) {
    let lab = lab(name);
    let place = Place::node(&lab, 0);
    let settings = [
        settings,
        &[("ENID_TAKE_OVER", "true"), ("IP_COOLDOWN_PERIOD", "1"), ("WARM_ENI_TARGET", "0"), ("WARM_IP_TARGET", "3")],
    ]
    .concat();
    with_enis(place, &[("MINIMUM_IP_TARGET", "42"), ("WARM_ENI_TARGET", "0")]);
    if settings.iter().any(|(name, _)| *name == "ENABLE_PREFIX_DELEGATION") {
        peer::to_prefixes(place).unwrap();
    }
    let pods = peer::make(place, &[10, 10, 10], backend).unwrap();
    let made = peer::traces(place).unwrap();
    for trace in ["512:", "1024:", "1536:", "32765:", "AWS-SNAT-CHAIN-0", "10-aws.conflist", "vpc-cni-ipam/1"] {
        assert!(made.contains(trace), "{trace} is not in {made}");
    }
    let macs_before = macs(place, &pods);
    let names: Vec<&str> = pods.iter().map(|pod| pod.pod.name.as_str()).collect();
    let servers = (serve(place, &names).unwrap(), serve(Place { lab: &lab, name: "inet" }, &[]).unwrap());
    let of_each = [&pods[0], &pods[10], &pods[20]];
    let (running, pings) = streams(place, &of_each);
    let silent = Silent::open(place, &[&pods[11], &pods[21]], 10);

    // Somebody has removed the route to a pod, which lives.
    let cut_off = &pods[13];
    place.sh(&format!("ip route del {}", cut_off.address)).unwrap();
    let daemon = Daemon::start(place, &settings).unwrap();
    wait_until(BOUND, || daemon.log().contains(DONE)).unwrap_or_else(|_| panic!("{}", daemon.log()));
    assert_eq!(peer::traces(place).unwrap(), "", "{}", daemon.log());
    for ping in pings {
        let (sent, back) = ping.end().unwrap();
        println!("{name}: {sent} echoes, {} lost", sent - back);
        assert_eq!(sent, back);
    }
    running.into_iter().for_each(|stream| drop(stream.end().unwrap()));
    let public = &lab.node(0).public_address;
    assert!(silent.speak().iter().all(|seen| seen == public), "they went on as the node");

    // All of them are leased, as they were.
    let leases = place.leases().unwrap();
    assert_eq!(leases.len(), 30);
    for pod in &pods {
        let lease = leases.iter().find(|lease| lease["address"] == pod.address.as_str()).unwrap();
        assert_eq!(lease["container"], pod.pod.container.as_str());
        assert_eq!((&lease["host_ifname"], &lease["state"]), (&pod.ifname.as_str().into(), &"wired".into()), "{lease}");
    }
    assert_eq!(macs(place, &pods), macs_before, "pods have them as permanent neighbours");
    let conflist = place.sh("cat /etc/cni/net.d/05-enid.conflist").unwrap();
    assert!(conflist.contains("\"name\": \"aws-cni\""), "{conflist}");

    // New pods and old ones reach each other; whatever is taken away comes back.
    let new = Pod { config: peer::config(), ..Pod::new(0, "new") };
    let (address, _) = new.add(place).unwrap();
    assert!(pods.iter().all(|pod| pod.address != address));
    for pod in of_each.into_iter().chain([cut_off]) {
        Spot { place, netns: Some("new") }.ask(&pod.address, PORT).unwrap().expect(&address, &pod.address).unwrap();
    }
    let (address, ifname) = (&pods[12].address, &pods[12].ifname);
    let of_pod = format!(
        "ip neigh show {address} dev {ifname} nud permanent; ip -o route show {address} dev {ifname} | cut -d' ' -f1"
    );
    let state = place.sh(&of_pod).unwrap();
    assert_eq!(state.lines().count(), 2, "{state}");
    place.sh(&format!("ip neigh del {address} dev {ifname}; ip route del {address}")).unwrap();
    wait_until(BOUND, || place.sh(&of_pod).is_ok_and(|now| now == state)).unwrap();

    // A restart finds nothing to do; then pods go, one half without a daemon.
    daemon.kill().unwrap();
    let with_result = |pod: &PeerPod| {
        let (address, ifname) = (&pod.address, &pod.ifname);
        let result = format!(
            r#"{{"cniVersion":"1.0.0","interfaces":[{{"name":"{ifname}"}},{{"name":"eth0","mac":"254","sandbox":"/run/netns/x"}}],"ips":[{{"interface":1,"address":"{address}/32"}}]}}"#
        );
        let config = peer::config().trim_end_matches('}').to_owned() + &format!(r#","prevResult":{result}}}"#);
        Pod { config, ..pod.pod.clone() }
    };
    drop(servers);
    for (pod, mac) in pods.iter().zip(&macs_before).take(15) {
        with_result(pod).call(place, "DEL").unwrap();
        // One in 64 has a MAC that Enid could have made: without the daemon it goes with its namespace only.
        let stays = mac.starts_with("0a") && place.sh(&format!("ip netns del {}", pod.pod.name)).is_ok();
        let gone = || place.sh(&format!("ip link show {}", pod.ifname)).is_err();
        assert!(stays || gone(), "DEL takes the link of {}, whose MAC is {mac}", pod.pod.name);
    }
    let daemon = Daemon::start(place, &settings).unwrap();
    assert_eq!(daemon.log().matches(DONE).count(), 1, "a restart finds nothing to do: {}", daemon.log());
    for pod in &pods[15..] {
        pod.pod.call(place, "DEL").unwrap();
        assert!(place.sh(&format!("ip link show {}", pod.ifname)).is_err(), "DEL takes the link of {}", pod.pod.name);
    }
    new.del(place).unwrap();
    wait_until(BOUND, || place.leases().is_ok_and(|leases| leases.is_empty())).unwrap();
    assert_eq!(place.sh("ip -o link | grep -c ': eni' || true").unwrap().trim(), "0");
    assert_eq!(lab.drops().unwrap().foreign_source, 0);
}

#[test]
fn single_addresses_with_iptables_of_nftables() {
    taken_over("nft", &[], Backend::Nft);
}

#[test]
fn single_addresses_with_iptables_of_old() {
    taken_over("legacy", &[], Backend::Legacy);
}

#[test]
fn prefixes() {
    taken_over("prefixes", &[("ENABLE_PREFIX_DELEGATION", "true")], Backend::Nft);
}

#[test]
fn without_node_ports() {
    taken_over("noports", &[("AWS_VPC_CNI_NODE_PORT_SUPPORT", "false")], Backend::Nft);
}
