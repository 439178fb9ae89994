//! The EC2 endpoint: a process inside the VPC that ends with it.

use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};

use crate::{ec2, fabric::POD_IDENTITY, localstack, nsenter, program::program, wait::wait_until};

/// LocalStack is seen ready after about 5 s; a loaded machine takes longer.
const BOUND: Duration = Duration::from_secs(120);

/// What is used as EC2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Backend {
    /// LocalStack: written by others, so it checks how we read EC2; it has no limits and keeps little state.
    #[default]
    #[value(name = "localstack")]
    LocalStack,
    /// The model of this crate: limits, prefixes, delays, throttling and faults.
    Model,
}

impl Backend {
    /// The word for the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Backend::LocalStack => "localstack",
            Backend::Model => "model",
        }
    }

    /// Starts it and waits until it is healthy.
    pub(crate) fn start(self, vpc_pid: u32, folder: &Path) -> anyhow::Result<Child> {
        let log = folder.join("ec2.log");
        let out = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = match self {
            Backend::LocalStack => localstack::command(vpc_pid, folder)?,
            Backend::Model => {
                let mut command = nsenter::command(vpc_pid, "env");
                command.arg(program()?).args(["ec2", "--listen", &format!("{}:{}", ec2::ADDRESS, ec2::PORT)]);
                command.args(["--pod-identity", &format!("{POD_IDENTITY}:80")]);
                command
            }
        };
        let mut child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone().context("cannot share EC2's log")?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("cannot start {}", self.as_str()))?;
        let mut ended = None;
        let waited = wait_until(BOUND, || {
            ended = child.try_wait().ok().flatten();
            ended.is_some() || nsenter::within(vpc_pid, ec2::healthy).unwrap_or(false)
        });
        let tail = || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            text.lines().rev().take(3).collect::<Vec<_>>().join(" | ")
        };
        if let Some(status) = ended {
            bail!("{} ended at once ({status}); its log: {}", self.as_str(), tail());
        }
        waited.with_context(|| format!("{} does not become healthy; its log: {}", self.as_str(), tail()))?;
        Ok(child)
    }
}

/// The number of the process that listens, below `nsenter`.
pub(crate) fn pid(child: &Child) -> anyhow::Result<u32> {
    let path = format!("/proc/{0}/task/{0}/children", child.id());
    let children = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(children.split_whitespace().next().and_then(|pid| pid.parse().ok()).unwrap_or(child.id()))
}
