//! Conformance to the CNI specification, by programs of others: the CNI project's own library (`cnitool`), which calls
//! the plugin alone and in chains with the standard plugins, Debian's and current ones; and containerd.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod chains;
mod libcni;
mod runtime;

use std::{path::PathBuf, sync::OnceLock, time::Duration};

use anyhow::Context;
use enid_tests::{Daemon, Lab, LabConfig, Place, wait_until};
use serde_json::{Value, json};

const BOUND: Duration = Duration::from_secs(30);

struct Nodes {
    lab: Lab,
    _daemons: [Daemon; 2],
}

/// Two nodes with daemons, with pools of the largest size so that nothing changes by itself.
fn nodes() -> &'static Lab {
    static NODES: OnceLock<Nodes> = OnceLock::new();
    let nodes = NODES.get_or_init(|| {
        let (name, instance_type) = (format!("conformance{}", std::process::id()), "m5.xlarge".to_owned());
        let lab = Lab::up(&LabConfig { name, instance_type, ..LabConfig::default() }).unwrap();
        let settings = [("MINIMUM_IP_TARGET", "56"), ("IP_COOLDOWN_PERIOD", "0")];
        let daemons = [0, 1].map(|node| Daemon::start(Place::node(&lab, node), &settings).unwrap());
        Nodes { lab, _daemons: daemons }
    });
    &nodes.lab
}

fn node() -> Place<'static> {
    Place::node(nodes(), 0)
}

/// The host's state when no call is in flight, firewall of both kinds included.
fn quiet_state() -> String {
    quiet_state_of(node())
}

fn quiet_state_of(place: Place<'_>) -> String {
    wait_until(BOUND, || place.enid("status").is_ok_and(|status| status["calls"] == json!([]))).unwrap();
    // portmap leaves its own chains for the next pod; a pod's are called CNI-DN-.
    let rules = place.sh("iptables-save -t nat 2>/dev/null | grep CNI-DN- | sort || true").unwrap();
    let links = place.sh("ip -o link show | sed 's/^[0-9]*: //' | sort; tc qdisc show | sort").unwrap();
    format!("{rules}{links}{:?}", place.leases().unwrap())
}

/// One network configuration list for `cnitool`, in a folder of its own on the node.
struct Network {
    name: String,
    folder: String,
    path: String,
}

/// The repository's folder of tools.
fn tools() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.tools"))
}

impl Network {
    /// A list whose plugins are found in these folders, ours first of all.
    fn new(name: &str, list: &Value, plugins: &str) -> Self {
        let folder = format!("/etc/conformance-{name}");
        let text = list.to_string().replace('\'', "");
        node().sh(&format!("mkdir -p {folder}; echo '{text}' > {folder}/10-{name}.conflist")).unwrap();
        Network { name: list["name"].as_str().unwrap().to_owned(), folder, path: format!("/opt/cni/bin:{plugins}") }
    }

    /// `cnitool VERB` for a namespace: its output, or its messages as an error.
    fn call(&self, verb: &str, netns: &str, env: &[(&str, &str)]) -> anyhow::Result<String> {
        let mut command = node().command("env")?;
        command.args(env.iter().map(|(name, value)| format!("{name}={value}")));
        command.arg(format!("CNI_PATH={}", self.path)).arg(format!("NETCONFPATH={}", self.folder));
        let tool = tools().join("bin/cnitool");
        let output = command.arg(&tool).args([verb, &self.name, &format!("/run/netns/{netns}")]).output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        anyhow::ensure!(output.status.success(), "{verb}: {}{}", text(&output.stdout), text(&output.stderr));
        Ok(text(&output.stdout))
    }

    fn add(&self, netns: &str, env: &[(&str, &str)]) -> Value {
        let text = self.call("add", netns, env).unwrap();
        serde_json::from_str(&text).with_context(|| text.clone()).unwrap()
    }
}

/// Plugins of a current release, and Debian's.
fn current() -> String {
    tools().join("cni-plugins").to_string_lossy().into_owned()
}

const DEBIAN: &str = "/usr/lib/cni";

fn ours() -> Value {
    json!({"type": "enid-cni", "addWaitSeconds": 30})
}
