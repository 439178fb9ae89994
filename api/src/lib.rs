//! The contract between plugin, daemon and operator (`enid.v1`), and what is generated from it.
//!
//! The words are in `proto/enid/v1/*.proto`; nothing here decides anything.
//!
//! - [`packet`]: a message of cni.sock as a packet, and back.
//! - [`parts`]: a list that is too long for one packet.
//!
//! The feature `grpc` adds client and server of debug.sock. The plugin is built without it, and so without a runtime.

pub mod packet;
pub mod parts;

/// Version 1 of the contract.
#[allow(missing_docs, clippy::all, clippy::as_conversions, clippy::unwrap_used, reason = "generated code")]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/enid.v1.rs"));
}

/// The encoded descriptors of `enid.v1`, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/enid.v1.bin"));
