//! DEL: it succeeds, whatever is left to be removed, and never hits anybody else.

use enid_tests::{Call, Pod, pod, wait_until};
use serde_json::json;

use super::{BOUND, add, del, has_lease, host_link, node, pod_of, when_idle, with};

// D55 D56 D57 D109
#[test]
fn the_first_removes_everything_and_further_ones_succeed() {
    let before = when_idle();
    let pod = pod_of("1.1.0", "gone");
    add(&pod);
    for _ in 0..3 {
        del(&pod);
    }
    pod.remove_namespace(node()).unwrap();
    assert!(!has_lease(&pod));
    del(&Pod { container: "never-seen".to_owned(), ..pod });
    assert_eq!(when_idle(), before);
}

// D10 D58 D59 D61 D66
#[test]
fn it_needs_no_namespace_no_result_and_no_memory_of_the_configuration() {
    let pod = pod_of("1.0.0", "lost");
    type Change = fn(Call, &Pod) -> Call;
    let changes: [Change; 10] = [
        |call, _| call.env("CNI_NETNS", ""),
        |call, _| call.without("CNI_NETNS"),
        |call, _| call.env("CNI_NETNS", "/run/netns/none-such"),
        |call, pod| call.stdin(&with(pod, &[("prevResult", json!({}))])),
        |call, pod| call.stdin(&with(pod, &[("prevResult", json!(null))])),
        |call, pod| call.stdin(&with(pod, &[("prevResult", json!("garbage"))])),
        |call, pod| call.stdin(&with(pod, &[("prevResult", json!({"ips": 5, "interfaces": {}}))])),
        |call, pod| call.stdin(&with(pod, &[("cniVersion", json!("0.3.0"))])),
        |call, pod| call.stdin(&with(pod, &[("cniVersion", json!("1.1.0")), ("ipam", json!({"type": "x"}))])),
        |call, _| call.stdin(r#"{"cniVersion":"0.3.1","name":"enid"}"#).env("CNI_ARGS", "nonsense"),
    ];
    for change in changes {
        add(&pod);
        change(Call::new(&pod, "DEL"), &pod).make(node()).unwrap().silent().unwrap();
        assert!(!has_lease(&pod));
    }
    pod.remove_namespace(node()).unwrap();
}

// D60
#[test]
fn a_link_that_is_gone_renamed_or_moved_is_no_obstacle() {
    let pod = pod_of("1.0.0", "moved");
    node().sh("ip netns add elsewhere").unwrap();
    let faults = [
        "ip -n moved link del eth0",
        "ip -n moved link set eth0 down; ip -n moved link set eth0 name other7",
        "ip -n moved link set eth0 netns elsewhere",
        "ip link set HOST down; ip link set HOST name strange0",
    ];
    for fault in faults {
        let before = when_idle();
        add(&pod);
        node().sh(&fault.replace("HOST", &host_link(&pod))).unwrap();
        del(&pod);
        assert_eq!(when_idle(), before, "{fault}");
    }
    node().sh("ip netns del elsewhere").unwrap();
    pod.remove_namespace(node()).unwrap();
}

// D62 D63
#[test]
fn a_result_that_lies_frees_nobody_elses_address() {
    let (liar, owner) = (pod_of("1.0.0", "liar"), pod_of("1.0.0", "owner"));
    add(&liar);
    let result = add(&owner);
    let config = with(&liar, &[("prevResult", result)]);
    Call::new(&liar, "DEL").stdin(&config).make(node()).unwrap().silent().unwrap();
    // Again, late: its address may be somebody else's by now.
    Call::new(&liar, "DEL").stdin(&config).make(node()).unwrap().silent().unwrap();
    assert!(has_lease(&owner) && !has_lease(&liar));
    let check = with(&owner, &[("prevResult", add(&owner))]);
    Call::new(&owner, "CHECK").stdin(&check).make(node()).unwrap().silent().unwrap();
    for pod in [liar, owner] {
        del(&pod);
        pod.remove_namespace(node()).unwrap();
    }
}

// D65
#[test]
fn during_an_add_of_the_same_attachment_nothing_is_left() {
    let before = when_idle();
    let pod = pod_of("1.0.0", "racing");
    for _ in 0..20 {
        std::thread::scope(|scope| {
            let adding = scope.spawn(|| Call::new(&pod, "ADD").make(node()).unwrap());
            del(&pod);
            adding.join().unwrap();
        });
        del(&pod);
    }
    pod.remove_namespace(node()).unwrap();
    wait_until(BOUND, || when_idle() == before).unwrap();
}

// D4
#[test]
fn it_survives_a_stderr_that_nobody_reads() {
    let pod = pod_of("1.0.0", "mute");
    add(&pod);
    // The daemon cannot be reached, which is worth a line on stderr.
    let config = with(&pod, &[("socket", json!("/none/such"))]);
    for redirection in ["2>&-", "2>/dev/full"] {
        Call::new(&pod, "DEL").stdin(&config).redirected(redirection).make(node()).unwrap().silent().unwrap();
    }
    wait_until(std::time::Duration::from_secs(90), || !has_lease(&pod)).unwrap();
    assert_eq!(pod::config("1.0.0", 30), pod.config);
    pod.remove_namespace(node()).unwrap();
}
