//! NodeConfigs: settings for the nodes that a label selector names, so that one chart serves node groups that differ.
//!
//! `object`: the kind. `choose`: what they give to one node, and what is wrong with them. `status`: what an object is told of
//! that. `ask`: what they give at the start; `keep`: all of it, for as long as the daemon runs.

mod ask;
mod choose;
mod keep;
mod object;
mod status;

pub use ask::ask;
pub use keep::{InForce, Keeper, Started};
