//! A message of cni.sock as a packet, and back.

use prost::Message;

use crate::v1::{FromDaemon, FromPlugin, from_daemon, from_plugin};

/// The protocol's version, in every packet.
pub const VERSION: u32 = 1;

/// Longest packet, bytes. With its default buffers the kernel refuses packets above some 212,000 bytes
/// (net.core.wmem_default).
pub const PACKET_MAX: usize = 128 * 1024;

/// A longer packet may not fit a host's default buffer: its sender asks for [`SEND_BUFFER`] first.
pub const SMALL: usize = 4 * 1024;

/// Send buffer for long packets, bytes: the kernel counts its own overhead in it.
pub const SEND_BUFFER: usize = 2 * PACKET_MAX;

/// Why a packet is no message.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// Longer than its receiver has room for, in bytes, so it was cut when it was received.
    #[error("a packet of {length} bytes, and {room} are allowed here")]
    Cut {
        /// What it has.
        length: usize,
        /// What it may have.
        room: usize,
    },
    /// Not in protobuf's wire format, or not of these types.
    #[error("a packet that cannot be decoded")]
    Undecodable(#[source] prost::DecodeError),
    /// Of another version of the protocol; 0 where it says none.
    #[error("a packet of version {0} of the protocol, and {VERSION} is known")]
    Version(u32),
    /// Of a kind that only a later version knows, or of none.
    #[error("a packet of a kind that is not known")]
    Kind,
}

/// What the plugin says, as a packet. It may be longer than [`PACKET_MAX`]: the sender has to look.
pub fn from_plugin(kind: from_plugin::Kind) -> Vec<u8> {
    FromPlugin { version: VERSION, kind: Some(kind) }.encode_to_vec()
}

/// What the daemon says, as a packet. It may be longer than [`PACKET_MAX`]: the sender has to look.
pub fn from_daemon(kind: from_daemon::Kind) -> Vec<u8> {
    FromDaemon { version: VERSION, kind: Some(kind) }.encode_to_vec()
}

/// What a received packet of the plugin says. `length` is what the kernel told of it (recv(2), MSG_TRUNC): more than
/// the buffer holds if the packet was cut.
pub fn read_plugin(buffer: &[u8], length: usize) -> Result<from_plugin::Kind, Malformed> {
    let message = FromPlugin::decode(whole(buffer, length)?).map_err(Malformed::Undecodable)?;
    known(message.version, message.kind)
}

/// What a received packet of the daemon says; see [`read_plugin`].
pub fn read_daemon(buffer: &[u8], length: usize) -> Result<from_daemon::Kind, Malformed> {
    let message = FromDaemon::decode(whole(buffer, length)?).map_err(Malformed::Undecodable)?;
    known(message.version, message.kind)
}

fn whole(buffer: &[u8], length: usize) -> Result<&[u8], Malformed> {
    let room = buffer.len().min(PACKET_MAX);
    buffer.get(..length).filter(|_| length <= room).ok_or(Malformed::Cut { length, room })
}

fn known<K>(version: u32, kind: Option<K>) -> Result<K, Malformed> {
    if version != VERSION {
        return Err(Malformed::Version(version));
    }
    kind.ok_or(Malformed::Kind)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use super::*;
    use crate::v1::{StatusRequest, Verdict};

    #[test]
    fn a_packet_is_read_as_it_was_said_and_is_never_empty() {
        let packet = from_plugin(from_plugin::Kind::Status(StatusRequest {}));
        assert!(!packet.is_empty());
        assert_eq!(read_plugin(&packet, packet.len()).unwrap(), from_plugin::Kind::Status(StatusRequest {}));
        let packet = from_daemon(from_daemon::Kind::Verdict(Verdict { mine: false }));
        assert_eq!(read_daemon(&packet, packet.len()).unwrap(), from_daemon::Kind::Verdict(Verdict { mine: false }));
    }

    #[test]
    fn what_is_no_packet_is_refused() {
        let good = from_plugin(from_plugin::Kind::Status(StatusRequest {}));
        let refused = |packet: &[u8], length: usize| read_plugin(packet, length).unwrap_err();
        assert!(matches!(refused(&good, good.len() + 1), Malformed::Cut { .. }), "longer than the buffer");
        let long = vec![0; PACKET_MAX + 1];
        assert!(matches!(refused(&long, long.len()), Malformed::Cut { .. }), "longer than is allowed");
        assert!(matches!(refused(&[], 0), Malformed::Version(0)));
        assert!(matches!(refused(&[0x08, 2, 0x32, 0], 4), Malformed::Version(2)));
        assert!(matches!(refused(&[0x08, 1], 2), Malformed::Kind), "an empty envelope");
        assert!(matches!(refused(&[0x08, 1, 0x7a, 0], 4), Malformed::Kind), "field 15");
        assert!(matches!(refused(&[0xff; 40], 40), Malformed::Undecodable(_)));
    }
}
