//! Tasks that compare the host with what it should be, and report to the core: drift and its repair, the probe of the
//! forward hook, the listing of pods' links, the reading of instance metadata.

pub mod forward;
pub mod links;
pub mod metadata;
pub mod repair;
