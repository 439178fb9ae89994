//! The listing of pods' links: which leases have one, at start and every few seconds. Who is alive is the kernel's to say.

use std::time::Duration;

use anyhow::Context;
use enid_datapath::Family;
use enid_ipamd::{AttachmentKey, Event};
use tracing::warn;

use crate::{clock, core::handle::Handle, host::kernel};

/// How often the kernel's links are listed.
const PERIOD: Duration = Duration::from_secs(5);

/// Lists the links periodically until the daemon ends.
pub async fn run(handle: Handle) {
    let mut period = tokio::time::interval(PERIOD);
    let mut first = true;
    loop {
        period.tick().await;
        let before = if first { kernel::remove_half_made } else { |_: &[AttachmentKey], _: &[Family]| Ok(()) };
        match list(&handle, before).await {
            Ok(()) => first = false,
            Err(failure) => warn!("cannot list the links: {failure:#}"),
        }
    }
}

/// Reports to the core which of its leases have a link in the kernel, after `before` has seen the leases.
pub async fn list(
    handle: &Handle,
    before: impl FnOnce(&[AttachmentKey], &[Family]) -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<()> {
    let begun = clock::now();
    let view = handle.view().await.context("the daemon is ending")?;
    let keys: Vec<AttachmentKey> = view.leases.keys().cloned().collect();
    let families = handle.families.clone();
    let asked = keys.clone();
    let list = move || {
        before(&keys, &families)?;
        kernel::listing(view.leases.iter(), &families)
    };
    let (seen, used) = tokio::task::spawn_blocking(list).await.context("the listing ended without an answer")??;
    handle.tell(Event::Links { begun, asked, seen, used }).await;
    Ok(())
}
