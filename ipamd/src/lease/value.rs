//! One lease.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{
    ids::{EniId, Millis, PodRef, Ticket},
    supply::kind::is_local,
};

/// The MACs of both ends of a pod's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Macs {
    /// Of the host's end.
    pub host: [u8; 6],
    /// Of the pod's end.
    pub pod: [u8; 6],
}

/// An address assigned to an attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The pod's address.
    pub address: IpAddr,
    /// One of the other family: out of a block of the same ENI, or of the node's own range.
    pub second: Option<IpAddr>,
    /// The ENI that carries it.
    pub eni: EniId,
    /// Slot of that ENI when the lease was made.
    pub slot: u32,
    /// What the runtime said about the pod.
    pub pod: Option<PodRef>,
    /// Number of this interface among those of the same pod in our network.
    pub index: u32,
    /// Of a link that another plugin has made: as they were seen when its pod was taken over. Those of our own links are
    /// derived from the attachment.
    pub macs: Option<Macs>,
    /// When it was made, if that was in this run of the daemon.
    pub since: Option<Millis>,
    /// The link has been seen; otherwise the address is only reserved.
    pub wired: bool,
    /// First of two complete listings in which the link of a wired lease was missing.
    pub missing_since: Option<Millis>,
    /// The request that made it, while its plugin is connected.
    pub(crate) ticket: Option<Ticket>,
}

impl Lease {
    /// A lease that the store remembers; whether its link stands is the kernel's to say.
    pub fn remembered(
        (address, second): (IpAddr, Option<IpAddr>),
        eni: EniId,
        slot: u32,
        pod: Option<PodRef>,
        index: u32,
    ) -> Self {
        Lease {
            address,
            second,
            eni,
            slot,
            pod,
            index,
            macs: None,
            since: None,
            wired: false,
            missing_since: None,
            ticket: None,
        }
    }

    /// The same, over a link that another plugin has made.
    #[must_use]
    pub fn with_macs(self, macs: Option<Macs>) -> Self {
        Lease { macs, ..self }
    }

    /// Both of its addresses, the pod's own first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        [Some(self.address), self.second].into_iter().flatten()
    }

    /// Its second address, if the VPC knows it.
    pub fn second_of_vpc(&self) -> Option<IpAddr> {
        self.second.filter(|address| !is_local(*address))
    }

    /// Its second address, if only this node knows it.
    pub fn local(&self) -> Option<IpAddr> {
        self.second.filter(|address| is_local(*address))
    }

    /// A plugin is making, or making again, its link: it is connected.
    pub fn is_being_wired(&self) -> bool {
        self.ticket.is_some()
    }
}
