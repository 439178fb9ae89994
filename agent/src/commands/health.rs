//! Asks cni.sock, as a plugin does: a daemon that serves operators only is none.

use std::{io::Read, os::fd::AsRawFd, path::Path, time::Duration};

use anyhow::{Context, bail};
use enid_api::{
    packet::{self, PACKET_MAX},
    v1::{StatusRequest, from_daemon, from_plugin},
};
use nix::sys::socket::{MsgFlags, send};
use socket2::{Domain, SockAddr, Socket, Type};

/// Whether a daemon answers STATUS there, whatever it says.
///
/// # Errors
///
/// Nobody listens, or the answer does not come within the bound.
pub fn ask(path: &Path, bound: Duration) -> anyhow::Result<()> {
    let doing = || format!("the daemon does not answer on {}", path.display());
    let mut socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).with_context(doing)?;
    socket.set_read_timeout(Some(bound)).with_context(doing)?;
    // When its queue of connections is full, connect(2) waits as long as this says (unix(7)).
    socket.set_write_timeout(Some(bound)).with_context(doing)?;
    socket.connect(&SockAddr::unix(path).with_context(doing)?).with_context(doing)?;
    let question = packet::from_plugin(from_plugin::Kind::Status(StatusRequest {}));
    send(socket.as_raw_fd(), &question, MsgFlags::MSG_NOSIGNAL).with_context(doing)?;
    let mut answer = vec![0; PACKET_MAX];
    let length = socket.read(&mut answer).with_context(doing)?;
    match packet::read_daemon(&answer, length).with_context(doing)? {
        from_daemon::Kind::Status(_) => Ok(()),
        from_daemon::Kind::Failure(failure) => bail!("{}: {}", doing(), failure.message),
        _ => bail!("{}: its answer is to another question", doing()),
    }
}
