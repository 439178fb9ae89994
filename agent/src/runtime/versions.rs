//! Which versions of the CNI specification the plugins of the chain serve.
//!
//! A plugin is asked by being run, so its answer is remembered as long as its file is the same: a quiet daemon runs none.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde_json::Value;
use tokio::{io::AsyncWriteExt, time::timeout};

/// The version that every runtime in use takes.
pub const VERSION: &str = "1.0.0";
/// Offered beside it only if every binary in the chain serves it.
pub const NEWEST: &str = "1.1.0";
/// How long a plugin may take to answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// What plugins have answered, by their path.
#[derive(Debug, Default)]
pub struct Versions(BTreeMap<PathBuf, (File, Vec<String>)>);

/// Which file it was: device, inode, size, and when it was last changed, in seconds and nanoseconds. Binaries are
/// replaced by rename, which makes another inode, or written over, which changes ctime.
type File = (u64, u64, u64, i64, i64);

/// Why there are none.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The file is not there, or is no plugin.
    #[error("{}: {why}", path.display())]
    NoPlugin { path: PathBuf, why: String },
    /// It could not be asked, or did not answer in time.
    #[error("cannot ask {} for its versions: {why}", path.display())]
    Unknown { path: PathBuf, why: String },
}

impl Versions {
    /// The versions that this plugin serves.
    pub async fn of(&mut self, path: &Path) -> Result<&[String], Fault> {
        let file = identify(path).map_err(|error| refused(path, &error))?;
        if self.0.get(path).is_none_or(|(known, _)| *known != file) {
            self.0.insert(path.to_owned(), (file, ask(path).await?));
        }
        Ok(&self.0[path].1)
    }
}

/// What the kernel's refusal to read or run a plugin says of it: ENOEXEC, for one, that it is none (execve(2)).
fn refused(path: &Path, error: &io::Error) -> Fault {
    use nix::errno::Errno;
    let path = path.to_owned();
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) => Fault::NoPlugin { path, why: "it is not there".to_owned() },
        Some(Errno::ENOEXEC | Errno::EACCES | Errno::EISDIR | Errno::ELIBBAD | Errno::ELOOP) => {
            Fault::NoPlugin { path, why: format!("it cannot be run: {error}") }
        }
        _ => Fault::Unknown { path, why: error.to_string() },
    }
}

fn identify(path: &Path) -> io::Result<File> {
    let found = fs::metadata(path)?;
    Ok((found.dev(), found.ino(), found.size(), found.ctime(), found.ctime_nsec()))
}

/// What a plugin answers to VERSION.
async fn ask(path: &Path) -> Result<Vec<String>, Fault> {
    let unknown = |why: String| Fault::Unknown { path: path.to_owned(), why };
    let mut child = tokio::process::Command::new(path)
        .env_clear()
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| refused(path, &error))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A plugin that answers without reading is none the worse.
        let _ = stdin.write_all(format!(r#"{{"cniVersion":"{NEWEST}"}}"#).as_bytes()).await;
    }
    let Ok(output) = timeout(TIMEOUT, child.wait_with_output()).await else {
        return Err(unknown(format!("it does not answer within {} s", TIMEOUT.as_secs())));
    };
    let output = output.map_err(|error| unknown(error.to_string()))?;
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let Some(listed) = answer["supportedVersions"].as_array() else {
        let why = format!("its answer to VERSION names no supportedVersions ({})", output.status);
        return Err(Fault::NoPlugin { path: path.to_owned(), why });
    };
    Ok(listed.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn a_plugin_is_run_once_for_each_file() {
        let folder = std::env::temp_dir().join(format!("enid-versions-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (path, runs) = (folder.join("plugin"), folder.join("runs"));
        let install = |version: &str| {
            let new = folder.join("new");
            let answer = format!(r#"{{"supportedVersions":["{version}"]}}"#);
            fs::write(&new, format!("#!/bin/sh\ncat >/dev/null\necho >> {}\necho '{answer}'\n", runs.display()))
                .unwrap();
            fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
            fs::rename(&new, &path).unwrap();
        };
        let mut versions = Versions::default();
        for version in ["1.0.0", "1.1.0"] {
            install(version);
            for _ in 0..3 {
                assert_eq!(versions.of(&path).await.unwrap(), [version]);
            }
        }
        assert_eq!(fs::read_to_string(&runs).unwrap().lines().count(), 2);
        fs::remove_dir_all(&folder).unwrap();
        assert!(versions.of(&path).await.is_err(), "it is gone");
    }
}
