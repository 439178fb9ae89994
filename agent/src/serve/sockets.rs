//! Unix sockets that only root can reach.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::Context;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::{Stream, StreamExt, wrappers::UnixListenerStream};
use tracing::warn;

/// Where the plugin asks.
pub fn cni(run_dir: &Path) -> PathBuf {
    run_dir.join("cni.sock")
}

/// Where the operator asks.
pub fn debug(run_dir: &Path) -> PathBuf {
    run_dir.join("debug.sock")
}

/// Makes the folder, for root alone, and claims it: as long as the lock is held no second daemon gets it.
pub fn claim(run_dir: &Path) -> anyhow::Result<Flock<fs::File>> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(run_dir)
        .with_context(|| format!("cannot make the folder {} (ENID_RUN_DIR)", run_dir.display()))?;
    let path = run_dir.join("lock");
    let file = fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => anyhow::anyhow!("another enid agent runs with ENID_RUN_DIR {}", run_dir.display()),
        errno => anyhow::anyhow!("cannot lock {}: {errno}", path.display()),
    })
}

/// Who connects, if it is root or who we are: the folder keeps all others out already.
pub fn incoming(listener: UnixListener) -> impl Stream<Item = std::io::Result<UnixStream>> {
    UnixListenerStream::new(listener).filter(|accepted| accepted.as_ref().map_or(true, is_of_trusted))
}

/// Whether root, or who we are, is at the other end.
pub fn is_of_trusted(socket: &UnixStream) -> bool {
    match socket.peer_cred() {
        Ok(peer) if is_trusted(peer.uid()) => true,
        Ok(peer) => {
            warn!(uid = peer.uid(), "a connection was closed: only root may ask");
            false
        }
        Err(error) => {
            warn!("a connection was closed: it does not say whose it is: {error}");
            false
        }
    }
}

fn is_trusted(uid: u32) -> bool {
    [0, nix::unistd::geteuid().as_raw()].contains(&uid)
}

/// Listens on a path, for root alone, as gRPC does.
pub fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    make_room(path)?;
    let listener = UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    for_root_alone(path)?;
    Ok(listener)
}

/// Removes a socket that an earlier run left there.
pub fn make_room(path: &Path) -> anyhow::Result<()> {
    let at = || format!("cannot listen on {}", path.display());
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path).with_context(at),
        Ok(_) => anyhow::bail!("{}: something that is no socket is there", at()),
        Err(_) => Ok(()),
    }
}

/// Lets nobody but root connect.
pub fn for_root_alone(path: &Path) -> anyhow::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot protect {}", path.display()))
}
