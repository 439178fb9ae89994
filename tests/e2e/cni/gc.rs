//! GC: an attachment ends if neither the runtime's list nor the kernel shows it; one alone is not enough.

use enid_tests::{Call, Pod, pod};
use serde_json::{Value, json};

use super::{add, del, has_lease, host_link, node, pod_of, with};

fn call(keys: &[(&str, Value)]) -> Call {
    let pod = Pod { config: pod::config("1.1.0", 30), ..Pod::new(0, "none") };
    Call::bare("GC").stdin(&with(&pod, keys))
}

fn collect(keys: &[(&str, Value)]) -> String {
    let answer = call(keys).make(node()).unwrap();
    answer.silent().unwrap();
    answer.stderr
}

fn entry(pod: &Pod) -> Value {
    json!({"containerID": pod.container, "ifname": pod.ifname})
}

/// The link goes, so nothing explains the lease: its DEL was lost.
fn unplug(pod: &Pod) {
    let host = host_link(pod);
    node().sh(&format!("ip link del {host}")).unwrap();
}

const VALID: &str = "cni.dev/valid-attachments";
const OLDER: &str = "cni.dev/attachments";

// D88 D89 D93 D95 D96 D97 D98
#[test]
fn what_nobody_lists_and_the_kernel_lacks_is_freed() {
    let pods = ["kept", "stale", "alive"].map(|name| pod_of("1.1.0", name));
    let [kept, stale, alive] = &pods;
    pods.iter().for_each(|pod| drop(add(pod)));
    [kept, stale].iter().for_each(|pod| unplug(pod));
    node().sh("ip netns del stale").unwrap();
    let unknown = json!({"containerID": "nobody-knows", "ifname": "eth0"});
    let said = collect(&[(VALID, json!([entry(kept), unknown]))]);
    assert!(has_lease(kept), "it is in the list");
    assert!(!has_lease(stale));
    assert!(has_lease(alive), "its link stands");
    assert!(said.contains("sandbox-alive"), "{said}");
    // An empty list says that no attachment exists; the second time the same.
    for _ in 0..2 {
        collect(&[(VALID, json!([]))]);
        assert!(!has_lease(kept) && has_lease(alive));
    }
    pods.iter().for_each(del);
    [kept, alive].iter().for_each(|pod| pod.remove_namespace(node()).unwrap());
}

// D91 D92 D94
#[test]
fn a_list_that_is_not_there_says_nothing_and_networks_are_apart() {
    let pod = pod_of("1.1.0", "waits");
    let other = pod_of("1.1.0", "apart");
    let other = Pod { config: with(&other, &[("name", json!("other"))]), ..other };
    [&pod, &other].iter().for_each(|pod| drop(add(pod)));
    [&pod, &other].iter().for_each(|pod| unplug(pod));
    let held = |first: bool, second: bool| assert_eq!((has_lease(&pod), has_lease(&other)), (first, second));
    collect(&[]);
    collect(&[(VALID, json!(null))]);
    held(true, true);
    collect(&[(OLDER, json!([entry(&pod)]))]);
    collect(&[(OLDER, json!([entry(&pod)])), (VALID, json!([]))]);
    held(true, true);
    collect(&[(VALID, json!([]))]);
    held(false, true);
    collect(&[(VALID, json!([])), ("name", json!("other"))]);
    held(false, false);
    [&pod, &other].iter().for_each(|pod| pod.remove_namespace(node()).unwrap());
}

// D87 D90
#[test]
fn bad_lists_and_old_versions_free_nobody() {
    let pod = pod_of("1.1.0", "safe");
    add(&pod);
    unplug(&pod);
    call(&[(VALID, json!("all"))]).make(node()).unwrap().refused(7, &["\\\"all\\\""]).unwrap();
    call(&[(VALID, json!([{"containerID": "x"}]))]).make(node()).unwrap().refused(7, &["ifname"]).unwrap();
    call(&[("cniVersion", json!("1.0.0")), (VALID, json!([]))]).make(node()).unwrap().refused(1, &["1.1.0"]).unwrap();
    call(&[("socket", json!("/none/such")), (VALID, json!([]))])
        .make(node())
        .unwrap()
        .refused(11, &["daemon_down"])
        .unwrap();
    assert!(has_lease(&pod));
    del(&pod);
    pod.remove_namespace(node()).unwrap();
}
