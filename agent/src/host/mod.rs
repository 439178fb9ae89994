//! The host's kernel: ENI links, route tables, rules, sysctls, the nftables tables, connection tracking, and the
//! deletion of pods' links. All of it blocks or runs a program; nothing here knows the core's task.

pub mod conntrack;
pub mod deletion;
pub mod kernel;
pub mod nft;
