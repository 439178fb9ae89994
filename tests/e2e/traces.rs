//! A trace that the runtime names goes through plugin, daemon and EC2 call to a collector, and what only the plugin can say is in the
//! daemon's log.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    process::{Child, Stdio},
    sync::OnceLock,
    time::Duration,
};

use enid_tests::{Call, Daemon, Lab, LabConfig, Place, Pod, program, wait_until};
use serde_json::Value;

const BOUND: Duration = Duration::from_secs(30);
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(|| Lab::up(&LabConfig { nodes: 2, ..LabConfig::default() }).unwrap())
}

/// Takes spans on the node; what it prints is in a file there.
struct Collector<'a>(Place<'a>, Child);

impl<'a> Collector<'a> {
    const FILE: &'static str = "/run/spans";

    fn start(place: Place<'a>) -> Self {
        let collector = program("collector").unwrap();
        let line = format!("exec {} 127.0.0.1:4317 >{}", collector.display(), Self::FILE);
        let child = place.command("sh").unwrap().args(["-c", &line]).stdin(Stdio::null()).spawn().unwrap();
        wait_until(BOUND, || place.sh("ss -Hltn 'sport = :4317' | grep -q 4317").is_ok()).unwrap();
        Collector(place, child)
    }

    fn spans(&self) -> Vec<Value> {
        let text = self.0.sh(&format!("cat {}", Self::FILE)).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    fn wait_for(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut found = None;
        wait_until(BOUND, || {
            found = self.spans().into_iter().find(|span| wanted(span));
            found.is_some()
        })
        .unwrap_or_else(|_| panic!("{:#?}", self.spans()));
        found.unwrap()
    }
}

impl Drop for Collector<'_> {
    fn drop(&mut self) {
        let _ = self.1.kill();
        let _ = self.1.wait();
    }
}

#[test]
fn a_trace_goes_from_the_runtime_through_the_plugin_to_ec2() {
    let place = Place::node(lab(), 0);
    let collector = Collector::start(place);
    let settings = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317"),
        // Nothing is kept available: the ADD waits for EC2.
        ("WARM_ENI_TARGET", "0"),
        ("IP_COOLDOWN_PERIOD", "0"),
    ];
    let daemon = Daemon::spawn(place, &settings).unwrap();
    wait_until(BOUND, || place.enid("status").is_ok()).unwrap();
    let pod = Pod::new(0, "traced");
    pod.make_namespace(place).unwrap();
    let traced = |verb: &str, flags: &str| {
        let traceparent = format!("00-{TRACE}-{PARENT}-{flags}");
        Call::new(&pod, verb).env("TRACEPARENT", &traceparent).make(place).unwrap()
    };
    traced("ADD", "01").fine().unwrap();
    let add = collector.wait_for(|span| span["name"] == "ADD");
    assert_eq!((&add["trace"], &add["parent"]), (&TRACE.into(), &PARENT.into()), "{add}");
    assert_eq!(add["attributes"]["k8s.pod.name"], "traced", "{add}");
    assert_eq!(add["resource"]["service.name"], "enid", "{add}");
    for phase in ["ADD address", "ADD wiring", "ADD verdict"] {
        let phase = collector.wait_for(|span| span["name"] == phase);
        assert_eq!((&phase["trace"], &phase["parent"]), (&add["trace"], &add["span"]), "{phase}");
    }
    let assigned = collector.wait_for(|span| span["name"] == "AssignPrivateIpAddresses");
    assert_eq!((&assigned["trace"], &assigned["parent"]), (&add["trace"], &add["span"]), "{assigned}");
    traced("DEL", "01").silent().unwrap();
    let del = collector.wait_for(|span| span["name"] == "DEL");
    assert_eq!((&del["trace"], &del["parent"]), (&TRACE.into(), &PARENT.into()), "{del}");
    // One that the runtime does not record is not sent; one that is no TRACEPARENT says nothing.
    traced("ADD", "00").fine().unwrap();
    Call::new(&pod, "DEL").env("TRACEPARENT", "00-what").make(place).unwrap().silent().unwrap();
    let own = collector.wait_for(|span| span["name"] == "DEL" && span["trace"] != TRACE);
    assert_eq!(own["parent"], "", "{own}");
    assert_eq!(collector.spans().iter().filter(|span| span["name"] == "ADD").count(), 1);
    // A collector that is away holds nothing up.
    drop(collector);
    traced("ADD", "01").fine().unwrap();
    traced("DEL", "01").silent().unwrap();
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}

#[test]
fn what_only_the_plugin_can_say_is_in_the_daemons_log() {
    let place = Place::node(lab(), 1);
    let daemon = Daemon::start(place, &[("WARM_IP_TARGET", "2"), ("IP_COOLDOWN_PERIOD", "0")]).unwrap();
    let pod = Pod::new(1, "spoken");
    pod.add(place).unwrap();
    let host = place.leases().unwrap()[0]["host_ifname"].as_str().unwrap().to_owned();
    pod.del(place).unwrap();
    // Somebody else's link has the name that the pod's is to have.
    place.sh(&format!("ip link add {host} type veth peer name other")).unwrap();
    pod.make_namespace(place).unwrap();
    pod.call(place, "ADD").unwrap();
    wait_until(BOUND, || daemon.log().contains("belonged to another attachment")).unwrap();
    pod.call(place, "DEL").unwrap();
    // The container has an interface of that name already: the daemon is not even asked.
    place.sh("ip -n spoken link add eth0 type veth peer name eth1").unwrap();
    let (ok, error, _) = pod.try_call(place, "ADD").unwrap();
    assert!(!ok, "{error}");
    let words = error["msg"].as_str().unwrap().to_owned();
    wait_until(BOUND, || daemon.log().contains(&words)).unwrap_or_else(|_| panic!("{words}: {}", daemon.log()));
    let story = place.enid("why default/spoken").unwrap();
    let last = story["operations"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&last["kind"], &last["outcome"]), (&"ADD".into(), &"failed".into()), "{last}");
    assert_eq!((&last["message"], &last["cause"]), (&words.into(), &"wiring_failed".into()), "{last}");
    assert!(error["details"].as_str().unwrap().contains("cause=wiring_failed"), "{error}");
}
