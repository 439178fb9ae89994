//! netfilter's side of netlink: connection tracking, and nftables as far as it is read without `nft`.
//!
//! - [`chains`]: base chains of others that may drop pods' packets.
//! - [`conntrack`]: entries of an address, dropped before the address is used again.
//! - [`generation`]: whether anybody has committed anything to nftables.

pub mod chains;
pub mod conntrack;
pub mod generation;
pub(crate) mod socket;
