//! `watch-bench`: what the watches of the API server cost a daemon: its memory before and after ten thousand objects of other
//! nodes are in the API server, and with a hundred pods of its own.

use std::time::Duration;

use anyhow::{Context, ensure};
use enid_tests::{Lab, kube, wait_until};
use kubelab::{Cluster, ClusterConfig, Node};
use serde_json::{Value, json};

const BOUND: Duration = Duration::from_secs(300);
/// Nodes of others, and pods of others.
const OTHERS: usize = 5_000;
/// Each of so many processes makes a part of them.
const PROCESSES: usize = 10;
const PODS: u32 = 100;
/// MiB.
const MOST_MORE: f64 = 2.0;
const MOST: f64 = 32.0;

fn main() -> anyhow::Result<()> {
    let config = ClusterConfig {
        name: "watch".to_owned(),
        nodes: 1,
        instance_type: "m5.4xlarge".to_owned(),
        max_pods: 110,
        ..ClusterConfig::default()
    };
    let name = config.name.clone();
    Cluster::down(&name)?;
    let measured = measure(config);
    Cluster::down(&name)?;
    let [alone, crowded, full] = measured?;
    println!("daemon's resident memory, MiB");
    println!("alone in the cluster                   {alone:.1}");
    println!("beside {OTHERS} nodes and {OTHERS} pods        {crowded:.1}");
    println!("with {PODS} pods of its own as well       {full:.1}");
    ensure!(crowded - alone < MOST_MORE, "objects of others cost {:.1} MiB; allowed: {MOST_MORE}", crowded - alone);
    ensure!(full <= MOST, "the daemon has {full:.1} MiB; allowed: {MOST}");
    Ok(())
}

fn measure(config: ClusterConfig) -> anyhow::Result<[f64; 3]> {
    let lab = Lab::up(&config.lab())?;
    let cluster = Cluster::raise(config, lab, &mut |_, _| ())?;
    let node = cluster.nodes()?.remove(0);
    let alone = memory_anew(&cluster, &node)?;
    make_others(&cluster)?;
    let crowded = memory_anew(&cluster, &node)?;
    let container = json!({ "name": "idle", "image": kube::AGNHOST, "imagePullPolicy": "Never", "args": ["pause"] });
    let own = json!({ "nodeName": node.name, "terminationGracePeriodSeconds": 1, "containers": [container] });
    let pods = (0..PODS).map(|n| pod(&format!("own-{n}"), &own));
    cluster.apply(&list(pods).to_string())?;
    wait_until(BOUND, || {
        let ready = cluster.kubectl(&[
            "get",
            "pods",
            "-l",
            "app=watch",
            "--field-selector",
            &format!("spec.nodeName={},status.phase=Running", node.name),
            "-o",
            "name",
        ]);
        ready.is_ok_and(|names| names.lines().count() == usize::try_from(PODS).unwrap_or_default())
    })?;
    Ok([alone, crowded, memory(&node)?])
}

/// Of a daemon that has just begun to watch.
fn memory_anew(cluster: &Cluster, node: &Node) -> anyhow::Result<f64> {
    cluster.kubectl(&["-n", "kube-system", "rollout", "restart", "daemonset/enid"])?;
    cluster.kubectl(&["-n", "kube-system", "rollout", "status", "daemonset/enid", "--timeout=120s"])?;
    let status = format!("{} status -o json", enid_tests::program("enid")?.display());
    let watches = || node.sh(&status).is_ok_and(|said| said.contains("\"api_server\": []"));
    wait_until(BOUND, watches).context("the daemon does not watch the API server")?;
    memory(node)
}

/// Resident memory of the node's daemon.
fn memory(node: &Node) -> anyhow::Result<f64> {
    let said = node.sh("grep VmRSS /proc/$(pgrep -o -x -f 'enid agent')/status")?;
    let kilobytes = said.split_whitespace().nth(1).and_then(|text| text.parse::<f64>().ok());
    Ok(kilobytes.with_context(|| format!("{said:?} is no size"))? / 1024.0)
}

/// Nodes that there are not, and a pod on each.
fn make_others(cluster: &Cluster) -> anyhow::Result<()> {
    let container = json!({ "name": "idle", "image": kube::AGNHOST });
    let part = OTHERS / PROCESSES;
    let parts: Vec<Value> = (0..PROCESSES)
        .map(|process| {
            let numbers = process * part..(process + 1) * part;
            // Not one that the DaemonSet would come to.
            let labels = json!({ "eks.amazonaws.com/compute-type": "fargate" });
            let nodes = numbers.clone().map(move |n| {
                let metadata = json!({ "name": format!("other-{n}"), "labels": labels });
                json!({ "apiVersion": "v1", "kind": "Node", "metadata": metadata })
            });
            let pods = numbers.map(|n| {
                pod(&format!("other-{n}"), &json!({ "nodeName": format!("other-{n}"), "containers": [container] }))
            });
            list(nodes.chain(pods))
        })
        .collect();
    std::thread::scope(|scope| {
        let made: Vec<_> = parts
            .iter()
            .map(|part| scope.spawn(|| cluster.kubectl_with(&["create", "-f", "-"], &part.to_string()).map(drop)))
            .collect();
        made.into_iter().try_for_each(|made| made.join().unwrap_or_else(|_| anyhow::bail!("kubectl was not run")))
    })
}

fn pod(name: &str, spec: &Value) -> Value {
    let metadata = json!({ "name": name, "namespace": "default", "labels": { "app": "watch" } });
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec })
}

fn list(items: impl Iterator<Item = Value>) -> Value {
    json!({ "apiVersion": "v1", "kind": "List", "items": items.collect::<Vec<_>>() })
}
