//! Unix sockets that only root can reach.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::Context;
use tokio::net::UnixListener;

/// Where the plugin asks.
pub fn cni(run_dir: &Path) -> PathBuf {
    run_dir.join("cni.sock")
}

/// Where the operator asks.
pub fn debug(run_dir: &Path) -> PathBuf {
    run_dir.join("debug.sock")
}

/// Makes the folder, for root alone.
pub fn folder(run_dir: &Path) -> anyhow::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(run_dir)
        .with_context(|| format!("cannot make the folder {}", run_dir.display()))
}

/// Listens on a path; a socket that an earlier life left there goes first.
pub fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let at = || format!("cannot listen on {}", path.display());
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).with_context(at),
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(at)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).with_context(at)?;
    Ok(listener)
}
