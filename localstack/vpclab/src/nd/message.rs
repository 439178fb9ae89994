//! Neighbour discovery's two messages as Ethernet frames (RFC 4861, 4.3 and 4.4): one read, one written.

use std::net::Ipv6Addr;

/// A MAC.
pub type Mac = [u8; 6];

const ETHERNET: usize = 14;
const IPV6: usize = 40;
/// Of a solicitation and of an advertisement, without options.
const MESSAGE: usize = 24;
const ETHERTYPE: [u8; 2] = [0x86, 0xdd];
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// A packet with less has come through a router.
const HOP_LIMIT: u8 = 255;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];
/// The option that carries the MAC of what was asked for; one times eight bytes long.
const TARGET_MAC: [u8; 2] = [2, 1];
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

/// Who has this address?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Solicitation {
    /// Who asks: its MAC.
    pub from: Mac,
    /// Its address; unspecified while it detects duplicates of the target.
    pub source: Ipv6Addr,
    /// What it asks for.
    pub target: Ipv6Addr,
}

impl Solicitation {
    /// Reads a frame; `None` if it is anything but a proper solicitation.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let (ethernet, packet) = frame.split_at_checked(ETHERNET)?;
        let (header, rest) = packet.split_at_checked(IPV6)?;
        if ethernet[12..] != ETHERTYPE || header[0] >> 4 != 6 || header[6] != ICMPV6 || header[7] != HOP_LIMIT {
            return None;
        }
        let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
        // What is behind the packet pads the frame.
        let message = rest.get(..length).filter(|message| message.len() >= MESSAGE)?;
        let (source, destination) = (address(&header[8..24])?, address(&header[24..40])?);
        if message[..2] != [SOLICITATION, 0] || checksum(source, destination, message) != 0 {
            return None;
        }
        let target = address(&message[8..MESSAGE])?;
        let from = ethernet[6..12].try_into().ok()?;
        (!target.is_multicast() && !source.is_multicast()).then_some(Solicitation { from, source, target })
    }

    /// The frame that answers it: the target is at this MAC.
    pub fn advertise(&self, mac: Mac, router: bool) -> Vec<u8> {
        let everybody = self.source.is_unspecified();
        let (to, destination) = if everybody { (ALL_NODES_MAC, ALL_NODES) } else { (self.from, self.source) };
        let flags = OVERRIDE | if everybody { 0 } else { SOLICITED } | if router { ROUTER } else { 0 };
        let mut message = vec![ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0];
        message.extend(self.target.octets());
        message.extend(TARGET_MAC);
        message.extend(mac);
        let sum = checksum(self.target, destination, &message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let length = u16::try_from(message.len()).unwrap_or_default().to_be_bytes();
        let header = [0x60, 0, 0, 0, length[0], length[1], ICMPV6, HOP_LIMIT];
        [&to[..], &mac, &ETHERTYPE, &header, &self.target.octets(), &destination.octets(), &message].concat()
    }
}

fn address(bytes: &[u8]) -> Option<Ipv6Addr> {
    bytes.try_into().ok().map(|bytes: [u8; 16]| Ipv6Addr::from(bytes))
}

/// ICMPv6's checksum (RFC 4443, 2.3); 0 for a message that carries the right one.
fn checksum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
    let bytes = [&source.octets()[..], &destination.octets(), &length, &[0, 0, 0, ICMPV6], message].concat();
    let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while let Ok(carry @ 1..) = u16::try_from(sum >> 16) {
        sum = (sum & 0xffff) + u32::from(carry);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Linux sent for a ping of 2001:db8:aa00:1::5 out of 2001:db8:aa00:1::9.
    const ASKED: &str = "3333ff000005 020000000009 86dd 60000000 0020 3a ff 20010db8aa0000010000000000000009 \
        ff0200000000000000000001ff000005 8700c80d 00000000 20010db8aa0000010000000000000005 0101020000000009";

    fn asked() -> Vec<u8> {
        let digits: String = ASKED.split_whitespace().collect();
        (0..digits.len() / 2).map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn a_solicitation_is_read_and_answered() {
        let read = Solicitation::parse(&asked()).unwrap();
        assert_eq!(read.from, [2, 0, 0, 0, 0, 9]);
        assert_eq!((read.source, read.target), ("2001:db8:aa00:1::9".parse().unwrap(), five()));
        let frame = read.advertise([6, 0, 0, 0, 0, 9], false);
        assert_eq!((&frame[..6], &frame[6..12]), (&read.from[..], &[6, 0, 0, 0, 0, 9][..]));
        assert_eq!((frame.len(), frame[58], frame[78..] == [2, 1, 6, 0, 0, 0, 0, 9]), (86, SOLICITED | OVERRIDE, true));
        assert_eq!((address(&frame[22..38]), address(&frame[38..54])), (Some(five()), Some(read.source)));
        assert_eq!(checksum(five(), read.source, &frame[54..]), 0);
    }

    #[test]
    fn a_solicitation_without_a_source_is_answered_to_all_nodes() {
        let probe = Solicitation { source: Ipv6Addr::UNSPECIFIED, ..Solicitation::parse(&asked()).unwrap() };
        let frame = probe.advertise([6, 0, 0, 0, 0, 9], true);
        assert_eq!((&frame[..6], address(&frame[38..54])), (&ALL_NODES_MAC[..], Some(ALL_NODES)));
        assert_eq!(frame[58], OVERRIDE | ROUTER);
    }

    #[test]
    fn anything_else_is_ignored() {
        // No part of it, and none of its bits but the sender's MAC, can be missing or different.
        let frame = asked();
        for length in 0..frame.len() {
            assert_eq!(Solicitation::parse(&frame[..length]), None, "{length}");
        }
        for at in (12..frame.len()).filter(|at| !FREE.contains(at)) {
            let mut other = frame.clone();
            other[at] ^= 0x40;
            assert_eq!(Solicitation::parse(&other), None, "{at}");
        }
        let padded = [&frame[..], &[0; 20]].concat();
        assert_eq!(Solicitation::parse(&padded), Solicitation::parse(&frame));
    }

    /// Traffic class and flow label may be anything.
    const FREE: [usize; 3] = [15, 16, 17];

    fn five() -> Ipv6Addr {
        "2001:db8:aa00:1::5".parse().unwrap()
    }
}
