//! What a take-over does with each pod and each entry, decided from what was read; nothing is changed here.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use enid_datapath::{Family, Mac, identity, peer::PodLink};
use enid_ipamd::{AttachmentKey, EniFacts, EniId, LOCAL_V6, Lease, Ledger, Macs, PodRef, is_local};
use ipnet::IpNet;

use super::{
    enis::{eni_of, slot},
    file::Entry,
};
use crate::host::pod_links;

/// All that was read.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// First letters of pods' host links.
    pub prefix: String,
    /// Why it is not known what the file says.
    pub lack: Option<String>,
    /// What the file says.
    pub entries: Vec<Entry>,
    /// Links of its pods that are not ours yet, and the MACs of the pods' ends.
    pub pods: Vec<(PodLink, Option<Mac>)>,
    /// Links of pods with ENIs of their own.
    pub branches: Vec<String>,
    /// Links by which pods leave in the family in which they have no address of the VPC, that are not ours yet.
    pub egress: Vec<PodLink>,
    /// Families of which pods have addresses of the VPC, and ranges that only this node knows, as the settings say.
    pub of_vpc: BTreeSet<Family>,
    /// The ranges.
    pub of_node: BTreeSet<IpNet>,
    /// By which ENI pods leave that have a rule for it: the MAC of its link.
    pub ways: BTreeMap<IpAddr, Mac>,
    /// Marks of connections that are not those of the settings.
    pub connmarks: Vec<u32>,
    /// The MACs of all links.
    pub links: BTreeSet<Mac>,
    /// What metadata shows.
    pub enis: Vec<EniFacts>,
    /// What the store remembers.
    pub ledger: Ledger,
}

/// What is done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Pods whose links become ours.
    pub pods: Vec<Pod>,
    /// Addresses that the file names and no link carries: they may have been released, and cool.
    pub cooling: BTreeMap<IpAddr, AttachmentKey>,
    /// Leases of an earlier take-over whose links have gone since.
    pub ended: Vec<AttachmentKey>,
    /// Slots of the ENIs that these pods are on.
    pub slots: BTreeMap<EniId, u32>,
    /// What stays as it is, and works: one sentence each.
    pub left: Vec<String>,
    /// Why nothing can be taken over, one sentence each.
    pub refusals: Vec<String>,
}

/// A pod whose link becomes ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its host end.
    pub link: PodLink,
    /// MAC of its own end, where it could be looked at.
    pub mac: Option<Mac>,
    /// The ENI that has the address, or that its packets leave by.
    pub eni: EniId,
    /// That ENI's slot.
    pub slot: u32,
    /// What becomes of the address.
    pub becomes: Becomes,
}

/// What becomes of an address that a pod uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Becomes {
    /// A lease of this attachment.
    Lease(AttachmentKey, Option<PodRef>),
    /// It is in use, and nobody knows for sure by whom: it is given to nobody as long as the link stands. Why.
    Withheld(String),
    /// The pod's way out in another family: it stays as long as the pod, and its address is given to nobody meanwhile.
    Egress,
}

impl Pod {
    /// Its lease, if it gets one.
    pub fn lease(&self) -> Option<(AttachmentKey, Lease)> {
        let Becomes::Lease(key, pod) = &self.becomes else { return None };
        let macs = self.mac.map(|mac| Macs { host: self.link.mac.0, pod: mac.0 });
        let lease = Lease::remembered(of_pod(&self.link)?, self.eni.clone(), self.slot, pod.clone(), 0);
        Some((key.clone(), lease.with_macs(macs)))
    }
}

impl Evidence {
    /// Whether there is nothing to take over: no link of its pods that is not ours yet, and no entry in its file.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty() && self.egress.is_empty() && self.entries.is_empty()
    }

    /// Whether an earlier run has leased this pod, and was interrupted.
    pub fn holds(&self, pod: &Pod) -> bool {
        self.ledger.leases.iter().any(|(key, lease)| is_leased_over(key, lease, &pod.link))
    }
}

/// Whether a lease of an earlier run is of this link.
fn is_leased_over(key: &AttachmentKey, lease: &Lease, link: &PodLink) -> bool {
    pod_links::macs(key, Some(lease)).0 == link.mac && of_pod(link) == Some((lease.address, lease.second))
}

/// The address of a pod, and the one by which it leaves in another family, if its link carries that, too: a pod that began under
/// Enid, on a node that was given back since.
fn of_pod(link: &PodLink) -> Option<(IpAddr, Option<IpAddr>)> {
    let (local, own): (Vec<IpAddr>, Vec<IpAddr>) = link.addresses.iter().partition(|address| is_local(**address));
    match (&own[..], &local[..]) {
        ([own], []) => Some((*own, None)),
        ([own], [second]) => Some((*own, Some(*second))),
        _ => None,
    }
}

/// Decides.
pub fn plan(evidence: &Evidence) -> Plan {
    let Evidence { entries, pods, branches, links, ledger, .. } = evidence;
    let mut plan = Plan::default();
    let carried: BTreeSet<IpAddr> = pods.iter().flat_map(|(link, _)| link.addresses.iter().copied()).collect();
    // A plugin of ours may still be making a link; it is not, if another one carries the address.
    let held = |key: &AttachmentKey, lease: &Lease| {
        let may_come = lease.macs.is_none() && !lease.addresses().any(|address| carried.contains(&address));
        may_come || links.contains(&pod_links::macs(key, Some(lease)).0)
    };
    let ended = ledger.leases.iter().filter(|(key, lease)| !held(key, lease));
    plan.ended = ended.map(|(key, _)| key.clone()).collect();
    let of_ours: BTreeMap<IpAddr, &AttachmentKey> = ledger
        .leases
        .iter()
        .filter(|(key, lease)| held(key, lease))
        .flat_map(|(key, lease)| lease.addresses().map(move |address| (address, key)))
        .collect();
    let mut by_address: BTreeMap<IpAddr, Vec<&Entry>> = BTreeMap::new();
    for entry in entries {
        by_address.entry(entry.address).or_default().push(entry);
    }
    for (link, mac) in pods {
        // Whatever is wrong with it: a link in no group of ours would be cut off, and its address free.
        let Some((eni, disagreement)) = eni_of(link, &evidence.enis, &evidence.ways) else { continue };
        let slot = slot(eni, ledger, &plan.slots);
        plan.slots.insert(eni.id.clone(), slot);
        // An earlier run was interrupted between its store and the kernel.
        let known = ledger.leases.iter().find(|(key, lease)| is_leased_over(key, lease, link));
        let mac = mac.or(known.map(|(key, lease)| pod_links::macs(key, Some(lease)).1));
        let becomes = match known {
            Some((key, lease)) => Becomes::Lease(key.clone(), lease.pod.clone()),
            None => match disagreement.map_or_else(|| agreed(link, mac, evidence, &by_address, &of_ours), Err) {
                Ok(entry) => Becomes::Lease(entry.key.clone(), entry.pod.clone()),
                Err(why) => Becomes::Withheld(why),
            },
        };
        plan.pods.push(Pod { link: link.clone(), mac, eni: eni.id.clone(), slot, becomes });
    }
    if let Some(primary) = evidence.enis.iter().find(|eni| eni.place.is_primary()) {
        let eni = primary.id.clone();
        let way_out =
            |link: &PodLink| Pod { link: link.clone(), mac: None, eni: eni.clone(), slot: 0, becomes: Becomes::Egress };
        plan.pods.extend(evidence.egress.iter().map(way_out));
    }
    if let [first, ..] = &evidence.egress[..] {
        let (number, named) = (evidence.egress.len(), &first.ifname);
        plan.left.push(format!(
            "links by which pods leave in another family, as long as their pods: {number}, {named} among them"
        ));
    }
    let gone = entries.iter().filter(|it| !carried.contains(&it.address) && !of_ours.contains_key(&it.address));
    plan.cooling = gone.map(|entry| (entry.address, entry.key.clone())).collect();
    let branch =
        |link: &String| format!("{link} is the link of a pod with an ENI of its own (security groups for pods)");
    plan.left.extend(branches.iter().map(branch));
    let of_branch = pods.iter().filter(|(link, _)| {
        let way = link.addresses.iter().find_map(|address| evidence.ways.get(address));
        way.is_some_and(|way| !evidence.enis.iter().any(|eni| Mac(eni.mac) == *way))
    });
    let of_branch = of_branch.map(|(link, _)| {
        format!("the pod of {} leaves by no ENI of this instance, and cannot be taken over", link.ifname)
    });
    let links = || pods.iter().map(|(link, _)| link).chain(&evidence.egress);
    let of_each = links().flat_map(|link| link.addresses.iter().map(move |address| (*address, link)));
    // Without an address of its own the node cannot lend it to pods.
    let lacks_v6 = evidence.enis.iter().any(|eni| eni.place.is_primary() && eni.own_v6.is_none());
    let lacks_v6 = lacks_v6 && links().any(|link| link.addresses.iter().any(|address| LOCAL_V6.contains(address)));
    let lacks_v6 = lacks_v6
        .then(|| "pods leave by IPv6 as the node, and metadata shows no IPv6 address of the primary ENI".to_owned());
    let is_known = |address: &IpAddr| {
        let of_node = evidence.of_node.iter().any(|range| range.contains(address));
        of_node || !is_local(*address) && evidence.of_vpc.contains(&Family::of(*address))
    };
    let of_another = of_each.filter(|(address, _)| !is_known(address)).map(|(address, link)| {
        format!(
            "{address} by {} is of a family that the settings leave out (ENABLE_IPv4, ENABLE_IPv6, ENABLE_V4_EGRESS, \
             ENABLE_V6_EGRESS)",
            link.ifname
        )
    });
    // Without it no pod would get a lease, and each would hold its address for ever.
    let unknown = |pod: &Pod| pod.becomes != Becomes::Egress && !evidence.holds(pod);
    let lack = evidence.lack.clone().filter(|_| plan.pods.iter().any(unknown));
    let marked = |mark: &u32| {
        format!("connections are marked with {mark:#x} here, and AWS_VPC_K8S_CNI_CONNMARK says another mark")
    };
    let marked = evidence.connmarks.iter().map(marked);
    plan.refusals = of_another.chain(lacks_v6).chain(of_branch).chain(lack).chain(marked).collect();
    plan
}

/// The entry on which file and kernel agree; or where they do not.
fn agreed<'a>(
    link: &PodLink,
    mac: Option<Mac>,
    evidence: &Evidence,
    by_address: &BTreeMap<IpAddr, Vec<&'a Entry>>,
    of_ours: &BTreeMap<IpAddr, &AttachmentKey>,
) -> Result<&'a Entry, String> {
    let name = &link.ifname;
    let Some((address, second)) = of_pod(link) else {
        let all: Vec<String> = link.addresses.iter().map(ToString::to_string).collect();
        return Err(format!("{name} carries {}, and a pod has one address", all.join(" and ")));
    };
    let of_another = [Some(address), second].into_iter().flatten().find_map(|address| of_ours.get(&address));
    if let Some(AttachmentKey { container, .. }) = of_another {
        return Err(format!("the container {container} has the address by a link of ours"));
    }
    let entry = match by_address.get(&address).map_or(&[][..], Vec::as_slice) {
        [] => return Err(format!("{name} carries the address, and the file does not name it")),
        [entry] => *entry,
        [one, two, ..] => {
            let (one, two) = (&one.key.container, &two.key.container);
            return Err(format!("the file gives the address to the containers {one} and {two}"));
        }
    };
    if let Some(PodRef { namespace, name: pod }) = &entry.pod {
        let expected = identity::ifname_for_pod(&evidence.prefix, namespace, pod, 0);
        if expected != *name {
            return Err(format!("the file gives it to {namespace}/{pod}, whose link is {expected}; {name} carries it"));
        }
    }
    if mac.is_none() {
        return Err(format!("the pod's end of {name} cannot be looked at"));
    }
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use enid_ipamd::{Place, SubnetId};

    use super::*;
    use crate::takeover::enis::NO_ENI;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn key(pod: &str) -> AttachmentKey {
        AttachmentKey { network: "aws-cni".into(), container: format!("sandbox-{pod}"), ifname: "eth0".into() }
    }

    fn eni(device_index: u32, addresses: &[&str]) -> EniFacts {
        EniFacts {
            id: EniId(format!("eni-{device_index}").into()),
            mac: [2, 0, 0, 0, 0, u8::try_from(device_index).unwrap()],
            place: Place { card: 0, device_index },
            primary: format!("10.0.64.{}/19", 10 + device_index).parse().unwrap(),
            own_v6: None,
            subnet_id: SubnetId("subnet-1".into()),
            blocks: addresses.iter().map(|address| ip(address).into()).collect(),
            groups: BTreeSet::new(),
        }
    }

    /// A pod as Amazon's VPC CNI wires it, and its entry.
    fn pod(evidence: &mut Evidence, number: u8, address: &str, way: Option<u32>) {
        let name = format!("pod-{number}");
        let link = PodLink {
            ifname: identity::ifname_for_pod("eni", "default", &name, 0),
            index: u32::from(number) + 10,
            mac: Mac([0xd2, 0, 0, 0, 0, number]),
            inside: Some((1, 2)),
            addresses: vec![ip(address)],
        };
        evidence.links.insert(link.mac);
        evidence.pods.push((link, Some(Mac([0x8e, 0, 0, 0, 0, number]))));
        let pod = Some(PodRef { namespace: "default".into(), name: name.clone() });
        evidence.entries.push(Entry { key: key(&name), address: ip(address), pod });
        evidence.ways.extend(way.map(|device| (ip(address), Mac(eni(device, &[]).mac))));
    }

    fn node() -> Evidence {
        let enis = vec![eni(0, &["10.0.80.194"]), eni(1, &["10.0.78.4", "10.0.78.5"]), eni(2, &["10.0.85.29"])];
        let of_vpc = BTreeSet::from([Family::V4]);
        let mut evidence = Evidence { prefix: "eni".into(), enis, of_vpc, ..Evidence::default() };
        pod(&mut evidence, 0, "10.0.80.194", None);
        pod(&mut evidence, 1, "10.0.78.4", Some(1));
        pod(&mut evidence, 2, "10.0.85.29", Some(2));
        evidence
    }

    fn why(plan: &Plan, address: &str) -> String {
        let pod = plan.pods.iter().find(|pod| pod.link.addresses.contains(&ip(address))).unwrap();
        match &pod.becomes {
            Becomes::Withheld(why) => why.clone(),
            Becomes::Lease(..) => "leased".to_owned(),
            Becomes::Egress => "a way out".to_owned(),
        }
    }

    /// A pod that began under Enid, on a node that was given back since, has both addresses on one link.
    #[test]
    fn a_pod_keeps_its_address_of_the_other_family() {
        let mut evidence = node();
        evidence.of_node.insert(LOCAL_V6);
        let second = ip("fd00::ac:2");
        evidence.pods[1].0.addresses.push(second);
        let (_, lease) =
            plan(&evidence).pods.iter().find_map(|pod| pod.lease().filter(|(of, _)| *of == key("pod-1"))).unwrap();
        assert_eq!((lease.address, lease.second), (ip("10.0.78.4"), Some(second)));
        // An interrupted run has leased it.
        evidence.ledger.leases.insert(key("pod-1"), lease);
        assert_eq!(why(&plan(&evidence), "10.0.78.4"), "leased");
        evidence.ledger.leases.clear();
        evidence.pods[1].0.addresses.push(ip("fd00::ac:3"));
        assert!(why(&plan(&evidence), "10.0.78.4").contains("a pod has one address"));
    }

    #[test]
    fn pods_on_which_all_agree_are_leased_with_the_macs_of_their_links() {
        let plan = plan(&node());
        let leased: Vec<_> = plan.pods.iter().filter_map(Pod::lease).collect();
        assert_eq!(leased.len(), 3);
        assert!(plan.cooling.is_empty() && plan.left.is_empty() && plan.ended.is_empty());
        let (of, lease) = &leased[1];
        assert_eq!((of, lease.address, lease.slot), (&key("pod-1"), ip("10.0.78.4"), 1));
        assert_eq!(lease.macs, Some(Macs { host: [0xd2, 0, 0, 0, 0, 1], pod: [0x8e, 0, 0, 0, 0, 1] }));
        assert_eq!(plan.slots.values().copied().collect::<Vec<_>>(), [0, 1, 2]);
    }

    /// The kind: a node that was given back, and whose store was not cleared before it is taken over again.
    #[test]
    fn leases_of_pods_that_enid_has_wired_are_found_again_by_their_macs() {
        let mut evidence = node();
        let of_ours = AttachmentKey { network: "enid".into(), container: "of-ours".into(), ifname: "eth0".into() };
        let taken_over = plan(&evidence).pods[0].lease().unwrap().1;
        let mut lease = taken_over.with_macs(None);
        evidence.pods[0].0.mac = pod_links::macs(&of_ours, None).0;
        evidence.links.insert(evidence.pods[0].0.mac);
        evidence.entries.remove(0);
        evidence.ledger.leases.insert(of_ours.clone(), lease.clone());
        let again = plan(&evidence);
        assert!(evidence.holds(&again.pods[0]) && again.ended.is_empty());
        assert_eq!(again.pods[0].lease().unwrap().0, of_ours);
        // The other system has given its address to another pod since.
        let mut evidence = node();
        evidence.ledger.leases.insert(of_ours.clone(), lease.clone());
        let again = plan(&evidence);
        assert_eq!((again.ended, why(&plan(&evidence), "10.0.80.194")), (vec![of_ours.clone()], "leased".to_owned()));
        // A plugin of ours is still making its link.
        let mut evidence = node();
        lease.address = ip("10.0.78.5");
        evidence.ledger.leases.insert(of_ours, lease);
        assert!(plan(&evidence).ended.is_empty());
    }

    #[test]
    fn slots_are_those_on_record_and_in_the_kernel() {
        let mut evidence = node();
        evidence.ledger.slots.insert(EniId("eni-2".into()), 1);
        evidence.ledger.kernel_slots.insert(eni(1, &[]).mac, 7);
        let plan = plan(&evidence);
        assert_eq!(plan.slots.values().copied().collect::<Vec<_>>(), [0, 7, 1]);
    }

    #[test]
    fn where_they_disagree_the_address_is_in_use_and_nobodys() {
        let mut evidence = node();
        evidence.entries.remove(1);
        evidence.ways.insert(ip("10.0.85.29"), Mac(eni(1, &[]).mac));
        let (pod, _) = &mut evidence.pods[0];
        pod.ifname = "enif2415b239f5".to_owned();
        let disagreed = plan(&evidence);
        assert!(why(&disagreed, "10.0.78.4").contains("the file does not name it"));
        assert!(why(&disagreed, "10.0.85.29").contains("leave by the ENI with the MAC 02:00:00:00:00:01, and eni-2"));
        assert!(why(&disagreed, "10.0.80.194").contains("default/pod-0, whose link is enic220f2ba281; enif2415b239f5"));
        assert_eq!(disagreed.slots.len(), 3, "their links need groups all the same");
        let mut evidence = node();
        evidence.entries.push(Entry { key: key("other"), ..evidence.entries[0].clone() });
        evidence.pods[1].1 = None;
        let disagreed = plan(&evidence);
        assert!(why(&disagreed, "10.0.80.194").contains("to the containers sandbox-pod-0 and sandbox-other"));
        assert!(why(&disagreed, "10.0.78.4").contains("cannot be looked at"));
    }

    #[test]
    fn what_has_no_link_cools_and_what_no_eni_has_is_withheld() {
        let mut evidence = node();
        evidence.pods.remove(0);
        evidence.enis.remove(2);
        evidence.branches.push("vlan0123456789a".to_owned());
        let plan = plan(&evidence);
        assert_eq!(plan.cooling, BTreeMap::from([(ip("10.0.80.194"), key("pod-0"))]));
        assert!(plan.left[0].contains("vlan0123456789a"));
        let of_each = (why(&plan, "10.0.78.4"), why(&plan, "10.0.85.29"));
        assert_eq!((plan.pods.len(), of_each), (2, ("leased".into(), NO_ENI.into())));
        assert_eq!(plan.pods[1].slot, 0, "its link is in a group of ours all the same");
    }

    #[test]
    fn a_link_of_several_addresses_is_withheld_with_all_of_them() {
        let mut evidence = node();
        evidence.pods[1].0.addresses.push(ip("10.0.78.5"));
        let plan = plan(&evidence);
        assert!(why(&plan, "10.0.78.5").contains("carries 10.0.78.4 and 10.0.78.5"));
        assert_eq!((plan.pods[1].slot, plan.pods[1].link.addresses.len()), (1, 2));
    }

    #[test]
    fn families_are_those_of_the_settings() {
        let mut evidence = node();
        let link =
            PodLink { ifname: "veth4ae9443a".into(), addresses: vec![ip("fd00::ac:2")], ..evidence.pods[0].0.clone() };
        evidence.egress.push(link);
        evidence.pods[0].0.addresses = vec![ip("2001:db8::1")];
        let refused = plan(&evidence).refusals;
        assert!(refused[0].starts_with("2001:db8::1 by eni") && refused[1].starts_with("fd00::ac:2 by veth4ae9443a"));
        assert!(refused[1].contains("ENABLE_V6_EGRESS"), "{refused:?}");
        evidence.of_vpc.insert(Family::V6);
        evidence.of_node.insert(LOCAL_V6);
        assert!(plan(&evidence).refusals[0].contains("no IPv6 address of the primary ENI"));
        evidence.enis[0].own_v6 = Some("2001:db8::a".parse().unwrap());
        let plan = plan(&evidence);
        assert!(plan.refusals.is_empty(), "{:?}", plan.refusals);
        assert_eq!((why(&plan, "fd00::ac:2"), plan.pods.len()), ("a way out".to_owned(), 4));
        assert!(plan.left[0].contains("1, veth4ae9443a among them"));
    }

    /// The kind: security groups for pods in the mode "standard", whose pods have links like all others.
    #[test]
    fn pods_that_leave_by_no_eni_of_the_instance_are_refused() {
        let mut evidence = node();
        evidence.ways.insert(ip("10.0.85.29"), Mac([6; 6]));
        assert!(plan(&evidence).refusals[0].ends_with("leaves by no ENI of this instance, and cannot be taken over"));
    }

    #[test]
    fn without_the_file_nothing_is_taken_over_but_what_is_leased_already() {
        let mut evidence = node();
        let leased: Vec<_> = plan(&evidence).pods.iter().filter_map(Pod::lease).collect();
        evidence.entries.clear();
        evidence.lack = Some("the state file x of Amazon's VPC CNI is not there".to_owned());
        assert_eq!(plan(&evidence).refusals, ["the state file x of Amazon's VPC CNI is not there"]);
        evidence.ledger.leases.extend(leased);
        assert!(plan(&evidence).refusals.is_empty());
    }

    /// The kind: an interrupted take-over, after which the other daemon served once more, gives an address two owners.
    #[test]
    fn what_an_earlier_take_over_has_leased_ends_with_its_link() {
        let mut evidence = node();
        let leased = plan(&evidence).pods[0].lease().unwrap();
        evidence.ledger.leases.extend([leased.clone()]);
        evidence.links.remove(&Mac([0xd2, 0, 0, 0, 0, 0]));
        let (link, _) = &mut evidence.pods[0];
        link.mac = Mac([0xd6, 0, 0, 0, 0, 9]);
        evidence.links.insert(link.mac);
        evidence.entries[0].key = key("newer");
        let newer = plan(&evidence);
        assert_eq!((newer.ended.clone(), why(&newer, "10.0.80.194")), (vec![leased.0.clone()], "leased".to_owned()));
        // The store was written, and the kernel not yet.
        let mut evidence = node();
        evidence.ledger.leases.extend([leased.clone()]);
        evidence.pods[0].1 = None;
        assert_eq!(
            plan(&evidence).pods[0].lease(),
            Some(leased.clone()),
            "with its MACs, even if they cannot be seen now"
        );
        // Its link stands and is in our group already: nothing is left to do for it.
        evidence.ledger.leases.extend([leased]);
        evidence.pods.remove(0);
        let again = plan(&evidence);
        assert!(again.ended.is_empty() && again.cooling.is_empty() && again.pods.len() == 2);
    }
}
