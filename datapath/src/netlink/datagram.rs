//! The messages of a datagram, and a socket that exchanges datagrams with the kernel alone.

use std::io;

use netlink_packet_core::{DecodeError, NetlinkBuffer};
use netlink_sys::{Socket, SocketAddr};

/// A socket that speaks to the kernel alone, in the calling thread's network namespace.
pub(crate) fn connected(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// The messages of one datagram, one after the other; the last may be one that is cut.
pub(crate) fn frames(datagram: &[u8]) -> impl Iterator<Item = io::Result<NetlinkBuffer<&[u8]>>> {
    let mut left = datagram;
    std::iter::from_fn(move || {
        if left.is_empty() {
            return None;
        }
        let message = NetlinkBuffer::new_checked(left).map_err(undecodable);
        let length =
            message.as_ref().map_or(left.len(), |message| usize::try_from(message.length()).unwrap_or(usize::MAX));
        left = left.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

pub(crate) fn undecodable(error: DecodeError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}
