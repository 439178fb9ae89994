//! Who holds which address: leases and their index, addresses of orphaned links, cooldown, ADDs that wait.

mod cooldown;
mod queue;
mod table;
mod value;

pub(crate) use cooldown::Cooldown;
pub(crate) use queue::{Queue, Waiter};
pub(crate) use table::Leases;
pub use value::{Lease, Macs};
