//! Two daemons must not give addresses on one node: as long as the other one answers, nothing is changed.

use std::{io::ErrorKind, os::unix::net::UnixStream, path::PathBuf, time::Duration};

use tokio::time::sleep;
use tracing::{info, warn};

use crate::{
    kubernetes::{self, Phase},
    serve::health,
    settings::Settings,
};

/// Where the daemon of Amazon's VPC CNI serves its plugin, beside its state file.
const SOCKET: &str = "ipamd.sock";
/// It is looked at so often whether it still does.
const LOOK: Duration = Duration::from_secs(2);

/// Waits until the daemon of Amazon's VPC CNI has gone. Who probes this one hears meanwhile that it waits.
pub async fn wait(settings: &Settings) {
    if !answers(settings) {
        return;
    }
    let words = format!(
        "Amazon's VPC CNI serves this node: its daemon answers on {}; this one changes nothing, and waits until it has \
         gone",
        socket(settings).display()
    );
    warn!("{words}");
    let said = async {
        if let Err(failure) = kubernetes::say_phase(settings, Phase::Waiting, &words).await {
            warn!("the node's status object does not say so: {failure:#}");
        }
        std::future::pending::<()>().await
    };
    // Nothing tells when another process stops listening: its socket's file stays where it was killed.
    tokio::select! {
        () = health::waiting(settings.health, words.clone()) => {}
        () = said => {}
        () = async { while answers(settings) { sleep(LOOK).await } } => {}
    }
    info!("the daemon of Amazon's VPC CNI has gone");
}

/// A daemon that was killed leaves its socket, on which nobody answers. What else keeps us from asking says nothing.
pub fn answers(settings: &Settings) -> bool {
    match UnixStream::connect(socket(settings)) {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused),
    }
}

fn socket(settings: &Settings) -> PathBuf {
    settings.backing_store.with_file_name(SOCKET)
}
