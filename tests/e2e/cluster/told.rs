//! What the cluster is told where pods get no address.

use std::{collections::BTreeSet, net::Ipv4Addr, time::Duration};

use enid_tests::{kube, wait_until};
use kubelab::Cluster;
use serde_json::{Value, json};
use vpclab::model::Faults;

use crate::{CLUSTER, api_server::enid, disturbance::are_ready};

/// A subnet that was short is asked again within two minutes, and the kubelet asks again within some seconds.
const BOUND: Duration = Duration::from_secs(180);

/// Addresses that a node has ahead at most, by the settings of these tests.
const AHEAD: u64 = 6;
/// Addresses for pods of an m5.xlarge: 4 ENIs with 15 each, of which the ENI has one.
const OF_TYPE: u32 = 56;
/// The taint of a node whose subnets are full, one that new nodes have, and one of somebody else.
const NO_ADDRESSES: &str = "status-taint.cluster-autoscaler.kubernetes.io/enid-no-addresses";
const STARTING: &str = "node.example.com/starting";
const OTHER: &str = "node.example.com/other";

/// A Deployment of pods on one node that only have their addresses.
pub fn deployment(name: &str, node: &str, replicas: u64) -> String {
    let container = json!({ "name": "idle", "image": kube::AGNHOST, "imagePullPolicy": "Never", "args": ["pause"] });
    let selector = json!({ "kubernetes.io/hostname": node });
    let pod = json!({ "terminationGracePeriodSeconds": 1, "nodeSelector": selector, "containers": [container] });
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": name } },
            "template": { "metadata": { "labels": { "app": name } }, "spec": pod },
        },
    })
    .to_string()
}

/// What Enid has told of pods, or of nodes.
pub fn told(cluster: &Cluster, kind: &str) -> Vec<Value> {
    let events = cluster.list("events", &[]).unwrap_or_default();
    let ours = |event: &Value| event["reportingComponent"] == "enid" && event["involvedObject"]["kind"] == kind;
    events.into_iter().filter(ours).collect()
}

/// The reason of the condition that a node has of Enid.
fn condition(cluster: &Cluster, node: &str) -> String {
    let path = r#"jsonpath={.status.conditions[?(@.type=="PodAddresses")].reason}"#;
    cluster.kubectl(&["get", "node", node, "-o", path]).unwrap_or_default()
}

#[test]
fn a_pod_without_an_address_says_why_and_its_node_stays_ready() {
    let cluster = &*CLUSTER;
    let starting = format!("ENID_STARTUP_TAINT={STARTING}");
    let on = ["ENID_NO_ADDRESSES_TAINT=true", "ENID_PUBLISH_ADDRESSES=true", "ANNOTATE_POD_IP=true", &starting];
    let settings = on.map(|setting| format!("--set=env.{setting}"));
    cluster.install_enid(&settings.each_ref().map(String::as_str)).unwrap();
    // What other tests have given reason for.
    cluster.kubectl(&["delete", "events", "--all", "--all-namespaces"]).unwrap();
    let lab = cluster.lab();
    let node = lab.node(0);
    let all: Vec<Ipv4Addr> = (1..255).map(|last| Ipv4Addr::new(10, 0, 1, last)).collect();
    lab.occupy(&node.subnet_id, &all).unwrap();
    cluster.apply(&deployment("short", &node.name, 20)).unwrap();
    let told = |kind: &str| told(cluster, kind);
    wait_until(BOUND, || !told("Pod").is_empty() && !told("Node").is_empty()).unwrap();
    for event in told("Pod").iter().chain(&told("Node")) {
        let words = event["message"].as_str().unwrap_or_default();
        assert!(event["reason"] == "SubnetFull" && event["type"] == "Warning", "{event}");
        assert!(words.contains(&node.subnet_id), "it names the subnet: {event}");
    }
    let name = told("Pod")[0]["involvedObject"]["name"].as_str().unwrap_or_default().to_owned();
    let described = cluster.kubectl(&["describe", "pod", &name]).unwrap();
    assert!(described.lines().any(|line| line.contains("SubnetFull") && line.contains("enid")), "{described}");
    let described = cluster.kubectl(&["describe", "node", &node.name]).unwrap();
    assert!(described.lines().any(|line| line.contains("SubnetFull") && line.contains("enid")), "{described}");
    assert!(are_ready(cluster).unwrap(), "a node without addresses for more pods is not ready");
    // However often the kubelet asks, a pod hears it once.
    let pods = told("Pod");
    for event in &pods {
        let same = |other: &&Value| other["involvedObject"]["uid"] == event["involvedObject"]["uid"];
        assert_eq!(pods.iter().filter(same).count(), 1, "{event}");
    }
    // Its status object says so too, with the subnet and what is left in it.
    let object = || -> Value {
        let text = cluster.kubectl(&["get", "enidnode", &node.name, "-o", "json"]).unwrap_or_default();
        serde_json::from_str::<Value>(&text).unwrap_or_default()["status"].clone()
    };
    let is_told = || object()["cause"] == "subnet_full" && object()["subnets"][0]["free"] == 0;
    wait_until(BOUND, is_told).unwrap_or_else(|_| panic!("{}", object()));
    assert!(object()["message"].as_str().unwrap().contains(&node.subnet_id), "{}", object());
    assert_eq!(object()["ready"], true);
    // And its condition.
    let condition = || condition(cluster, &node.name);
    wait_until(BOUND, || condition() == "SubnetFull").unwrap_or_else(|_| panic!("{}", condition()));
    // The scheduler is told what the node has, and not what it could have had.
    let published = || -> u32 {
        let path = r"jsonpath={.status.capacity.enid\.dev/addresses}";
        let count = cluster.kubectl(&["get", "node", &node.name, "-o", path]).unwrap_or_default();
        count.parse().unwrap_or_default()
    };
    wait_until(BOUND, || (1..OF_TYPE).contains(&published())).unwrap_or_else(|_| panic!("{}", published()));
    // Pods that have an address bear it.
    let served: Vec<Value> = {
        let pods = cluster.list("pods", &["-l", "app=short"]).unwrap();
        pods.into_iter().filter(|pod| pod["status"]["podIP"].is_string()).collect()
    };
    assert!(!served.is_empty(), "some of them have got what was there");
    for pod in served {
        assert_eq!(pod["metadata"]["annotations"]["vpc.amazonaws.com/pod-ips"], pod["status"]["podIP"], "{pod}");
    }

    // The taint comes, a rollout of the daemons ends all the same, and what others write stays.
    let keys = || cluster.kubectl(&["get", "node", &node.name, "-o", "jsonpath={.spec.taints[*].key}"]).unwrap();
    wait_until(BOUND, || keys().contains(NO_ADDRESSES)).unwrap_or_else(|_| panic!("{}", keys()));
    for key in [OTHER, STARTING] {
        cluster.kubectl(&["taint", "node", &node.name, &format!("{key}=1:NoSchedule")]).unwrap();
    }
    wait_until(BOUND, || !keys().contains(STARTING)).unwrap_or_else(|_| panic!("{}", keys()));
    cluster.kubectl(&["-n", "kube-system", "rollout", "restart", "daemonset/enid"]).unwrap();
    crate::disturbance::rolled_out(cluster).unwrap();
    let failed = cluster.list("events", &["--field-selector", "reason=FailedPreStopHook"]).unwrap();
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(keys(), OTHER, "a daemon that ends takes its taint off, and the next one sees for a minute first");

    lab.vacate(&node.subnet_id, &all).unwrap();
    wait_until(BOUND, || kube::rolled_out(cluster, "deployment/short").is_ok()).unwrap();
    wait_until(BOUND, || keys() == OTHER).unwrap_or_else(|_| panic!("{}", keys()));
    wait_until(BOUND, || condition() != "SubnetFull").unwrap_or_else(|_| panic!("{}", condition()));
    wait_until(BOUND, || published() == OF_TYPE).unwrap_or_else(|_| panic!("{}", published()));
    cluster.kubectl(&["taint", "node", &node.name, &format!("{OTHER}-")]).unwrap();
    kube::remove(cluster, "short").unwrap();
    cluster.install_enid(&[]).unwrap();
}

/// The kind: a right that is missing is heard of when the last address has gone; and what EC2 says of it is too long for an
/// event.
#[test]
fn a_missing_right_and_pods_beyond_the_addresses_are_told_while_there_are_addresses() {
    let cluster = &*CLUSTER;
    cluster.kubectl(&["delete", "events", "--all", "--all-namespaces"]).unwrap();
    let (lab, node) = (cluster.lab(), cluster.lab().node(0));
    // What pods of before have left is given back: with it nothing more would be wanted.
    let daemon = &cluster.nodes().unwrap()[0];
    let count = |what: &str| enid(daemon, "status").ok().and_then(|status| status[what].as_u64());
    let is_at_rest = || count("cooling") == Some(0) && count("available").is_some_and(|it| (2..=AHEAD).contains(&it));
    wait_until(BOUND, is_at_rest).unwrap_or_else(|_| panic!("{:?}", enid(daemon, "status")));
    let deny = ["AssignPrivateIpAddresses", "CreateNetworkInterface"].map(str::to_owned);
    lab.set_ec2(&Faults { deny: BTreeSet::from(deny), ..Faults::default() }).unwrap();
    // All but one of the addresses that are there: more are wanted, and no pod has to wait for one.
    let available = count("available").unwrap();
    cluster.apply(&deployment("denied", &node.name, available - 1)).unwrap();
    wait_until(BOUND, || kube::rolled_out(cluster, "deployment/denied").is_ok()).unwrap();
    let events = |reason: &str| -> Vec<Value> {
        told(cluster, "Node").into_iter().filter(|event| event["reason"] == reason).collect()
    };
    wait_until(BOUND, || !events("MissingIAMPermissions").is_empty()).unwrap();
    for event in events("MissingIAMPermissions") {
        let words = event["message"].as_str().unwrap_or_default();
        assert!(words.contains("UnauthorizedOperation") && !words.contains("Encoded"), "{words}");
    }
    wait_until(BOUND, || condition(cluster, &node.name) == "MissingIAMPermissions").unwrap();
    assert!(told(cluster, "Pod").is_empty(), "no pod has missed an address");
    lab.set_ec2(&Faults::default()).unwrap();
    kube::remove(cluster, "denied").unwrap();

    // With one ENI a node of 58 pods has 14 addresses.
    cluster.install_enid(&["--set", "env.MAX_ENI=1"]).unwrap();
    wait_until(BOUND, || condition(cluster, &node.name) == "MaxPodsMismatch").unwrap();
    wait_until(BOUND, || !events("MaxPodsMismatch").is_empty()).unwrap();
    cluster.install_enid(&[]).unwrap();
    wait_until(BOUND, || condition(cluster, &node.name) == "AddressesAvailable").unwrap();
}
