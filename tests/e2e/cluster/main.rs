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
mod status_object;
mod subnets;
mod told;
mod traffic;
mod uninstall;

use std::sync::LazyLock;

use enid_tests::Lab;
use kubelab::{Cluster, ClusterConfig};

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
