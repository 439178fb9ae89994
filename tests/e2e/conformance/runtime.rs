//! A real containerd on each node, driven over CRI.

use std::{collections::BTreeSet, sync::OnceLock};

use enid_tests::{
    Place,
    runtime::{Release, Runtime},
    wait_until,
};

use super::{BOUND, nodes, quiet_state_of};

const AT_ONCE: usize = 20;

fn runtimes() -> &'static [Runtime; 2] {
    static RUNTIMES: OnceLock<[Runtime; 2]> = OnceLock::new();
    RUNTIMES.get_or_init(|| {
        [0, 1].map(|node| {
            let place = Place::node(nodes(), node);
            place.sh("cp /usr/lib/cni/loopback /usr/lib/cni/portmap /opt/cni/bin/").unwrap();
            // The daemon reads its chain every few seconds: host ports are offered from then on.
            wait_until(BOUND, || place.sh("grep -q portmap /etc/cni/net.d/05-enid.conflist").is_ok()).unwrap();
            Runtime::start(place, Release::Debian).unwrap()
        })
    })
}

/// What a server sends to a client on a node.
fn ask(node: usize, address: &str, port: u16) -> anyhow::Result<String> {
    let program = format!("import socket; print(socket.create_connection(('{address}', {port}), 5).makefile().read())");
    Ok(nodes().run(Place::node(nodes(), node).name, "python3", &["-c", &program])?.trim().to_owned())
}

// D27 D56 D58 D68
#[test]
fn containers_of_two_nodes_serve_and_leave_nothing() {
    let [here, there] = runtimes();
    let states = || [0, 1].map(|node| quiet_state_of(Place::node(nodes(), node)));
    let before = states();
    let (a, b) = (here.run_pod("web-a", &[(18081, 8080)]).unwrap(), there.run_pod("web-b", &[]).unwrap());
    here.serve(&a, "web-a").unwrap();
    there.serve(&b, "web-b").unwrap();
    let addresses = [here.address(&a).unwrap(), there.address(&b).unwrap()];
    for (node, address) in addresses.iter().enumerate() {
        let lease =
            Place::node(nodes(), node).leases().unwrap().into_iter().find(|lease| lease["address"] == address.as_str());
        assert_eq!(lease.unwrap()["pod_name"], ["web-a", "web-b"][node]);
        for from in [0, 1] {
            wait_until(BOUND, || ask(from, address, 8080).is_ok_and(|text| text == "served")).unwrap();
        }
    }
    // The host port, from the other node.
    assert_eq!(ask(1, &nodes().node(0).address, 18081).unwrap(), "served");
    here.remove(&a).unwrap();
    there.remove(&b).unwrap();
    assert_eq!(states(), before);
    // containerd deletes twice, the second time without a namespace: neither fails.
    assert!(!here.log().contains("failed to destroy network"), "{}", here.log());
}

// D50 D105
#[test]
fn many_sandboxes_at_once_while_the_plugin_is_replaced() {
    let [here, _] = runtimes();
    let place = Place::node(nodes(), 0);
    let swap = "cp /opt/cni/bin/enid-cni /opt/cni/bin/.new; mv /opt/cni/bin/.new /opt/cni/bin/enid-cni";
    let sandboxes: Vec<String> = std::thread::scope(|scope| {
        let making: Vec<_> =
            (0..AT_ONCE).map(|n| scope.spawn(move || here.run_pod(&format!("many-{n}"), &[]).unwrap())).collect();
        while making.iter().any(|thread| !thread.is_finished()) {
            place.sh(swap).unwrap();
        }
        making.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let addresses: BTreeSet<String> = sandboxes.iter().map(|sandbox| here.address(sandbox).unwrap()).collect();
    assert_eq!(addresses.len(), AT_ONCE);
    assert_eq!(place.leases().unwrap().len(), AT_ONCE);
    std::thread::scope(|scope| {
        for sandbox in &sandboxes {
            scope.spawn(|| here.remove(sandbox).unwrap());
        }
    });
    assert!(place.leases().unwrap().is_empty());
    assert_eq!(here.sandboxes().unwrap(), 0);
}
