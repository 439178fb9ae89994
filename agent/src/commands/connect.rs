//! The way to the daemon: debug.sock, with a bound on every answer.

use std::{fmt, time::Duration};

use anyhow::Context;
use enid_api::v1::debug_client::DebugClient;
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, time::timeout};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::{handback::mark, host::sockets, settings::Settings};

/// How long an operator waits for a daemon that does not answer.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// No daemon answers on the node; one sentence.
#[derive(Debug)]
pub struct NoDaemon(pub String);

impl fmt::Display for NoDaemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NoDaemon {}

/// A connection to the daemon.
///
/// # Errors
///
/// [`NoDaemon`], with what an operator would look at next.
pub async fn channel(settings: &Settings) -> anyhow::Result<Channel> {
    let path = sockets::debug(&settings.run_dir);
    let at = path.clone();
    let connector = service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://enid.local");
    match within(async { endpoint.connect_with_connector(connector).await.map_err(anyhow::Error::from) }).await {
        Ok(channel) => Ok(channel),
        Err(_) if matches!(mark::read(settings), Ok(Some(_))) => {
            let words = "the daemon serves no pods: this node is given back to Amazon's VPC CNI (enid handback --cancel)";
            Err(NoDaemon(words.to_owned()).into())
        }
        Err(_) => Err(NoDaemon(format!(
            "the daemon does not answer on {}; pods keep their network without it, and new ones wait. Its log says why: \
             kubectl -n kube-system logs -l app.kubernetes.io/name=enid",
            at.display()
        ))
        .into()),
    }
}

/// A client of `enid.v1.Debug`.
///
/// # Errors
///
/// As of [`channel`].
pub async fn debug(settings: &Settings) -> anyhow::Result<DebugClient<Channel>> {
    // A node of 700 pods has an answer of some 200 KiB; a thousand operations are more.
    Ok(DebugClient::new(channel(settings).await?).max_decoding_message_size(64 << 20))
}

/// An answer of the daemon, unless it takes too long.
///
/// # Errors
///
/// What is wrong with it, or that it does not come.
pub async fn within<T>(answer: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let late = || NoDaemon(format!("the daemon does not answer within {} s", TIMEOUT.as_secs()));
    timeout(TIMEOUT, answer).await.map_err(|_| late()).context("nothing is known")?
}

/// What the daemon answered, or why it refused.
///
/// # Errors
///
/// Its sentence.
pub fn answered<T>(answer: Result<tonic::Response<T>, tonic::Status>) -> anyhow::Result<T> {
    answer.map(tonic::Response::into_inner).map_err(|status| anyhow::anyhow!("{}", status.message()))
}

/// The daemon's answer to one question, unless it takes too long.
///
/// # Errors
///
/// As of [`within`] and [`answered`].
pub async fn reply<T>(asked: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> anyhow::Result<T> {
    within(async { answered(asked.await) }).await
}
