//! What our nftables table does with the first packet of a connection that a pod opens: its mark, its translation, and whether it
//! is dropped. The same decisions as [`crate::ruleset`] writes down for the kernel; the neighbours' tests compare both.

use std::net::IpAddr;

use ipnet::IpNet;

use super::lookup::{Packet, lookup, taken};
use crate::{family::Family, node::found::Found, policy::Translation, ruleset::Ruleset};

/// A mark, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steered {
    /// The packet's mark.
    pub mark: u32,
    /// One sentence.
    pub why: String,
}

/// The mark of what a pod behind this slot sends; `iif`: its host link.
pub fn steered(ruleset: &Ruleset, slot: u32, source: IpAddr, destination: IpAddr, iif: u32, found: &Found) -> Steered {
    let policy = &ruleset.policy;
    let marks = policy.marks;
    let by_primary = |why: &str| Steered { mark: marks.eni(0), why: why.to_owned() };
    let by_own = |why: &str| Steered { mark: marks.eni(slot), why: why.to_owned() };
    let family = Family::of(destination);
    if !policy.of_vpc.contains(&family) {
        return match policy.range(family) {
            Some(range) if range.contains(&source) => by_primary("its address is known to this node only"),
            _ => Steered { mark: 0, why: "pods have no address of this family".to_owned() },
        };
    }
    if slot == 0 {
        return by_primary("its address is on the primary ENI");
    }
    if policy.range(family).is_some_and(|range| range.contains(&source)) {
        return by_primary("its address is known to this node only");
    }
    match (family, policy.translation) {
        (Family::V4, Translation::Here(_)) => match native(ruleset, destination) {
            Some(net) => by_own(&format!("the destination is within {net}, which sees pods' own addresses")),
            None => by_primary("the destination is outside of the VPC, and sees the node's address"),
        },
        (Family::V4, Translation::External) => by_own("addresses are translated elsewhere, if at all"),
        (Family::V6, _) => {
            let asked = Packet { source, destination, mark: marks.eni(0), iif: Some(iif) };
            let other = lookup(found, &asked);
            let other = taken(&other).filter(|way| !way.is_local && way.ifname != ruleset.primary_ifname);
            match other {
                Some(way) => by_primary(&format!("this host has a way of its own there, {way}")),
                None => by_own("IPv6 addresses are not translated"),
            }
        }
    }
}

/// The address that a packet leaves with that goes out by a link; `None`: its own. Beside it why.
pub fn translated(ruleset: &Ruleset, source: IpAddr, destination: IpAddr, ifname: &str) -> (Option<IpAddr>, String) {
    let family = Family::of(destination);
    if ifname != ruleset.primary_ifname {
        return (None, "only what leaves by the primary ENI is translated".to_owned());
    }
    let own = match family {
        Family::V4 => Some(IpAddr::from(ruleset.primary_address)),
        Family::V6 => ruleset.primary_v6.map(IpAddr::from),
    };
    if ruleset.policy.range(family).is_some_and(|range| range.contains(&source)) {
        return (own, "its address is known to this node only".to_owned());
    }
    if family == Family::V6 {
        return (None, "IPv6 addresses are not translated".to_owned());
    }
    if ruleset.policy.translation == Translation::External {
        return (None, "AWS_VPC_K8S_CNI_EXTERNALSNAT: somebody else translates".to_owned());
    }
    match native(ruleset, destination) {
        Some(net) => (None, format!("the destination is within {net}")),
        None => (own, "the destination is outside of the VPC and of AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS".to_owned()),
    }
}

/// Whether a packet to this address, which no pod here has, is dropped: it is an address for pods of this node.
pub fn is_unheld(ruleset: &Ruleset, destination: IpAddr) -> bool {
    ruleset.owner.values().flatten().any(|net| net.contains(&destination))
}

/// The CIDR by which a destination sees pods' own addresses.
fn native(ruleset: &Ruleset, destination: IpAddr) -> Option<IpNet> {
    ruleset.native.iter().copied().map(IpNet::from).find(|net| net.contains(&destination))
}
