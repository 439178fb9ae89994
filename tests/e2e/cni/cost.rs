//! What one ADD costs, counted: system calls, netlink datagrams and processes of the plugin, disk writes of the daemon.
//! The counts may shrink; one that grows has to be meant.

use std::process::{Command, Stdio};

use enid_tests::{Call, Pod, wait_until};

use super::{BOUND, add, del, node, pod_of};

/// Of the plugin, start and end of the process included.
const SYSTEM_CALLS: usize = 67;
/// Of the plugin: is the name free, make the pair, which numbers has it, configure the pod's end, and the host's.
const DATAGRAMS: usize = 5;
/// Of the daemon, for ADDs one after the other; those that come together share one.
const DISK_WRITES: usize = 1;
const ADDS: usize = 10;

/// Every call of one ADD, a line each.
fn calls(pod: &Pod) -> Vec<String> {
    let log = format!("/tmp/enid-cost-{}", std::process::id());
    Call::new(pod, "ADD").under(&["strace", "-f", "-qq", "-o", &log]).make(node()).unwrap().fine().unwrap();
    let text = node().sh(&format!("cat {log}; rm {log}")).unwrap();
    del(pod);
    let lines: Vec<&str> = text.lines().filter(|line| line.contains('(')).collect();
    // `env` starts the plugin: what it did before is not the plugin's.
    let start = lines.iter().rposition(|line| line.contains("execve(")).unwrap();
    lines[start..].iter().map(|line| (*line).to_owned()).collect()
}

#[test]
fn what_an_add_costs_the_plugin() {
    let pod = pod_of("1.1.0", "costly");
    let calls = calls(&pod);
    let count = |word: &str| calls.iter().filter(|line| line.contains(word)).count();
    let (all, datagrams) =
        (calls.len(), calls.iter().filter(|line| line.contains("sendto(") && line.contains("nlmsg")).count());
    let processes = count("clone(") + count("clone3(") + count("fork(");
    let mut kinds = std::collections::BTreeMap::new();
    for line in &calls {
        *kinds
            .entry(line.split_whitespace().nth(1).and_then(|call| call.split('(').next()).unwrap_or_default())
            .or_insert(0) += 1;
    }
    println!("{kinds:?}");
    println!("one ADD: {all} system calls, {datagrams} netlink datagrams, {processes} processes or threads");
    assert_eq!(processes, 0);
    assert!(datagrams <= DATAGRAMS, "{datagrams} datagrams, {DATAGRAMS} were enough");
    assert!(all <= SYSTEM_CALLS, "{all} system calls, {SYSTEM_CALLS} were enough");
    pod.remove_namespace(node()).unwrap();
}

#[test]
fn what_an_add_costs_the_disk() {
    let pods: Vec<Pod> = (0..ADDS).map(|n| pod_of("1.1.0", &format!("disk-{n}"))).collect();
    let pid = super::daemon_pid().to_string();
    let log = std::env::temp_dir().join(format!("enid-disk-{}", std::process::id()));
    let mut strace = Command::new("strace")
        .args(["-f", "-p", &pid, "-e", "trace=fsync,fdatasync", "-o"])
        .arg(&log)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let traced = || {
        std::fs::read_to_string(format!("/proc/{pid}/status"))
            .unwrap()
            .contains(&format!("TracerPid:\t{}", strace.id()))
    };
    wait_until(BOUND, traced).unwrap();
    pods.iter().for_each(|pod| drop(add(pod)));
    // Asked to end, strace may wait for ever for a thread that has ended; it has written every line by now.
    strace.kill().unwrap();
    strace.wait().unwrap();
    let text = std::fs::read_to_string(&log).unwrap();
    std::fs::remove_file(&log).unwrap();
    // A call that another thread interrupts is two lines; its end is not counted again.
    let writes = text.lines().filter(|line| line.contains("sync(")).count();
    println!("{ADDS} ADDs: {writes} disk writes");
    assert!(writes <= DISK_WRITES * ADDS && writes > 0, "{writes} for {ADDS}: {text}");
    for pod in &pods {
        del(pod);
        pod.remove_namespace(node()).unwrap();
    }
}
