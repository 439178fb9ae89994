//! What the node has: ENIs, the blocks on them, slots, and what instance metadata and EC2 show of them.

mod block;
mod eni;
mod expected;
mod inventory;
mod slots;

pub(crate) use block::InUse;
pub use block::{Block, BlockState, own_of_eni};
pub use eni::{AddresslessEni, Eni, EniFacts, EniState, Sums};
pub(crate) use expected::{IMDS_LAG_MS, Met, STALE_MS, Unassigned};
pub(crate) use inventory::{Pool, Taken};
pub(crate) use slots::Slots;
