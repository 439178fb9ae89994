//! What says that a node is to be given back, or was: a file beside the store.
//!
//! It holds for the daemon's pod in which it was asked: a container that starts again in it goes on, and waits. Another pod of
//! the daemon on this node is there because somebody wants it there.

use std::{fs, io, path::PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::{
    host::file::{self, put},
    settings::Settings,
};

/// In ENID_STORE_DIR.
const FILE: &str = "handback.json";

/// The mark.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The daemon's pod; empty: any.
    pod: String,
    /// How far it is.
    pub step: Step,
    /// Why it does not go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Nothing has been done.
    Asked,
    /// The other system's state file has our stamp: once it has not, it is whole.
    Begun,
    /// The node is the other system's.
    Done,
}

/// Whether a file of the store's folder is one, or one that is being written.
pub fn is_one(name: &str) -> bool {
    name.trim_start_matches('.').starts_with(FILE)
}

impl Mark {
    /// Who does not say which pod it is, a command in a debugging pod for one, speaks of the node: what it has asked for is done
    /// by whichever daemon is there, and what is done keeps no later pod waiting.
    fn holds_for(&self, pod: &str) -> bool {
        pod.is_empty() || self.pod == pod || self.pod.is_empty() && self.step != Step::Done
    }
}

fn path(settings: &Settings) -> PathBuf {
    settings.store_dir.join(FILE)
}

/// The mark, if one holds for this pod.
///
/// # Errors
///
/// It cannot be read, or is none.
pub fn read(settings: &Settings) -> anyhow::Result<Option<Mark>> {
    let path = path(settings);
    let mark: Mark = match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).with_context(|| format!("{} is no mark", path.display()))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    Ok(Some(mark).filter(|mark| mark.holds_for(&settings.pod_name)))
}

/// Makes it, for this pod, unless somebody has done so meanwhile.
///
/// # Errors
///
/// The file cannot be written.
pub fn ask(settings: &Settings) -> anyhow::Result<()> {
    let path = path(settings);
    let doing = || format!("cannot write {}", path.display());
    // One of another pod holds no more.
    if read(settings)?.is_none() {
        remove(settings)?;
    }
    // Whole, or not at all.
    let beside = path.with_extension(format!("{}.new", std::process::id()));
    put(&beside, text(settings, Step::Asked, None)?.as_bytes(), 0o600)?;
    let linked = fs::hard_link(&beside, &path);
    file::remove(&beside)?;
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error).with_context(doing),
        _ => Ok(()),
    }
}

/// Notes how far it is, and why it does not go on.
///
/// # Errors
///
/// The file cannot be written.
pub fn write(settings: &Settings, step: Step, failure: Option<&str>) -> anyhow::Result<()> {
    put(&path(settings), text(settings, step, failure)?.as_bytes(), 0o600)
}

fn text(settings: &Settings, step: Step, failure: Option<&str>) -> anyhow::Result<String> {
    let mark = Mark { pod: settings.pod_name.clone(), step, failure: failure.map(str::to_owned) };
    Ok(serde_json::to_string(&mark).context("cannot write JSON")? + "\n")
}

/// Removes it, whomever it holds for; whether there was one.
///
/// # Errors
///
/// The file cannot be removed.
pub fn remove(settings: &Settings) -> anyhow::Result<bool> {
    file::remove(&path(settings))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_for_the_pod_in_which_it_was_asked() {
        let mut settings = Settings::read(&|_| None).unwrap();
        settings.store_dir = std::env::temp_dir().join(format!("enid-mark-{}", std::process::id()));
        assert_eq!(read(&settings).unwrap(), None);
        let cases = [
            ("", Step::Asked, true),
            ("", Step::Done, false),
            ("enid-abcde", Step::Asked, true),
            ("enid-abcde", Step::Done, true),
            ("enid-fghij", Step::Asked, false),
        ];
        for (asked_in, step, holds) in cases {
            settings.pod_name = asked_in.to_owned();
            write(&settings, step, None).unwrap();
            settings.pod_name = "enid-abcde".to_owned();
            assert_eq!(read(&settings).unwrap().is_some(), holds, "{asked_in} {step:?}");
            settings.pod_name = String::new();
            assert!(read(&settings).unwrap().is_some(), "who speaks of the node sees each");
        }
        settings.pod_name = "enid-abcde".to_owned();
        assert!(remove(&settings).unwrap() && !remove(&settings).unwrap());
        ask(&settings).unwrap();
        write(&settings, Step::Begun, Some("no nft")).unwrap();
        ask(&settings).unwrap();
        let mark = read(&settings).unwrap().unwrap();
        assert_eq!((mark.step, mark.failure.as_deref()), (Step::Begun, Some("no nft")), "asked twice, it goes on");
        fs::write(path(&settings), "{").unwrap();
        assert!(read(&settings).unwrap_err().to_string().contains("handback.json is no mark"));
        fs::remove_dir_all(&settings.store_dir).unwrap();
    }
}
