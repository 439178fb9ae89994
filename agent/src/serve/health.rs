//! Whether the daemon serves, as probes ask: `/healthz` and `/readyz` on a loopback address for the kubelet, `enid health`
//! for people. All ask cni.sock, as a plugin does: a daemon that serves operators only is none. One that waits for its node
//! is alive, and not ready.

use std::{
    io::Read,
    net::SocketAddr,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use axum::{Router, http::StatusCode, routing::get};
use enid_api::{
    packet::{self, PACKET_MAX},
    v1::{StatusRequest, from_daemon, from_plugin},
};
use nix::sys::socket::{MsgFlags, send};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::{net::TcpListener, task::spawn_blocking};
use tracing::warn;

use crate::serve::listen::Listen;

/// Below the kubelet's own bound in the chart, so that the answer says what is wrong.
const BOUND: Duration = Duration::from_secs(5);

/// Serves both until the task is dropped: 200 while a daemon answers on cni.sock, else 503 and why.
///
/// # Errors
///
/// The server ended.
pub async fn serve(address: SocketAddr, cni: PathBuf) -> anyhow::Result<()> {
    let answer = move || {
        let cni = cni.clone();
        async move {
            // It waits for a socket: on a thread that may block.
            match spawn_blocking(move || ask(&cni, BOUND)).await.context("the question ended").flatten() {
                Ok(()) => (StatusCode::OK, "serving\n".to_owned()),
                Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}\n")),
            }
        }
    };
    let router = Router::new().route("/healthz", get(answer.clone())).route("/readyz", get(answer));
    axum::serve(listen(address).await, router).await.context("the health server ended")
}

/// Serves both until the task is dropped, for a daemon that has not begun: `/healthz` is 200 and `/readyz` 503, with why.
pub async fn waiting(address: SocketAddr, why: String) {
    let answer = |status: StatusCode| {
        let words = format!("{why}\n");
        get(move || async move { (status, words) })
    };
    let ready = answer(StatusCode::SERVICE_UNAVAILABLE);
    let router = Router::new().route("/healthz", answer(StatusCode::OK)).route("/readyz", ready);
    if let Err(failure) = axum::serve(listen(address).await, router).await {
        warn!("the health server ended: {failure}");
    }
    std::future::pending().await
}

async fn listen(address: SocketAddr) -> TcpListener {
    Listen { what: "health", setting: "ENID_HEALTH_ADDRESS", address }.bind(|_| {}).await
}

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
