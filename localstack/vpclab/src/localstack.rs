//! LocalStack, started inside the VPC and ended with it.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};

use crate::{ec2, space, wait_until};

/// Seen ready after about 5 s; a loaded machine takes longer.
const BOUND: Duration = Duration::from_secs(120);

/// Starts it and waits until it is healthy.
pub fn start(vpc_pid: u32, folder: &Path) -> anyhow::Result<Child> {
    let python = python()?;
    let log = folder.join("localstack.log");
    let out = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let volume = folder.join("localstack");
    fs::create_dir_all(&volume).with_context(|| format!("cannot make {}", volume.display()))?;
    let mut child = space::command(vpc_pid, "env")
        .args([
            "-i",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "SERVICES=ec2",
            "EAGER_SERVICE_LOADING=1",
            "DISABLE_EVENTS=1",
        ])
        .args(["SKIP_SSL_CERT_DOWNLOAD=1", "SKIP_INFRA_DOWNLOADS=1", "ALLOW_NONSTANDARD_REGIONS=1"])
        .arg(format!("GATEWAY_LISTEN={}:{}", ec2::ADDRESS, ec2::PORT))
        .arg(format!("LOCALSTACK_VOLUME_DIR={}", volume.display()))
        .arg(format!("HOME={}", volume.display()))
        .arg(format!("TMPDIR={}", volume.display()))
        .arg(python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../launch.py"))
        .stdin(Stdio::null())
        .stdout(out.try_clone().context("cannot share LocalStack's log")?)
        .stderr(out)
        .spawn()
        .context("cannot start LocalStack")?;
    let mut ended = None;
    let waited = wait_until(BOUND, || {
        ended = child.try_wait().ok().flatten();
        ended.is_some() || space::within(vpc_pid, ec2::healthy).unwrap_or(false)
    });
    let tail = || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        text.lines().rev().take(3).collect::<Vec<_>>().join(" | ")
    };
    if let Some(status) = ended {
        bail!("LocalStack ended at once ({status}); its log says: {}", tail());
    }
    waited.with_context(|| format!("LocalStack does not get healthy; its log says: {}", tail()))?;
    Ok(child)
}

/// The number of the process that listens, below `nsenter`.
pub fn pid(child: &Child) -> anyhow::Result<u32> {
    let path = format!("/proc/{0}/task/{0}/children", child.id());
    let children = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(children.split_whitespace().next().and_then(|pid| pid.parse().ok()).unwrap_or(child.id()))
}

/// The Python that has LocalStack: `VPCLAB_PYTHON`, or what `localstack/install` made.
fn python() -> anyhow::Result<PathBuf> {
    let installed = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/bin/python");
    let python = std::env::var_os("VPCLAB_PYTHON").map_or_else(installed, PathBuf::from);
    if !python.exists() {
        bail!("LocalStack is not installed: there is no {}; `make tools` installs it", python.display());
    }
    Ok(python)
}
