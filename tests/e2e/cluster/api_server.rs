//! The API server goes and comes: pods get their addresses meanwhile, and the daemons watch it again once it is back. What
//! they ask of it is little, and about their own node only.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context;
use enid_tests::{kube, program, wait_until};
use kubelab::{Cluster, Node, STATIC_PODS};
use serde_json::{Value, json};

use crate::{CLUSTER, disturbance::rolled_out};

const BOUND: Duration = Duration::from_secs(90);
const DAEMON: &str = "system:serviceaccount:kube-system:enid";
/// A client reads its token's file again at least so often.
const TOKEN_PERIOD: Duration = Duration::from_secs(60);

/// What the node's daemon says (`enid NAME -o json`).
pub fn enid(node: &Node, name: &str) -> anyhow::Result<Value> {
    let said = node.sh(&format!("{} {name} -o json", program("enid")?.display()))?;
    serde_json::from_str(&said).with_context(|| format!("enid {name} prints no JSON: {said}"))
}

/// Whether the daemon watches what it has to; one with the kubelet's certificate may not ask for objects of Enid.
fn watches(node: &Node) -> bool {
    let ours = ["enidnodes: ", "nodeconfigs: "];
    let is_of_watch = |fault: &Value| fault.as_str().is_none_or(|fault| !ours.iter().any(|it| fault.starts_with(it)));
    let faults = enid(node, "status").ok().and_then(|status| status["api_server"].as_array().cloned());
    faults.is_some_and(|faults| !faults.iter().any(is_of_watch))
}

/// Waits until these nodes' daemons watch again, and prints how long that took.
fn back(nodes: &[Node]) {
    let begun = Instant::now();
    wait_until(BOUND, || nodes.iter().all(watches)).unwrap();
    println!("the API server is watched again {:.1} s after it is back", begun.elapsed().as_secs_f32());
}

fn has_lease(node: &Node, pod: &str) -> bool {
    let leases = enid(node, "pods").unwrap_or_default();
    leases.as_array().is_some_and(|leases| leases.iter().any(|lease| lease["pod_name"] == pod))
}

/// A pod that the kubelet runs without the API server, until it is dropped.
struct StaticPod(PathBuf);

impl StaticPod {
    fn new(node: &Node, namespace: &str, name: &str, spec: &Value) -> anyhow::Result<Self> {
        let metadata = json!({ "name": name, "namespace": namespace });
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec });
        let folder = node.folder().join("disk").join(STATIC_PODS.trim_start_matches('/'));
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let path = folder.join(format!("{name}.json"));
        fs::write(&path, pod.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(StaticPod(path))
    }

    /// One that only has its address.
    fn idle(node: &Node, name: &str) -> anyhow::Result<Self> {
        let container =
            json!({ "name": "idle", "image": kube::AGNHOST, "imagePullPolicy": "Never", "args": ["pause"] });
        let spec = json!({ "terminationGracePeriodSeconds": 1, "containers": [container] });
        StaticPod::new(node, "default", name, &spec)
    }

    /// The daemon as its DaemonSet has it, with the kubelet's certificate, since ServiceAccounts are the API server's.
    fn daemon(cluster: &Cluster, node: &Node) -> anyhow::Result<Self> {
        let text = cluster.kubectl(&["-n", "kube-system", "get", "daemonset", "enid", "-o", "json"])?;
        let daemons: Value = serde_json::from_str(&text).context("kubectl prints no JSON")?;
        let mut spec = daemons["spec"]["template"]["spec"].clone();
        let fields = spec.as_object_mut().context("a DaemonSet without a pod")?;
        for name in ["serviceAccount", "serviceAccountName", "priorityClassName", "affinity"] {
            fields.remove(name);
        }
        let (folder, kubeconfig) = (cluster.folder(), node.folder().join("kubelet.kubeconfig"));
        let add = |list: &mut Value, item: Value| {
            list.as_array_mut().context("a pod without this").map(|list| list.push(item))
        };
        add(&mut spec["volumes"], json!({ "name": "kubeconfig", "hostPath": { "path": folder } }))?;
        let container = &mut spec["containers"][0];
        add(&mut container["volumeMounts"], json!({ "name": "kubeconfig", "mountPath": folder, "readOnly": true }))?;
        add(&mut container["env"], json!({ "name": "KUBECONFIG", "value": kubeconfig }))?;
        StaticPod::new(node, "kube-system", "enid-static", &spec)
    }
}

impl Drop for StaticPod {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A token that the API server does not know, in the file of a node's daemon, until it is dropped: the kubelet brings the
/// right one back again and again.
struct WrongToken<'a> {
    node: &'a Node,
    file: String,
    writer: String,
}

impl<'a> WrongToken<'a> {
    fn new(cluster: &Cluster, node: &'a Node) -> anyhow::Result<Self> {
        let here = format!("spec.nodeName={}", node.name);
        let uid = ["-o", "jsonpath={.items[0].metadata.uid}"];
        let pods = ["-n", "kube-system", "get", "pods", "-l", "app.kubernetes.io/name=enid", "--field-selector", &here];
        let uid = cluster.kubectl(&[&pods[..], &uid[..]].concat())?;
        let volumes = format!("/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~projected");
        let file = node.sh(&format!("ls {volumes}/kube-api-access-*/..data/token"))?.trim().to_owned();
        node.sh(&format!("cp {file} /run/right-token"))?;
        // The kubelet's own round is a minute: so often that the daemon reads a wrong one in between.
        let again = format!("for i in $(seq 600); do printf wrong >{file}; sleep 0.5; done");
        let writer = node.sh(&format!("({again}) </dev/null >/dev/null 2>&1 & echo $!"))?.trim().to_owned();
        Ok(WrongToken { node, file, writer })
    }
}

impl Drop for WrongToken<'_> {
    fn drop(&mut self) {
        let WrongToken { node, file, writer } = self;
        let _ = node.sh(&format!("kill {writer}; while kill -0 {writer}; do :; done; cp /run/right-token {file}"));
    }
}

#[test]
fn pods_start_without_the_api_server_and_the_daemons_are_back_with_it() {
    let cluster = &*CLUSTER;
    let (nodes, control_plane) = (cluster.nodes().unwrap(), cluster.control_plane());
    wait_until(BOUND, || nodes.iter().all(watches)).unwrap();

    control_plane.stop_api_server().unwrap();
    wait_until(BOUND, || !nodes.iter().any(watches)).unwrap();
    let pod = StaticPod::idle(&nodes[0], "alone").unwrap();
    wait_until(BOUND, || has_lease(&nodes[0], "alone-node0")).unwrap();
    control_plane.start_api_server().unwrap();
    back(&nodes);
    drop(pod);
    wait_until(BOUND, || !has_lease(&nodes[0], "alone-node0")).unwrap();

    // A node that boots meanwhile: its kubelet knows its static pods only, so the daemon is one of them. On the other one the
    // daemon's token is changed.
    let node = &nodes[1];
    let (wrong, changed) = (WrongToken::new(cluster, &nodes[0]).unwrap(), Instant::now());
    let daemon = StaticPod::daemon(cluster, node).unwrap();
    let pod = StaticPod::idle(node, "early").unwrap();
    control_plane.stop_api_server().unwrap();
    node.reboot().unwrap();
    wait_until(BOUND, || has_lease(node, "early-node1")).unwrap();
    let said = node.sh("cat /var/log/pods/kube-system_enid-static-node1_*/enid/0.log").unwrap();
    let lines: Vec<&str> =
        said.lines().filter(|line| line.contains("\"start\"") || line.contains("new pods get addresses")).collect();
    println!("{}", lines.join("\n"));
    wait_until(TOKEN_PERIOD * 2, || changed.elapsed() > TOKEN_PERIOD).unwrap();
    control_plane.start_api_server().unwrap();
    back(&nodes[1..]);
    // Which token the daemon shows follows its file, both ways.
    let unknown = || enid(&nodes[0], "status").unwrap_or_default()["api_server"].to_string();
    wait_until(BOUND, || unknown().contains("Unauthorized")).unwrap_or_else(|_| panic!("{}", unknown()));
    drop(wrong);
    wait_until(BOUND, || watches(&nodes[0])).unwrap_or_else(|_| panic!("{}", unknown()));
    drop((daemon, pod));
    wait_until(BOUND, || !has_lease(node, "early-node1")).unwrap();
    rolled_out(cluster).unwrap();
    let faults = || nodes.iter().map(|node| enid(node, "status").unwrap_or_default()["api_server"].clone());
    wait_until(BOUND, || nodes.iter().all(watches)).unwrap_or_else(|_| panic!("{:?}", faults().collect::<Vec<_>>()));
}

/// One request of a daemon, out of the API server's audit log.
struct Asked {
    verb: String,
    uri: String,
    source: String,
    second: i64,
}

fn asked(cluster: &Cluster) -> anyhow::Result<Vec<Asked>> {
    let log = fs::read_to_string(cluster.folder().join("log/audit.log")).context("there is no audit log")?;
    let mut all = Vec::new();
    for line in log.lines() {
        let Ok(entry) = serde_json::from_str::<Value>(line) else { continue };
        if entry["user"]["username"] == DAEMON && entry["stage"] == "RequestReceived" {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            all.push(Asked {
                verb: text(&entry["verb"]),
                uri: text(&entry["requestURI"]),
                source: text(&entry["sourceIPs"][0]),
                second: seconds(&text(&entry["requestReceivedTimestamp"]))?,
            });
        }
    }
    Ok(all)
}

/// Seconds since 1970 of a time as the API server writes it.
fn seconds(time: &str) -> anyhow::Result<i64> {
    let output =
        std::process::Command::new("date").args(["-u", "-d", time, "+%s"]).output().context("cannot run date")?;
    String::from_utf8_lossy(&output.stdout).trim().parse().with_context(|| format!("{time:?} is no time"))
}

#[test]
fn a_daemon_asks_little_and_for_what_is_its_own() {
    let cluster = &*CLUSTER;
    wait_until(BOUND, || cluster.nodes().unwrap().iter().all(watches)).unwrap();
    let all = asked(cluster).unwrap();
    for node in &cluster.lab().state().nodes {
        let own: Vec<&Asked> = all.iter().filter(|asked| asked.source == node.address).collect();
        assert!(!own.is_empty(), "{} has asked nothing", node.name);
        for Asked { verb, uri, .. } in &own {
            let watches = ["list", "watch"].contains(&verb.as_str());
            let of_node = uri.starts_with("/api/v1/nodes?")
                && format!("{uri}&").contains(&format!("metadata.name%3D{}&", node.name));
            let of_configs = uri.starts_with("/apis/enid.dev/v1alpha1/nodeconfigs");
            let of_pods =
                uri.starts_with("/api/v1/pods?") && uri.contains(&format!("spec.nodeName%3D{}%2C", node.name));
            let tells =
                uri.starts_with("/apis/events.k8s.io/v1/namespaces/") && ["create", "patch"].contains(&verb.as_str());
            let object = "/apis/enid.dev/v1alpha1/enidnodes";
            let status = match verb.as_str() {
                "create" => uri.starts_with(&format!("{object}?")),
                "patch" => {
                    let own =
                        [format!("{object}/{}/status?", node.name), format!("/api/v1/nodes/{}/status?", node.name)];
                    own.iter().any(|own| uri.starts_with(own))
                }
                _ => false,
            };
            assert!(watches && (of_node || of_pods || of_configs) || tells || status, "{verb} {uri}");
        }
        // Since it began to watch, at most one a minute.
        let begun = own[0].second + 10;
        let now = seconds("now").unwrap();
        let later = own.iter().filter(|asked| asked.second > begun).count();
        let minutes = usize::try_from((now - begun) / 60).unwrap() + 1;
        println!("{}: {later} requests in {} s", node.name, now - begun);
        assert!(later <= minutes, "{}: {later} requests in {} s", node.name, now - begun);
    }
}
