//! With the standard plugins before and after ours in the chain, run by the library.

use enid_tests::{
    Place, pod,
    traffic::{PORT, Spot, serve},
};
use serde_json::{Value, json};

use super::{DEBIAN, Network, current, node, nodes, ours, quiet_state};

/// What a runtime hands to plugins that declare these capabilities.
const ARGS: &str = r#"{"portMappings":[{"hostPort":18080,"containerPort":8080,"protocol":"tcp"}],"bandwidth":{"ingressRate":800000000,"ingressBurst":80000000,"egressRate":800000000,"egressBurst":80000000}}"#;

fn chain() -> Vec<Value> {
    vec![
        ours(),
        json!({"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}),
        json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}),
        json!({"type": "tuning", "sysctl": {"net.ipv4.conf.all.arp_filter": "1"}}),
    ]
}

/// The error of Debian's portmap 1.1.1 in CHECK of a pod without an IPv6 address, whatever plugin is before it.
const PORTMAP_FAULT: &str = "could not check ipv6 dnat";

fn chain_works(network: &Network, netns: &str) {
    let before = quiet_state();
    node().sh(&format!("ip netns add {netns}")).unwrap();
    let env = [("CAP_ARGS", ARGS)];
    let result = network.add(netns, &env);
    let address = pod::address(&result).unwrap();
    if let Err(refusal) = network.call("check", netns, &env) {
        assert!(refusal.to_string().contains(PORTMAP_FAULT) && netns == "chain-d", "{refusal}");
    }
    assert_eq!(
        node().sh(&format!("ip netns exec {netns} cat /proc/sys/net/ipv4/conf/all/arp_filter")).unwrap().trim(),
        "1"
    );
    assert!(node().sh("tc qdisc show").unwrap().contains("tbf"), "bandwidth has set no qdisc");
    let _servers = serve(node(), &[netns]).unwrap();
    let far = Spot { place: Place::node(nodes(), 1), netns: None };
    far.ask(&address, PORT).unwrap().expect(&nodes().node(1).address, &address).unwrap();
    // The host port, from the other node.
    let answer = far.ask(&nodes().node(0).address, 18080).unwrap();
    assert_eq!(answer.server, address);
    for _ in 0..2 {
        network.call("del", netns, &env).unwrap();
    }
    node().sh(&format!("ip netns del {netns}")).unwrap();
    assert_eq!(quiet_state(), before);
}

// D43 D68 D73 D108
#[test]
fn debians_plugins_after_ours() {
    let list = json!({"cniVersion": "1.0.0", "name": "enid", "plugins": chain()});
    chain_works(&Network::new("debian", &list, DEBIAN), "chain-d");
}

// D43 D68 D73 D108
#[test]
fn current_plugins_after_ours() {
    let list = json!({"cniVersion": "1.1.0", "name": "enid", "plugins": chain()});
    chain_works(&Network::new("current", &list, &current()), "chain-c");
}

// D27 D43 D108
#[test]
fn after_another_main_plugin_both_interfaces_work() {
    // The other one makes the interface of CNI_IFNAME, so ours must have another name: a runtime calls a list with one
    // name for all, and a second interface under the same name is refused and undone.
    let list = json!({"cniVersion": "1.0.0", "name": "enid", "plugins": [
        {"type": "ptp", "ipam": {"type": "host-local", "subnet": "192.0.2.0/24", "dataDir": "/run/conformance"}},
        ours(),
    ]});
    let network = Network::new("behind", &list, &current());
    let before = quiet_state();
    node().sh("ip netns add behind").unwrap();
    let refusal = network.call("add", "behind", &[]).unwrap_err().to_string();
    assert!(refusal.contains("already has an interface named eth0"), "{refusal}");
    network.call("del", "behind", &[]).unwrap();
    // loopback makes an interface of another name, and its result is passed on.
    let list = json!({"cniVersion": "1.0.0", "name": "enid", "plugins": [{"type": "loopback"}, ours()]});
    let network = Network::new("after-lo", &list, &current());
    let result = network.add("behind", &[]);
    assert_eq!(result["interfaces"][0]["name"], "lo");
    let own = &result["interfaces"][2];
    assert_eq!((&own["name"], &own["sandbox"]), (&json!("eth0"), &json!("/run/netns/behind")));
    network.call("check", "behind", &[]).unwrap();
    network.call("del", "behind", &[]).unwrap();
    node().sh("ip netns del behind").unwrap();
    assert_eq!(quiet_state(), before);
}
