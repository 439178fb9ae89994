//! A node that Amazon's VPC CNI serves, or has served. Two daemons must not give addresses on one node; and pods that the
//! other one has wired have links of no device group of ours: with our rules and tables they would get no packet any more.
//! So nothing is changed on a node while that daemon answers, or while such pods run.

use std::{collections::BTreeSet, net::IpAddr, os::unix::net::UnixStream, time::Duration};

use anyhow::bail;
use enid_datapath::{Family, pod::host_end};
use enid_ipamd::{Lease, Ledger};
use tokio::time::sleep;
use tracing::{info, warn};

use crate::{host::netlink::Netlink, serve::health, settings::Settings};

/// Where its daemon serves its plugin.
const SOCKET: &str = "/var/run/aws-node/ipamd.sock";
/// It is looked at so often whether it still does.
const LOOK: Duration = Duration::from_secs(2);
/// So many pods are named.
const NAMED: usize = 5;

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

/// A daemon that was killed leaves its socket, on which nobody answers.
fn answers() -> bool {
    UnixStream::connect(SOCKET).is_ok()
}

/// Refuses a node on which pods run that Amazon's VPC CNI has wired.
///
/// # Errors
///
/// There are some, or the kernel does not list its links and routes.
pub async fn refuse_its_pods(settings: &Settings, ledger: &Ledger) -> anyhow::Result<()> {
    let mut netlink = Netlink::open()?;
    let (links, routes) = (netlink.list(&[Family::V4]).await?, netlink.list(&Family::ALL).await?);
    let leased: BTreeSet<IpAddr> = ledger.leases.values().flat_map(Lease::addresses).collect();
    let mut pods = host_end::of_others(&settings.veth_prefix, &links, &routes);
    pods.retain(|(_, address)| !leased.contains(address));
    if pods.is_empty() {
        return Ok(());
    }
    let named: Vec<String> = pods.iter().take(NAMED).map(|(link, address)| format!("{address} by {link}")).collect();
    let more = pods.len().checked_sub(NAMED).filter(|more| *more > 0);
    bail!(
        "pods run here whose links are as Amazon's VPC CNI makes them ({}{}), and would be cut off; drain the node first \
         (docs/eks.md)",
        named.join(", "),
        more.map_or(String::new(), |more| format!(" and {more} more"))
    )
}
