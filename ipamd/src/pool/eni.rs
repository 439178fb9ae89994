//! One ENI of this node: what metadata shows of it, how far it has come, and its addresses, counted.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
    ops::{AddAssign, SubAssign},
};

use imbl::OrdSet;
use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

use super::block::{Block, BlockState, InUse, Rank};
use crate::{
    ids::{EniId, Millis, Place, SubnetId},
    supply::{Kind, Placed},
};

/// One ENI as instance metadata shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EniFacts {
    /// EC2's id.
    pub id: EniId,
    /// From IMDS, never from EC2's answer.
    pub mac: [u8; 6],
    /// Where it is attached.
    pub place: Place,
    /// Its own address, with the subnet's prefix length.
    pub primary: Ipv4Net,
    /// Its own IPv6 address, if it has one.
    pub own_v6: Option<Ipv6Addr>,
    /// The subnet it is in.
    pub subnet_id: SubnetId,
    /// Blocks for pods: its own address left out.
    pub blocks: BTreeSet<IpNet>,
    /// Ids of its security groups.
    pub groups: BTreeSet<String>,
}

/// An ENI without any address: one that is EFA-only, or one of which metadata does not show all yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddresslessEni {
    /// EC2's id.
    pub id: EniId,
    /// Where it is attached.
    pub place: Place,
}

/// How far an ENI has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum EniState {
    /// Attached; whether it is ours is not known yet.
    Unknown,
    /// Ours; the host does not carry it yet.
    Configuring,
    /// Its addresses may be assigned.
    Ready,
    /// It is about to be detached; withheld since then.
    Detaching(Millis),
    /// Not ours: left alone.
    Unmanaged,
}

/// Addresses of an ENI, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    /// All of them.
    pub total: u64,
    /// Assigned to attachments, or used by orphaned links.
    pub assigned: u64,
    /// In their cooldown.
    pub cooling: u64,
    /// Can be assigned now.
    pub available: u64,
    /// Prefixes.
    pub prefixes: u64,
    /// Prefixes without an assigned or cooling address.
    pub idle_prefixes: u64,
}

/// One ENI of this node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Eni {
    /// What IMDS shows.
    pub facts: EniFacts,
    /// Slot in marks and device groups.
    pub slot: Option<u32>,
    /// How far it has come.
    pub state: EniState,
    /// EC2 confirmed our tag in this run, so it may be changed.
    pub ours: bool,
    /// Id of its attachment, if EC2 named it in this run.
    pub attachment: Option<String>,
    /// New pods get no addresses of it: a new ENI would be in another subnet, or have other security groups.
    pub excluded: bool,
    /// Metadata does not show it any more.
    pub unconfirmed: bool,
    /// Its absence from metadata means something from then on.
    pub(super) confirmed_until: Millis,
    /// Since when it has been what it is.
    pub since: Millis,
    /// Its addresses, counted.
    pub sums: Sums,
    /// Its blocks: what metadata or EC2 has shown and nobody has taken away.
    pub blocks: OrdSet<IpNet>,
    /// Blocks with something to assign, in the order of assigning.
    pub(super) ranked: OrdSet<Rank>,
}

impl EniFacts {
    /// Its own addresses, which the host uses itself.
    pub(crate) fn own(&self) -> impl Iterator<Item = IpAddr> {
        [Some(IpAddr::from(self.primary.addr())), self.own_v6.map(IpAddr::from)].into_iter().flatten()
    }
}

impl Eni {
    /// An ENI that metadata shows for the first time, without its blocks.
    pub(crate) fn new(now: Millis, facts: EniFacts, state: EniState, slot: Option<u32>) -> Self {
        Eni {
            facts,
            slot,
            state,
            ours: false,
            attachment: None,
            excluded: false,
            unconfirmed: false,
            confirmed_until: now,
            since: now,
            sums: Sums::default(),
            blocks: OrdSet::new(),
            ranked: OrdSet::new(),
        }
    }

    /// What says whether new pods may have addresses of it.
    pub(crate) fn placed(&self) -> Placed<'_> {
        let EniFacts { subnet_id: subnet, groups, .. } = &self.facts;
        Placed { subnet, groups, is_primary: self.slot == Some(0), excluded: self.excluded }
    }

    /// EC2's id.
    pub fn id(&self) -> &EniId {
        &self.facts.id
    }

    /// The network card that it is on.
    pub fn card(&self) -> u32 {
        self.facts.place.card
    }

    /// Whether its addresses may be assigned.
    pub fn is_usable(&self) -> bool {
        self.state == EniState::Ready && !self.unconfirmed
    }

    /// Whether metadata shows other blocks on it than EC2 is known to have put there.
    pub(crate) fn is_shown_otherwise(&self) -> bool {
        self.blocks.len() != self.facts.blocks.len() || !self.blocks.iter().all(|net| self.facts.blocks.contains(net))
    }

    /// Whether no address of it is assigned or cooling.
    pub fn is_idle(&self) -> bool {
        self.sums.assigned == 0 && self.sums.cooling == 0
    }
}

impl Sums {
    pub(super) fn of(block: &Block) -> Sums {
        if !block.leads() {
            return Sums::default();
        }
        let prefix = u64::from(Kind::of(&block.net()) == Kind::Prefix);
        let usable = block.state() == BlockState::Usable;
        let (InUse { assigned, cooling }, available) = (block.in_use(), block.available());
        let total = assigned + cooling + available;
        let prefixes = prefix * u64::from(usable);
        let idle_prefixes = prefix * u64::from(usable && block.is_idle());
        Sums { total, assigned, cooling, available, prefixes, idle_prefixes }
    }
}

impl AddAssign for Sums {
    fn add_assign(&mut self, other: Sums) {
        self.total += other.total;
        self.assigned += other.assigned;
        self.cooling += other.cooling;
        self.available += other.available;
        self.prefixes += other.prefixes;
        self.idle_prefixes += other.idle_prefixes;
    }
}

impl SubAssign for Sums {
    fn sub_assign(&mut self, other: Sums) {
        self.total -= other.total;
        self.assigned -= other.assigned;
        self.cooling -= other.cooling;
        self.available -= other.available;
        self.prefixes -= other.prefixes;
        self.idle_prefixes -= other.idle_prefixes;
    }
}
