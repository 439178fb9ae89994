//! A lab that outlives who brought it up.

use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};

use crate::{
    config::LabConfig,
    program::program,
    state::{State, check_name, folder},
    wait::wait_until,
};

/// Brings a lab up, waits until it is complete, and leaves it running.
pub fn up(config: &LabConfig) -> anyhow::Result<()> {
    config.check()?;
    let name = config.name.as_str();
    if State::read(name).is_ok_and(|state| state.is_live()) {
        bail!("a lab named {name:?} is running already; `vpclab down --name {name}` ends it");
    }
    let log = std::env::temp_dir().join(format!("vpclab-{name}.log"));
    let out = fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut child = Command::new("setsid")
        .arg(program()?)
        .args(config.serve_args())
        .stdin(Stdio::null())
        .stdout(out.try_clone().context("cannot share the log")?)
        .stderr(out)
        .spawn()
        .context("cannot run setsid (util-linux)")?;
    let mut ended = false;
    let waited = wait_until(Duration::from_secs(150), || {
        ended = child.try_wait().is_ok_and(|status| status.is_some());
        ended || State::read(name).is_ok_and(|state| state.is_live())
    });
    let output = fs::read_to_string(&log).unwrap_or_default();
    let _ = fs::remove_file(&log);
    if ended {
        bail!("the lab did not come up: {}", output.trim().trim_start_matches("vpclab: "));
    }
    waited.context("the lab did not come up")
}

/// Takes a lab down, and cleans up after one that was killed.
pub fn down(name: &str) -> anyhow::Result<()> {
    check_name(name)?;
    let folder = folder(name);
    if let Ok(state) = State::read(name)
        && state.is_live()
    {
        let pid = state.serve_pid.to_string();
        Command::new("kill").arg(&pid).status().context("cannot run kill")?;
        if wait_until(Duration::from_secs(20), || !state.is_live()).is_err() {
            Command::new("kill").args(["-9", &pid]).status().context("cannot run kill")?;
            wait_until(Duration::from_secs(5), || !state.is_live())?;
        }
    }
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", folder.display()));
        }
        _ => {}
    }
    let _ = fs::remove_dir("/run/vpclab"); // the last lab takes the folder along
    Ok(())
}
