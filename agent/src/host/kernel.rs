//! The node's side of the kernel: ENI links, route tables, rules, the nftables table, sysctls.
//!
//! Everything is read first and only what differs is written, so a restart with nothing changed writes nothing. `nft` is
//! the one program that sets anything up. One attempt at a time: the state is behind an asynchronous mutex, for which
//! only background tasks wait.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use enid_datapath::{
    Family, Mac, Request, forward,
    kind::Kind,
    marks,
    node::{
        changes::{MissingLink, changes},
        conflict,
        eni::EniNet,
        found::Found,
        rules, way_out,
    },
    peer,
    pod::host_end::{self, PodNet, Seen},
    policy::Policy,
    ruleset::Ruleset,
};
use enid_ipamd::{Core, Eni, own_of_eni};
use ipnet::{IpNet, Ipv4Net};
use tokio::{
    sync::{Mutex, watch},
    time::sleep,
};

use crate::host::{
    netlink::Netlink,
    nft::{self, Table},
    sysctl,
};

/// What looks wrong with a pod's link is looked at again so soon: what is wrong is what is still wrong then.
pub const SECOND_LOOK: Duration = Duration::from_millis(100);

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
            let (mac, table) = (Mac(facts.mac), route_table(eni));
            // What the VPC has given us of a family that pods do not get from it is none of ours.
            let ours = |net: &&IpNet| wanted.policy.of_vpc.contains(&Family::of(net.addr()));
            let blocks: Vec<IpNet> = eni.blocks.iter().filter(ours).copied().collect();
            // The primary's are the host's own business.
            let kept = blocks.iter().filter(|_| slot != 0).find_map(own_of_eni);
            let own_v6 = facts.own_v6.or(kept);
            wanted.enis.push(EniNet { slot, mac, primary: facts.primary, own_v6, table, mtu });
            wanted.owner.insert(slot, blocks);
        }
        for (slot, address) in core.retained_slots() {
            wanted.spared.insert(slot);
            wanted.owner.entry(slot).or_default().push(address.into());
        }
        wanted
    }

    /// What our table should be on a host that is as found, and the ENIs' links by number; `None` without the primary's.
    pub fn as_found(&self, found: &Found) -> Option<(Ruleset, BTreeMap<u32, Mac>)> {
        let here: Vec<EniNet> = self.enis.iter().filter(|eni| found.ifname_of(eni.mac).is_some()).cloned().collect();
        let ruleset = ruleset(self, &here, &self.spared, found)?;
        let carriers = here.iter().filter_map(|eni| Some((found.carrier_of(eni)?.header.index, eni.mac)));
        let own = found.indices(&here).into_iter().map(|(mac, index)| (index, mac));
        Some((ruleset, own.chain(carriers).collect()))
    }

    /// All that the ENIs hold for pods.
    fn pool(&self) -> Vec<IpNet> {
        self.owner.values().flatten().copied().collect()
    }
}

/// The kernel of this node, and what it was last made to carry. The core's task has it set up,
/// [`crate::reconcile::repair`] restores: one after the other, and the repair goes by what was wanted last.
#[derive(Clone)]
pub struct Kernel {
    state: Arc<Mutex<State>>,
    /// Something has been carried.
    carries: watch::Sender<bool>,
}

struct State {
    wanted: Wanted,
    table: Table,
    /// HOST_PROC_SYS_NET_PATH.
    sys_net: PathBuf,
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
    /// Conflicts: what takes precedence over ours and is not ours to remove, one sentence each.
    pub conflicts: Vec<String>,
    /// What is wrong with the host's own way out, one sentence each.
    pub way_out: Vec<String>,
    /// What could not be done; all the rest was.
    pub failure: Option<anyhow::Error>,
    /// A pod's link looks wrong for the first time, and may only be on its way in or out.
    pub again: bool,
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

    fn of_sysctl(key: &str, value: &str) -> Self {
        Change { kind: Kind::Sysctl, what: format!("set {} to {value}", key.replace('/', ".")) }
    }
}

impl Kernel {
    /// Nothing has been carried in this run; the run directory has the table of an earlier one. `sys_net`: where sysctls
    /// are written.
    pub fn new(run_dir: &Path, sys_net: &Path) -> Self {
        let (table, sys_net) = (Table::new(run_dir), sys_net.to_owned());
        let state = State { wanted: Wanted::default(), table, sys_net, links: BTreeMap::new(), seen: BTreeMap::new() };
        Kernel { state: Arc::new(Mutex::new(state)), carries: watch::Sender::new(false) }
    }

    /// Waits until something has been carried, which others can take away.
    pub async fn carries(&self) {
        // It cannot be closed while this lives.
        let _ = self.carries.subscribe().wait_for(|carries| *carries).await;
    }

    /// Makes the kernel carry what is wanted; an ENI whose link has not shown up yet is left for later.
    pub async fn apply(&self, wanted: &Wanted) -> anyhow::Result<Applied> {
        let mut state = self.state.lock().await;
        state.wanted = wanted.clone();
        let mut applied = state.carry(None, false).await?;
        applied.failure.take().map_or(Ok(()), Err)?;
        self.carries.send_replace(true);
        Ok(applied)
    }

    /// Reads everything and puts right what is not as it was made: what was wanted last, and these pods' links.
    /// `table` says that somebody may have changed the table.
    pub async fn repair(&self, pods: &[PodNet], table: bool) -> anyhow::Result<Applied> {
        self.state.lock().await.carry(Some(pods), table).await
    }

    /// Whether pods with ENIs of their own run, which Amazon's VPC CNI has wired.
    pub async fn has_branches(&self) -> anyhow::Result<bool> {
        Ok(!peer::branch_links(&read(&mut Netlink::open()?, &[Family::V4]).await?).is_empty())
    }

    /// Removes rules of Amazon's VPC CNI: those for pods of ours, and for ENIs of ours.
    pub async fn retire(&self, which: peer::Rules) -> anyhow::Result<Vec<Change>> {
        let state = self.state.lock().await;
        let mut netlink = Netlink::open()?;
        let found = read(&mut netlink, &Family::ALL).await?;
        let of_vpc = state.wanted.native.iter().copied().map(IpNet::from);
        let nets: Vec<IpNet> = of_vpc.chain(state.wanted.pool()).collect();
        let requests = peer::retire(which, &nets, &found);
        netlink.apply(&requests).await?;
        Ok(requests.iter().map(Change::of).collect())
    }

    /// Two addresses of each family that pods have from the VPC, which neither EC2 nor we assign: for a probe.
    pub async fn reserved(&self, vpc: &[Ipv4Net]) -> Vec<(Family, [IpAddr; 2])> {
        let state = self.state.lock().await;
        let wanted = &state.wanted;
        let from_vpc = |family: &Family| wanted.policy.of_vpc.contains(family);
        let of = |family: Family| match family {
            Family::V4 => {
                let primary = wanted.enis.iter().find(|eni| eni.slot == 0)?;
                forward::reserved(primary.primary, vpc)
            }
            // What is no block is a pod's.
            Family::V6 => wanted.owner.values().flatten().find_map(|net| match net {
                IpNet::V6(net) if net.prefix_len() < 128 => Some(forward::reserved_v6(*net)),
                _ => None,
            }),
        };
        let families = Family::ALL.into_iter().filter(from_vpc);
        families.filter_map(|family| Some((family, of(family)?))).collect()
    }
}

impl State {
    async fn carry(&mut self, pods: Option<&[PodNet]>, look_at_table: bool) -> anyhow::Result<Applied> {
        let mut netlink = Netlink::open()?;
        let families = self.wanted.policy.families();
        let found = read(&mut netlink, &families).await?;
        self.links.extend(rules::links_without_mac(&found, &self.wanted.enis, &self.wanted.policy));
        let mut found = found.remember(&self.links);
        let (here, missing): (Vec<EniNet>, Vec<EniNet>) =
            self.wanted.enis.iter().cloned().partition(|eni| found.ifname_of(eni.mac).is_some());
        self.links.extend(found.indices(&here));
        let mut changed = Vec::new();
        // One that cannot be set is no reason to leave the rest as it is: an MTU that is too small takes IPv6 along.
        let mut failure = None;
        for (key, value) in self.sysctls(&here, pods, &found) {
            match sysctl::ensure(&key, value, &self.sys_net, &found, &mut netlink).await {
                Ok(false) => {}
                Ok(true) => changed.push(Change::of_sysctl(&key, value)),
                Err(refused) => failure = Some(refused),
            }
        }
        let pool = self.wanted.pool();
        // An ENI whose link is not to be found keeps what it has, too.
        let spared = self.wanted.spared.iter().copied().chain(missing.iter().map(|eni| eni.slot)).collect();
        let mut requests = changes(&here, &spared, &pool, &self.wanted.policy, &found)?;
        let mut again = false;
        if let Some(pods) = pods {
            found = found.with_neighbours(netlink.list(&families).await?);
            let of_pods = host_end::changes(pods, &mut self.seen, &found);
            requests.extend(of_pods.requests);
            again = of_pods.again;
        }
        match netlink.apply(&requests).await {
            Ok(()) => changed.extend(requests.iter().map(Change::of)),
            Err(refused) => failure = Some(refused.into()),
        }
        // A refused link is no reason to leave the table as it is.
        if let Some(ruleset) = ruleset(&self.wanted, &here, &spared, &found) {
            match self.table.ensure(&ruleset, look_at_table).await {
                Ok(false) => {}
                Ok(true) => {
                    changed.push(Change { kind: Kind::Table, what: "replace our tables of nftables".to_owned() })
                }
                Err(refused) => failure = Some(refused),
            }
        }
        let waits_for = missing.first().map(|eni| MissingLink(eni.mac).to_string());
        let conflicts = conflict::conflicts(&here, &pool, &self.wanted.policy, &found);
        let way_out = way_out::faults(&here, &self.wanted.policy, &found);
        let slots = here.iter().map(|eni| eni.slot).collect();
        Ok(Applied { slots, waits_for, changes: changed, conflicts, way_out, failure, again })
    }

    /// The sysctls of the host, its ENIs and these pods' links, and their values.
    fn sysctls(&self, here: &[EniNet], pods: Option<&[PodNet]>, found: &Found) -> Vec<(String, &'static str)> {
        let mut sysctls = sysctl::wanted(here, &self.wanted.policy, found);
        if self.wanted.policy.knows(Family::V6) {
            let of_pods = pods.unwrap_or_default().iter().filter_map(|pod| pod.sysctl(found));
            // A pod's link may have gone since it was listed.
            sysctls.extend(of_pods.filter(|(key, _)| Path::new("/proc/sys").join(key).exists()));
        }
        sysctls
    }
}

/// What the kernel has of links, addresses and rules, and of these families' routes.
pub async fn read(netlink: &mut Netlink, families: &[Family]) -> Result<Found, enid_datapath::Error> {
    let (links, addresses) = (netlink.list(&[Family::V4]).await?, netlink.list(&[Family::V4]).await?);
    let found = Found::new(links, addresses, netlink.list(families).await?, netlink.list(&Family::ALL).await?);
    Ok(found.with_proxies(netlink.list(&[Family::V4]).await?))
}

fn ruleset(wanted: &Wanted, here: &[EniNet], spared: &BTreeSet<u32>, found: &Found) -> Option<Ruleset> {
    let primary = here.iter().find(|eni| eni.slot == 0)?;
    let of_slot = |eni: &EniNet| Some((eni.slot, found.ifname_of(eni.mac)?.to_owned()));
    let secondaries = here.iter().filter(|eni| eni.slot != 0).filter_map(of_slot);
    let carried = |slot: &u32| spared.contains(slot) || here.iter().any(|eni| eni.slot == *slot);
    Some(Ruleset {
        primary_ifname: found.carrier_name(primary)?.to_owned(),
        secondary_ifnames: secondaries.collect(),
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

/// What host and table lack of what is wanted for pods on the ENI of this slot, or of any, one sentence each; nothing is
/// changed.
pub async fn faults(wanted: &Wanted, slot: Option<u32>) -> anyhow::Result<Vec<String>> {
    let found = read(&mut Netlink::open()?, &wanted.policy.families()).await?;
    let (here, missing): (Vec<EniNet>, Vec<EniNet>) =
        wanted.enis.iter().cloned().partition(|eni| found.ifname_of(eni.mac).is_some());
    let lacking = missing.iter().filter(|eni| slot.is_none_or(|slot| eni.slot == slot) || eni.slot == 0);
    let mut faults: Vec<String> = lacking.map(|eni| MissingLink(eni.mac).to_string()).collect();
    let requests = changes(&here, &BTreeSet::new(), &wanted.pool(), &wanted.policy, &found)?;
    let needed = requests.iter().filter(|request| !request.is_rule_removal());
    faults.extend(needed.map(|request| format!("the host needs: {request}")));
    let tables = ruleset(wanted, &here, &BTreeSet::new(), &found).map(|ruleset| ruleset.families()).unwrap_or_default();
    for family in tables {
        if !nft::has_table(family, nft::OURS).await? {
            faults.push(format!("the table {} enid is missing", family.word()));
        }
    }
    let sysctls = sysctl::wanted(&here, &wanted.policy, &found);
    for (key, value) in sysctls.into_iter().filter(|(key, _)| slot.is_none() || key.contains("forward")) {
        let there = sysctl::read(&key)?;
        if there != value {
            faults.push(format!("{} is {there}, and has to be {value}", key.replace('/', ".")));
        }
    }
    Ok(faults)
}

/// What these pods' links lack of what they should be, one sentence each; nothing is changed. It looks twice, since a link may be
/// on its way in or out.
pub async fn faults_of_pods(pods: &[PodNet], families: &[Family]) -> anyhow::Result<Vec<String>> {
    let (mut seen, mut faults) = (BTreeMap::new(), Vec::new());
    for look in 0..2 {
        if look > 0 {
            sleep(SECOND_LOOK).await;
        }
        let mut netlink = Netlink::open()?;
        let found = read(&mut netlink, families).await?.with_neighbours(netlink.list(families).await?);
        let changes = host_end::changes(pods, &mut seen, &found);
        faults = changes.requests.iter().map(|request| format!("a pod's link needs: {request}")).collect();
        if !changes.again {
            break;
        }
    }
    Ok(faults)
}

/// The slots that the kernel gives to ENIs' links, by MAC.
pub async fn slots(policy: &Policy) -> anyhow::Result<BTreeMap<[u8; 6], u32>> {
    let found = read(&mut Netlink::open()?, &[Family::V4]).await?;
    Ok(rules::slots(policy, &found).into_iter().map(|(mac, slot)| (mac.0, slot)).collect())
}

/// The table of an ENI's routes; the primary's is what its pods leave by, whatever becomes of main's default route.
pub fn route_table(eni: &Eni) -> u32 {
    marks::route_table(eni.facts.place.device_index, eni.facts.place.card)
}
