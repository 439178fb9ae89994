//! rtnetlink as pods and ENIs need it: messages, requests made of them, and the plugin's socket.
//!
//! - [`message`]: addresses, neighbours, routes and rules; [`link`]: links.
//! - [`listing`]: what the kernel lists.
//! - [`request`]: one change, and which answers of the kernel mean that it is made.
//! - [`socket`]: a blocking socket, for a process that asks a few things and ends. The daemon's side of netlink is
//!   asynchronous and lives with the daemon.
//! - [`answer`]: what of the kernel's answers the socket reads.
//! - [`datagram`]: the messages of a datagram, for both families of netlink.

pub mod answer;
pub(crate) mod datagram;
pub mod error;
pub mod link;
pub mod listing;
pub mod message;
pub mod request;
pub mod socket;
