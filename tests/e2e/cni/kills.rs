//! The plugin killed, or refused by the kernel, at each of its steps. The steps are read from the program itself: one
//! run under strace tells every system call by which it changes or says something.

use std::collections::BTreeMap;

use enid_tests::{Call, Pod};

use super::{add, del, has_lease, node, pod_of, when_idle};

/// What changes anything outside the process, or tells anybody.
const STEPS: &str = "socket,connect,setns,sendto,sendmsg,write,writev";

/// How often each of those is called in one ADD.
fn steps(pod: &Pod) -> BTreeMap<String, usize> {
    let log = format!("/tmp/enid-steps-{}", std::process::id());
    let strace = ["strace", "-f", "-qq", "-o", &log, "-e", &format!("trace={STEPS}")];
    Call::new(pod, "ADD").under(&strace).make(node()).unwrap().fine().unwrap();
    let text = node().sh(&format!("cat {log}; rm {log}")).unwrap();
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        let name = line.split_whitespace().nth(1).and_then(|call| call.split('(').next()).unwrap();
        *counts.entry(name.to_owned()).or_default() += 1;
    }
    counts
}

/// One ADD with this injected into the call of that number, and whether that call came.
fn with_fault(pod: &Pod, name: &str, number: usize, fault: &str) -> (enid_tests::call::Answer, bool) {
    let inject = format!("inject={name}:{fault}:when={number}");
    let log = format!("/tmp/enid-fault-{}", std::process::id());
    let strace = ["strace", "-f", "-qq", "-o", &log, "-e", &format!("trace={name}"), "-e", &inject];
    let answer = Call::new(pod, "ADD").under(&strace).make(node()).unwrap();
    let text = node().sh(&format!("cat {log}; rm {log}")).unwrap();
    (answer, text.contains("(INJECTED)"))
}

// D52 D65
#[test]
fn killed_at_any_step_del_and_add_work_and_nothing_is_left() {
    let before = when_idle();
    let pod = pod_of("1.1.0", "killed");
    let steps = steps(&pod);
    del(&pod);
    let (mut tried, mut lived) = (0, Vec::new());
    for (name, count) in &steps {
        for number in 1..=*count {
            // strace ends by the signal of what it traces.
            let (answer, _) = with_fault(&pod, name, number, "signal=KILL");
            tried += 1;
            if answer.code == Some(0) {
                lived.push(format!("{name} {number}"));
            }
            if number % 2 == 0 {
                del(&pod); // and without a DEL in between, as after a lost answer
            }
            add(&pod);
            del(&pod);
            assert!(!has_lease(&pod), "{name} {number}");
        }
    }
    println!("killed at {} of {tried} steps: {steps:?}", tried - lived.len());
    assert!(tried >= 15 && lived.is_empty(), "lived through {lived:?} of {tried}: {steps:?}");
    pod.remove_namespace(node()).unwrap();
    assert_eq!(when_idle(), before);
}

// D2 D3 D47 D48 D53
#[test]
fn refused_by_the_kernel_at_any_step_it_undoes_its_own_work() {
    let before = when_idle();
    let pod = pod_of("1.1.0", "refused");
    let steps = steps(&pod);
    del(&pod);
    let made = when_idle();
    let mut refusals = 0;
    for (name, error) in [("socket", "EMFILE"), ("connect", "ECONNREFUSED"), ("setns", "EPERM"), ("sendto", "ENOBUFS")]
    {
        for number in 1..=*steps.get(name).unwrap_or(&0) {
            let (answer, came) = with_fault(&pod, name, number, &format!("error={error}"));
            if !came {
                answer.fine().unwrap();
                del(&pod);
                continue;
            }
            refusals += 1;
            let refused =
                answer.refused(100, &[]).or_else(|_| answer.refused(4, &[])).or_else(|_| answer.refused(11, &[]));
            refused
                .or_else(|_| answer.refused(5, &[]))
                .unwrap_or_else(|_| panic!("{name} {number} {error}: {answer:?}"));
            enid_tests::wait_until(super::BOUND, || !has_lease(&pod)).unwrap();
            assert_eq!(when_idle(), made, "{name} {number} {error}");
            assert!(node().sh("ip -n refused link show eth0").is_err(), "{name} {number} {error}");
        }
    }
    assert!(refusals >= 12, "{refusals} of {steps:?}");
    del(&pod); // of an ADD that failed
    pod.remove_namespace(node()).unwrap();
    assert_eq!(when_idle(), before);
}
