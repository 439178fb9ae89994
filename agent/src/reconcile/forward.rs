//! Whether somebody's firewall keeps this host from forwarding between pods: probed at start, when a chain at a hook
//! changes, and now and then for firewalls that do not notify.

use std::{net::IpAddr, sync::Arc, time::Duration};

use anyhow::Context;
use enid_datapath::{Family, forward, netfilter::chains};
use ipnet::Ipv4Net;
use tokio::{sync::Notify, time::timeout};
use tracing::warn;

use crate::{core::handle::Handle, host::kernel::Kernel};

/// The older iptables notifies nobody of its changes.
const PERIOD: Duration = Duration::from_secs(30);
/// While it drops.
const PERIOD_WHILE_DROPPED: Duration = Duration::from_secs(2);

/// What the task is made of.
pub struct Forward {
    /// To the core.
    pub handle: Handle,
    /// Once it carries something, there is something to probe.
    pub kernel: Kernel,
    /// Chains at hooks have changed.
    pub changed: Arc<Notify>,
    /// The VPC's CIDRs at start.
    pub vpc: Vec<Ipv4Net>,
    /// ENID_FORWARD_PROBE.
    pub probes: bool,
}

impl Forward {
    /// Runs until the daemon ends.
    pub async fn run(self) -> anyhow::Result<()> {
        if !self.probes {
            return std::future::pending().await;
        }
        self.kernel.carries().await;
        let mut unable = None;
        let mut dropped = None;
        loop {
            let addresses = self.kernel.reserved(&self.vpc).await;
            // It makes namespaces and waits for packets: on a thread that may block.
            let probed = tokio::task::spawn_blocking(move || probe(addresses)).await;
            match probed.context("the probe ended").flatten() {
                Ok(answer) => (dropped, unable) = (answer, None),
                // What was seen last stands.
                Err(failure) => {
                    let words = format!("{failure:#}");
                    if unable.as_ref() != Some(&words) {
                        warn!("whether this host forwards between pods cannot be probed: {words}");
                        unable = Some(words);
                    }
                }
            }
            let period = if dropped.is_some() { PERIOD_WHILE_DROPPED } else { PERIOD };
            self.handle.forwarding(dropped.clone()).await;
            let _ = timeout(period, self.changed.notified()).await;
        }
    }
}

/// Why packets between pods do not pass, if they do not.
fn probe(reserved: Vec<(Family, [IpAddr; 2])>) -> anyhow::Result<Option<String>> {
    for (family, addresses) in reserved {
        let suspects = chains::suspects(family)?;
        if suspects.is_empty() || forward::forwards(addresses)? {
            continue;
        }
        let packets = match family {
            Family::V4 => "packets",
            Family::V6 => "IPv6 packets",
        };
        return Ok(Some(format!(
            "the host's firewall drops {packets} between pods, as a probe shows; {} drops at the forward hook what it \
             does not know",
            suspects.join(", ")
        )));
    }
    Ok(None)
}
