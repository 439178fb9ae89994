//! What a pod and an ENI look like in the kernel, as values, and the netlink that applies them.
//!
//! Used by the plugin, which wires pods, and by the daemon, which owns whatever belongs to the node or
//! to an ENI. Wanted state is computed by pure functions; [`netlink`] is the one place that talks to
//! the kernel, with plain blocking sockets: a request is a few messages long and answered at once.
//!
//! - [`pod`]: one veth, one host route, one permanent neighbour at each end.
//! - [`node`]: links, addresses, tables and rules of the ENIs, and what differs from them.
//! - [`rules`]: the routing policy rules, a handful for all ENIs.
//! - [`removal`]: pods' links taken away, one or many together.
//! - [`pods`]: the host ends of pods that run, and what differs from them.
//! - [`shadow`]: what stands before our rules and routes.
//! - [`watch`]: what others change under us, as the kernel tells it.
//! - [`policy`]: how packets are steered and translated, as the operator wants it.
//! - [`ruleset`]: the one nftables table, `ip enid`, as text.
//! - [`forward`]: whether this host forwards packets between pods.
//! - [`identity`]: whose link it is, told from its MAC, and what it is called.
//! - [`conntrack`]: what connection tracking remembers of an address, dropped before the address is used again.
//!
//! Not here: `nft` itself (the daemon runs it), sysctl policy beyond names and values.

mod answer;
pub mod conntrack;
mod family;
pub mod faults;
pub mod forward;
pub mod identity;
pub mod link;
pub mod marks;
mod message;
mod netfilter;
pub mod netlink;
pub mod netns;
pub mod node;
pub mod pod;
pub mod pods;
pub mod policy;
pub mod removal;
pub mod rules;
pub mod ruleset;
pub mod shadow;
pub mod watch;

pub use conntrack::Conntrack;
pub use family::{Family, GATEWAY, GATEWAY_V6, ROUTER_V6};
pub use identity::Mac;
pub use netlink::{Error, Netlink};
