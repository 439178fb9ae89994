//! Pods as a runtime makes them: a namespace, and the plugin called with the runtime's variables.

use std::{
    io::Write,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::{node::Place, plugin};

/// One interface of one container.
#[derive(Clone, Debug)]
pub struct Pod {
    /// The node it runs on.
    pub node: usize,
    /// Its name; its namespace is named so too.
    pub name: String,
    /// CNI_CONTAINERID.
    pub container: String,
    /// CNI_IFNAME.
    pub ifname: String,
    /// Whether the runtime passes the pod's name (CNI_ARGS).
    pub named: bool,
    /// The network configuration.
    pub config: String,
}

/// A configuration with this version and wait.
pub fn config(version: &str, wait_seconds: u32) -> String {
    format!(r#"{{"cniVersion":"{version}","name":"enid","type":"enid-cni","addWaitSeconds":{wait_seconds}}}"#)
}

impl Pod {
    /// A pod as Kubernetes would have it.
    pub fn new(node: usize, name: &str) -> Self {
        Pod {
            node,
            name: name.to_owned(),
            container: format!("sandbox-{name}"),
            ifname: "eth0".to_owned(),
            named: true,
            config: config("1.0.0", 30),
        }
    }

    /// Makes the namespace.
    pub fn make_namespace(&self, place: Place<'_>) -> anyhow::Result<()> {
        place.sh(&format!("ip netns add {}", self.name)).map(drop)
    }

    /// Removes it.
    pub fn remove_namespace(&self, place: Place<'_>) -> anyhow::Result<()> {
        place.sh(&format!("ip netns del {}", self.name)).map(drop)
    }

    /// The plugin's call, ready to be spawned.
    pub fn command(&self, place: Place<'_>, verb: &str) -> anyhow::Result<std::process::Command> {
        let mut command = place.command("env")?;
        command.arg(format!("CNI_COMMAND={verb}")).arg("CNI_PATH=/opt/cni/bin");
        command.arg(format!("CNI_CONTAINERID={}", self.container)).arg(format!("CNI_IFNAME={}", self.ifname));
        command.arg(format!("CNI_NETNS=/run/netns/{}", self.name));
        if self.named {
            command.arg(format!("CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={}", self.name));
        }
        command.arg(plugin()?).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(command)
    }

    /// Calls the plugin: what it printed, and how long it took. An error document is an error.
    pub fn call(&self, place: Place<'_>, verb: &str) -> anyhow::Result<(Value, Duration)> {
        let (ok, document, took) = self.try_call(place, verb)?;
        if !ok {
            bail!("{verb} of {} on {} fails: {document}", self.name, place.name);
        }
        Ok((document, took))
    }

    /// Calls the plugin, whatever the answer.
    pub fn try_call(&self, place: Place<'_>, verb: &str) -> anyhow::Result<(bool, Value, Duration)> {
        let started = Instant::now();
        let mut child = self.command(place, verb)?.spawn().context("cannot start the plugin")?;
        let mut stdin = child.stdin.take().context("the plugin has no input")?;
        stdin.write_all(self.config.as_bytes()).context("cannot write to the plugin")?;
        drop(stdin);
        let output = child.wait_with_output().context("cannot wait for the plugin")?;
        let took = started.elapsed();
        let text = String::from_utf8_lossy(&output.stdout);
        let document = if text.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&text).with_context(|| format!("the plugin prints no JSON: {text}"))?
        };
        Ok((output.status.success(), document, took))
    }

    /// ADD must be refused with this code and these words, and leave neither link nor lease: the error document.
    pub fn refused(&self, place: Place<'_>, code: u64, words: &[&str]) -> anyhow::Result<Value> {
        // ENIs may be attached meanwhile.
        let links = || place.sh("ip -o link | grep -vc ': eth[0-9]'");
        let before = links()?;
        let (ok, error, _) = self.try_call(place, "ADD")?;
        ensure!(!ok, "ADD of {} is not refused: {error}", self.name);
        ensure!(error["code"] == code, "not code {code}: {error}");
        for word in words {
            ensure!(error.to_string().contains(word), "{word:?} is not in {error}");
        }
        ensure!(links()? == before, "a refused ADD of {} leaves a link", self.name);
        // Without a daemon there are no leases.
        let leases = place.leases().unwrap_or_default();
        let mine = leases.iter().find(|lease| lease["container"] == self.container.as_str());
        ensure!(mine.is_none(), "a refused ADD of {} leaves a lease: {mine:?}", self.name);
        Ok(error)
    }

    /// Namespace and ADD; its address.
    pub fn add(&self, place: Place<'_>) -> anyhow::Result<(String, Duration)> {
        self.make_namespace(place)?;
        let (result, took) = self.call(place, "ADD")?;
        Ok((address(&result)?, took))
    }

    /// DEL, then the namespace goes.
    pub fn del(&self, place: Place<'_>) -> anyhow::Result<()> {
        self.call(place, "DEL")?;
        self.remove_namespace(place)
    }
}

/// The address in a result, without its length.
pub fn address(result: &Value) -> anyhow::Result<String> {
    let address = result["ips"][0]["address"].as_str().and_then(|text| text.split('/').next());
    address.map(str::to_owned).with_context(|| format!("the result names no address: {result}"))
}
