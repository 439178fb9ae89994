//! How pods' packets are steered and translated, as the operator wants it.

use ipnet::Ipv4Net;

use crate::marks::Marks;

/// What is the same for all ENIs of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Bits of the packet mark.
    pub marks: Marks,
    /// What comes in by the primary ENI for an address of the node is answered by the primary ENI, whichever ENI the
    /// pod lives on (AWS_VPC_CNI_NODE_PORT_SUPPORT).
    pub node_ports: NodePorts,
    /// What becomes of a pod's address outside the VPC.
    pub translation: Translation,
    /// Destinations that are asked of main before the ENIs' tables (AWS_EXTERNAL_SERVICE_CIDRS).
    pub by_main: Vec<Ipv4Net>,
}

/// Whether answers to what came in by the primary ENI return there.
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
    Elsewhere,
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
