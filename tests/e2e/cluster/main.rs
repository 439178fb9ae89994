//! A real Kubernetes cluster with Enid, by its chart: what the API server, EC2 and the kernels say of pods, and what becomes
//! of packets while the cluster is worked on. `make test-cluster` runs it.
//!
//! All tests of a process share one cluster and run one after the other, in the order of their names: the last one uninstalls
//! Enid. ENID_TEST_CLUSTER names the cluster, for processes that run side by side.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod agreement;
mod api_server;
mod chart;
mod custom_network;
mod disturbance;
mod handback;
mod node_config;
mod rights;
mod rollout;
mod status_object;
mod subnets;
mod told;
mod traffic;
mod uninstall;

use std::{sync::LazyLock, time::Duration};

use enid_tests::{Lab, wait_until};
use kubelab::{Cluster, ClusterConfig, Node};

/// Addresses are given back soon, so that the end of it is seen.
const VALUES: &str = "env: { WARM_IP_TARGET: 4, MINIMUM_IP_TARGET: 6 }\n";

/// The cluster. It ends with this process, since its lab does.
static CLUSTER: LazyLock<Cluster> = LazyLock::new(|| {
    let name = std::env::var("ENID_TEST_CLUSTER").unwrap_or_else(|_| "test-cluster".to_owned());
    let values = std::env::temp_dir().join(format!("enid-{name}.yaml"));
    std::fs::write(&values, VALUES).unwrap();
    let config = ClusterConfig { name, values: vec![values], ..ClusterConfig::default() };
    // What a run left that was killed.
    Cluster::down(&config.name).unwrap();
    let lab = Lab::up(&config.lab()).unwrap();
    Cluster::raise(config, lab, &mut |what, took| println!("{:6.1} s  {what}", took.as_secs_f32())).unwrap()
});

/// For what a debugging pod does.
const BOUND: Duration = Duration::from_secs(120);

/// One of the image's own commands, in a pod that `kubectl debug` makes on the node, as the documentation says: what it prints.
fn debug(cluster: &Cluster, node: &Node, args: &[&str]) -> anyhow::Result<String> {
    let endpoint = format!("--env=AWS_EC2_ENDPOINT={}", cluster.lab().state().ec2_endpoint);
    let (target, name) = (format!("node/{}", node.name), format!("--env=MY_NODE_NAME={}", node.name));
    let settings = [
        &name,
        "--env=XTABLES_LOCKFILE=/host/run/xtables.lock",
        "--env=HOST_CNI_BIN_PATH=/host/opt/cni/bin",
        "--env=HOST_CNI_CONFDIR_PATH=/host/etc/cni/net.d",
        "--env=ENID_RUN_DIR=/host/run/enid",
        "--env=ENID_STORE_DIR=/host/var/lib/enid",
        "--env=AWS_VPC_K8S_CNI_BACKING_STORE=/host/run/aws-node/ipam.json",
        "--env=ENID_HOST_LOCAL_DIR=/host/run/cni",
        "--env=AWS_ACCESS_KEY_ID=test",
        "--env=AWS_SECRET_ACCESS_KEY=test",
        &endpoint,
    ];
    let debug =
        ["debug", &target, "--profile=sysadmin", "--image=docker.io/library/enid:0.1.0", "--image-pull-policy=Never"];
    cluster.kubectl(&[&debug[..], &settings[..], &["--", "enid"][..], args].concat())?;
    let prefix = format!("node-debugger-{}-", node.name);
    let find = || {
        let pods = cluster.list("pods", &[])?;
        let found =
            pods.into_iter().find(|pod| pod["metadata"]["name"].as_str().is_some_and(|name| name.starts_with(&prefix)));
        found.ok_or_else(|| anyhow::anyhow!("no pod {prefix}*"))
    };
    let phase = || find().map(|pod| pod["status"]["phase"].as_str().unwrap_or_default().to_owned());
    wait_until(BOUND, || phase().is_ok_and(|phase| phase == "Succeeded" || phase == "Failed"))?;
    let name = find()?["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let told = cluster.kubectl(&["logs", &name])?;
    anyhow::ensure!(phase()? == "Succeeded", "{}: {told}", node.name);
    cluster.kubectl(&["delete", "pod", &name])?;
    Ok(told)
}
