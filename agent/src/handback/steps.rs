//! What is done to give a node back, one step after the other.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use anyhow::{Context, bail, ensure};
use enid_datapath::{
    Family, Mac, marks,
    node::found::Found,
    peer::{
        self,
        handback::{self, OwnLink, Ways},
    },
    policy::{NodePorts, Translation},
};
use enid_ipamd::{AttachmentKey, EniFacts, EniId, LOCAL, LOCAL_V4, LOCAL_V6, Lease, is_local};

use ipnet::IpNet;

use super::{
    Say,
    chains::{self, Egress},
    configuration, egress,
    mark::{self, Step},
};
use crate::{
    aws::imds::{Imds, Instance, Reading},
    host::{kernel, netlink::Netlink, nft, pod_links, xtables},
    settings::Settings,
    store::{self, Store},
    takeover::{
        chains::{PARTS, Part, TABLE},
        evidence, file, wait,
    },
};

/// The table of nftables that portmap has, if it is told to use nftables.
const HOST_PORTS: &str = "cni_hostport";

/// The node as it is before anything is changed.
struct Node<'a> {
    settings: &'a Settings,
    instance: Instance,
    enis: Vec<EniFacts>,
    /// The primary ENI's link, and its address.
    primary_ifname: String,
    primary: Ipv4Addr,
    /// The family of pods' addresses of the VPC: Amazon's VPC CNI knows no pods of both.
    family: Family,
    /// How they leave in the other one, if they do: each pod's is added once its routes stand.
    egress: Option<Egress>,
    /// Pods' links of ours.
    links: Vec<OwnLink>,
    /// The addresses of pods whose links an earlier run has released already.
    released: Vec<IpAddr>,
    /// The MACs of all links.
    macs: BTreeSet<Mac>,
}

/// Whether this node can be given back; nothing is changed.
///
/// # Errors
///
/// It cannot: one sentence says why.
pub async fn check(settings: &Settings) -> anyhow::Result<()> {
    let instance = Imds::new().wait_for_instance(settings.start_wait).await?;
    let node = Node::read(settings, instance).await?;
    node.is_ours()?;
    // What our rules say of the slots, which go later.
    let slots = kernel::slots(&settings.steering.policy).await?;
    let is_known = |slot: u32| node.enis.iter().any(|eni| slots.get(&eni.mac) == Some(&slot));
    match node.links.iter().find(|link| link.slot != 0 && !is_known(link.slot)) {
        Some(link) => bail!("{}", without_an_eni(link)),
        None => Ok(()),
    }
}

fn without_an_eni(OwnLink { ifname, addresses, .. }: &OwnLink) -> String {
    format!("the pod of {ifname} ({addresses:?}) is on an ENI that metadata does not show")
}

/// How pods leave in the family that is not this one, if they do; but for the pods.
fn egress_of(settings: &Settings, family: Family, primary: &EniFacts, found: &Found) -> anyhow::Result<Option<Egress>> {
    let (range, own) = match family {
        Family::V4 => (LOCAL_V6, primary.own_v6.map(IpAddr::from)),
        Family::V6 => (LOCAL_V4, Some(primary.primary.addr().into())),
    };
    let is_used = !handback::egress_addresses(range, &evidence::prefix(settings), found).is_empty();
    let is_wanted = settings.steering.policy.of_node.contains(&range);
    if is_used {
        egress::check(settings)?;
    }
    match own {
        Some(own) if is_used || is_wanted => Ok(Some(Egress { range, own, pods: Vec::new() })),
        // As for the daemon: it is off on a node without an address of that family.
        None if is_used => {
            bail!("pods leave by IPv6 as the node, and metadata shows no IPv6 address of the primary ENI")
        }
        _ => Ok(None),
    }
}

/// Gives it back, or goes on where an earlier run was interrupted.
///
/// # Errors
///
/// A step failed: all of it can be tried again.
pub async fn give_back(settings: &Settings, say: Say<'_>) -> anyhow::Result<()> {
    let step = mark::read(settings)?.context("nobody has asked for it")?.step;
    let instance = Imds::new().wait_for_instance(settings.start_wait).await?;
    let boot = store::boot_id()?;
    let (store, ledger) = Store::open(&settings.store_dir, &boot, &instance.identity(), settings.policy.cooldown_ms)?;
    // Once it is begun our stamp is in the file until the last step has been made.
    let is_written = step == Step::Begun && file::is_theirs(&settings.backing_store);
    if is_written {
        // A reboot takes the stamp away, not our configuration.
        configuration::remove_ours(settings, say)?;
    } else {
        let node = Node::read(settings, instance).await?;
        if step == Step::Asked {
            node.is_ours()?;
            file::stamp(&settings.backing_store)?;
            mark::write(settings, Step::Begun, None)?;
        }
        configuration::restore(settings, node.egress.as_ref(), say)?;
        node.restore(&tables(&node.enis, &ledger.slots), &ledger.leases, say).await?;
        node.take_away(say).await?;
        configuration::remove_ours(settings, say)?;
        node.forget_ended(&ledger.leases, say).await?;
        let (entries, withheld) = node.entries(&ledger.leases);
        // It is only said: nothing depends on it.
        if let Err(failure) = host_ports(&entries, say).await {
            say(&format!("it is not known which pods have host ports: {failure:#}"));
        }
        file::write(&settings.backing_store, &entries, &withheld)?;
        say(&format!("write {} with {} pods", settings.backing_store.display(), entries.len()));
        withheld.iter().for_each(|address| say(&format!("{address} is in use, and it is not known by which pod")));
    }
    store.hand_back()?;
    mark::write(settings, Step::Done, None)
}

/// The table of each secondary ENI, by its slot.
fn tables(enis: &[EniFacts], slots: &BTreeMap<EniId, u32>) -> BTreeMap<u32, u32> {
    let secondaries = enis.iter().filter(|eni| eni.place.device_index != 0);
    let table =
        |eni: &EniFacts| Some((*slots.get(&eni.id)?, marks::route_table(eni.place.device_index, eni.place.card)));
    secondaries.filter_map(table).collect()
}

impl<'a> Node<'a> {
    async fn read(settings: &'a Settings, instance: Instance) -> anyhow::Result<Self> {
        let policy = &settings.steering.policy;
        ensure!(!wait::answers(settings), "the daemon of Amazon's VPC CNI serves this node already");
        let [family] = Vec::from_iter(&policy.of_vpc)[..] else {
            bail!(
                "Amazon's VPC CNI has no pods with addresses of both families of the VPC (ENABLE_IPv4, ENABLE_IPv6): drain \
                 the node, and run `enid uninstall` on it (docs/eks.md)"
            );
        };
        ensure!(
            !settings.policy.multi_card,
            "with ENABLE_MULTI_NIC a node cannot be given back yet: drain it, and run `enid uninstall` on it (docs/eks.md)"
        );
        let enis = Imds::new().enis(Reading::All).await?.read;
        let found = kernel::read(&mut Netlink::open()?, &Family::ALL).await?;
        let primary = enis.iter().find(|eni| eni.place.is_primary()).context("metadata shows no primary ENI")?;
        let address = primary.primary.addr();
        let primary_ifname = found.ifname_of(Mac(primary.mac)).context("the primary ENI has no link")?.to_owned();
        let links = handback::own_links(&found);
        let is_foreign = |address: &&IpAddr| !is_local(**address) && Family::of(**address) != *family;
        let foreign = links.iter().find_map(|link| Some((link, link.addresses.iter().find(is_foreign)?)));
        if let Some((link, address)) = foreign {
            bail!(
                "the pod of {} has the address {address} of a family that the settings leave out: drain the node, and run \
                 `enid uninstall` on it (docs/eks.md)",
                link.ifname
            );
        }
        let released = peer::pod_links(&evidence::prefix(settings), &found);
        let released = released.into_iter().flat_map(|link| link.addresses).collect();
        let egress = egress_of(settings, *family, primary, &found)?;
        Ok(Node {
            settings,
            instance,
            primary_ifname,
            primary: address,
            family: *family,
            egress,
            links,
            released,
            macs: peer::macs(&found),
            enis,
        })
    }

    /// Whether its pods are ours, even if what Amazon's VPC CNI has left is not removed to the end.
    fn is_ours(&self) -> anyhow::Result<()> {
        let path = &self.settings.backing_store;
        ensure!(
            !self.links.is_empty() || !file::is_theirs(path),
            "no pod of this node is Enid's, and {} is Amazon's: the node was not taken over, or was given back already",
            path.display()
        );
        Ok(())
    }

    /// What is the other system's stands.
    async fn restore(
        &self,
        tables: &BTreeMap<u32, u32>,
        leases: &BTreeMap<AttachmentKey, Lease>,
        say: Say<'_>,
    ) -> anyhow::Result<()> {
        let policy = &self.settings.steering.policy;
        let is_marked = policy.node_ports == NodePorts::SameWayBack || policy.translation != Translation::External;
        let without = self.links.iter().find(|link| link.slot != 0 && !tables.contains_key(&link.slot));
        if let Some(link) = without {
            bail!("{}", without_an_eni(link));
        }
        let found = kernel::read(&mut Netlink::open()?, &Family::ALL).await?;
        let connmark = is_marked.then(|| (self.family, policy.marks.connmark()));
        let ways = Ways { tables, connmark, ranges: &LOCAL };
        apply(&handback::restore(&self.links, &ways, &found), say).await?;
        let backend = xtables::of_host().await?;
        self.restore_chains(&PARTS, backend, leases, say).await?;
        let table = chains::table(&self.chains(Vec::new()));
        if let Some(table) = table.filter(|_| backend == xtables::Backend::Nft) {
            nft::change(&table).await?;
            say(&format!("add the nftables table ip {TABLE}"));
        }
        Ok(())
    }

    /// These parts of iptables, and what egress-cni keeps in files, as the routes say that stand now.
    async fn restore_chains(
        &self,
        parts: &[Part],
        backend: xtables::Backend,
        leases: &BTreeMap<AttachmentKey, Lease>,
        say: Say<'_>,
    ) -> anyhow::Result<()> {
        let found = kernel::read(&mut Netlink::open()?, &Family::ALL).await?;
        let prefix = evidence::prefix(self.settings);
        let range = self.egress.as_ref().map(|egress| egress.range);
        let pods = range.map(|range| egress::of_containers(range, leases, &prefix, &found)).unwrap_or_default();
        egress::write(self.settings, &pods, say)?;
        let node = self.chains(pods);
        for family in Family::ALL {
            let saved = xtables::save(backend, family).await?;
            for part in parts {
                let Some(lines) = chains::replacement(*part, (backend, family), &saved, &node) else { continue };
                xtables::change(backend, family, &lines).await?;
                let is_new = |line: &&str| line.starts_with("-A") || line.starts_with("-I");
                lines.lines().filter(is_new).for_each(|line| say(&format!("iptables: {line}")));
            }
        }
        Ok(())
    }

    /// What pods have left that ended since the way back was begun, by this run or an earlier one: their DELs went by our
    /// configuration.
    async fn forget_ended(&self, leases: &BTreeMap<AttachmentKey, Lease>, say: Say<'_>) -> anyhow::Result<()> {
        let found = kernel::read(&mut Netlink::open()?, &Family::ALL).await?;
        let of_vpc = self.instance.vpc_cidrs.iter().copied().map(IpNet::from);
        let nets: Vec<IpNet> = of_vpc.chain(self.enis.iter().flat_map(|eni| eni.blocks.iter().copied())).collect();
        apply(&handback::rules_of_ended(&nets, &found), say).await?;
        if self.egress.is_some() {
            self.restore_chains(&[Part::Egress], xtables::of_host().await?, leases, say).await?;
        }
        Ok(())
    }

    /// `pods`: by which address each container leaves in the other family.
    fn chains(&self, pods: Vec<(String, IpAddr)>) -> chains::Node {
        let steering = &self.settings.steering;
        chains::Node {
            primary_ifname: self.primary_ifname.clone(),
            primary: self.primary,
            prefix: evidence::prefix(self.settings),
            vpc: self.instance.vpc_cidrs.clone(),
            excluded: steering.native.clone(),
            policy: steering.policy.clone(),
            egress: self.egress.clone().map(|egress| Egress { pods, ..egress }),
        }
    }

    /// What is ours goes: our tables of nftables first, by which packets to links of no device group are dropped.
    async fn take_away(&self, say: Say<'_>) -> anyhow::Result<()> {
        for family in Family::ALL {
            if nft::remove_table(family, nft::OURS).await? {
                say(&format!("remove the nftables table {} enid", family.word()));
            }
        }
        let found = kernel::read(&mut Netlink::open()?, &Family::ALL).await?;
        for requests in handback::without_ours(&found) {
            apply(&requests, say).await?;
        }
        apply(&self.links.iter().map(handback::release).collect::<Vec<_>>(), say).await
    }

    /// What its file says: pods whose links stand; and addresses that pods use and nobody knows more of.
    fn entries(&self, leases: &BTreeMap<AttachmentKey, Lease>) -> (Vec<file::Entry>, Vec<IpAddr>) {
        let stands = |(key, lease): &(&AttachmentKey, &Lease)| self.macs.contains(&pod_links::macs(key, Some(lease)).0);
        let of_pods = leases.iter().filter(stands);
        let entry = |(key, lease): (&AttachmentKey, &Lease)| file::Entry {
            key: key.clone(),
            address: lease.address,
            pod: lease.pod.clone(),
        };
        let entries: Vec<file::Entry> = of_pods.map(entry).collect();
        let used = self.links.iter().flat_map(|link| link.addresses.iter()).chain(&self.released).copied();
        // What only the node knows is no matter of its daemon's.
        let is_known = |address: &IpAddr| is_local(*address) || entries.iter().any(|entry| entry.address == *address);
        let withheld: BTreeSet<IpAddr> = used.filter(|address| !is_known(address)).collect();
        (entries, withheld.into_iter().collect())
    }
}

async fn apply(requests: &[enid_datapath::Request], say: Say<'_>) -> anyhow::Result<()> {
    Netlink::open()?.apply(requests).await?;
    requests.iter().for_each(|request| say(&request.to_string()));
    Ok(())
}

/// Pods with host ports that were made under another network's name, by which alone portmap finds their rules again.
async fn host_ports(entries: &[file::Entry], say: Say<'_>) -> anyhow::Result<()> {
    let mut rules = nft::listing(Family::V4, HOST_PORTS).await?;
    for backend in xtables::BACKENDS {
        rules += &xtables::save(backend, Family::V4).await?;
    }
    let others = entries.iter().filter(|entry| entry.key.network != peer::NETWORK);
    for entry in others.filter(|entry| rules.contains(&entry.key.container)) {
        let AttachmentKey { network, container, .. } = &entry.key;
        let pod = entry.pod.as_ref().map(|pod| format!("{}/{}", pod.namespace, pod.name)).unwrap_or_default();
        say(&format!(
            "the pod {pod} has host ports that were made for the network {network}, and portmap would leave them to others \
             when it ends: start it anew (container {container})"
        ));
    }
    Ok(())
}
