//! Whether somebody's firewall keeps this host from forwarding between pods: probed at start, when a chain at a hook
//! changes, and now and then for firewalls that do not notify.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use enid_datapath::{Family, forward, netfilter::chains};
use enid_ipamd::{Cause, Millis, Refusal};
use ipnet::Ipv4Net;
use tokio::{sync::Notify, time::timeout};
use tracing::warn;

use crate::{
    clock,
    core::handle::{Forwarding, Handle},
    host::kernel::Kernel,
};

/// The older iptables notifies nobody of its changes.
const PERIOD: Duration = Duration::from_secs(30);
/// While it drops.
const PERIOD_WHILE_DROPPED: Duration = Duration::from_secs(2);
/// Packets must not pass for so long before STATUS says so: a firewall that is loaded anew drops for a moment.
const OUTAGE_MS: u64 = 10_000;

/// What one probe has found.
#[derive(Default)]
struct Probe {
    /// Why packets of a family do not pass.
    dropped: Option<String>,
    /// None of any family pass.
    is_all: bool,
}

/// What the probes so far have found.
#[derive(Default)]
struct Seen {
    forwarding: Forwarding,
    /// Since when nothing has passed.
    all_since: Option<Millis>,
}

impl Seen {
    /// Takes a probe. One that could not be made says nothing new of what new pods would meet, and nothing against the
    /// pods that run.
    fn take(&mut self, now: Millis, probe: Option<Probe>) {
        let is_all = probe.as_ref().is_some_and(|probe| probe.is_all);
        self.all_since = is_all.then(|| self.all_since.unwrap_or(now));
        self.forwarding.is_outage = self.all_since.is_some_and(|since| now.since(since) >= OUTAGE_MS);
        if let Some(probe) = probe {
            self.forwarding.dropped = probe.dropped.map(|words| Refusal::new(Cause::ForwardDropped, words));
        }
    }
}

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
    /// HOST_PROC_SYS_NET_PATH.
    pub sys_net: PathBuf,
}

impl Forward {
    /// Runs until the daemon ends.
    pub async fn run(self) -> anyhow::Result<()> {
        if !self.probes {
            return std::future::pending().await;
        }
        self.kernel.carries().await;
        let mut unable = None;
        let mut seen = Seen::default();
        loop {
            let addresses = self.kernel.reserved(&self.vpc).await;
            // It makes namespaces and waits for packets: on a thread that may block.
            let sys_net = self.sys_net.clone();
            let probed = tokio::task::spawn_blocking(move || probe(addresses, &sys_net)).await;
            let probed = probed.context("the probe ended").flatten();
            let failure = probed.as_ref().err().map(|failure| format!("{failure:#}"));
            if let Some(words) = failure.as_ref().filter(|_| unable != failure) {
                warn!("whether this host forwards between pods cannot be probed: {words}");
            }
            unable = failure;
            seen.take(clock::now(), probed.ok());
            let period = if seen.forwarding.dropped.is_some() { PERIOD_WHILE_DROPPED } else { PERIOD };
            self.handle.forwarding(seen.forwarding.clone()).await;
            let _ = timeout(period, self.changed.notified()).await;
        }
    }
}

/// Whether packets between pods pass, and if not why.
fn probe(reserved: Vec<(Family, [IpAddr; 2])>, sys_net: &Path) -> anyhow::Result<Probe> {
    let mut found = Probe { dropped: None, is_all: !reserved.is_empty() };
    for (family, addresses) in reserved {
        let suspects = chains::suspects(family)?;
        if suspects.is_empty() || forward::forwards(addresses, sys_net)? {
            found.is_all = false;
            continue;
        }
        let packets = match family {
            Family::V4 => "packets",
            Family::V6 => "IPv6 packets",
        };
        found.dropped.get_or_insert(format!(
            "the host's firewall drops {packets} between pods, as a probe shows; {} drops at the forward hook what it \
             does not know",
            suspects.join(", ")
        ));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_lasts_and_a_probe_that_fails_is_none() {
        let drops = |is_all| Some(Probe { dropped: Some("drops".to_owned()), is_all });
        let mut seen = Seen::default();
        let mut outage = |at, probe| {
            seen.take(Millis(at), probe);
            (seen.forwarding.dropped.is_some(), seen.forwarding.is_outage)
        };
        assert_eq!(outage(0, drops(true)), (true, false));
        assert_eq!(outage(OUTAGE_MS - 1, drops(true)), (true, false));
        assert_eq!(outage(OUTAGE_MS, drops(true)), (true, true));
        assert_eq!(outage(OUTAGE_MS + 1, None), (true, false), "for new pods what was seen last stands");
        assert_eq!(outage(OUTAGE_MS + 2, drops(true)), (true, false));
        assert_eq!(outage(3 * OUTAGE_MS, drops(false)), (true, false), "the other family passes");
        assert_eq!(outage(4 * OUTAGE_MS, drops(true)), (true, false));
        assert_eq!(outage(5 * OUTAGE_MS, Some(Probe::default())), (false, false));
    }
}
