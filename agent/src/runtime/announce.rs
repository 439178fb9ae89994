//! Tells the runtime, and whoever reads health, when an address can be given.

use std::time::Duration;

use tokio::{sync::watch, time::timeout};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    core::readiness::Readiness,
    runtime::{conflist, versions::Versions},
    serve::debug::CNI_HEALTH,
    settings::Settings,
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
    mut readiness: watch::Receiver<Readiness>,
    health: HealthReporter,
) -> anyhow::Result<()> {
    let (mut announced, mut versions) = (false, Versions::default());
    loop {
        let ready = readiness.borrow_and_update().is_ready();
        // Once it is there it stays: one that somebody takes away is put back.
        if ready || announced {
            announced = conflist::write(&settings, &mut versions).await?;
        }
        let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        health.set_service_status(CNI_HEALTH, status).await;
        if let Ok(Err(_)) = timeout(PERIOD, readiness.changed()).await {
            return Ok(());
        }
    }
}
