//! The leases, with the index of their addresses, and the addresses of orphaned links.
//!
//! No lease can be made or ended without its index being kept, so an address has one owner as long as this table is asked.
//! Keys and leases are shared pointers, as the pool's values are, and for the same reason.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use imbl::{OrdMap, OrdSet};
use serde::{Deserialize, Serialize};

use super::value::Lease;
use crate::ids::{AttachmentKey, EniId, Millis, PodRef, Ticket, count};

/// A wired lease ends when its link is missing from two complete listings this far apart.
const MISSING_MS: u64 = 5_000;

/// The table.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Leases {
    #[serde(with = "crate::serial")]
    leases: OrdMap<Arc<AttachmentKey>, Arc<Lease>>,
    /// Which attachment holds an address.
    holders: OrdMap<IpAddr, Arc<AttachmentKey>>,
    /// Leases with a second address.
    seconds: usize,
    /// Leases whose plugin is connected.
    being_wired: OrdMap<Ticket, Arc<AttachmentKey>>,
    /// Addresses that pods' links use though no lease says so: whoever that is, it is alive.
    orphans: OrdSet<IpAddr>,
}

impl Leases {
    /// What the store remembers: nobody is connected yet.
    pub(crate) fn new(remembered: BTreeMap<AttachmentKey, Lease>) -> Self {
        let mut leases = Leases::default();
        for (key, lease) in remembered {
            let Lease { address, second, eni, slot, pod, index, macs, .. } = lease;
            leases.insert(key, Lease::remembered((address, second), eni, slot, pod, index).with_macs(macs));
        }
        leases
    }

    pub(crate) fn get(&self, key: &AttachmentKey) -> Option<&Lease> {
        self.leases.get(key).map(Arc::as_ref)
    }

    pub(crate) fn all(&self) -> &OrdMap<Arc<AttachmentKey>, Arc<Lease>> {
        &self.leases
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values().map(Arc::as_ref)
    }

    pub(crate) fn holders(&self) -> &OrdMap<IpAddr, Arc<AttachmentKey>> {
        &self.holders
    }

    pub(crate) fn holder_of(&self, address: &IpAddr) -> Option<&AttachmentKey> {
        self.holders.get(address).map(Arc::as_ref)
    }

    /// Addresses that pods' links use though no lease says so.
    pub(crate) fn orphans(&self) -> impl Iterator<Item = IpAddr> {
        self.orphans.iter().copied()
    }

    pub(crate) fn is_orphan(&self, address: &IpAddr) -> bool {
        self.orphans.contains(address)
    }

    /// Whether somebody uses this address: a lease, or an orphaned link.
    pub(crate) fn uses(&self, address: &IpAddr) -> bool {
        self.holders.contains_key(address) || self.orphans.contains(address)
    }

    /// How many addresses of this range are in use, by leases and by orphaned links.
    pub(crate) fn count_in(&self, first: IpAddr, last: IpAddr) -> usize {
        self.holders.range(first..=last).count() + self.orphans.range(first..=last).count()
    }

    /// Whether a lease holds an address of this range.
    pub(crate) fn leased_in(&self, first: IpAddr, last: IpAddr) -> bool {
        self.holders.range(first..=last).next().is_some()
    }

    /// Whether somebody uses an address of this range.
    pub(crate) fn used_in(&self, first: IpAddr, last: IpAddr) -> bool {
        self.leased_in(first, last) || self.orphans.range(first..=last).next().is_some()
    }

    /// Whether a lease names this ENI.
    pub(crate) fn names(&self, eni: &EniId) -> bool {
        self.values().any(|lease| lease.eni == *eni)
    }

    /// Whether every address of every lease has one entry in the index.
    pub(crate) fn is_indexed(&self) -> bool {
        self.leases.len() + self.seconds == self.holders.len()
    }

    fn lease_mut(&mut self, key: &AttachmentKey) -> Option<&mut Lease> {
        self.leases.get_mut(key).map(Arc::make_mut)
    }

    /// A new lease, whose plugin is connected if it has a ticket.
    pub(crate) fn insert(&mut self, key: AttachmentKey, lease: Lease) {
        let key = Arc::new(key);
        self.holders.extend(lease.addresses().map(|address| (address, key.clone())));
        self.seconds += usize::from(lease.second.is_some());
        self.being_wired.extend(lease.ticket.map(|ticket| (ticket, key.clone())));
        self.leases.insert(key, Arc::new(lease));
    }

    /// The runtime asks again for an attachment that has a lease: the newer request wires it.
    pub(crate) fn ask_again(&mut self, ticket: Ticket, key: &AttachmentKey) -> Option<Lease> {
        let (key, _) = self.leases.get_key_value(key)?;
        let key = key.clone();
        let lease = self.lease_mut(&key)?;
        let earlier = lease.ticket.replace(ticket);
        let lease = lease.clone();
        if let Some(earlier) = earlier {
            self.being_wired.remove(&earlier);
        }
        self.being_wired.insert(ticket, key);
        Some(lease)
    }

    /// The plugin says that the link stands, and the kernel shows it or not: whether the attachment is still its own.
    pub(crate) fn wired(&mut self, ticket: Ticket, key: &AttachmentKey, seen: bool) -> bool {
        match self.lease_mut(key) {
            Some(lease) if lease.ticket == Some(ticket) && seen => {
                // Its plugin still has the host's end to configure: it is being wired until the connection closes.
                (lease.wired, lease.missing_since) = (true, None);
                true
            }
            _ => false,
        }
    }

    /// A plugin's connection has closed: the lease that ends with it, if it was not wired.
    pub(crate) fn closed(&mut self, ticket: Ticket) -> Option<AttachmentKey> {
        let key = self.being_wired.remove(&ticket)?;
        match self.lease_mut(&key) {
            Some(lease) if lease.wired => {
                lease.ticket = None;
                None
            }
            _ => Some(AttachmentKey::clone(&key)),
        }
    }

    pub(crate) fn remove(&mut self, key: &AttachmentKey) -> Option<Lease> {
        let lease = self.leases.remove(key)?;
        if let Some(ticket) = lease.ticket {
            self.being_wired.remove(&ticket);
        }
        self.seconds -= usize::from(lease.second.is_some());
        for address in lease.addresses() {
            self.holders.remove(&address);
        }
        Some(Arc::unwrap_or_clone(lease))
    }

    /// The runtime's list of the attachments that exist in a network. The lease of another attachment ends when the
    /// next listing of the kernel shows no link of it either.
    pub(crate) fn not_in_list(&mut self, now: Millis, network: &str, alive: &[AttachmentKey]) {
        let alive: BTreeSet<&AttachmentKey> = alive.iter().collect();
        let long_ago = Millis(now.0.saturating_sub(MISSING_MS));
        let missing = |(key, lease): &(&Arc<AttachmentKey>, &Arc<Lease>)| {
            key.network == network && lease.ticket.is_none() && !alive.contains(key.as_ref())
        };
        let missing: Vec<Arc<AttachmentKey>> = self.leases.iter().filter(missing).map(|(key, _)| key.clone()).collect();
        for key in missing {
            if let Some(lease) = self.lease_mut(&key) {
                lease.missing_since = Some(long_ago);
            }
        }
    }

    /// A complete listing of the kernel's links: the leases that end by it. It proves who is alive; only a link that is
    /// missing twice ends a wired lease. The first one of a run also tells which leases were only reserved: their
    /// plugin's connection closed with the process that held it.
    pub(crate) fn listed(
        &mut self,
        now: Millis,
        first: bool,
        asked: &[AttachmentKey],
        seen: &[AttachmentKey],
    ) -> Vec<AttachmentKey> {
        let (asked, seen): (BTreeSet<_>, BTreeSet<_>) = (asked.iter().collect(), seen.iter().collect());
        let mut ended = Vec::new();
        let mut changed = Vec::new();
        // It says nothing about those that have come since it was begun.
        for (key, lease) in self.leases.iter().filter(|(key, _)| asked.contains(key.as_ref())) {
            if seen.contains(key.as_ref()) {
                if (first && !lease.wired) || lease.missing_since.is_some() {
                    changed.push((key.clone(), lease.wired || first, None));
                }
            } else if first && !lease.wired && lease.ticket.is_none() {
                ended.push(AttachmentKey::clone(key));
            } else if lease.wired {
                match lease.missing_since {
                    Some(since) if now.since(since) >= MISSING_MS => ended.push(AttachmentKey::clone(key)),
                    Some(_) => {}
                    None => changed.push((key.clone(), true, Some(now))),
                }
            }
        }
        for (key, wired, missing_since) in changed {
            if let Some(lease) = self.lease_mut(&key) {
                (lease.wired, lease.missing_since) = (wired, missing_since);
            }
        }
        ended
    }

    /// The addresses that pods' links use: those of links that no lease explains. Returns the orphaned addresses that
    /// are used no more, and the new ones.
    pub(crate) fn listed_addresses(&mut self, used: Vec<IpAddr>) -> (Vec<IpAddr>, Vec<IpAddr>) {
        let listed: OrdSet<IpAddr> = used.into_iter().filter(|address| !self.holders.contains_key(address)).collect();
        let gone = self.orphans.clone().relative_complement(listed.clone());
        let new = listed.clone().relative_complement(self.orphans.clone());
        self.orphans = listed;
        (gone.into_iter().collect(), new.into_iter().collect())
    }

    /// Interfaces of one pod are numbered, since its name alone names only the first link.
    pub(crate) fn next_index(&self, key: &AttachmentKey, pod: Option<&PodRef>) -> u32 {
        if pod.is_none() {
            return 0;
        }
        let first = AttachmentKey { ifname: String::new(), ..key.clone() };
        let of_container = self
            .leases
            .range(first..)
            .take_while(|(other, _)| other.network == key.network && other.container == key.container);
        let taken: BTreeSet<u32> =
            of_container.filter(|(_, lease)| lease.pod.as_ref() == pod).map(|(_, lease)| lease.index).collect();
        (0..=count(taken.len())).find(|index| !taken.contains(index)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(pod: u8) -> AttachmentKey {
        AttachmentKey { network: "enid".into(), container: format!("c{pod}"), ifname: "eth0".into() }
    }

    fn lease(pod: u8) -> Lease {
        let address = IpAddr::from([10, 0, 1, pod]);
        let mut lease = Lease::remembered((address, None), EniId("eni-1".into()), 1, None, 0);
        lease.ticket = Some(Ticket(pod.into()));
        lease
    }

    #[test]
    fn the_index_follows_every_lease() {
        let mut leases = Leases::default();
        (1..=3).for_each(|pod| leases.insert(key(pod), lease(pod)));
        assert!(leases.is_indexed() && leases.holder_of(&lease(2).address) == Some(&key(2)));
        let ended = leases.remove(&key(2)).map(|lease| lease.address);
        assert_eq!(ended, Some(lease(2).address));
        assert!(leases.is_indexed() && !leases.uses(&lease(2).address));
        assert_eq!(leases.closed(Ticket(2)), None, "its request went with it");
        assert_eq!(leases.closed(Ticket(1)), Some(key(1)), "it was never wired");
    }

    #[test]
    fn a_wired_lease_ends_by_two_listings_and_a_reserved_one_by_none() {
        let mut leases = Leases::default();
        (1..=2).for_each(|pod| leases.insert(key(pod), lease(pod)));
        assert!(leases.wired(Ticket(1), &key(1), true));
        let asked = [key(1), key(2)];
        assert!(leases.listed(Millis(1), false, &asked, &[]).is_empty());
        assert!(leases.listed(Millis(MISSING_MS), false, &asked, &[]).is_empty());
        assert_eq!(leases.listed(Millis(MISSING_MS + 1), false, &asked, &[]), [key(1)]);
        assert!(leases.listed(Millis(1), false, &asked, &[key(1)]).is_empty());
        assert!(leases.get(&key(1)).is_some_and(|lease| lease.missing_since.is_none()), "it is back");
    }

    #[test]
    fn orphaned_addresses_come_and_go_with_the_listings() {
        let mut leases = Leases::default();
        leases.insert(key(1), lease(1));
        let other = IpAddr::from([10, 0, 1, 9]);
        assert_eq!(leases.listed_addresses(vec![other, lease(1).address]), (vec![], vec![other]));
        assert!(leases.is_orphan(&other) && leases.uses(&other) && leases.used_in(other, other));
        assert_eq!(leases.listed_addresses(vec![]), (vec![other], vec![]));
    }
}
