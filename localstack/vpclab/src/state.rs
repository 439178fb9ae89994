//! What a lab is made of, as a file that other processes read.

use std::{fs, path::PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// A running lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// Its name.
    pub name: String,
    /// The serving process.
    pub serve_pid: u32,
    /// When that process started, so that its number is not mistaken for a later one's.
    pub serve_start: u64,
    /// Process 1 of the VPC's namespaces.
    pub vpc_pid: u32,
    /// Process 1 of the Internet's.
    pub inet_pid: u32,
    /// Process 1 of the peered network's.
    pub peer_pid: u32,
    /// What is used as EC2: LocalStack or the model.
    pub localstack_pid: u32,
    /// EC2's URL, for nodes.
    pub ec2_endpoint: String,
    /// EC2's id of the VPC.
    pub vpc_id: String,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// The instance that is no node, in a lab that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_plane: Option<Node>,
}

/// The name of the instance that is no node.
pub const CONTROL_PLANE: &str = "control-plane";

/// One node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Process 1 of its namespaces.
    pub pid: u32,
    /// EC2's id of the instance.
    pub instance_id: String,
    /// Primary address of the primary ENI.
    pub address: String,
    /// The public address that it has on the Internet.
    pub public_address: String,
    /// Subnet of its primary ENI.
    pub subnet_id: String,
    /// IPv6 address of the primary ENI, in a lab that has IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_v6: Option<String>,
}

/// What a lab may be called: its name is a folder's.
pub fn check_name(name: &str) -> anyhow::Result<()> {
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if name.is_empty() || name.len() > 32 || !name.chars().all(valid) {
        bail!("the lab's name is {name:?}; letters, digits and '-' are allowed, 32 at most");
    }
    Ok(())
}

/// The folder of a lab.
pub fn folder(name: &str) -> PathBuf {
    PathBuf::from("/run/vpclab").join(name)
}

impl State {
    /// Reads the file of a lab.
    pub fn read(name: &str) -> anyhow::Result<Self> {
        let path = folder(name).join("state.json");
        let text = fs::read(&path).with_context(|| format!("there is no lab {name:?} ({})", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is not what vpclab writes", path.display()))
    }

    /// Writes it, complete or not at all.
    pub fn write(&self) -> anyhow::Result<()> {
        let path = folder(&self.name).join("state.json");
        let new = path.with_extension("new");
        fs::write(&new, serde_json::to_vec_pretty(self).context("cannot write JSON")?)
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Whether the process that serves it still runs.
    pub fn is_live(&self) -> bool {
        start_of(self.serve_pid) == Some(self.serve_start)
    }

    /// The nodes, and the instance that is none.
    pub fn instances(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().chain(&self.control_plane)
    }

    /// Process 1 of a place's namespaces.
    pub fn pid_of(&self, place: &str) -> anyhow::Result<u32> {
        match place {
            "vpc" => Ok(self.vpc_pid),
            "inet" => Ok(self.inet_pid),
            "peer" => Ok(self.peer_pid),
            node => {
                let names: Vec<&str> = self.instances().map(|node| node.name.as_str()).collect();
                let found = self.instances().find(|known| known.name == node).map(|known| known.pid);
                found.with_context(|| format!("there is no {node:?}; there are vpc, inet, peer, {}", names.join(", ")))
            }
        }
    }
}

/// When a process started, in clock ticks since boot (proc(5), field 22 of stat).
pub fn start_of(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name may contain blanks and brackets; fields are counted from its end.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}
