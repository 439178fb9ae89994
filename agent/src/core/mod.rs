//! The task that owns the state machine of `enid_ipamd`, and the ways to reach it.

pub mod carry;
pub mod handle;
mod journal;
pub mod published;
pub mod readiness;
mod recorded;
mod requests;
pub mod restrictions;
pub mod task;
