//! What can be seen on the node itself: who else works on its network, the runtime's files, the disk.

use std::{fs, path::Path};

use enid_datapath::{
    Family, Mac,
    netfilter::chains,
    node::managers::{self, Manager},
};
use nix::sys::statvfs::statvfs;
use serde_json::Value;

use super::{daemon::OfDaemon, finding::Finding};
use crate::{
    host::{kernel, netlink::Netlink},
    runtime::conflist,
    settings::Settings,
};

/// Less room than this on the disk of the store is a finding: the store grows by some pages when it is written.
const LEAST_BYTES: u64 = 8 * 1024 * 1024;

/// What is wrong.
pub async fn findings(settings: &Settings, daemon: Option<&OfDaemon>) -> Vec<Finding> {
    let mut found = of_files(settings);
    found.extend(of_disk(&settings.store_dir));
    match of_kernel(settings, daemon).await {
        Ok(of_kernel) => found.extend(of_kernel),
        Err(failure) => found.push(Finding::new("kernel_refused", format!("the kernel cannot be read: {failure:#}"))),
    }
    found
}

async fn of_kernel(settings: &Settings, daemon: Option<&OfDaemon>) -> anyhow::Result<Vec<Finding>> {
    let there = kernel::read(&mut Netlink::open()?, &Family::ALL).await?;
    let secondaries = daemon.map(|daemon| daemon.enis.iter().filter(|eni| eni.slot != 0)).into_iter().flatten();
    let secondaries: Vec<Mac> = secondaries.filter_map(|eni| eni.mac.parse().ok()).collect();
    let managers = managers::seen(&there, &secondaries);
    let managers = managers.into_iter().map(|Manager { name, why, is_ours }| {
        let words = format!("{name} works on the node's ENIs: {why}");
        if is_ours { Finding::new("network_manager", words) } else { Finding::note("network_manager", words) }
    });
    let mut found: Vec<Finding> = managers.collect();
    let marks = settings.steering.policy.marks;
    if there.has_link("cilium_host") && (marks.eni_mask() | marks.connmark()) & CLUSTER_ID != 0 {
        found.push(Finding::note("cluster_id", "Cilium runs on this node, and its cluster id has bits of Enid's"));
    }
    if !settings.forward_probe {
        for family in settings.steering.policy.families() {
            let suspects = chains::suspects(family)?;
            if !suspects.is_empty() {
                let words = format!("{} drops at the forward hook what it does not know", suspects.join(", "));
                found.push(Finding::new("firewall", words));
            }
        }
    }
    Ok(found)
}

/// Bits of packet marks in which Cilium has its cluster id (its MARK_MAGIC_CLUSTER_ID_MASK).
const CLUSTER_ID: u32 = 0xff;

/// The runtime's folder: ours has to be the first, and nothing behind it may change MACs.
fn of_files(settings: &Settings) -> Vec<Finding> {
    let ours = conflist::path(settings);
    let mut found = Vec::new();
    let entries = fs::read_dir(&settings.conf_dir).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries.map(|entry| entry.path()).filter(|path| is_configuration(path)).collect();
    files.sort();
    if let Some(first) = files.first().filter(|first| **first != ours) {
        let words = if ours.exists() { "comes before" } else { "is there, and not" };
        let words = format!("{} {words} {}", first.display(), ours.display());
        // Multus, and plugins that chain ours, come first on purpose.
        let text = fs::read_to_string(first).unwrap_or_default();
        let is_meant = ["enid-cni", "multus"].iter().any(|name| text.contains(name));
        found.push(match is_meant {
            true => Finding::note("configuration_order", words),
            false => Finding::new("configuration_order", words),
        });
    }
    let list = conflist::read(&ours).ok().flatten();
    if list.as_ref().is_some_and(sets_macs) {
        found.push(Finding::new("chained_mac", format!("a tuning plugin in {} sets mac", ours.display())));
    }
    found
}

/// What libcni takes for a network configuration.
fn is_configuration(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ["conf", "conflist", "json"].iter().any(|known| ending == *known))
}

fn sets_macs(list: &Value) -> bool {
    let plugins = list["plugins"].as_array().map(Vec::as_slice).unwrap_or_default();
    plugins.iter().any(|plugin| plugin["type"] == "tuning" && plugin["mac"].as_str().is_some_and(|mac| !mac.is_empty()))
}

fn of_disk(store_dir: &Path) -> Option<Finding> {
    let disk = statvfs(store_dir).ok()?;
    let free = disk.blocks_available().saturating_mul(disk.fragment_size());
    (free < LEAST_BYTES)
        .then(|| Finding::new("disk_full", format!("the disk of {} has {} KiB left", store_dir.display(), free / 1024)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tuning_plugin_that_sets_macs_is_seen() {
        let list =
            |mac: &str| serde_json::json!({ "plugins": [{ "type": "enid-cni" }, { "type": "tuning", "mac": mac }] });
        assert!(sets_macs(&list("0e:00:00:00:00:01")));
        assert!(!sets_macs(&list("")) && !sets_macs(&serde_json::json!({})));
    }

    #[test]
    fn libcni_takes_three_endings() {
        assert!(
            is_configuration(Path::new("/a/10-x.conflist")) && !is_configuration(Path::new("/a/10-x.conflist.bak"))
        );
    }
}
