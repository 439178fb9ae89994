//! Every verb and version, by the library.

use enid_tests::pod;
use serde_json::{Value, json};

use super::{Network, current, node, ours, quiet_state};

fn network(version: &str, more: &[(&str, Value)]) -> Network {
    let mut list = json!({"cniVersion": version, "name": "enid", "plugins": [ours()]});
    more.iter().for_each(|(key, value)| list[*key] = value.clone());
    Network::new(&format!("libcni-{}", version.replace('.', "")), &list, &current())
}

// D31 D37 D56 D61 D107
#[test]
fn every_version_adds_checks_and_deletes() {
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let before = quiet_state();
        let network = network(version, &[]);
        node().sh("ip netns add tested").unwrap();
        let result = network.add("tested", &[]);
        assert_eq!(result["cniVersion"], version);
        let address = pod::address(&result).unwrap();
        assert!(node().sh("ip -n tested -4 addr show eth0").unwrap().contains(&address));
        // The library does not even ask for CHECK before 0.4.0.
        let check = network.call("check", "tested", &[]);
        assert_eq!(check.is_ok(), version != "0.3.1", "{version}: {check:?}");
        node().sh("ip -n tested route del default").unwrap();
        if version != "0.3.1" {
            let refusal = network.call("check", "tested", &[]).unwrap_err().to_string();
            assert!(refusal.contains("default route"), "{refusal}");
        }
        for _ in 0..2 {
            network.call("del", "tested", &[]).unwrap();
        }
        node().sh("ip netns del tested").unwrap();
        assert_eq!(quiet_state(), before, "{version}");
    }
}

// D34 D107
#[test]
fn a_list_of_several_versions_is_run_at_the_newest() {
    let network = network("0.4.0", &[("cniVersions", json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]))]);
    node().sh("ip netns add several").unwrap();
    assert_eq!(network.add("several", &[])["cniVersion"], "1.1.0");
    network.call("check", "several", &[]).unwrap();
    network.call("del", "several", &[]).unwrap();
    node().sh("ip netns del several").unwrap();
}

// D79 D88 D89 D101 D107
#[test]
fn status_prints_nothing_and_gc_deletes_what_the_library_has_cached_and_nobody_lists() {
    let network = network("1.1.0", &[]);
    assert_eq!(network.call("status", "none", &[]).unwrap(), "");
    let before = quiet_state();
    node().sh("ip netns add stale; ip netns add kept").unwrap();
    network.add("stale", &[]);
    network.add("kept", &[]);
    let leases = || node().leases().unwrap().len();
    assert_eq!(leases(), 2);
    // `cnitool gc` lists nobody: the library deletes what its cache contains, then asks for GC.
    network.call("gc", "none", &[]).unwrap();
    assert_eq!(leases(), 0);
    network.call("gc", "none", &[]).unwrap();
    node().sh("ip netns del stale; ip netns del kept").unwrap();
    assert_eq!(quiet_state(), before);
}

// D105
#[test]
fn the_plugin_is_replaced_by_rename_while_it_runs() {
    let network = network("1.0.0", &[]);
    let swap = "cp /opt/cni/bin/enid-cni /opt/cni/bin/.new; mv /opt/cni/bin/.new /opt/cni/bin/enid-cni";
    node().sh("for n in $(seq 0 15); do ip netns add swap-$n; done").unwrap();
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..4)
            .map(|caller| {
                let network = &network;
                scope.spawn(move || {
                    for n in (caller..16).step_by(4) {
                        network.add(&format!("swap-{n}"), &[]);
                        network.call("del", &format!("swap-{n}"), &[]).unwrap();
                    }
                })
            })
            .collect();
        let mut swaps = 0;
        while callers.iter().any(|caller| !caller.is_finished()) {
            node().sh(swap).unwrap();
            swaps += 1;
        }
        assert!(swaps > 3, "{swaps}");
    });
    node().sh("for n in $(seq 0 15); do ip netns del swap-$n; done").unwrap();
}
