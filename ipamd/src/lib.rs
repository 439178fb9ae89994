//! The address management of Enid: which address a pod gets, when the pool grows and shrinks, what EC2 is asked.
//!
//! A state machine without I/O: [`Core::step`] takes the time and one [`Event`] and returns [`Effect`]s, which the
//! process carries out in order. It has no clock, no randomness of its own, no await and no logging; order never
//! depends on a hash map. So a test can drive it event by event, and a failure replays exactly.
//!
//! A pod's request passes through it once: [`Event::Ask`] reserves an address (or waits, and the pool grows for it),
//! [`Effect::Record`] makes the lease durable, [`Effect::Offer`] says what to wire, [`Event::Wired`] turns the lease
//! into a wired one, [`Event::Release`] ends it and starts the address's cooldown.
//!
//! The state has owners, each a folder: `lease` (who holds which address), `pool` (what the node has), `supply` (how
//! much it should have), `ec2` (what EC2 is asked and has said), `plan` (what to do next, and what is waited for: a
//! pure function of the others). `core` owns them and takes the steps.
//!
//! The collections are persistent ones: a copy of the whole state costs next to nothing, so a step is taken on the
//! state itself and put back as it was if it would break an invariant, and the plan is made on a copy that runs ahead.

mod cause;
mod core;
mod ec2;
mod event;
mod groups;
mod ids;
mod integrity;
mod invariant;
mod lease;
mod mutation;
mod node;
mod observations;
mod plan;
mod pool;
mod recording;
mod restrictions;
mod serial;
mod summary;
mod supply;
mod view;

pub use cause::{Cause, Refusal};
pub use core::Core;
pub use ec2::{
    AuditedEni, Call, CallError, Class, Creation, Ec2Answer, Fact, Intent, Order, Recorded, Scope, UnattachedEni,
};
pub use event::{Effect, Event, Ledger, Write};
pub use ids::{AttachmentKey, CallId, EniId, Millis, Place, PodRef, SubnetId, Ticket};
pub use invariant::Broken;
pub use lease::{Lease, Macs};
#[cfg(feature = "mutations")]
pub use mutation::Mutation;
pub use node::Node;
pub use plan::{Action, Awaited, Plan, Reason, Step, Wait};
pub use pool::{AddresslessEni, Block, BlockState, Eni, EniFacts, EniState, Sums, own_of_eni};
pub use recording::Recording;
pub use restrictions::Restrictions;
pub use summary::{SubnetSummary, Summary, Told};
pub use supply::{
    Counts, EniConfig, Home, Kind, LOCAL, LOCAL_V4, LOCAL_V6, Learned, Limits, Placement, Policy, Provisioning, Second,
    SubnetFacts, Target, is_local,
};
pub use view::{AddressState, AddressView, Capacity, InFlight, Pacing, View};
