//! One ENI of this node: what metadata shows of it, how far it has come, and its addresses, counted.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
    ops::{AddAssign, SubAssign},
};

use imbl::OrdSet;
use ipnet::{IpNet, Ipv4Net};

use crate::{
    Block, BlockState, EniId, Kind, Millis, Place,
    block::{self, Rank},
};

/// One ENI as instance metadata shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// The subnet's id.
    pub subnet_id: String,
    /// Blocks for pods: its own address left out.
    pub blocks: BTreeSet<IpNet>,
}

/// An ENI without any address: one that is EFA-only, or one of which not all shows yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BareEni {
    /// EC2's id.
    pub id: EniId,
    /// Where it is attached.
    pub place: Place,
}

/// How far an ENI has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EniState {
    /// Attached; whether it is ours is not known yet.
    Unknown,
    /// Ours; the host does not carry it yet.
    Joining,
    /// Its addresses may be given.
    Ready,
    /// It is about to be detached; withheld since then.
    Leaving(Millis),
    /// Somebody else's: left alone.
    Foreign,
}

/// Addresses of an ENI, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// All of them.
    pub total: u64,
    /// In somebody's hands.
    pub held: u64,
    /// Resting.
    pub resting: u64,
    /// To be given.
    pub free: u64,
    /// Prefixes.
    pub prefixes: u64,
    /// Prefixes that nobody uses any of.
    pub idle_prefixes: u64,
}

/// One ENI of this node.
#[derive(Clone, Debug)]
pub struct Eni {
    /// What IMDS shows.
    pub facts: EniFacts,
    /// Slot in marks and device groups.
    pub slot: Option<u32>,
    /// How far it has come.
    pub state: EniState,
    /// EC2 confirmed our tag in this life, so it may be changed.
    pub ours: bool,
    /// Id of its attachment, if EC2 told it in this life.
    pub attachment: Option<String>,
    /// Metadata does not show it any more.
    pub doubted: bool,
    /// Its absence from metadata means something from then on.
    pub(crate) excused: Millis,
    /// Since when it has been what it is.
    pub since: Millis,
    /// Its addresses, counted.
    pub sums: Sums,
    /// Its blocks: what metadata or EC2 has shown and nobody has taken away.
    pub blocks: OrdSet<IpNet>,
    /// Blocks with something to give, in the order of giving.
    pub(crate) open: OrdSet<Rank>,
}

impl EniFacts {
    /// Its own addresses, which the host uses itself.
    pub(crate) fn own(&self) -> impl Iterator<Item = IpAddr> {
        [Some(IpAddr::from(self.primary.addr())), self.own_v6.map(IpAddr::from)].into_iter().flatten()
    }
}

impl Eni {
    /// Whether pods may get its addresses.
    pub fn gives(&self) -> bool {
        self.state == EniState::Ready && !self.doubted
    }

    /// Whether nobody uses or remembers any address of it.
    pub fn is_idle(&self) -> bool {
        self.sums.held == 0 && self.sums.resting == 0
    }
}

impl Sums {
    pub(crate) fn of(block: &Block) -> Sums {
        if !block.leads {
            return Sums::default();
        }
        let prefix = u64::from(block::kind(&block.net) == Kind::Prefix);
        let open = block.state == BlockState::Open;
        let (held, resting, free) = (block.held, block.resting, block.free());
        let idle = open && block.is_idle();
        let total = held + resting + free;
        Sums { total, held, resting, free, prefixes: prefix * u64::from(open), idle_prefixes: prefix * u64::from(idle) }
    }
}

impl AddAssign for Sums {
    fn add_assign(&mut self, other: Sums) {
        self.total += other.total;
        self.held += other.held;
        self.resting += other.resting;
        self.free += other.free;
        self.prefixes += other.prefixes;
        self.idle_prefixes += other.idle_prefixes;
    }
}

impl SubAssign for Sums {
    fn sub_assign(&mut self, other: Sums) {
        self.total -= other.total;
        self.held -= other.held;
        self.resting -= other.resting;
        self.free -= other.free;
        self.prefixes -= other.prefixes;
        self.idle_prefixes -= other.idle_prefixes;
    }
}
