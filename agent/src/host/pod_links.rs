//! Pods' links on this host, as the leases know them: which stand, what they are called, which were half made.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use enid_datapath::{
    Family, Mac, identity, link, marks,
    pod::host_end::{self, PodEnd, PodNet},
    removal,
};
use enid_ipamd::{AttachmentKey, Lease, Macs};
use netlink_packet_route::{link::LinkMessage, route::RouteMessage};
use tracing::warn;

use crate::host::netlink::Netlink;

/// The MACs of an attachment's link, the host end's first: derived from the attachment, unless another plugin made the link.
pub fn macs(key: &AttachmentKey, lease: Option<&Lease>) -> (Mac, Mac) {
    let AttachmentKey { network, container, ifname } = key;
    match lease.and_then(|lease| lease.macs) {
        Some(Macs { host, pod }) => (Mac(host), Mac(pod)),
        None => (identity::host_mac(network, container, ifname), identity::pod_mac(network, container, ifname)),
    }
}

/// The host ends that these leases should have.
pub fn pod_nets<'a>(leases: impl Iterator<Item = (&'a AttachmentKey, &'a Lease)>) -> Vec<PodNet> {
    let net = |(key, lease): (&AttachmentKey, &Lease)| {
        let (host_mac, pod_mac) = macs(key, Some(lease));
        PodNet { host_mac, pod_mac, addresses: lease.addresses().collect(), group: marks::group(lease.slot) }
    };
    leases.map(net).collect()
}

/// For the start of the daemon, before any address is given. A pod's link is incomplete if it belongs to no lease, no
/// route leads to it and its alias names no address: an earlier run of the daemon ended, or the store was lost, while a
/// plugin configured it. That plugin may only be slow, and must not make an address reachable that another pod gets
/// meanwhile. Without the link it cannot.
/// `known`: the host ends' MACs of all leases.
pub async fn remove_half_made(known: &BTreeSet<Mac>, families: &[Family]) -> anyhow::Result<()> {
    let mut netlink = Netlink::open()?;
    let links: Vec<LinkMessage> = netlink.list(&[Family::V4]).await?;
    let unknown: Vec<PodEnd> =
        host_end::pod_links(&links).into_iter().filter(|end| !known.contains(&end.mac)).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let routes: Vec<RouteMessage> = netlink.list(families).await?;
    for end in unknown {
        if host_end::used_over(std::slice::from_ref(&end), &routes).is_empty() {
            warn!(link = end.ifname, "a pod link that is incomplete and belongs to no lease is deleted");
            netlink.apply(&[removal::deletion(end.mac, end.index)]).await?;
        }
    }
    Ok(())
}

/// One complete listing: the attachments among these leases whose link stands, and the addresses that are routed over
/// pods' links.
pub async fn listing<'a>(
    leases: impl Iterator<Item = (&'a AttachmentKey, &'a Lease)> + Clone,
    families: &[Family],
) -> anyhow::Result<(Vec<AttachmentKey>, Vec<IpAddr>)> {
    let mut netlink = Netlink::open()?;
    let links: Vec<LinkMessage> = netlink.list(&[Family::V4]).await?;
    let pods = pod_nets(leases.clone());
    let of_each = leases.zip(host_end::links_of(&pods, &links));
    let seen = of_each.filter(|(_, link)| link.is_some()).map(|((key, _), _)| key.clone()).collect();
    let ends = host_end::pod_links(&links);
    let routed = match ends.is_empty() {
        true => Vec::new(),
        false => host_end::used_over(&ends, &netlink.list(families).await?),
    };
    Ok((seen, routed))
}

/// The addresses that pods' links carry.
pub async fn carried() -> anyhow::Result<Vec<IpAddr>> {
    let mut netlink = Netlink::open()?;
    let links: Vec<LinkMessage> = netlink.list(&[Family::V4]).await?;
    let ends = host_end::pod_links(&links);
    Ok(if ends.is_empty() { Vec::new() } else { host_end::used_over(&ends, &netlink.list(&Family::ALL).await?) })
}

/// The names of pods' links, by MAC.
pub async fn pod_ifnames() -> anyhow::Result<BTreeMap<Mac, String>> {
    let links: Vec<LinkMessage> = Netlink::open()?.list(&[Family::V4]).await?;
    Ok(host_end::pod_links(&links).into_iter().map(|end| (end.mac, end.ifname)).collect())
}

thread_local! {
    /// The socket of [`is_wired`]: opened once, as every pod's ADD needs it.
    static SOCKET: Cell<Option<enid_datapath::Netlink>> = const { Cell::new(None) };
}

/// Whether the link of this name has this MAC. A pod waits for it: the plugin's blocking socket answers within
/// two system calls, on the thread that asks, where a connection of its own would be a task to start and to wake.
pub fn is_wired(host_mac: Mac, ifname: &str) -> anyhow::Result<bool> {
    let mut socket = SOCKET.take().map_or_else(enid_datapath::Netlink::open, Ok)?;
    let link = socket.link(ifname)?; // a socket that failed is not used again
    SOCKET.set(Some(socket));
    Ok(link.as_ref().and_then(link::mac) == Some(host_mac))
}
