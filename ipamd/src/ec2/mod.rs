//! What EC2 is asked and what it has said: calls in flight and their pacing, creations and deletions of ENIs, audits, the
//! search for leaked ENIs.

mod audit;
mod call;
mod calls;
mod creation;
mod deletion;
mod leaked;
mod pace;

pub(crate) use audit::Audits;
pub use call::{
    AuditedEni, Call, CallError, Class, Creation, Ec2Answer, Fact, Intent, Order, Recorded, Scope, UnattachedEni,
};
pub(crate) use calls::{Calls, Flight};
pub(crate) use creation::{CreationStage, Creations};
pub(crate) use deletion::{DeletionStage, Deletions};
pub(crate) use leaked::{LeakSearch, PERIOD_MS as LEAK_PERIOD_MS};
pub(crate) use pace::Pace;
