//! The task that owns the state machine of `enid_ipamd`, and the ways to reach it.

pub mod carry;
pub mod handle;
pub mod readiness;
pub mod task;
