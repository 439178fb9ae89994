//! The generation of nftables' ruleset: a number that every transaction of the namespace raises. As long as it is the
//! same, nobody has changed any table, and none needs to be listed.
//!
//! Numbers: linux/netfilter/nf_tables.h.

use std::io;

use netlink_packet_core::NlasIterator;

use crate::{
    netfilter::socket::{NFTABLES, Netfilter},
    netlink::error::Error,
};

const NFT_GETGEN: u16 = 16;
const NFTA_GEN_ID: u16 = 1;

/// The generation now, of the calling thread's namespace. It costs two system calls beside the socket, where a listing by
/// `nft` costs a process.
pub fn generation() -> Result<u32, Error> {
    let what = "ask for the generation of nftables";
    let mut found = None;
    Netfilter::open()?.get(what, NFTABLES | NFT_GETGEN, |attributes| {
        let id = NlasIterator::new(attributes).flatten().find(|attribute| attribute.kind() == NFTA_GEN_ID);
        found = id.and_then(|id| id.value().try_into().ok()).map(u32::from_be_bytes);
    })?;
    found.ok_or_else(|| Error::new(what, io::Error::new(io::ErrorKind::InvalidData, "the answer holds none")))
}
