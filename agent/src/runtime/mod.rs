//! What the container runtime finds on disk: the network configuration list and the plugins' binaries; and, looked at
//! with them, the daemon's other files on the host.

pub mod announce;
pub mod conflist;
pub mod files;
pub mod install;
pub mod versions;
