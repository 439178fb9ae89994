//! What a cluster should have, and where its files are.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use nix::sys::statvfs::statvfs;
use serde::{Deserialize, Serialize};
use vpclab::{Backend, LabConfig};

use crate::families::Families;

/// Who gives pods their addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Cni {
    /// Enid, by its chart.
    #[default]
    Enid,
    /// The standard bridge plugin, each node with a range of its own that other nodes do not reach: what pods cost without
    /// any CNI of ours.
    Bridge,
    /// Nobody: nodes stay NotReady until a CNI is installed.
    None,
}

/// What a cluster should have.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClusterConfig {
    /// Clusters of different names are independent; the lab has the same name.
    pub name: String,
    /// How many nodes it begins with.
    pub nodes: usize,
    /// How many more instances there are, whose nodes join when they are booted ([`Node::boot`](crate::Node::boot)).
    pub later: usize,
    /// EC2 instance type of the nodes.
    pub instance_type: String,
    /// Whether EC2 is LocalStack instead of the model.
    pub localstack: bool,
    /// Address families.
    pub families: Families,
    /// Who gives pods their addresses.
    pub cni: Cni,
    /// Modes of kube-proxy, one node after the other, and from the beginning again.
    pub proxies: Vec<String>,
    /// Pods that a node takes at most.
    pub max_pods: u32,
    /// Files of values for Enid's chart; later ones win.
    pub values: Vec<PathBuf>,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        ClusterConfig {
            name: "cluster".to_owned(),
            nodes: 2,
            later: 0,
            instance_type: "m5.xlarge".to_owned(),
            localstack: false,
            families: Families::default(),
            cni: Cni::default(),
            proxies: vec!["iptables".to_owned(), "nftables".to_owned()],
            max_pods: 58,
            values: Vec::new(),
        }
    }
}

impl ClusterConfig {
    /// Whether there can be such a cluster; the error names the reason.
    pub fn check(&self) -> anyhow::Result<()> {
        if self.nodes == 0 {
            bail!("a cluster has at least one node; --nodes is 0");
        }
        if let Some(mode) = self.proxies.iter().find(|mode| !["iptables", "nftables", "none"].contains(&mode.as_str()))
        {
            bail!("kube-proxy's mode is {mode:?}; iptables, nftables and none are allowed");
        }
        if self.proxies.is_empty() {
            bail!("kube-proxy needs a mode: iptables, nftables or none");
        }
        self.lab().check()
    }

    /// The lab below it.
    pub fn lab(&self) -> LabConfig {
        LabConfig {
            name: self.name.clone(),
            nodes: self.nodes + self.later,
            instance_type: self.instance_type.clone(),
            ec2: if self.localstack { Backend::LocalStack } else { Backend::Model },
            ipv6: self.families.has_v6(),
            control_plane: true,
            ..LabConfig::default()
        }
    }

    /// Mode of kube-proxy on the node of this number.
    pub fn proxy(&self, node: usize) -> &str {
        &self.proxies[node % self.proxies.len()]
    }
}

const FOLDER: &str = "/var/tmp/kubelab";

/// Where a cluster's files are: certificates, etcd's data, what nodes have on disk, logs. Not in memory: containerd's
/// overlays need a real file system. Nor below /var/lib, which nodes of the lab have in memory.
pub fn folder(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

/// What the nodes' images and the control plane take, bytes.
const NEEDED: u64 = 3 << 30;

/// Whether the disk has room for a cluster: containers that find none fail in many ways, and none of them says so.
///
/// # Errors
///
/// It has none, or cannot be asked.
pub fn check_room() -> anyhow::Result<()> {
    fs::create_dir_all(FOLDER).with_context(|| format!("cannot make {FOLDER}"))?;
    let disk = statvfs(FOLDER).with_context(|| format!("cannot tell how much room the disk of {FOLDER} has"))?;
    let free = disk.blocks_available() * disk.fragment_size();
    let in_mib = |bytes: u64| bytes >> 20;
    ensure!(free >= NEEDED, "{FOLDER} is on a disk with {} MiB left; a cluster needs {}", in_mib(free), in_mib(NEEDED));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_that_cannot_be_is_refused() {
        let refused = |config: ClusterConfig| config.check().unwrap_err().to_string();
        assert!(refused(ClusterConfig { nodes: 0, ..ClusterConfig::default() }).contains("at least one node"));
        let ipvs = ClusterConfig { proxies: vec!["ipvs".to_owned()], ..ClusterConfig::default() };
        assert!(refused(ipvs).contains("\"ipvs\"; iptables"));
        let v6 = ClusterConfig { localstack: true, families: Families::Dual, ..ClusterConfig::default() };
        assert!(refused(v6).contains("--ec2 model"));
        assert!(ClusterConfig::default().check().is_ok());
    }

    #[test]
    fn modes_of_kube_proxy_go_round() {
        let config = ClusterConfig::default();
        assert_eq!([0, 1, 2].map(|node| config.proxy(node)), ["iptables", "nftables", "iptables"]);
    }
}
