//! What an operator restricts, beside the sockets: a restart of the daemon lifts nothing, one of the machine does.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context;
use enid_ipamd::Restrictions;

use crate::host::file::{self, put};

/// In ENID_RUN_DIR.
pub const FILE: &str = "restrictions.json";

fn path(run_dir: &Path) -> PathBuf {
    run_dir.join(FILE)
}

/// What is restricted.
///
/// # Errors
///
/// The file cannot be read, or is none: what an operator wants is not known then, and nobody guesses.
pub fn read(run_dir: &Path) -> anyhow::Result<Restrictions> {
    let path = path(run_dir);
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text)
            .with_context(|| format!("{} says what an operator restricts, and cannot be read", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Restrictions::default()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Writes it down.
///
/// # Errors
///
/// The file cannot be written.
pub fn write(run_dir: &Path, restrictions: &Restrictions) -> anyhow::Result<()> {
    let text = serde_json::to_string(restrictions).context("cannot write JSON")?;
    put(&path(run_dir), text.as_bytes(), 0o600)
}

/// Lifts all of it.
///
/// # Errors
///
/// The file cannot be removed.
pub fn remove(run_dir: &Path) -> anyhow::Result<bool> {
    file::remove(&path(run_dir))
}
