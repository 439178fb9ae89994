//! The sysctls that pods' packets depend on: read first, and written only when they differ.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::Context;
use enid_datapath::{
    Family, Request, link,
    node::{eni::EniNet, found::Found},
    policy::Policy,
};

use crate::host::netlink::Netlink;

/// The sysctls that packets of pods depend on, and their values.
pub fn wanted(enis: &[EniNet], policy: &Policy, found: &Found) -> Vec<(String, &'static str)> {
    let v6 = policy.knows(Family::V6);
    let mut wanted = vec![("net/ipv4/ip_forward".to_owned(), "1")];
    let links = enis.iter().flat_map(|eni| {
        let names = BTreeSet::from([found.ifname_of(eni.mac), found.carrier_name(eni)]);
        names.into_iter().flatten().map(move |ifname| (eni, ifname))
    });
    for (eni, ifname) in links {
        // Loose on every ENI: main's answer for a remote pod is the primary link.
        wanted.push((format!("net/ipv4/conf/{ifname}/rp_filter"), "2"));
        wanted.push((format!("net/ipv4/conf/{ifname}/forwarding"), "1"));
        if v6 {
            wanted.push((format!("net/ipv6/conf/{ifname}/disable_ipv6"), "0"));
        }
        let accepts = format!("net/ipv6/conf/{ifname}/accept_ra");
        if v6 && eni.slot != 0 {
            wanted.push((accepts, "0")); // its default route would compete with the primary's
            // What is masqueraded there has an address of that ENI; the host uses it for nothing else.
            wanted.push((format!("net/ipv6/conf/{ifname}/use_oif_addrs_only"), "1"));
        } else if v6 && read(&accepts).is_ok_and(|value| value == "1") {
            // A router ignores routers unless told not to. 0: a program in user space accepts them.
            wanted.push((accepts, "2"));
        }
    }
    if v6 {
        wanted.push(("net/ipv6/conf/all/forwarding".to_owned(), "1"));
    }
    wanted
}

/// The value of one, named by its path below /proc/sys.
pub fn read(key: &str) -> anyhow::Result<String> {
    let path = format!("/proc/sys/{key}");
    let found = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(found.trim().to_owned())
}

/// Sets one that has another value; whether it was set. What the kernel takes by netlink goes that way: in a container
/// /proc/sys is read-only. The rest is written below `sys_net`, where the host's may be mounted.
pub async fn ensure(
    key: &str,
    value: &str,
    sys_net: &Path,
    found: &Found,
    netlink: &mut Netlink,
) -> anyhow::Result<bool> {
    if read(key)? == value {
        return Ok(false);
    }
    if let Some(request) = request(key, value, found) {
        netlink.apply(&[request]).await?;
        return Ok(true);
    }
    let path = sys_net.join(key.strip_prefix("net/").unwrap_or(key));
    fs::write(&path, value).with_context(|| format!("cannot write {value} to {}", path.display()))?;
    Ok(true)
}

/// The message that sets it, if it belongs to IPv4 on one link.
fn request(key: &str, value: &str, found: &Found) -> Option<Request> {
    let (ifname, name) = key.strip_prefix("net/ipv4/conf/")?.split_once('/')?;
    link::set_ipv4_conf(found.index_of(ifname)?, ifname, name, value.parse().ok()?)
}
