//! The contract between plugin, daemon and operator (`enid.v1`), and its generated client and server.
//!
//! The words are in `proto/enid/v1/*.proto`; nothing here decides anything. Both sides speak through [`Cork`].

mod cork;

pub use cork::Cork;

/// Version 1 of the contract.
#[allow(missing_docs, clippy::all, clippy::as_conversions, clippy::unwrap_used, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("enid.v1");
}

/// The encoded descriptors of `enid.v1`, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/enid.v1.bin"));
