//! What LocalStack's EC2 lacks, with the model behind the unmodified SDK: prefixes, full subnets, throttling.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use enid_tests::{
    Backend, Daemon, Lab, LabConfig, Place, Pod, consistency, pod,
    traffic::{PORT, Spot, serve},
    wait_until,
};
use vpclab::model::Faults;

const BOUND: Duration = Duration::from_secs(45);
/// Pauses after refusals grow to a minute, and an excess is kept for one.
const MINUTES: Duration = Duration::from_secs(150);

fn lab(name: &str, nodes: usize) -> Lab {
    let name = format!("{name}{}", std::process::id());
    Lab::up(&LabConfig { name, nodes, ec2: Backend::Model, ..LabConfig::default() }).unwrap()
}

fn pods(node: usize, name: &str, count: usize) -> Vec<Pod> {
    (0..count).map(|n| Pod::new(node, &format!("{name}-{n}"))).collect()
}

/// Pods of each place connect to pods of the other; each is seen with its own address.
fn connect_all(a: (Place<'_>, &[(Pod, String)]), b: (Place<'_>, &[(Pod, String)])) {
    for ((from, asking), (to, asked)) in [(a, b), (b, a)] {
        let names: Vec<&str> = asked.iter().map(|(pod, _)| pod.name.as_str()).collect();
        let _servers = serve(to, &names).unwrap();
        for ((client, client_address), (_, server_address)) in asking.iter().zip(asked) {
            let answer = Spot { place: from, netns: Some(&client.name) }.ask(server_address, PORT).unwrap();
            answer.expect(client_address, server_address).unwrap();
        }
    }
}

fn add_all(place: Place<'_>, pods: Vec<Pod>) -> Vec<(Pod, String)> {
    pods.into_iter().map(|pod| (pod.clone(), pod.add(place).unwrap().0)).collect()
}

fn nets(pods: &[(Pod, String)]) -> BTreeSet<u32> {
    pods.iter().map(|(_, address)| address.parse::<Ipv4Addr>().unwrap().to_bits() >> 4).collect()
}

#[test]
fn prefixes_are_filled_in_turn_and_unassigned_down_to_the_target() {
    let lab = lab("prefixes", 2);
    let (warm, auto) = (Place::node(&lab, 0), Place::node(&lab, 1));
    let common = [("ENABLE_PREFIX_DELEGATION", "true"), ("IP_COOLDOWN_PERIOD", "1")];
    let _warm = Daemon::start(warm, &[&common[..], &[("WARM_PREFIX_TARGET", "1")]].concat()).unwrap();
    let _auto = Daemon::start(auto, &common).unwrap();
    wait_until(BOUND, || warm.number("prefixes").unwrap() == 1).unwrap();
    let (on_warm, on_auto) = (add_all(warm, pods(0, "warm", 20)), add_all(auto, pods(1, "auto", 20)));
    // The fullest first: twenty pods take two blocks, and the node with WARM_PREFIX_TARGET has one more, unused.
    assert_eq!((nets(&on_warm).len(), nets(&on_auto).len()), (2, 2));
    wait_until(BOUND, || warm.number("prefixes").unwrap() == 3).unwrap();
    for place in [warm, auto] {
        assert_eq!(place.number("total").unwrap(), place.number("prefixes").unwrap() * 16);
        wait_until(BOUND, || consistency::check(place).is_ok()).unwrap();
        consistency::check(place).unwrap();
    }
    connect_all((warm, &on_warm), (auto, &on_auto));
    on_warm.iter().for_each(|(pod, _)| pod.del(warm).unwrap());
    on_auto.iter().for_each(|(pod, _)| pod.del(auto).unwrap());
    wait_until(MINUTES, || warm.number("prefixes").unwrap() == 1).unwrap();
    // The automatic target keeps what was assigned at the same time in the last half hour.
    assert_eq!(auto.number("assigned").unwrap(), 0);
    assert!(auto.number("total").unwrap() >= 20);
    for place in [warm, auto] {
        wait_until(BOUND, || consistency::check(place).is_ok()).unwrap();
    }
    assert_eq!(lab.drops().unwrap().foreign_source, 0);
}

#[test]
fn a_full_subnet_is_named_as_the_cause_and_disturbs_no_pod() {
    let lab = lab("full", 2);
    let (place, other) = (Place::node(&lab, 0), Place::node(&lab, 1));
    let _daemon = Daemon::start(place, &[("WARM_IP_TARGET", "3"), ("IP_COOLDOWN_PERIOD", "1")]).unwrap();
    let _other = Daemon::start(other, &[("WARM_IP_TARGET", "3")]).unwrap();
    let status = || place.enid("status").unwrap();
    wait_until(BOUND, || status()["available"] == 3 && status()["calls"].as_array().unwrap().is_empty()).unwrap();
    let subnet = &lab.node(0).subnet_id;
    let everything: Vec<Ipv4Addr> = (1..255).map(|last| Ipv4Addr::new(10, 0, 1, last)).collect();
    lab.occupy(subnet, &everything).unwrap();
    let live = add_all(place, pods(0, "live", 3));
    let others = add_all(other, pods(1, "other", 3));
    let one_more = Pod { config: pod::config("1.0.0", 5), ..Pod::new(0, "one-more") };
    one_more.make_namespace(place).unwrap();
    let words = ["subnet_full", "InsufficientFreeAddressesInSubnet", "aws_request_id="];
    let error = one_more.refused(place, 11, &words).unwrap();
    let request_id = error["details"].as_str().unwrap().split("aws_request_id=").nth(1).unwrap();
    assert_eq!(request_id.split(' ').next().unwrap().len(), 36, "{error}");
    assert_eq!(status()["cause"], "subnet_full");
    let left = || status()["cause_message"].to_string().contains("has no free addresses left");
    wait_until(BOUND, left).unwrap();
    assert_eq!(status()["ready"], true, "the pods that run have their network");
    // Running pods keep their connections, and nothing is left half created.
    connect_all((place, &live), (other, &others));
    consistency::check(place).unwrap();
    assert_eq!(place.number("enis").unwrap(), 1);
    live[0].0.del(place).unwrap();
    wait_until(BOUND, || status()["available"] == 1).unwrap();
    live[0].0.add(place).unwrap();
    // Addresses of the subnet are unassigned by others: the next attempt gets one.
    lab.vacate(subnet, &everything[100..120]).unwrap();
    wait_until(MINUTES, || one_more.try_call(place, "ADD").unwrap().0).unwrap();
    wait_until(BOUND, || place.serves()).unwrap();
    wait_until(BOUND, || consistency::check(place).is_ok()).unwrap();
    assert_eq!(place.leases().unwrap().len(), 4);
    assert_eq!(lab.drops().unwrap().foreign_source, 0);
}

#[test]
fn twenty_pods_are_added_while_half_of_the_calls_are_throttled() {
    let lab = lab("throttled", 1);
    let place = Place::node(&lab, 0);
    let _daemon = Daemon::start(place, &[("WARM_IP_TARGET", "1")]).unwrap();
    let status = || place.enid("status").unwrap();
    wait_until(BOUND, || status()["calls"].as_array().unwrap().is_empty()).unwrap();
    let throttle = |chance: f64| {
        let actions = [
            "AssignPrivateIpAddresses",
            "AttachNetworkInterface",
            "CreateNetworkInterface",
            "CreateTags",
            "DescribeNetworkInterfaces",
            "ModifyNetworkInterfaceAttribute",
        ];
        let fail = actions.map(|action| (action.to_owned(), (chance, "RequestLimitExceeded".to_owned())));
        lab.set_ec2(&Faults { fail: BTreeMap::from(fail), ..Faults::default() }).unwrap();
    };
    let sum = |of: fn(&vpclab::model::Counted) -> u64| lab.ec2_counts().unwrap().values().map(of).sum::<u64>();
    let calls_before = sum(|counted| counted.calls);
    throttle(1.0);
    let pods: Vec<Pod> =
        pods(0, "pod", 20).into_iter().map(|pod| Pod { config: pod::config("1.0.0", 60), ..pod }).collect();
    pods.iter().for_each(|pod| pod.make_namespace(place).unwrap());
    // As the kubelet does: what is refused for now is tried again.
    let run = |pod: &Pod| {
        wait_until(2 * MINUTES, || {
            let (ok, error, _) = pod.try_call(place, "ADD").unwrap();
            assert!(ok || error["code"] == 11 && error.to_string().contains("throttled"), "{error}");
            ok
        })
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = pods.iter().map(|pod| scope.spawn(|| run(pod))).collect();
        wait_until(BOUND, || status()["cause"] == "throttled" && sum(|counted| counted.throttled) >= 3).unwrap();
        assert!(status()["cause_message"].as_str().unwrap().contains("RequestLimitExceeded"), "{}", status());
        wait_until(BOUND, || place.number("waiting").unwrap() == 19).unwrap();
        let metrics = place.metrics().unwrap();
        let counted = |line: &str| {
            line.starts_with("awscni_aws_api_error_count{")
                && line.contains("AssignPrivateIpAddresses")
                && line.contains("error=\"throttled\"")
        };
        assert!(metrics.lines().any(counted), "{metrics}");
        throttle(0.5);
        running.into_iter().for_each(|pod| pod.join().unwrap().unwrap());
    });
    assert_eq!(place.leases().unwrap().len(), 20);
    throttle(0.0);
    wait_until(MINUTES, || place.serves() && consistency::check(place).is_ok()).unwrap();
    // About ten calls are needed; as many again are throttled at one half, and some before that.
    let (calls, throttled) = (sum(|counted| counted.calls) - calls_before, sum(|counted| counted.throttled));
    assert!((10..100).contains(&calls) && throttled >= 3, "{:?}", lab.ec2_counts());
    pods.iter().for_each(|pod| pod.del(place).unwrap());
}
