//! What a pod and an ENI look like in the kernel, as values, and the netlink that applies them.
//!
//! Used by the plugin, which wires pods, and by the daemon, which owns whatever belongs to the node or to an ENI. Wanted
//! state is computed by pure functions, and what has to change is a list of requests. The plugin sends them over the
//! blocking socket here, the daemon over its own asynchronous ones.
//!
//! - [`pod`]: one veth, one host route, one permanent neighbour at each end; the host ends of pods that run
//!   ([`pod::host_end`]), CHECK's findings ([`faults`]), links taken away ([`removal`]).
//! - [`node`]: links, addresses, tables and rules of the ENIs, what differs from them, and conflicts with others.
//! - [`netlink`]: messages, requests and the plugin's socket; [`notification`]: changes that the kernel reports.
//! - [`netfilter`]: connection tracking, and what of nftables is read without `nft`.
//! - [`ruleset`]: the one nftables table, `ip enid`, as text.
//! - [`explain`]: which way a packet takes, computed.
//! - [`forward`]: whether this host forwards packets between pods.
//! - [`peer`]: what Amazon's VPC CNI has left of its pods on a node that is taken over, and the way back ([`peer::handback`]).
//! - [`policy`]: how packets are steered and translated, as the operator wants it; [`marks`]: the numbers for it.
//! - [`identity`]: whose link it is, found by its MAC, and what it is called.
//! - [`netns`]: other network namespaces.
//!
//! Not here: `nft` itself (the daemon runs it), sysctl policy beyond names and values.

pub mod explain;
mod family;
pub mod forward;
pub mod identity;
pub mod kind;
pub mod marks;
pub mod netfilter;
pub mod netlink;
pub mod netns;
pub mod node;
pub mod notification;
pub mod peer;
pub mod pod;
pub mod policy;
pub mod ruleset;

pub use family::{Family, GATEWAY, GATEWAY_V6, ROUTER_V6};
pub use identity::Mac;
pub use netfilter::conntrack::Conntrack;
pub use netlink::{error::Error, link, request::Request, socket::Netlink};
pub use pod::{faults, removal};
