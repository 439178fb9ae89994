//! How pods' packets are steered and translated, as the operator wants it.

use std::collections::BTreeSet;

use ipnet::{IpNet, Ipv4Net};

use crate::{family::Family, marks::Marks};

/// What is the same for all ENIs of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Bits of the packet mark.
    pub marks: Marks,
    /// What comes in by an ENI for an address of the node is answered by that ENI, whichever ENI the pod lives on
    /// (AWS_VPC_CNI_NODE_PORT_SUPPORT; Amazon's daemon does so for the primary ENI).
    pub node_ports: NodePorts,
    /// What becomes of a pod's IPv4 address outside the VPC. IPv6 addresses are never translated.
    pub translation: Translation,
    /// Destinations that are asked of main before the ENIs' tables (AWS_EXTERNAL_SERVICE_CIDRS).
    pub by_main: Vec<Ipv4Net>,
    /// Families of which pods have addresses of the VPC: blocks that EC2 put on the ENIs.
    pub of_vpc: BTreeSet<Family>,
    /// Ranges that only this node knows. What leaves with their addresses does so as the node, by the primary ENI.
    pub of_node: BTreeSet<IpNet>,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            marks: Marks::default(),
            node_ports: NodePorts::default(),
            translation: Translation::default(),
            by_main: Vec::new(),
            of_vpc: BTreeSet::from([Family::V4]),
            of_node: BTreeSet::new(),
        }
    }
}

impl Policy {
    /// The range of this family that only this node knows, if pods have addresses of one.
    pub fn range(&self, family: Family) -> Option<IpNet> {
        self.of_node.iter().find(|range| Family::of(range.addr()) == family).copied()
    }

    /// Whether pods' packets of this family are steered to their ENIs. The ENIs' own IPv4 addresses need rules in any
    /// case.
    pub fn is_steered(&self, family: Family) -> bool {
        family == Family::V4 || self.of_vpc.contains(&family)
    }

    /// Whether this family concerns us at all.
    pub fn knows(&self, family: Family) -> bool {
        self.is_steered(family) || self.range(family).is_some()
    }

    /// The families that do.
    pub fn families(&self) -> Vec<Family> {
        Family::ALL.into_iter().filter(|family| self.knows(*family)).collect()
    }
}

/// Whether answers to what came in by an ENI return there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodePorts {
    /// They do.
    #[default]
    SameWayBack,
    /// Nothing is remembered.
    Off,
}

/// What becomes of a pod's address outside the VPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translation {
    /// It stays: somebody else translates, and each packet leaves by its pod's ENI (AWS_VPC_K8S_CNI_EXTERNALSNAT).
    External,
    /// It becomes the node's.
    Here(Ports),
}

/// How the source port is chosen (AWS_VPC_K8S_CNI_RANDOMIZESNAT).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// At random: `prng`, NF_NAT_RANGE_PROTO_RANDOM_FULLY.
    FullyRandom,
    /// By a hash: `hashrandom`, NF_NAT_RANGE_PROTO_RANDOM.
    Hashed,
    /// The pod's own where it is free: `none`.
    Kept,
}

impl Default for Translation {
    fn default() -> Self {
        Translation::Here(Ports::FullyRandom)
    }
}
