//! The listing of pods' links: which leases have one. The kernel says which attachments live.
//!
//! It is listed at start, after a notification of a link, and while the core waits for a listing: it ends a lease only
//! after two complete ones without the link, and gives back to EC2 only after one that was made after the decision. On a
//! quiet node it is listed rarely, in case something was missed.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use enid_ipamd::Event;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until, timeout_at},
};
use tracing::warn;

use crate::{clock, core::handle::Handle, host::pod_links};

/// Two listings are so far apart: the core takes a link that is missing from two of them, 5 s apart, for gone.
const SPACING: Duration = Duration::from_millis(5_050);
/// How often links are listed when nobody waits for it.
const PERIOD: Duration = Duration::from_secs(60);

/// What the task is made of.
pub struct Links {
    /// To the core.
    pub handle: Handle,
    /// Notified when a link has changed, come or gone.
    pub changed: Arc<Notify>,
    /// Set while the core waits for a listing.
    pub awaited: watch::Receiver<bool>,
}

impl Links {
    /// Runs until the daemon ends.
    pub async fn run(mut self) {
        let mut first = true;
        loop {
            let listed = async {
                if first {
                    remove_half_made(&self.handle).await?;
                }
                list(&self.handle).await
            };
            let listed = listed.await;
            if let Err(failure) = &listed {
                warn!("cannot list the links: {failure:#}");
            }
            first &= listed.is_err();
            let last = Instant::now();
            sleep_until(last + SPACING).await;
            // After a failure it is tried again: a notification may have asked for it.
            if listed.is_ok() {
                let wanted = async {
                    tokio::select! {
                        () = self.changed.notified() => {}
                        // A closed channel means that the daemon is ending.
                        _ = self.awaited.wait_for(|awaited| *awaited) => {}
                    }
                };
                let _ = timeout_at(last + PERIOD, wanted).await;
            }
        }
    }
}

async fn remove_half_made(handle: &Handle) -> anyhow::Result<()> {
    let view = handle.view().await.context("the daemon is ending")?;
    let known = view.leases().map(|(key, lease)| pod_links::macs(key, Some(lease)).0).collect();
    pod_links::remove_half_made(&known, &handle.families).await
}

/// Reports to the core which of its leases have a link in the kernel.
pub async fn list(handle: &Handle) -> anyhow::Result<()> {
    let begun = clock::now();
    let view = handle.view().await.context("the daemon is ending")?;
    let asked = view.keys().cloned().collect();
    let (seen, used) = pod_links::listing(view.leases(), &handle.families).await?;
    handle.tell(Event::Links { begun, asked, seen, used }).await;
    Ok(())
}
