//! The plugin called as no runtime would: every variable, byte and surrounding chosen by the test.

use std::{collections::BTreeMap, io::Write, process::Stdio};

use anyhow::Context;
use serde_json::Value;

use crate::{Place, Pod, plugin};

/// One call, not yet made.
#[derive(Clone, Debug)]
pub struct Call {
    env: BTreeMap<String, String>,
    stdin: Vec<u8>,
    under: Vec<String>,
    /// A shell's redirections, put behind the call.
    redirected: String,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The exit status; `None` if a signal ended it.
    pub code: Option<i32>,
    /// All of stdout.
    pub stdout: String,
    /// All of stderr.
    pub stderr: String,
}

impl Call {
    /// This verb for that pod, with an otherwise empty environment.
    pub fn new(pod: &Pod, verb: &str) -> Self {
        let mut call = Call::bare(verb).stdin(&pod.config);
        call = call.env("CNI_CONTAINERID", &pod.container).env("CNI_IFNAME", &pod.ifname);
        call = call.env("CNI_NETNS", &format!("/run/netns/{}", pod.name));
        if pod.named {
            let args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={}", pod.name);
            call = call.env("CNI_ARGS", &args);
        }
        call
    }

    /// This verb, with nothing else.
    pub fn bare(verb: &str) -> Self {
        let env = BTreeMap::from([("CNI_COMMAND".to_owned(), verb.to_owned())]);
        Call { env, stdin: Vec::new(), under: Vec::new(), redirected: String::new() }
    }

    /// Sets a variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Takes a variable away.
    pub fn without(mut self, name: &str) -> Self {
        self.env.remove(name);
        self
    }

    /// What is on stdin.
    pub fn stdin(mut self, text: &str) -> Self {
        self.stdin = text.as_bytes().to_vec();
        self
    }

    /// A program with its arguments that starts the plugin.
    pub fn under(mut self, words: &[&str]) -> Self {
        self.under = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Redirections in the shell's words, such as `2>&-`.
    pub fn redirected(mut self, redirections: &str) -> Self {
        redirections.clone_into(&mut self.redirected);
        self
    }

    /// Makes the call on a node.
    pub fn make(&self, place: Place<'_>) -> anyhow::Result<Answer> {
        let mut command = place.command("sh")?;
        command.args(["-c", &format!("exec \"$@\" {}", self.redirected), "sh"]);
        command.args(&self.under).args(["env", "-i"]);
        command.args(self.env.iter().map(|(name, value)| format!("{name}={value}")));
        let mut child = command
            .arg(plugin()?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start the plugin")?;
        // A plugin that ends before it has read everything is what some tests want.
        let _ = child.stdin.take().context("the plugin has no input")?.write_all(&self.stdin);
        let output = child.wait_with_output().context("cannot wait for the plugin")?;
        Ok(Answer {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}

impl Answer {
    /// Exit status 0: the document, `Null` if there is none.
    pub fn fine(&self) -> anyhow::Result<Value> {
        anyhow::ensure!(self.code == Some(0), "the plugin fails: {self:?}");
        self.document()
    }

    /// Exit status 0 and nothing on stdout.
    pub fn silent(&self) -> anyhow::Result<()> {
        anyhow::ensure!(self.code == Some(0) && self.stdout.is_empty(), "not silent: {self:?}");
        Ok(())
    }

    /// Another exit status and one error document with this code and these words.
    pub fn refused(&self, code: u64, words: &[&str]) -> anyhow::Result<Value> {
        anyhow::ensure!(self.code.is_some_and(|status| status != 0), "not refused: {self:?}");
        let error = self.document()?;
        anyhow::ensure!(error["code"] == code && error["cniVersion"].is_string(), "not code {code}: {error}");
        for word in words {
            anyhow::ensure!(error.to_string().contains(word), "{word:?} is not in {error}");
        }
        Ok(error)
    }

    fn document(&self) -> anyhow::Result<Value> {
        if self.stdout.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&self.stdout).with_context(|| format!("stdout is not one JSON document: {self:?}"))
    }
}
