//! Two daemons must not give addresses on one node: as long as the other one is there, nothing is changed.

use std::{io::ErrorKind, os::unix::net::UnixStream, path::PathBuf, time::Duration};

use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::file;
use crate::{
    kubernetes::{self, Phase},
    serve::health,
    settings::Settings,
};

/// Where the daemon of Amazon's VPC CNI serves its plugin, beside its state file.
const SOCKET: &str = "ipamd.sock";
/// It is looked at so often whether it still does.
const LOOK: Duration = Duration::from_secs(2);
/// Where the API server does not say whether its pod is on the node, it may be silent for so long before it counts as gone: its
/// container may be starting again.
const SILENT: Duration = Duration::from_secs(30);

/// Waits until the daemon of Amazon's VPC CNI has gone. Who probes this one hears meanwhile that it waits.
pub async fn wait(settings: &Settings) {
    let began = Instant::now();
    let Some(why) = is_there(settings, began).await else { return };
    let words = format!(
        "Amazon's VPC CNI serves this node: {why}; this daemon changes nothing, and waits until that one has gone"
    );
    warn!("{words}");
    // Nothing tells when another process stops listening: its socket's file stays where it was killed.
    let gone = async {
        let mut silent_since = Instant::now();
        while is_there(settings, silent_since).await.is_some() {
            if answers(settings) {
                silent_since = Instant::now();
            }
            sleep(LOOK).await;
        }
    };
    tokio::select! {
        () = health::waiting(settings.health, words.clone()) => {}
        () = kubernetes::keep_saying(settings, Phase::Waiting, &words) => {}
        () = gone => {}
    }
    info!("the daemon of Amazon's VPC CNI has gone");
}

/// What shows that it is there, or may be.
async fn is_there(settings: &Settings, silent_since: Instant) -> Option<String> {
    if answers(settings) {
        return Some(format!("its daemon answers on {}", socket(settings).display()));
    }
    if !file::is_theirs(&settings.backing_store) {
        return None;
    }
    match kubernetes::has_aws_node(settings).await {
        Ok(true) => Some("a pod of its DaemonSet aws-node is on it".to_owned()),
        Ok(false) => None,
        Err(failure) if silent_since.elapsed() < SILENT => {
            Some(format!("it is not known whether a pod of its DaemonSet aws-node is on it ({failure:#})"))
        }
        Err(failure) => {
            warn!(
                "it is not known whether a pod of Amazon's DaemonSet aws-node is on this node ({failure:#}); its daemon does not answer"
            );
            None
        }
    }
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
