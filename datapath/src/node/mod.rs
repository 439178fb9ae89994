//! What belongs to the node and its ENIs: link state, addresses, route tables, rules.
//!
//! [`changes::changes`] compares what is wanted with what a listing found and returns only what differs, so a restart
//! with nothing changed writes nothing, and repair is the same act as set-up.
//!
//! - [`eni`]: an ENI as it should be; [`found`]: what the kernel has.
//! - [`rules`]: the routing policy rules, a handful for all ENIs.
//! - [`conflict`]: what takes precedence over ours and is left alone; [`way_out`]: what the host needs for itself.
//! - [`managers`]: who else configures the ENIs.
//! - [`uninstall`]: all of it taken away.

pub mod changes;
pub mod conflict;
pub mod eni;
pub mod found;
pub mod managers;
pub mod rules;
pub mod uninstall;
pub mod way_out;
