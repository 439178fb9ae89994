//! How pods leave in the family in which they have no address of the VPC: what Amazon's egress-cni has of each of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::IpAddr,
    path::Path,
};

use anyhow::{Context, ensure};
use enid_datapath::{node::found::Found, peer::handback};
use enid_ipamd::{AttachmentKey, Lease};
use ipnet::IpNet;

use super::Say;
use crate::{
    host::file::{put, remove},
    runtime::conflist,
    settings::Settings,
    takeover::file::withheld,
};

/// The address of this range by which each container leaves. One of which nobody knows whose it is gets a name of its own: its
/// pod goes on.
pub fn of_containers(
    range: IpNet,
    leases: &BTreeMap<AttachmentKey, Lease>,
    prefix: &str,
    found: &Found,
) -> Vec<(String, IpAddr)> {
    let of_lease = |(address, pod): (IpAddr, BTreeSet<IpAddr>)| {
        let is_its = |lease: &Lease| lease.second == Some(address) || pod.contains(&lease.address);
        let container = leases.iter().find(|(_, lease)| is_its(lease)).map(|(key, _)| key.container.to_string());
        (container.unwrap_or_else(|| withheld(address)), address)
    };
    handback::egress_addresses(range, prefix, found).into_iter().map(of_lease).collect()
}

/// Whether the files of such pods can be written where the host finds them.
///
/// # Errors
///
/// The folder is not there: of a container that does not have the host's nobody would find them.
pub fn check(settings: &Settings) -> anyhow::Result<()> {
    let host = &settings.host_local_dir;
    ensure!(
        host.is_dir(),
        "{} is not there: the host's /run/cni has to be mounted (ENID_HOST_LOCAL_DIR)",
        host.display()
    );
    Ok(())
}

/// Writes them as the plugin's own allocation does (host-local: a file for each address, with container and interface), which
/// gives them to nobody else then; in the place of what an interrupted run has written.
pub fn write(settings: &Settings, pods: &[(String, IpAddr)], say: Say<'_>) -> anyhow::Result<()> {
    let Some(folder) = conflist::egress_addresses(settings)? else { return Ok(()) };
    let expected: BTreeSet<String> = pods.iter().map(|(_, address)| address.to_string()).collect();
    for name in written(&folder)?.into_iter().filter(|name| !expected.contains(name)) {
        remove(&folder.join(name))?;
    }
    for (container, address) in pods {
        put(&folder.join(address.to_string()), format!("{container}\r\neth0").as_bytes(), 0o644)?;
        say(&format!("write {address} for the container {container} in {}", folder.display()));
    }
    Ok(())
}

/// Addresses, and what a run has left that was interrupted while it wrote one.
fn written(folder: &Path) -> anyhow::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", folder.display())),
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter(|name| name.parse::<IpAddr>().is_ok() || name.starts_with('.')).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn files_are_those_of_the_pods_that_live() {
        let folder = std::env::temp_dir().join(format!("enid-egress-{}", std::process::id()));
        let mut settings = Settings::read(&|_| None).unwrap();
        (settings.conf_dir, settings.host_local_dir) = (folder.join("net.d"), folder.join("run"));
        fs::create_dir_all(&settings.conf_dir).unwrap();
        let egress = json!({"type": "egress-cni", "ipam": {"dataDir": "/run/cni/v6pd/egress-v4-ipam"}});
        let list = json!({"name": "aws-cni", "plugins": [{"type": "aws-cni"}, egress]});
        fs::write(settings.conf_dir.join(conflist::AMAZONS), list.to_string()).unwrap();
        let pods = ["169.254.172.2", "169.254.172.3"].map(|it| (format!("c-{it}"), it.parse().unwrap()));
        let unmounted = check(&settings).unwrap_err().to_string();
        assert!(unmounted.contains("ENID_HOST_LOCAL_DIR"), "{unmounted}");
        fs::create_dir_all(&settings.host_local_dir).unwrap();
        check(&settings).unwrap();
        write(&settings, &pods, &|_| {}).unwrap();
        let addresses = settings.host_local_dir.join("v6pd/egress-v4-ipam/aws-cni");
        for left in ["lock", "last_reserved_ip.0", ".169.254.172.9.1.new"] {
            fs::write(addresses.join(left), "").unwrap();
        }
        write(&settings, &pods[1..], &|_| {}).unwrap();
        let names = fs::read_dir(&addresses).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert_eq!(
            names.collect::<BTreeSet<_>>(),
            ["169.254.172.3", "last_reserved_ip.0", "lock"].map(str::to_owned).into()
        );
        assert_eq!(fs::read_to_string(addresses.join("169.254.172.3")).unwrap(), "c-169.254.172.3\r\neth0");
        fs::remove_dir_all(&folder).unwrap();
    }
}
