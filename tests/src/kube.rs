//! Pods of a real cluster: what the API server, EC2 and the kernel say of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use ipnet::IpNet;
use kubelab::{Cluster, Node};
use serde_json::{Value, json};
use vpclab::wait_until;

use crate::{consistency, traffic::Spot};

/// The image that most pods run.
pub const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.56";
/// Starting or ending a hundred pods takes less.
const BOUND: Duration = Duration::from_secs(90);

/// A pod with an address of its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KubePod {
    /// NAMESPACE/NAME.
    pub name: String,
    /// Its node.
    pub node: String,
    /// Its address.
    pub address: IpAddr,
}

/// Pods that have an address of the pod network, all of them or those with this label (`app=web`).
pub fn pods(cluster: &Cluster, label: Option<&str>) -> anyhow::Result<Vec<KubePod>> {
    let selector: Vec<&str> = label.iter().flat_map(|label| ["-l", label]).collect();
    let mut pods = Vec::new();
    for pod in cluster.list("pods", &selector)? {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let ended = ["Succeeded", "Failed"].contains(&text(&pod["status"]["phase"]).as_str());
        if pod["spec"]["hostNetwork"] == true || ended {
            continue;
        }
        if let Ok(address) = text(&pod["status"]["podIP"]).parse() {
            let name = format!("{}/{}", text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]));
            pods.push(KubePod { name, node: text(&pod["spec"]["nodeName"]), address });
        }
    }
    pods.sort();
    Ok(pods)
}

/// Makes this many pods that serve HTTP on port 8080 and UDP on 8081, and waits until they are ready.
pub fn serve_http(cluster: &Cluster, name: &str, replicas: u32) -> anyhow::Result<()> {
    let args = json!(["netexec", "--http-port=8080", "--udp-port=8081"]);
    let ready = json!({ "httpGet": { "path": "/", "port": 8080 }, "periodSeconds": 1 });
    let server = json!({ "name": "server", "image": AGNHOST, "imagePullPolicy": "Never", "args": args, "readinessProbe": ready });
    deploy(cluster, name, replicas, &server)
}

/// Makes this many pods that only have their address, and waits until they run.
pub fn idle(cluster: &Cluster, name: &str, replicas: u32) -> anyhow::Result<()> {
    deploy(
        cluster,
        name,
        replicas,
        &json!({ "name": "idle", "image": AGNHOST, "imagePullPolicy": "Never", "args": ["pause"] }),
    )
}

fn deploy(cluster: &Cluster, name: &str, replicas: u32, container: &Value) -> anyhow::Result<()> {
    let spread = json!([{
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": { "matchLabels": { "app": name } },
    }]);
    let pod =
        json!({ "terminationGracePeriodSeconds": 1, "topologySpreadConstraints": spread, "containers": [container] });
    let template = json!({ "metadata": { "labels": { "app": name } }, "spec": pod });
    let manifest = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "replicas": replicas, "selector": { "matchLabels": { "app": name } }, "template": template },
    });
    cluster.apply(&manifest.to_string())?;
    rolled_out(cluster, &format!("deployment/{name}"))
}

/// Waits until all its pods are as asked.
pub fn rolled_out(cluster: &Cluster, workload: &str) -> anyhow::Result<()> {
    let timeout = format!("--timeout={}s", BOUND.as_secs());
    cluster.kubectl(&["rollout", "status", workload, &timeout]).map(drop)
}

/// Removes it and waits until its last pod has gone.
pub fn remove(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    cluster.kubectl(&["delete", "deployment", name, "--ignore-not-found"])?;
    wait_until(BOUND, || pods(cluster, Some(&format!("app={name}"))).is_ok_and(|pods| pods.is_empty()))
}

/// Which node has which ENI, by device index, with the addresses and blocks that EC2 has put on it for pods.
fn blocks(cluster: &Cluster) -> anyhow::Result<BTreeMap<String, BTreeMap<u32, Vec<IpNet>>>> {
    let state = cluster.lab().state();
    let mut nodes: BTreeMap<String, BTreeMap<u32, Vec<IpNet>>> = BTreeMap::new();
    for eni in cluster.lab().enis()? {
        let Some(attachment) = &eni.attachment else { bail!("{} is attached to nothing", eni.id) };
        if let Some(node) = state.nodes.iter().find(|node| node.instance_id == attachment.instance_id) {
            let blocks = consistency::blocks(&eni).collect();
            nodes.entry(node.name.clone()).or_default().insert(attachment.device_index, blocks);
        }
    }
    Ok(nodes)
}

/// Device index of the ENI that each pod's address is on, as EC2 has it.
pub fn devices(cluster: &Cluster, pods: &[KubePod]) -> anyhow::Result<BTreeMap<KubePod, u32>> {
    let blocks = blocks(cluster)?;
    let of = |pod: &KubePod| {
        let enis = blocks.get(&pod.node)?;
        enis.iter().find(|(_, nets)| nets.iter().any(|net| net.contains(&pod.address))).map(|(device, _)| *device)
    };
    let found = pods.iter().map(|pod| {
        let device =
            of(pod).with_context(|| format!("EC2 has {} of {} on no ENI of {}", pod.address, pod.name, pod.node));
        anyhow::Ok((pod.clone(), device?))
    });
    found.collect()
}

/// How many addresses EC2 has put on a node for pods, and on how many ENIs.
pub fn pool(cluster: &Cluster, node: &str) -> anyhow::Result<(usize, usize)> {
    let enis = blocks(cluster)?.remove(node).unwrap_or_default();
    Ok((enis.values().map(Vec::len).sum(), enis.len()))
}

/// An error unless API server, EC2 and the nodes' kernels agree on the address of each pod, and no kernel has a route to a
/// pod that there is not. All of them change: wait for it.
pub fn check_agreement(cluster: &Cluster) -> anyhow::Result<usize> {
    let pods = pods(cluster, None)?;
    devices(cluster, &pods)?;
    for node in cluster.nodes()? {
        let expected: BTreeSet<String> =
            pods.iter().filter(|pod| pod.node == node.name).map(|pod| pod.address.to_string()).collect();
        let routes = node.sh("ip -4 route show table main; ip -6 route show table main")?;
        // The kernel gives every link a range of its own for IPv6.
        let pods_routes = routes.lines().filter(|line| line.contains(" dev eni") && !line.starts_with("fe80::"));
        let found: BTreeSet<String> =
            pods_routes.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
        ensure!(found == expected, "{}: routes to {found:?}, pods have {expected:?}", node.name);
    }
    Ok(pods.len())
}

/// Waits until they agree.
pub fn wait_for_agreement(cluster: &Cluster) -> anyhow::Result<usize> {
    let mut last = Ok(0);
    let agreed = wait_until(BOUND, || {
        last = check_agreement(cluster);
        last.is_ok()
    });
    match last {
        Err(error) => Err(error),
        agreed_on => agreed.and(agreed_on),
    }
}

/// The pod's network namespace, as its node names it.
pub fn netns(node: &Node, address: IpAddr) -> anyhow::Result<String> {
    let line = format!(
        "for name in $(ls /run/netns); do
            ip -n $name -o addr show | grep -q ' {address}/' && echo $name && exit 0
        done; exit 1"
    );
    let name = node.sh(&line).with_context(|| format!("no namespace on {} has {address}", node.name))?;
    Ok(name.trim().to_owned())
}

/// Traffic goes out from here.
pub struct Inside<'a> {
    node: &'a Node,
    netns: String,
}

impl<'a> Inside<'a> {
    /// The pod's namespace on its node.
    pub fn of(nodes: &'a [Node], pod: &KubePod) -> anyhow::Result<Self> {
        let node = nodes.iter().find(|node| node.name == pod.node).with_context(|| format!("no node {}", pod.node))?;
        Ok(Inside { node, netns: netns(node, pod.address)? })
    }

    /// As the lab's own pods are used.
    pub fn spot(&self) -> Spot<'_, &'a Node> {
        Spot { place: self.node, netns: Some(&self.netns) }
    }

    /// Its node.
    pub fn node(&self) -> &'a Node {
        self.node
    }

    /// Its namespace's name.
    pub fn netns(&self) -> &str {
        &self.netns
    }
}
