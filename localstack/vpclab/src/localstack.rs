//! LocalStack, as one of the two that can be EC2.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};

use crate::{ec2, nsenter};

/// The command that runs it inside the VPC.
pub fn command(vpc_pid: u32, folder: &Path) -> anyhow::Result<Command> {
    let python = python()?;
    let volume = folder.join("localstack");
    fs::create_dir_all(&volume).with_context(|| format!("cannot make {}", volume.display()))?;
    let mut command = nsenter::command(vpc_pid, "env");
    command
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
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../launch.py"));
    Ok(command)
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
