//! Two daemons must not give addresses on one node: as long as the other one answers, nothing is changed.

use std::{io::ErrorKind, os::unix::net::UnixStream, time::Duration};

use tokio::time::sleep;
use tracing::{info, warn};

use crate::{serve::health, settings::Settings};

/// Where the daemon of Amazon's VPC CNI serves its plugin.
pub const SOCKET: &str = "/var/run/aws-node/ipamd.sock";
/// It is looked at so often whether it still does.
const LOOK: Duration = Duration::from_secs(2);

/// Waits until the daemon of Amazon's VPC CNI has gone. Who probes this one hears meanwhile that it waits.
pub async fn wait(settings: &Settings) {
    if !answers() {
        return;
    }
    let words = format!(
        "Amazon's VPC CNI serves this node: its daemon answers on {SOCKET}; this one changes nothing, and waits until it has \
         gone"
    );
    warn!("{words}");
    // Nothing tells when another process stops listening: its socket's file stays where it was killed.
    tokio::select! {
        () = health::waiting(settings.health, words) => {}
        () = async { while answers() { sleep(LOOK).await } } => {}
    }
    info!("the daemon of Amazon's VPC CNI has gone");
}

/// A daemon that was killed leaves its socket, on which nobody answers. What else keeps us from asking says nothing.
pub fn answers() -> bool {
    match UnixStream::connect(SOCKET) {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused),
    }
}
