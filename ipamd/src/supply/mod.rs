//! How many addresses the node should hold: the settings, the limits of the instance type, the targets, and what `auto`
//! learns from the node's own past.

mod demand;
mod history;
pub(crate) mod kind;
mod places;
mod policy;
mod subnet;
mod subnets;
mod target;

pub(crate) use demand::Demand;
pub use kind::{Kind, LOCAL, LOCAL_V4, LOCAL_V6, is_local};
pub(crate) use places::Placed;
pub use places::{EniConfig, Home, SubnetFacts};
pub(crate) use policy::per_eni;
pub use policy::{Limits, Placement, Policy, Provisioning, Second, Target};
pub use target::{Counts, Learned};
