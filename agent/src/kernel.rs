//! The node's side of the kernel: ENI links, route tables, rules, the nftables table, sysctls.
//!
//! Everything is read first and only what differs is written, so a restart with nothing changed writes
//! nothing. `nft` is the one program that sets anything up (the conflist also asks the chained plugins for their
//! versions). All of it blocks: callers use `spawn_blocking`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    net::IpAddr,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use enid_datapath::{
    Mac, Netlink, identity, marks,
    node::{self, EniNet, Found, PodEnd},
    pod,
    ruleset::Ruleset,
};
use enid_ipamd::{AttachmentKey, Eni};
use ipnet::{IpNet, Ipv4Net};
use tracing::warn;
use wait_timeout::ChildExt;

/// How long nft may take for one table; a large one takes some milliseconds.
const NFT: Duration = Duration::from_secs(10);

/// What host and table should carry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    enis: Vec<EniNet>,
    owner: BTreeMap<u32, Vec<Ipv4Net>>,
    native: Vec<Ipv4Net>,
}

impl Wanted {
    /// From the core's ENIs, the VPC's CIDRs and the settings.
    pub fn new<'a>(carried: impl Iterator<Item = (&'a Eni, u32)>, native: &[Ipv4Net], mtu: u32) -> Self {
        let mut wanted = Wanted { native: native.to_vec(), ..Wanted::default() };
        for (eni, slot) in carried {
            let facts = &eni.facts;
            let table = if slot == 0 { 254 } else { marks::route_table(facts.device_index, facts.card) };
            wanted.enis.push(EniNet { slot, mac: Mac(facts.mac), primary: facts.primary, table, mtu });
            let v4 = eni.blocks.iter().filter_map(|net| if let IpNet::V4(net) = net { Some(*net) } else { None });
            wanted.owner.insert(slot, v4.collect());
        }
        wanted
    }
}

/// The kernel of this node, and what it was last made to carry.
#[derive(Default)]
pub struct Kernel {
    digest: Option<String>,
}

/// How an attempt went.
pub struct Applied {
    /// Slots that host and table carry.
    pub slots: BTreeSet<u32>,
    /// What could not be done yet, one sentence.
    pub waits_for: Option<String>,
    /// What was changed, one sentence each.
    pub changes: Vec<String>,
}

impl Kernel {
    /// Makes the kernel carry what is wanted; an ENI whose link has not shown up yet is left for later.
    pub fn apply(&mut self, wanted: &Wanted) -> anyhow::Result<Applied> {
        let mut netlink = Netlink::open()?;
        let found = Found::read(&mut netlink)?;
        let (here, missing): (Vec<EniNet>, Vec<EniNet>) =
            wanted.enis.iter().cloned().partition(|eni| found.ifname_of(eni.mac).is_some());
        let mut changes = Vec::new();
        ensure_sysctl("net/ipv4/ip_forward", "1", &mut changes)?;
        for ifname in here.iter().filter_map(|eni| found.ifname_of(eni.mac)) {
            // Loose on every ENI: main's answer for a remote pod is the primary link.
            ensure_sysctl(&format!("net/ipv4/conf/{ifname}/rp_filter"), "2", &mut changes)?;
        }
        let requests = node::changes(&here, &found)?;
        changes.extend(requests.iter().map(ToString::to_string));
        netlink.apply(&requests)?;
        if let Some(ruleset) = ruleset(wanted, &here, &found) {
            self.replace_table(&ruleset, &mut changes)?;
        }
        let waits_for = missing.first().map(|eni| node::MissingLink(eni.mac).to_string());
        Ok(Applied { slots: here.iter().map(|eni| eni.slot).collect(), waits_for, changes })
    }

    fn replace_table(&mut self, ruleset: &Ruleset, changes: &mut Vec<String>) -> anyhow::Result<()> {
        let digest = ruleset.digest();
        if self.digest.is_none() {
            self.digest = table_digest();
        }
        if self.digest.as_deref() != Some(digest.as_str()) {
            nft(&ruleset.transaction(unheld()))?;
            changes.push("replace the table ip enid".to_owned());
            self.digest = Some(digest);
        }
        Ok(())
    }
}

fn ruleset(wanted: &Wanted, here: &[EniNet], found: &Found) -> Option<Ruleset> {
    let primary = here.iter().find(|eni| eni.slot == 0)?;
    let carried = |slot: &u32| here.iter().any(|eni| eni.slot == *slot);
    Some(Ruleset {
        primary_ifname: found.ifname_of(primary.mac)?.to_owned(),
        primary_address: primary.primary.addr(),
        native: wanted.native.clone(),
        owner: wanted
            .owner
            .iter()
            .filter(|(slot, _)| carried(slot))
            .map(|(slot, nets)| (*slot, nets.clone()))
            .collect(),
    })
}

/// What our counter has come to: packets, bytes.
fn unheld() -> (u64, u64) {
    let listed = Command::new("nft").args(["list", "counter", "ip", "enid", "unheld"]).stderr(Stdio::null()).output();
    let text = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let number = |name: &str| text.split(name).nth(1)?.split_whitespace().next()?.parse().ok();
    (number("packets").unwrap_or(0), number("bytes").unwrap_or(0))
}

/// What the comment of the kernel's table says, if there is one. Only our own table is listed.
fn table_digest() -> Option<String> {
    let listed = Command::new("nft").args(["list", "table", "ip", "enid"]).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    text.split("comment \"").nth(1)?.split('"').next().map(str::to_owned)
}

/// Whether that program is there.
pub fn check_nft() -> anyhow::Result<()> {
    let found = Command::new("nft").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    found.map(drop).context("cannot run nft, the program of the nftables package")
}

fn nft(transaction: &str) -> anyhow::Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run nft, the program of the nftables package")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(transaction.as_bytes()).context("cannot write to nft")?;
    }
    if child.wait_timeout(NFT).context("cannot wait for nft")?.is_none() {
        child.kill().context("cannot end nft")?;
        child.wait().context("cannot wait for nft")?;
        bail!("nft did not replace the table ip enid within {} s, and was ended", NFT.as_secs());
    }
    let output = child.wait_with_output().context("cannot wait for nft")?;
    if !output.status.success() {
        bail!("nft refused the table ip enid: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn ensure_sysctl(key: &str, value: &str, changes: &mut Vec<String>) -> anyhow::Result<()> {
    let path = format!("/proc/sys/{key}");
    let found = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    if found.trim() != value {
        fs::write(&path, value).with_context(|| format!("cannot write {value} to {path}"))?;
        changes.push(format!("set {} to {value}", key.replace('/', ".")));
    }
    Ok(())
}

/// What host and table lack of what is wanted for pods on the ENI of this slot, one sentence each; nothing is changed.
pub fn faults(wanted: &Wanted, slot: u32) -> anyhow::Result<Vec<String>> {
    let mut netlink = Netlink::open()?;
    let found = Found::read(&mut netlink)?;
    let (here, missing): (Vec<EniNet>, Vec<EniNet>) =
        wanted.enis.iter().cloned().partition(|eni| found.ifname_of(eni.mac).is_some());
    let lacking = missing.iter().filter(|eni| eni.slot == slot);
    let mut faults: Vec<String> = lacking.map(|eni| node::MissingLink(eni.mac).to_string()).collect();
    let changes = node::changes(&here, &found)?;
    let needed = changes.iter().filter(|change| !change.is_rule_removal());
    faults.extend(needed.map(|change| format!("the host needs: {change}")));
    if table_digest().is_none() {
        faults.push("the table ip enid is missing".to_owned());
    }
    let forwards = fs::read_to_string("/proc/sys/net/ipv4/ip_forward").context("cannot read net.ipv4.ip_forward")?;
    if forwards.trim() != "1" {
        faults.push("net.ipv4.ip_forward is off".to_owned());
    }
    Ok(faults)
}

/// For the start of a life, before any address is given. A pod's link that no lease knows, no route leads to and no
/// alias names an address of was half made when an earlier life, or its store, was lost: its plugin may only be slow, and must not make an address
/// reachable that another pod gets meanwhile. Without the link it cannot.
pub fn remove_half_made(keys: &[AttachmentKey]) -> anyhow::Result<()> {
    let mut netlink = Netlink::open()?;
    let known: BTreeSet<Mac> =
        keys.iter().map(|key| identity::host_mac(&key.network, &key.container, &key.ifname)).collect();
    let unknown: Vec<PodEnd> =
        node::pod_links(&netlink.links()?).into_iter().filter(|end| !known.contains(&end.mac)).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let routes = netlink.routes()?;
    for end in unknown {
        if node::used_over(std::slice::from_ref(&end), &routes).is_empty() {
            warn!(link = end.ifname, "removed: half made, and no lease knows it");
            pod::remove_by_mac(end.mac, &end.ifname, &mut netlink)?;
        }
    }
    Ok(())
}

/// One complete listing: the attachments among these whose link stands, and the addresses that are routed
/// over pods' links.
pub fn listing(keys: &[AttachmentKey]) -> anyhow::Result<(Vec<AttachmentKey>, Vec<IpAddr>)> {
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    let by_mac: BTreeMap<Mac, &AttachmentKey> =
        keys.iter().map(|key| (identity::host_mac(&key.network, &key.container, &key.ifname), key)).collect();
    // The MAC says whose link it is, whatever has become of its device group.
    let macs = links.iter().filter_map(enid_datapath::pod::mac);
    let seen = macs.filter_map(|mac| by_mac.get(&mac).map(|key| (*key).clone())).collect();
    let ends = node::pod_links(&links);
    let routed = if ends.is_empty() { Vec::new() } else { node::used_over(&ends, &netlink.routes()?) };
    Ok((seen, routed))
}

/// Whether the link of this name is the attachment's.
pub fn is_wired(key: &AttachmentKey, ifname: &str) -> anyhow::Result<bool> {
    let link = Netlink::open()?.link(ifname)?;
    let mac = link.as_ref().and_then(enid_datapath::pod::mac);
    Ok(mac == Some(identity::host_mac(&key.network, &key.container, &key.ifname)))
}
