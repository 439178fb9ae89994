//! The node's side of the kernel: ENI links, route tables, rules, the nftables table, sysctls.
//!
//! Everything is read first and only what differs is written, so a restart with nothing changed writes
//! nothing. `nft` is the one program that sets anything up (the conflist also asks the chained plugins for their
//! versions). All of it blocks: callers use `spawn_blocking`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Context;
use enid_datapath::{
    Family, Mac, Netlink, forward, identity, link, marks,
    netlink::Request,
    node::{self, EniNet, Found},
    pods::{self, PodEnd, PodNet, Seen},
    policy::Policy,
    removal, rules,
    ruleset::Ruleset,
    shadow,
    watch::Kind,
};
use enid_ipamd::{AttachmentKey, Core, Eni, Lease};
use ipnet::{IpNet, Ipv4Net};
use tokio::sync::watch;
use tracing::warn;

use crate::host::nft::{self, Table};

/// What the settings say of ENIs and of pods' packets.
#[derive(Clone, Debug, Default)]
pub struct Steering {
    /// Marks, node ports, translation.
    pub policy: Policy,
    /// Destinations that see a pod's own address, besides the VPC's.
    pub native: Vec<Ipv4Net>,
    /// MTU of ENIs, bytes.
    pub eni_mtu: u32,
}

/// What host and table should carry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    enis: Vec<EniNet>,
    owner: BTreeMap<u32, Vec<IpNet>>,
    /// Slots behind which pods stand, and whose ENI cannot be looked at: what the kernel has of them stays.
    spared: BTreeSet<u32>,
    native: Vec<Ipv4Net>,
    policy: Policy,
}

impl Wanted {
    /// From the core, the VPC's CIDRs and the settings.
    pub fn new(core: &Core, vpc: &[Ipv4Net], settings: &Steering) -> Self {
        let Steering { policy, native, eni_mtu: mtu } = settings.clone();
        let native = vpc.iter().copied().chain(native).collect();
        let mut wanted = Wanted { native, policy, ..Wanted::default() };
        for (eni, slot) in core.host_enis() {
            let facts = &eni.facts;
            let (mac, table) = (Mac(facts.mac), route_table(eni, slot));
            wanted.enis.push(EniNet { slot, mac, primary: facts.primary, own_v6: facts.own_v6, table, mtu });
            // What the VPC has given us of a family that pods do not get from it is none of ours.
            let ours = |net: &&IpNet| wanted.policy.of_vpc.contains(&Family::of(net.addr()));
            wanted.owner.insert(slot, eni.blocks.iter().filter(ours).copied().collect());
        }
        for (slot, address) in core.retained_slots() {
            wanted.spared.insert(slot);
            wanted.owner.entry(slot).or_default().push(address.into());
        }
        wanted
    }

    /// All that the ENIs hold for pods.
    fn pool(&self) -> Vec<IpNet> {
        self.owner.values().flatten().copied().collect()
    }
}

/// The kernel of this node, and what it was last made to carry. The brain sets up, [`crate::reconcile::repair`] restores: one
/// after the other, and whoever restores goes by what was wanted last.
#[derive(Clone)]
pub struct Kernel {
    state: Arc<Mutex<State>>,
    /// Something has been carried.
    carries: watch::Sender<bool>,
}

struct State {
    wanted: Wanted,
    table: Table,
    /// Which link each ENI has had.
    links: BTreeMap<Mac, u32>,
    /// Pods' links as earlier readings saw them.
    seen: BTreeMap<Mac, Seen>,
}

/// How an attempt went.
pub struct Applied {
    /// Slots that host and table carry.
    pub slots: BTreeSet<u32>,
    /// What could not be done yet, one sentence.
    pub waits_for: Option<String>,
    /// What was changed.
    pub changes: Vec<Change>,
    /// What stands in the way and is not ours to remove, one sentence each.
    pub shadows: Vec<String>,
    /// What could not be done; all the rest was.
    pub failure: Option<anyhow::Error>,
}

/// One change that was made.
pub struct Change {
    /// Of what.
    pub kind: Kind,
    /// One sentence.
    pub what: String,
}

impl Change {
    fn of(request: &Request) -> Self {
        Change { kind: request.kind(), what: request.to_string() }
    }
}

impl Kernel {
    /// Nothing has been carried in this life; the run directory tells of an earlier one's table.
    pub fn new(run_dir: &Path) -> Self {
        let table = Table::new(run_dir);
        let state = State { wanted: Wanted::default(), table, links: BTreeMap::new(), seen: BTreeMap::new() };
        Kernel { state: Arc::new(Mutex::new(state)), carries: watch::Sender::new(false) }
    }

    /// Waits until something has been carried, which others can take away.
    pub async fn carries(&self) {
        // It cannot be closed while this lives.
        let _ = self.carries.subscribe().wait_for(|carries| *carries).await;
    }

    /// Makes the kernel carry what is wanted; an ENI whose link has not shown up yet is left for later.
    pub fn apply(&self, wanted: &Wanted) -> anyhow::Result<Applied> {
        let mut state = self.lock();
        state.wanted = wanted.clone();
        let mut applied = state.carry(None, false)?;
        applied.failure.take().map_or(Ok(()), Err)?;
        self.carries.send_replace(true);
        Ok(applied)
    }

    /// Reads everything and puts right what is not as it was made: what was wanted last, and these pods' links.
    /// `table` says that somebody may have changed the table.
    pub fn repair(&self, pods: &[PodNet], table: bool) -> anyhow::Result<Applied> {
        self.lock().carry(Some(pods), table)
    }

    /// Two addresses of each family that pods have from the VPC, which EC2 or we give to nobody: for a probe.
    pub fn nobodys(&self, vpc: &[Ipv4Net]) -> Vec<(Family, [IpAddr; 2])> {
        let state = self.lock();
        let wanted = &state.wanted;
        let from_vpc = |family: &Family| wanted.policy.of_vpc.contains(family);
        let of = |family: Family| match family {
            Family::V4 => {
                let primary = wanted.enis.iter().find(|eni| eni.slot == 0)?;
                forward::nobodys(primary.primary, vpc)
            }
            // What is no block is a pod's.
            Family::V6 => wanted.owner.values().flatten().find_map(|net| match net {
                IpNet::V6(net) if net.prefix_len() < 128 => Some(forward::nobodys_v6(*net)),
                _ => None,
            }),
        };
        let families = Family::ALL.into_iter().filter(from_vpc);
        families.filter_map(|family| Some((family, of(family)?))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What a task that panicked has left is read anew anyway.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn carry(&mut self, pods: Option<&[PodNet]>, look_at_table: bool) -> anyhow::Result<Applied> {
        let mut netlink = Netlink::open()?;
        let families = self.wanted.policy.families();
        let found = Found::read(&mut netlink, &families)?;
        self.links.extend(found.left_to(&self.wanted.enis, &self.wanted.policy));
        let mut found = found.remember(&self.links);
        let (here, missing): (Vec<EniNet>, Vec<EniNet>) =
            self.wanted.enis.iter().cloned().partition(|eni| found.ifname_of(eni.mac).is_some());
        self.links.extend(found.indices(&here));
        let mut changes = Vec::new();
        let mut sysctls = sysctls(&here, &self.wanted.policy, &found);
        if self.wanted.policy.knows(Family::V6) {
            let of_pods = pods.unwrap_or_default().iter().filter_map(|pod| pod.sysctl(&found));
            // A pod's link may have gone since it was listed.
            sysctls.extend(of_pods.filter(|(key, _)| Path::new("/proc/sys").join(key).exists()));
        }
        // One that cannot be set is no reason to leave the rest as it is: an MTU that is too small takes IPv6 along.
        let tries = sysctls.iter().map(|(key, value)| ensure_sysctl(key, value, &mut changes));
        let mut failure = tries.filter_map(Result::err).last();
        let pool = self.wanted.pool();
        // An ENI whose link is not to be found keeps what it has, too.
        let spared = self.wanted.spared.iter().copied().chain(missing.iter().map(|eni| eni.slot)).collect();
        let mut requests = node::changes(&here, &spared, &pool, &self.wanted.policy, &found)?;
        if let Some(pods) = pods {
            found = found.with_neighbours(&mut netlink, &families)?;
            requests.extend(pods::changes(pods, &mut self.seen, &found));
        }
        match netlink.apply(&requests) {
            Ok(()) => changes.extend(requests.iter().map(Change::of)),
            Err(refused) => failure = Some(refused.into()),
        }
        // A refused link is no reason to leave the table as it is.
        let table = ruleset(&self.wanted, &here, &spared, &found);
        match table.map_or(Ok(false), |ruleset| self.table.ensure(&ruleset, look_at_table)) {
            Ok(false) => {}
            Ok(true) => changes.push(Change { kind: Kind::Table, what: "replace our tables of nftables".to_owned() }),
            Err(refused) => failure = Some(refused),
        }
        let waits_for = missing.first().map(|eni| node::MissingLink(eni.mac).to_string());
        let shadows = shadow::shadows(&here, &pool, &self.wanted.policy, &found);
        Ok(Applied { slots: here.iter().map(|eni| eni.slot).collect(), waits_for, changes, shadows, failure })
    }
}

fn ruleset(wanted: &Wanted, here: &[EniNet], spared: &BTreeSet<u32>, found: &Found) -> Option<Ruleset> {
    let primary = here.iter().find(|eni| eni.slot == 0)?;
    let carried = |slot: &u32| spared.contains(slot) || here.iter().any(|eni| eni.slot == *slot);
    Some(Ruleset {
        primary_ifname: found.ifname_of(primary.mac)?.to_owned(),
        primary_address: primary.primary.addr(),
        primary_v6: primary.own_v6,
        native: wanted.native.clone(),
        policy: wanted.policy.clone(),
        owner: wanted
            .owner
            .iter()
            .filter(|(slot, _)| carried(slot))
            .map(|(slot, nets)| (*slot, nets.clone()))
            .collect(),
    })
}

/// The sysctls that packets of pods depend on, and their values.
fn sysctls(enis: &[EniNet], policy: &Policy, found: &Found) -> Vec<(String, &'static str)> {
    let v6 = policy.knows(Family::V6);
    let mut wanted = vec![("net/ipv4/ip_forward".to_owned(), "1")];
    for (eni, ifname) in enis.iter().filter_map(|eni| Some((eni, found.ifname_of(eni.mac)?))) {
        // Loose on every ENI: main's answer for a remote pod is the primary link.
        wanted.push((format!("net/ipv4/conf/{ifname}/rp_filter"), "2"));
        wanted.push((format!("net/ipv4/conf/{ifname}/forwarding"), "1"));
        if v6 {
            wanted.push((format!("net/ipv6/conf/{ifname}/disable_ipv6"), "0"));
        }
        let accepts = format!("net/ipv6/conf/{ifname}/accept_ra");
        if v6 && eni.slot != 0 {
            wanted.push((accepts, "0")); // its default route would compete with the primary's
        } else if v6 && read_sysctl(&accepts).is_ok_and(|value| value == "1") {
            // A router ignores routers unless told not to. 0: somebody else hears them, in user space.
            wanted.push((accepts, "2"));
        }
    }
    if v6 {
        wanted.push(("net/ipv6/conf/all/forwarding".to_owned(), "1"));
    }
    wanted
}

fn read_sysctl(key: &str) -> anyhow::Result<String> {
    let path = format!("/proc/sys/{key}");
    let found = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(found.trim().to_owned())
}

fn ensure_sysctl(key: &str, value: &str, changes: &mut Vec<Change>) -> anyhow::Result<()> {
    let path = format!("/proc/sys/{key}");
    if read_sysctl(key)? != value {
        fs::write(&path, value).with_context(|| format!("cannot write {value} to {path}"))?;
        changes.push(Change { kind: Kind::Sysctl, what: format!("set {} to {value}", key.replace('/', ".")) });
    }
    Ok(())
}

/// What host and table lack of what is wanted for pods on the ENI of this slot, one sentence each; nothing is changed.
pub fn faults(wanted: &Wanted, slot: u32) -> anyhow::Result<Vec<String>> {
    let mut netlink = Netlink::open()?;
    let found = Found::read(&mut netlink, &wanted.policy.families())?;
    let (here, missing): (Vec<EniNet>, Vec<EniNet>) =
        wanted.enis.iter().cloned().partition(|eni| found.ifname_of(eni.mac).is_some());
    let lacking = missing.iter().filter(|eni| eni.slot == slot || eni.slot == 0);
    let mut faults: Vec<String> = lacking.map(|eni| node::MissingLink(eni.mac).to_string()).collect();
    let changes = node::changes(&here, &BTreeSet::new(), &wanted.pool(), &wanted.policy, &found)?;
    let needed = changes.iter().filter(|change| !change.is_rule_removal());
    faults.extend(needed.map(|change| format!("the host needs: {change}")));
    let tables = ruleset(wanted, &here, &BTreeSet::new(), &found).map(|ruleset| ruleset.families()).unwrap_or_default();
    for family in tables {
        if !nft::is_there(family)? {
            faults.push(format!("the table {} enid is missing", family.word()));
        }
    }
    for (key, value) in sysctls(&here, &wanted.policy, &found).into_iter().filter(|(key, _)| key.contains("forward")) {
        if read_sysctl(&key)? != value {
            faults.push(format!("{} is off", key.replace('/', ".")));
        }
    }
    Ok(faults)
}

/// The slots that the kernel gives to ENIs' links, by MAC.
pub fn slots(policy: &Policy) -> anyhow::Result<BTreeMap<[u8; 6], u32>> {
    let found = Found::read(&mut Netlink::open()?, &[Family::V4])?;
    Ok(rules::slots(policy, &found).into_iter().map(|(mac, slot)| (mac.0, slot)).collect())
}

/// The host ends that these leases should have.
pub fn pod_nets<'a>(leases: impl Iterator<Item = (&'a AttachmentKey, &'a Lease)>) -> Vec<PodNet> {
    let net = |(key, lease): (&AttachmentKey, &Lease)| {
        let AttachmentKey { network, container, ifname } = key;
        PodNet {
            host_mac: identity::host_mac(network, container, ifname),
            pod_mac: identity::pod_mac(network, container, ifname),
            addresses: lease.addresses().collect(),
            group: marks::group(lease.slot),
        }
    };
    leases.map(net).collect()
}

/// The table of an ENI's routes; the primary's are in main.
pub fn route_table(eni: &Eni, slot: u32) -> u32 {
    let place = eni.facts.place;
    if slot == 0 { 254 } else { marks::route_table(place.device_index, place.card) }
}

/// For the start of a life, before any address is given. A pod's link that no lease knows, no route leads to and no
/// alias names an address of was half made when an earlier life, or its store, was lost: its plugin may only be slow,
/// and must not make an address reachable that another pod gets meanwhile. Without the link it cannot.
pub fn remove_half_made(keys: &[AttachmentKey], families: &[Family]) -> anyhow::Result<()> {
    let mut netlink = Netlink::open()?;
    let known: BTreeSet<Mac> =
        keys.iter().map(|key| identity::host_mac(&key.network, &key.container, &key.ifname)).collect();
    let unknown: Vec<PodEnd> =
        pods::pod_links(&netlink.links()?).into_iter().filter(|end| !known.contains(&end.mac)).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let routes = netlink.routes(families)?;
    for end in unknown {
        if pods::used_over(std::slice::from_ref(&end), &routes).is_empty() {
            warn!(link = end.ifname, "removed: half made, and no lease knows it");
            removal::remove_by_mac(end.mac, &end.ifname, &mut netlink)?;
        }
    }
    Ok(())
}

/// One complete listing: the attachments among these leases whose link stands, and the addresses that are routed over
/// pods' links.
pub fn listing<'a>(
    leases: impl Iterator<Item = (&'a AttachmentKey, &'a Lease)> + Clone,
    families: &[Family],
) -> anyhow::Result<(Vec<AttachmentKey>, Vec<IpAddr>)> {
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    let pods = pod_nets(leases.clone());
    let of_each = leases.zip(pods::links_of(&pods, &links));
    let seen = of_each.filter(|(_, link)| link.is_some()).map(|((key, _), _)| key.clone()).collect();
    let ends = pods::pod_links(&links);
    let routed = if ends.is_empty() { Vec::new() } else { pods::used_over(&ends, &netlink.routes(families)?) };
    Ok((seen, routed))
}

/// The names of pods' links, by MAC.
pub fn pod_ifnames() -> anyhow::Result<BTreeMap<Mac, String>> {
    let ends = pods::pod_links(&Netlink::open()?.links()?);
    Ok(ends.into_iter().map(|end| (end.mac, end.ifname)).collect())
}

/// Whether the link of this name is the attachment's.
pub fn is_wired(key: &AttachmentKey, ifname: &str) -> anyhow::Result<bool> {
    let link = Netlink::open()?.link(ifname)?;
    let mac = link.as_ref().and_then(link::mac);
    Ok(mac == Some(identity::host_mac(&key.network, &key.container, &key.ifname)))
}
