//! The host's kernel: ENI links, route tables, rules, sysctls, the nftables tables, connection tracking, and the
//! deletion of pods' links. Nothing here knows the core's task.
//!
//! - [`netlink`]: listings and changes; [`listener`]: what the kernel notifies of.
//! - [`kernel`]: what host and table should carry, and how they come to do so; [`nft`], [`sysctl`]: its parts.
//! - [`xtables`]: rules of iptables, which are others'; [`program`]: how programs of the host's packages are run.
//! - [`pod_links`], [`deletion`]: pods' links; [`conntrack`]: what is remembered of their addresses.
//! - [`file`]: files that are there whole or not at all.
//! - [`inode`]: whether a file is still the one that was put there; [`sockets`]: where plugins and operators connect.

pub mod conntrack;
pub mod database;
pub mod deletion;
pub mod file;
pub mod inode;
pub mod kernel;
pub mod listener;
pub mod netlink;
pub mod nft;
pub mod pod_links;
pub mod program;
pub mod sockets;
pub mod sysctl;
pub mod xtables;
