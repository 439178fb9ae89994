//! Unix sockets that only root can reach.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
            net,
        },
    },
    path::{Path, PathBuf},
};

use anyhow::Context;
use futures_util::{Stream, stream};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::mpsc,
};
use tracing::warn;

use crate::host::inode::Inode;

/// Connections that may wait to be accepted: a node's pods all at once, and more.
const BACKLOG: i32 = 1024;

/// Where the plugin asks.
pub fn cni(run_dir: &Path) -> PathBuf {
    run_dir.join("cni.sock")
}

/// Where the operator asks.
pub fn debug(run_dir: &Path) -> PathBuf {
    run_dir.join("debug.sock")
}

/// The folder, claimed by a lock on a file in it: as long as it is held no second daemon gets the folder.
pub struct Claim {
    run_dir: PathBuf,
    lock: Flock<fs::File>,
    inode: Option<Inode>,
}

impl Claim {
    /// Makes the folder, for root alone, and claims it.
    pub fn new(run_dir: &Path) -> anyhow::Result<Self> {
        Self::unless_held(run_dir)?.with_context(|| held(run_dir))
    }

    /// The same; `None` if another process has claimed it.
    pub fn unless_held(run_dir: &Path) -> anyhow::Result<Option<Self>> {
        let claimed = locked(run_dir)?;
        Ok(claimed.map(|(lock, inode)| Claim { run_dir: run_dir.to_owned(), lock, inode }))
    }

    /// Gives the folder up, and removes the file by which it was claimed.
    pub fn give_up(self) {
        let _ = fs::remove_file(lock_path(&self.run_dir));
    }

    /// Claims the folder anew where somebody has removed it or the file; whether.
    pub fn put_back(&mut self) -> anyhow::Result<bool> {
        if Inode::at(&lock_path(&self.run_dir))? == self.inode {
            return Ok(false);
        }
        (self.lock, self.inode) = locked(&self.run_dir)?.with_context(|| held(&self.run_dir))?;
        Ok(true)
    }
}

fn lock_path(run_dir: &Path) -> PathBuf {
    run_dir.join("lock")
}

fn held(run_dir: &Path) -> String {
    format!("another enid agent runs with ENID_RUN_DIR {}", run_dir.display())
}

/// The lock and the file; `None` if another process has it.
fn locked(run_dir: &Path) -> anyhow::Result<Option<(Flock<fs::File>, Option<Inode>)>> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(run_dir)
        .with_context(|| format!("cannot make the folder {} (ENID_RUN_DIR)", run_dir.display()))?;
    let path = lock_path(run_dir);
    let file = fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
        Err((_, errno)) => anyhow::bail!("cannot lock {}: {errno}", path.display()),
    };
    let inode = Inode::at(&path).with_context(|| format!("cannot look at {}", path.display()))?;
    Ok(Some((lock, inode)))
}

/// Whether root, or who we are, is at the other end.
fn is_of_trusted(socket: &UnixStream) -> bool {
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

/// A socket's place: who connects there reaches a [`Listener`], as long as the socket is there.
pub struct Place {
    path: PathBuf,
    kind: Type,
    inode: Option<Inode>,
    listeners: mpsc::UnboundedSender<net::UnixListener>,
}

impl Place {
    /// Listens there with a socket of this type, for root alone.
    pub fn listen(path: PathBuf, kind: Type) -> anyhow::Result<(Self, Listeners)> {
        let (listeners, received) = mpsc::unbounded_channel();
        let mut place = Place { path, kind, inode: None, listeners };
        place.bind()?;
        Ok((place, Listeners(received)))
    }

    /// Listens with a new socket where somebody has removed or replaced the one that was there; whether.
    pub fn put_back(&mut self) -> anyhow::Result<bool> {
        if Inode::at(&self.path)? == self.inode {
            return Ok(false);
        }
        self.bind()?;
        Ok(true)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn bind(&mut self) -> anyhow::Result<()> {
        let (path, at) = (&self.path, || format!("cannot listen on {}", self.path.display()));
        make_room(path)?;
        let socket = Socket::new(Domain::UNIX, self.kind.nonblocking(), None).with_context(at)?;
        socket.bind(&SockAddr::unix(path).with_context(at)?).with_context(at)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))
            .with_context(|| format!("cannot protect {}", path.display()))?;
        socket.listen(BACKLOG).with_context(at)?;
        self.inode = Inode::at(path).with_context(at)?;
        // Where nobody receives, the daemon is ending.
        let _ = self.listeners.send(OwnedFd::from(socket).into());
        Ok(())
    }
}

/// The sockets that have listened at a place, one after the other.
pub struct Listeners(mpsc::UnboundedReceiver<net::UnixListener>);

/// Who connects, whichever socket listens.
pub struct Listener {
    current: UnixListener,
    next: Listeners,
}

impl Listener {
    /// Waits for connections in the runtime in which this is called.
    pub async fn start(mut listeners: Listeners) -> anyhow::Result<Self> {
        let first = listeners.0.recv().await.context("no socket listens")?;
        let current = UnixListener::from_std(first).context("cannot wait for connections")?;
        Ok(Listener { current, next: listeners })
    }

    /// The next who connects, if it is root or who we are: the folder keeps all others out already.
    pub async fn accept(&mut self) -> io::Result<UnixStream> {
        loop {
            let next = tokio::select! {
                biased; // who has connected to a socket that was replaced is still heard
                accepted = self.current.accept() => match accepted?.0 {
                    socket if is_of_trusted(&socket) => return Ok(socket),
                    _ => continue,
                },
                Some(next) = self.next.0.recv() => next,
            };
            self.current = UnixListener::from_std(next)?;
        }
    }

    /// The same, as a stream.
    pub fn incoming(self) -> impl Stream<Item = io::Result<UnixStream>> {
        stream::unfold(self, |mut listener| async move { Some((listener.accept().await, listener)) })
    }
}

/// Removes a socket that an earlier run left there.
fn make_room(path: &Path) -> anyhow::Result<()> {
    let at = || format!("cannot listen on {}", path.display());
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path).with_context(at),
        Ok(_) => anyhow::bail!("{}: something that is no socket is there", at()),
        Err(_) => Ok(()),
    }
}
