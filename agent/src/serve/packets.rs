//! cni.sock: connections of type SOCK_SEQPACKET, a message a packet (`enid_api::packet`).
//!
//! tokio has no type for such sockets. Its `UnixListener` and `UnixStream` do for them: both wait for a descriptor and
//! call the kernel, which alone knows the type. (`AsyncFd` would say it better; its safe constructors are deprecated.)
//!
//! What can be done at once is done without asking the poller first: a plugin's packet is usually there when its
//! connection is accepted, and there is always room for an answer.

use std::{cell::RefCell, io, os::fd::AsRawFd, time::Duration};

use enid_api::{
    packet::{self, Malformed, PACKET_MAX},
    v1::{from_daemon, from_plugin},
};
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use tokio::{io::Interest, net::UnixStream, runtime};
use tracing::warn;

use crate::host::sockets::{Listener, Listeners};

/// How long nothing is accepted after the kernel refused, for want of descriptors for instance.
const PAUSE: Duration = Duration::from_millis(100);

thread_local! {
    /// Each packet is received here and decoded at once. Pages that no packet has filled take no memory.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; PACKET_MAX]);
}

/// Waits for plugins.
pub struct Plugins(Listener);

/// A plugin that has connected.
pub struct Connection(UnixStream);

/// Why nothing was received.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// What came is no message.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The connection failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Why a conversation ends before its answer.
pub enum End {
    /// The plugin has gone, or the daemon is ending.
    Gone,
    /// What the plugin sent is no conversation.
    NotUnderstood(String),
    /// What it asked for could not be done.
    Failed(String),
}

impl From<Fault> for End {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Malformed(malformed) => End::NotUnderstood(malformed.to_string()),
            Fault::Io(error) => error.into(),
        }
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => End::Gone,
            _ => End::Failed(format!("cannot send or receive a packet: {error}")),
        }
    }
}

/// The result of work that no pod is to wait for.
pub async fn in_background<T: Send + 'static>(
    background: &runtime::Handle,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, End> {
    background.spawn(work).await.map_err(|_| End::Gone)
}

impl Plugins {
    /// Waits for them in the runtime in which this is called.
    pub async fn start(listeners: Listeners) -> anyhow::Result<Self> {
        Listener::start(listeners).await.map(Plugins)
    }

    /// The next plugin.
    pub async fn accept(&mut self) -> Connection {
        loop {
            match self.0.accept().await {
                Ok(socket) => return Connection(socket),
                Err(error) => {
                    warn!("cni.sock: cannot accept a connection: {error}");
                    // The same error would come at once; nothing tells when it has passed.
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

impl Connection {
    /// The next message; `None` once the plugin has closed. What is dropped before it is done takes no packet.
    pub async fn receive(&self) -> Result<Option<from_plugin::Kind>, Fault> {
        let received = match receive(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.0.async_io(Interest::READABLE, || receive(&self.0)).await
            }
            received => received,
        };
        match received {
            Ok(message) => Ok(message.transpose()?),
            // It ended before it had read all that was said to it.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(Fault::Io(error)),
        }
    }

    /// Sends a message. One that fits no packet goes as a failure that says so.
    pub async fn send(&self, kind: from_daemon::Kind) -> io::Result<()> {
        let mut bytes = packet::from_daemon(kind);
        if bytes.len() > PACKET_MAX {
            let message = format!("its answer has {} bytes, and a packet holds {PACKET_MAX}", bytes.len());
            bytes = packet::from_daemon(from_daemon::Kind::Failure(enid_api::v1::Failure {
                not_understood: false,
                message,
            }));
        }
        if bytes.len() > packet::SMALL {
            // Where it is refused, sending says so.
            let _ = setsockopt(&self.0, sockopt::SndBufForce, &packet::SEND_BUFFER);
        }
        match send(&self.0, &bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.0.async_io(Interest::WRITABLE, || send(&self.0, &bytes)).await
            }
            sent => sent,
        }
    }
}

/// Takes the packet that is there; `None` where the plugin has closed.
fn receive(socket: &UnixStream) -> io::Result<Option<Result<from_plugin::Kind, Malformed>>> {
    BUFFER.with_borrow_mut(|buffer| {
        // With MSG_TRUNC the kernel tells the whole length of a packet that it had to cut.
        let length = recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT)?;
        Ok((length > 0).then(|| packet::read_plugin(buffer, length)))
    })
}

fn send(socket: &UnixStream, bytes: &[u8]) -> io::Result<()> {
    // A packet goes whole or not at all.
    nix::sys::socket::send(socket.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)?;
    Ok(())
}
