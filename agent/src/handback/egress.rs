//! How pods leave in the family in which they have no address of the VPC: what Amazon's plugin for that has of each of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::IpAddr,
    path::Path,
};

use anyhow::Context;
use enid_datapath::{node::found::Found, peer::handback};
use enid_ipamd::{AttachmentKey, LOCAL, Lease};

use super::Say;
use crate::{
    host::file::{put, remove},
    runtime::conflist,
    settings::Settings,
    takeover::file::withheld,
};

/// The address by which each container leaves. One of which nobody knows whose it is gets a name of its own: its pod goes on.
pub fn of_containers(leases: &BTreeMap<AttachmentKey, Lease>, found: &Found) -> Vec<(String, IpAddr)> {
    let of_lease = |(way, pod): (IpAddr, BTreeSet<IpAddr>)| {
        let is_its = |lease: &Lease| lease.second == Some(way) || pod.contains(&lease.address);
        let container = leases.iter().find(|(_, lease)| is_its(lease)).map(|(key, _)| key.container.to_string());
        (container.unwrap_or_else(|| withheld(way)), way)
    };
    handback::ways_out(&LOCAL, found).into_iter().map(of_lease).collect()
}

/// Notes them as the plugin's own allocation does (host-local: a file for each address, with container and interface), which gives
/// them to nobody else then; in the place of what an interrupted run has noted.
pub fn note(settings: &Settings, pods: &[(String, IpAddr)], say: Say<'_>) -> anyhow::Result<()> {
    let Some(folder) = conflist::egress_addresses(settings)? else { return Ok(()) };
    for name in noted(&folder)?.difference(&pods.iter().map(|(_, address)| address.to_string()).collect()) {
        remove(&folder.join(name))?;
    }
    if !pods.is_empty() {
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    for (container, address) in pods {
        put(&folder.join(address.to_string()), format!("{container}\r\neth0").as_bytes(), 0o644)?;
        say(&format!("note {address} for the container {container} in {}", folder.display()));
    }
    Ok(())
}

fn noted(folder: &Path) -> anyhow::Result<BTreeSet<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", folder.display())),
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter(|name| name.parse::<IpAddr>().is_ok()).collect())
}
