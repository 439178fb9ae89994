//! ADD: what it makes, what it says, and what a refused one leaves.

use enid_tests::{Call, Pod, pod, traffic::Spot};
use serde_json::{Value, json};

use super::{add, del, has_lease, host_link, node, pod_of, when_idle, with};

const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

fn json_of(command: &str) -> Value {
    serde_json::from_str(&node().sh(command).unwrap()).unwrap()
}

// D31 D32 D33 D37 D39 D40 D41 D42 D54
#[test]
fn what_it_says_is_what_the_kernel_has() {
    for version in VERSIONS {
        let pod = pod_of(version, "said");
        let result = add(&pod);
        let address = pod::address(&result).unwrap();
        // At once: no neighbour to be found, no address to be proven.
        Spot { place: node(), netns: Some("said") }.ping(&node().lab.node(0).address, 56).unwrap();
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["ips"][0]["version"].as_str(), version.starts_with("0.").then_some("4"));
        assert_eq!(result["ips"][0]["interface"], 1);
        assert_eq!(result["ips"][0]["gateway"], "169.254.1.1");
        let (host, inside) = (&result["interfaces"][0], &result["interfaces"][1]);
        assert_eq!((host.get("sandbox"), &inside["sandbox"]), (None, &json!("/run/netns/said")));
        assert_eq!((&host["name"], &inside["name"]), (&json!(host_link(&pod)), &json!("eth0")));
        let link = json_of("ip -n said -j addr show eth0");
        let up = link[0]["flags"].as_array().unwrap().contains(&json!("UP"));
        assert!(up, "{link}");
        assert_eq!(inside["mac"], link[0]["address"]);
        assert_eq!(link[0]["addr_info"][0]["local"], address.as_str());
        let outside = json_of(&format!("ip -j link show {}", host_link(&pod)));
        assert_eq!(host["mac"], outside[0]["address"]);
        let newest = version == "1.1.0";
        for (said, found) in [(inside, &link[0]["mtu"]), (host, &outside[0]["mtu"])] {
            assert_eq!(said.get("mtu"), newest.then_some(found), "{version}");
        }
        let routes = json_of("ip -n said -j route show");
        for said in result["routes"].as_array().unwrap() {
            let dst = said["dst"].as_str().unwrap();
            let shown = if dst == "0.0.0.0/0" { "default" } else { dst.trim_end_matches("/32") };
            let found = routes.as_array().unwrap().iter().find(|route| route["dst"] == shown);
            assert_eq!(found.unwrap().get("gateway"), said.get("gw"), "{routes}");
            assert_eq!(said.get("scope").is_some(), newest && said.get("gw").is_none());
        }
        assert_eq!(routes.as_array().unwrap().len(), result["routes"].as_array().unwrap().len());
        del(&pod);
        pod.remove_namespace(node()).unwrap();
    }
}

// D27 D35 D43 D44
#[test]
fn as_a_chained_plugin_it_passes_on_what_others_made() {
    for version in VERSIONS {
        let pod = pod_of(version, "chained");
        let mut before = json!({
            "cniVersion": version,
            "interfaces": [{"name": "net1", "mac": "02:00:00:00:00:09", "sandbox": "/run/netns/chained"}],
            "ips": [{"address": "192.0.2.7/24", "gateway": "192.0.2.1", "interface": 0}],
            "routes": [{"dst": "198.51.100.0/24", "gw": "192.0.2.1"}],
            "dns": {"nameservers": ["192.0.2.53"], "domain": "example.org", "search": ["a.example"], "options": ["x"]},
        });
        if version.starts_with("0.") {
            before["ips"][0]["version"] = json!("4");
        }
        if version == "1.1.0" {
            before["interfaces"][0]["mtu"] = json!(1500);
            before["interfaces"][0]["pciID"] = json!("0000:00:05.0");
            before["routes"][0]["mtu"] = json!(1400);
            before["routes"][0]["priority"] = json!(7);
        }
        let config = with(&pod, &[("prevResult", before.clone()), ("dns", json!({"nameservers": ["203.0.113.1"]}))]);
        let pod = Pod { config, ..pod };
        let result = add(&pod);
        for key in ["interfaces", "ips", "routes"] {
            assert_eq!(result[key][0], before[key][0], "{version} {key}");
        }
        assert_eq!(result["dns"], before["dns"]);
        assert_eq!(result["ips"][1]["interface"], 2);
        assert_eq!(result["interfaces"].as_array().unwrap().len(), 3);
        // CHECK with the whole result, as the runtime gives it back.
        if !version.starts_with("0.3") {
            let config = with(&pod, &[("prevResult", result)]);
            Call::new(&pod, "CHECK").stdin(&config).make(node()).unwrap().silent().unwrap();
        }
        del(&pod);
        pod.remove_namespace(node()).unwrap();
    }
}

// D38 D47 D48
#[test]
fn an_interface_that_is_there_stays_and_nothing_is_taken() {
    let pod = pod_of("1.0.0", "taken");
    node()
        .sh("ip -n taken link add eth0 type veth peer name other0; ip -n taken addr add 192.0.2.1/24 dev eth0")
        .unwrap();
    let before = node().sh("ip -n taken -o addr show eth0").unwrap();
    pod.refused(node(), 100, &["eth0"]).unwrap();
    assert_eq!(node().sh("ip -n taken -o addr show eth0").unwrap(), before);
    del(&pod);
    assert_eq!(node().sh("ip -n taken -o addr show eth0").unwrap(), before);
    pod.remove_namespace(node()).unwrap();
}

// D14 D17 D18
#[test]
fn namespaces_and_arguments_that_cannot_be_are_refused() {
    let pod = pod_of("1.0.0", "odd");
    let call = Call::new(&pod, "ADD");
    let refused = |call: Call, code: u64, word: &str| {
        let before = when_idle();
        call.make(node()).unwrap().refused(code, &[word]).unwrap();
        assert_eq!(when_idle(), before);
    };
    refused(call.clone().env("CNI_NETNS", "/proc/self/ns/net"), 8, "/proc/self/ns/net");
    refused(call.clone().env("CNI_NETNS", "/proc/self/ns/mnt"), 4, "no network namespace");
    refused(call.clone().env("CNI_NETNS", "/etc/passwd"), 4, "/etc/passwd");
    refused(call.clone().env("CNI_NETNS", "/none/such"), 4, "/none/such");
    refused(call.clone().env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME"), 4, "K8S_POD_NAME");
    refused(call.clone().env("CNI_IFNAME", "eth%d"), 4, "eth%d");
    call.env("CNI_ARGS", "IgnoreUnknown=1;COLOUR=green").make(node()).unwrap().fine().unwrap();
    del(&pod);
    pod.remove_namespace(node()).unwrap();
}

// D49
#[test]
fn repeated_it_ends_in_one_interface_with_the_same_address() {
    let pod = pod_of("1.0.0", "again");
    let first = pod::address(&add(&pod)).unwrap();
    assert_eq!(pod::address(&add(&pod)).unwrap(), first);
    assert_eq!(node().leases().unwrap().iter().filter(|lease| lease["container"] == "sandbox-again").count(), 1);
    Spot { place: node(), netns: Some("again") }.ping(&node().lab.node(0).address, 56).unwrap();
    del(&pod);
    pod.remove_namespace(node()).unwrap();
}

// D13 D15 D23 D25 D100 D110
#[test]
fn it_needs_nothing_but_what_the_specification_names() {
    let pod = pod_of("1.0.0", "bare");
    let config = with(
        &pod,
        &[
            ("args", json!({"cni": {"x": 1}})),
            ("runtimeConfig", json!({"portMappings": [], "io.kubernetes.cri.pod-annotations": {"a": "b"}})),
            ("cni.dev/anything", json!([1])),
            ("capabilities", json!({"portMappings": true})),
            ("disableGC", json!(true)),
            ("disableCheck", json!(true)),
            ("neverHeardOf", json!({"deep": [[[]]]})),
        ],
    );
    // No home, no path, no terminal, a root that cannot be written, and odd neighbours in the environment.
    let call = Call::new(&pod, "ADD").stdin(&config).env("TRACEPARENT", "garbage").env("BAGGAGE", "\u{fffd}=;");
    let sealed = ["unshare", "-m", "sh", "-c", "mount -o remount,bind,ro / 2>/dev/null; exec \"$@\"", "sh"];
    call.under(&sealed).make(node()).unwrap().fine().unwrap();
    assert!(has_lease(&pod));
    del(&pod);
    pod.remove_namespace(node()).unwrap();
}
