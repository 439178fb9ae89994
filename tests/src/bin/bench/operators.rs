//! Operators that ask the daemon while ADDs run, and such as begin to listen and never read.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use enid_api::v1::{
    GetPoolRequest, ListAddressesRequest, ListOperationsRequest, WatchOperationsRequest, debug_client::DebugClient,
};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, runtime::Runtime, time::sleep};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

/// Clients of each kind.
const CLIENTS: usize = 4;
/// A client asks again after so long.
const PAUSE: Duration = Duration::from_millis(20);

/// What operators do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operators {
    /// Nothing.
    Absent,
    /// They ask for the pool, addresses and operations, again and again.
    Ask,
    /// They follow the operations, and never read.
    NeverRead,
}

/// Operators at work.
pub struct Working {
    runtime: Runtime,
    ends: Arc<AtomicBool>,
    took: Arc<Mutex<Vec<Duration>>>,
}

impl Operators {
    /// They begin, at the daemon's socket.
    pub fn begin(self, socket: &Path) -> anyhow::Result<Working> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let working = Working { runtime, ends: Arc::default(), took: Arc::default() };
        if self != Operators::Absent {
            for _ in 0..CLIENTS {
                let client = working.runtime.block_on(client(socket.to_owned()))?;
                let (ends, took) = (working.ends.clone(), working.took.clone());
                match self {
                    Operators::Ask => drop(working.runtime.spawn(ask(client, ends, took))),
                    _ => drop(working.runtime.spawn(never_read(client, ends))),
                }
            }
        }
        Ok(working)
    }
}

impl Working {
    /// They end; how long each answer took, in milliseconds.
    pub fn end(self) -> Vec<f64> {
        self.ends.store(true, Ordering::Relaxed);
        self.runtime.shutdown_timeout(Duration::from_secs(1));
        let took = self.took.lock().unwrap_or_else(PoisonError::into_inner);
        took.iter().map(|took| took.as_secs_f64() * 1_000.0).collect()
    }
}

async fn client(socket: PathBuf) -> anyhow::Result<DebugClient<Channel>> {
    let connector = service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://enid.local").connect_with_connector(connector).await;
    Ok(DebugClient::new(channel.context("the daemon does not answer")?).max_decoding_message_size(64 << 20))
}

async fn ask(mut client: DebugClient<Channel>, ends: Arc<AtomicBool>, took: Arc<Mutex<Vec<Duration>>>) {
    let mut turn = 0_u32;
    while !ends.load(Ordering::Relaxed) {
        let began = Instant::now();
        let is_answered = match turn % 3 {
            0 => client.get_pool(GetPoolRequest {}).await.is_ok(),
            1 => client.list_addresses(ListAddressesRequest {}).await.is_ok(),
            _ => client.list_operations(ListOperationsRequest {}).await.is_ok(),
        };
        if is_answered {
            took.lock().unwrap_or_else(PoisonError::into_inner).push(began.elapsed());
        }
        turn += 1;
        sleep(PAUSE).await;
    }
}

async fn never_read(mut client: DebugClient<Channel>, ends: Arc<AtomicBool>) {
    let followed = client.watch_operations(WatchOperationsRequest {}).await;
    while !ends.load(Ordering::Relaxed) {
        sleep(PAUSE).await;
    }
    drop(followed);
}
