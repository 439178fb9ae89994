//! Tells the runtime, and whoever reads health, when an address can be given.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::timeout};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    core::readiness::Readiness,
    runtime::{conflist, versions::Versions},
    serve::debug::CNI_HEALTH,
    settings::Settings,
    store::Store,
};

/// How often the network configuration is looked at.
const PERIOD: Duration = Duration::from_secs(5);

/// Runs until the core's task ends.
///
/// # Errors
///
/// The network configuration cannot be written.
pub async fn run(
    settings: Settings,
    store: Arc<Store>,
    mut readiness: watch::Receiver<Readiness>,
    health: HealthReporter,
) -> anyhow::Result<()> {
    let (mut kept, mut versions) = (store.has_served()?, Versions::default());
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
        if served {
            conflist::write(&settings, &mut versions).await?;
        }
        let status = if is_ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        health.set_service_status(CNI_HEALTH, status).await;
        if let Ok(Err(_)) = timeout(PERIOD, readiness.changed()).await {
            return Ok(());
        }
    }
}
