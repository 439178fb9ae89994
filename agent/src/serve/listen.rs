//! A TCP address of the host, which somebody else may have.

use std::{net::SocketAddr, time::Duration};

use tokio::{net::TcpListener, time::sleep};
use tracing::{info, warn};

/// How soon an address that cannot be had is tried again.
const AGAIN: Duration = Duration::from_secs(10);

/// What is served where.
pub struct Listen {
    /// What is served.
    pub what: &'static str,
    /// The setting that says where.
    pub setting: &'static str,
    /// Where.
    pub address: SocketAddr,
}

impl Listen {
    /// Waits until the address can be had. Pods do not depend on it: while it cannot be had (another daemon has it), that is
    /// told, and it is tried again. `tell` hears what is wrong, and that it is over.
    pub async fn bind(self, tell: impl Fn(Option<String>)) -> TcpListener {
        let Listen { what, setting, address } = self;
        let mut told = None;
        loop {
            match TcpListener::bind(address).await {
                Ok(listener) => {
                    if told.is_some() {
                        info!("{what} is served on {address}");
                        tell(None);
                    }
                    return listener;
                }
                Err(error) => {
                    let words = format!("cannot serve {what} on {address} ({setting}): {error}");
                    if told.as_ref() != Some(&words) {
                        warn!("{words}; it is tried again");
                        tell(Some(words.clone()));
                        told = Some(words);
                    }
                    sleep(AGAIN).await;
                }
            }
        }
    }
}
