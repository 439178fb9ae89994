//! Instance metadata, read for the core: it is node-local, and the one thing that is polled.

use std::time::Duration;

use enid_ipamd::Event;
use tokio::{sync::watch, time::timeout};
use tracing::warn;

use crate::{aws::imds::Imds, clock, core::handle::Handle};

/// How often metadata is read when nothing is expected of it.
const PERIOD: Duration = Duration::from_secs(30);
/// How soon it is read again while something is expected; twice as long each time, up to a second.
const SOON: Duration = Duration::from_millis(50);
const LATER: Duration = Duration::from_secs(1);

/// Reads metadata until the daemon ends; `awaited` is set while the core expects something of it.
pub async fn run(imds: Imds, handle: Handle, mut awaited: watch::Receiver<bool>) {
    let mut pause = SOON;
    loop {
        match imds.enis().await {
            Ok((enis, addressless)) => {
                handle.tell(Event::Wall { ms: clock::wall_ms() }).await;
                handle.tell(Event::Imds { enis, addressless }).await;
            }
            Err(failure) => {
                let message = format!("{failure:#}");
                warn!("instance metadata: {message}");
                handle.tell(Event::ImdsFailed { message }).await;
            }
        }
        match imds.vpc_cidrs().await {
            Ok(cidrs) => handle.vpc(cidrs).await,
            Err(failure) => warn!("instance metadata: {failure:#}"),
        }
        let wait = if *awaited.borrow_and_update() { pause } else { PERIOD };
        match timeout(wait, awaited.changed()).await {
            Ok(Ok(())) => pause = SOON,
            Ok(Err(_)) => return, // the core's task has ended
            Err(_) => pause = (pause * 2).min(LATER),
        }
    }
}
