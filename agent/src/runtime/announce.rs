//! Tells the runtime, and whoever reads health, when an address can be given: the network configuration appears then, and
//! is looked at from then on with the other files of ours on the host.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::timeout};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{core::readiness::Readiness, runtime::files::Files, serve::debug::CNI_HEALTH, store::Store};

/// How often files are looked at.
const PERIOD: Duration = Duration::from_secs(5);

/// Runs until the core's task ends.
///
/// # Errors
///
/// A folder was removed under its mount.
pub async fn run(
    mut files: Files,
    store: Arc<Store>,
    mut readiness: watch::Receiver<Readiness>,
    health: HealthReporter,
) -> anyhow::Result<()> {
    let mut kept = store.has_served()?;
    loop {
        let (served, is_ready) = {
            let readiness = readiness.borrow_and_update();
            (readiness.served, readiness.is_ready())
        };
        if served && !kept {
            // A run that begins while the node is full has to know it. One that cannot tell the store tells it next time.
            let store = store.clone();
            kept = tokio::task::spawn_blocking(move || store.keep_served()).await?.is_ok();
        }
        // Once it is there it stays: one that somebody takes away is put back.
        files.look(served).await?;
        let status = if is_ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        health.set_service_status(CNI_HEALTH, status).await;
        if let Ok(Err(_)) = timeout(PERIOD, readiness.changed()).await {
            return Ok(());
        }
    }
}
