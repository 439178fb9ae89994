//! Which way a packet takes: computed from what the kernel has, and compared with what the kernel says.

use std::{collections::BTreeMap, net::IpAddr};

use enid_api::v1::{Explanation, Lookup};
use enid_datapath::{
    Family, Mac,
    explain::{
        lookup::{Answer, Asked, Packet, Way, answered, lookup, question, taken},
        steering::{Steered, is_unheld, steered, translated},
    },
    node::found::Found,
    ruleset::Ruleset,
};
use enid_ipamd::{AttachmentKey, Lease, View};

use crate::{
    host::{
        kernel::{self, Wanted},
        netlink::Netlink,
        pod_links,
    },
    record::{name_of, pod_of},
};

/// One end of the way.
struct End<'a> {
    address: IpAddr,
    /// If it is a pod of this node.
    pod: Option<(&'a AttachmentKey, &'a Lease)>,
}

impl End<'_> {
    fn pod_name(&self) -> String {
        let pod = self.pod.and_then(|(_, lease)| lease.pod.as_ref());
        pod.map(|pod| name_of(&pod.namespace, &pod.name)).unwrap_or_default()
    }
}

/// Explains it.
///
/// # Errors
///
/// One sentence: the ends are none of this node's, or the kernel cannot be asked.
pub async fn explain(view: &View, wanted: &Wanted, source: &str, destination: &str) -> anyhow::Result<Explanation> {
    let families: Vec<Family> = Family::ALL.to_vec();
    let mut netlink = Netlink::open()?;
    let found = kernel::read(&mut netlink, &families).await?;
    let (ruleset, links) =
        wanted.as_found(&found).ok_or_else(|| anyhow::anyhow!("the primary ENI's link is not to be found"))?;
    let (from, to) = ends(view, source, destination)?;
    let mut said = Explanation {
        source: from.address.to_string(),
        source_pod: from.pod_name(),
        destination: to.address.to_string(),
        destination_pod: to.pod_name(),
        ..Explanation::default()
    };
    let enis: BTreeMap<Mac, String> =
        view.enis.iter().map(|(_, eni)| (Mac(eni.facts.mac), eni.facts.id.to_string())).collect();
    let eni_of = |index: u32| links.get(&index).and_then(|mac| enis.get(mac)).cloned().unwrap_or_default();
    let iif = match (from.pod, to.pod) {
        (Some((key, lease)), _) => {
            let (mac, _) = pod_links::macs(key, Some(lease));
            let index = found.index_of_mac(mac);
            let index = index.ok_or_else(|| anyhow::anyhow!("the link of {} is not to be found", from.address))?;
            said.in_eni = lease.eni.to_string();
            let Steered { mark, why } = steered(&ruleset, lease.slot, from.address, to.address, index, &found);
            (said.mark, said.mark_reason) = (mark, why);
            index
        }
        (None, Some((_, lease))) => {
            let of_eni = links.iter().find(|(_, mac)| enis.get(mac).is_some_and(|eni| *eni == *lease.eni.0));
            let index = of_eni.map(|(index, _)| *index);
            let index = index.ok_or_else(|| anyhow::anyhow!("the link of {} is not to be found", lease.eni))?;
            said.in_eni = eni_of(index);
            said.mark_reason = "what comes in for a pod is not marked".to_owned();
            index
        }
        (None, None) => anyhow::bail!("neither {source} nor {destination} is a pod of this node"),
    };
    said.in_link = found.name_of(iif).unwrap_or_default().to_owned();
    let packet = Packet { source: from.address, destination: to.address, mark: said.mark, iif: Some(iif) };
    let asked = lookup(&found, &packet);
    said.lookups = asked.iter().map(in_words).collect();
    let way = taken(&asked).cloned();
    match (&way, asked.last().map(|asked| &asked.answer)) {
        (Some(way), _) => {
            said.route_table = asked.last().map_or(0, |asked| asked.table);
            said.route = way.to_string();
            said.out_link.clone_from(&way.ifname);
            said.out_eni = way.link.map(eni_of).unwrap_or_default();
            said.next_hop = way.next_hop.map(|hop| hop.to_string()).unwrap_or_default();
            of_table(&ruleset, &from, &to, way, &mut said);
        }
        (None, Some(Answer::Refused(how))) => said.dropped = format!("a rule or route says {how}"),
        (None, _) => said.dropped = "no rule leads to a route".to_owned(),
    }
    compare(&mut netlink, &found, &packet, way.as_ref(), &mut said).await;
    Ok(said)
}

/// What our table does with what leaves so.
fn of_table(ruleset: &Ruleset, from: &End<'_>, to: &End<'_>, way: &Way, said: &mut Explanation) {
    if to.pod.is_none() && !way.is_local && is_unheld(ruleset, to.address) {
        said.dropped = format!("{} is an address for pods of this node, and none has it", to.address);
    }
    let (translated, why) = translated(ruleset, from.address, to.address, &way.ifname);
    said.leaves_as = translated.unwrap_or(from.address).to_string();
    said.translation_reason = why;
}

/// What the kernel says of the same packet.
async fn compare(netlink: &mut Netlink, found: &Found, packet: &Packet, way: Option<&Way>, said: &mut Explanation) {
    match netlink.route(question(packet)).await {
        Ok(answer) => {
            let (theirs, table) = answered(found, &answer, packet.destination);
            said.kernel = format!("table {table}: {theirs}");
            said.kernel_agrees = way.is_some_and(|way| {
                way.link == theirs.link && way.next_hop == theirs.next_hop || way.is_local && theirs.is_local
            }) && table == said.route_table;
        }
        Err(refused) => {
            said.kernel = format!("{refused:#}");
            said.kernel_agrees = way.is_none();
            if way.is_some() && said.dropped.is_empty() {
                said.dropped = format!("the kernel refuses it: {refused:#}");
            }
        }
    }
}

fn in_words(asked: &Asked) -> Lookup {
    let answer = match &asked.answer {
        Answer::Nothing => "no route; the next rule is asked".to_owned(),
        Answer::Suppressed(way) => format!("{way}, which this rule does not take; the next rule is asked"),
        Answer::Takes(way) => way.to_string(),
        Answer::Refused(how) => how.clone(),
    };
    Lookup { rule: asked.rule.clone(), table: asked.table, answer }
}

/// Both ends. A pod has an address of each family that it was given: those of one are chosen.
fn ends<'a>(view: &'a View, source: &str, destination: &str) -> anyhow::Result<(End<'a>, End<'a>)> {
    let (from, to) = (candidates(view, source)?, candidates(view, destination)?);
    let same = from.iter().find_map(|from| {
        let to = to.iter().find(|to| to.0.is_ipv4() == from.0.is_ipv4())?;
        Some((End { address: from.0, pod: from.1 }, End { address: to.0, pod: to.1 }))
    });
    same.ok_or_else(|| anyhow::anyhow!("{source} and {destination} have no addresses of one family"))
}

type Candidate<'a> = (IpAddr, Option<(&'a AttachmentKey, &'a Lease)>);

fn candidates<'a>(view: &'a View, end: &str) -> anyhow::Result<Vec<Candidate<'a>>> {
    if let Ok(address) = end.parse::<IpAddr>() {
        let pod = view.leases().find(|(_, lease)| lease.addresses().any(|held| held == address));
        return Ok(vec![(address, pod)]);
    }
    let named = pod_of(end);
    let is_it = |lease: &Lease| lease.pod.as_ref().is_some_and(|pod| Some((&*pod.namespace, &*pod.name)) == named);
    let pod = view.leases().find(|(_, lease)| is_it(lease));
    let (key, lease) = pod.ok_or_else(|| {
        anyhow::anyhow!("{end:?} is neither an address nor a pod of this node with an address (NAMESPACE/POD)")
    })?;
    Ok(lease.addresses().map(|address| (address, Some((key, lease)))).collect())
}
