//! What the container runtime finds on disk: the network configuration list and the plugin's binary.

pub mod announce;
pub mod conflist;
pub mod install;
pub mod versions;
