//! Which families pods have, and what follows from that.

use std::collections::BTreeSet;

use enid_datapath::Family;
use enid_ipamd::{LOCAL_V4, LOCAL_V6, Second};
use ipnet::IpNet;

/// Which families pods have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stack {
    V4 { v6_egress: bool },
    V6 { v4_egress: bool },
    Dual,
}

impl Stack {
    pub(super) fn has_v6(self) -> bool {
        self != Stack::V4 { v6_egress: false }
    }

    pub(super) fn second(self) -> Second {
        match self {
            Stack::Dual => Second::V6OfEni,
            Stack::V4 { v6_egress: true } | Stack::V6 { v4_egress: true } => Second::NodeLocal,
            Stack::V4 { .. } | Stack::V6 { .. } => Second::None,
        }
    }

    pub(super) fn of_vpc(self) -> BTreeSet<Family> {
        match self {
            Stack::V4 { .. } => BTreeSet::from([Family::V4]),
            Stack::V6 { .. } => BTreeSet::from([Family::V6]),
            Stack::Dual => BTreeSet::from(Family::ALL),
        }
    }

    pub(super) fn of_node(self) -> BTreeSet<IpNet> {
        match self {
            Stack::V4 { v6_egress: true } => BTreeSet::from([LOCAL_V6]),
            Stack::V6 { v4_egress: true } => BTreeSet::from([LOCAL_V4]),
            _ => BTreeSet::new(),
        }
    }
}
