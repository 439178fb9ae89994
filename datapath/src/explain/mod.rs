//! Which way a packet takes on this host, computed from what a listing found: `lookup` as the kernel asks its rules and tables,
//! `steering` as our nftables table marks and translates. It is of a connection's first packet: what follows goes as that did.

pub mod listed;
pub mod lookup;
pub mod steering;
