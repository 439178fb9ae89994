//! Which ENI a pod is on, by metadata and by the way that its packets take, and which slot an ENI gets.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use enid_datapath::{Mac, peer::PodLink};
use enid_ipamd::{EniFacts, EniId, Ledger};

/// Slots of secondary ENIs; 0 is the primary.
const SLOTS: std::ops::RangeInclusive<u32> = 1..=63;

/// Why a pod is not leased whose address metadata shows nowhere: it may only lag behind EC2.
pub const NO_ENI: &str = "no ENI of this instance has the address";

/// The ENI of a pod, and what is wrong with that. Where metadata shows none that has the address, it is the one that the
/// pod's packets leave by.
pub fn eni_of<'a>(
    link: &PodLink,
    enis: &'a [EniFacts],
    ways: &BTreeMap<IpAddr, Mac>,
) -> Option<(&'a EniFacts, Option<String>)> {
    let way = link.addresses.iter().find_map(|address| ways.get(address)).copied();
    let is_way = |eni: &&EniFacts| Some(Mac(eni.mac)) == way;
    let has = |eni: &&EniFacts| {
        let is_in = |address: &IpAddr| eni.blocks.iter().any(|net| net.contains(address));
        link.addresses.iter().any(is_in)
    };
    match (enis.iter().find(has), way) {
        (Some(eni), Some(way)) if way != Mac(eni.mac) => {
            let why = format!("its packets leave by the ENI with the MAC {way}, and {} has the address", eni.id);
            Some((eni, Some(why)))
        }
        (Some(eni), _) => Some((eni, None)),
        (None, _) => {
            let eni = enis.iter().find(is_way).or(enis.iter().find(|eni| eni.place.is_primary()))?;
            Some((eni, Some(NO_ENI.to_owned())))
        }
    }
}

/// The slot on record, or the one that the kernel shows, or one that nobody has; `given`: those of other ENIs.
pub fn slot(eni: &EniFacts, ledger: &Ledger, given: &BTreeMap<EniId, u32>) -> u32 {
    let Ledger { slots, kernel_slots, leases, .. } = ledger;
    if eni.place.is_primary() {
        return 0;
    }
    if let Some(slot) = given.get(&eni.id).or(slots.get(&eni.id)).or(kernel_slots.get(&eni.mac)) {
        return *slot;
    }
    let of_leases = leases.values().map(|lease| lease.slot);
    let taken: BTreeSet<u32> =
        slots.values().chain(kernel_slots.values()).chain(given.values()).copied().chain(of_leases).collect();
    SLOTS.into_iter().find(|slot| !taken.contains(slot)).unwrap_or(*SLOTS.end())
}
