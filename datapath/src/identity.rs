//! Whose link it is, and what it is called.
//!
//! The host end's MAC is derived from the attachment (an alias cannot be set at creation), so DEL, CHECK
//! and every sweep can tell their own link from a successor's of the same name.

use std::{fmt, str::FromStr};

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// Linux refuses names of more than 15 bytes (IFNAMSIZ is 16 with the closing NUL).
pub const IFNAME_MAX: usize = 15;

/// What interfaces on further network cards are called, before their number.
const CARD_PREFIX: &str = "mNicIf";
/// Network cards beside the first that any instance type has: p5.48xlarge has 32 in all (DescribeInstanceTypes).
pub const FURTHER_CARDS_MAX: u32 = 31;

/// A 48-bit Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Whether it looks like one that is derived from an attachment; of others one in 64 does, too.
    pub(crate) fn may_be_derived(self) -> bool {
        self.0[0] == HOST
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("{text:?} is not a MAC; six bytes like 02:00:5e:10:00:01 are");
        let bytes: Vec<u8> = text
            .split(':')
            .map(|part| {
                let hex = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
                hex.then(|| u8::from_str_radix(part, 16).ok()).flatten()
            })
            .collect::<Option<_>>()
            .ok_or_else(wrong)?;
        bytes.try_into().map(Mac).map_err(|_| wrong())
    }
}

impl TryFrom<&[u8]> for Mac {
    type Error = std::array::TryFromSliceError;

    fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
        bytes.try_into().map(Mac)
    }
}

/// First byte of a host end's MAC: locally administered, unicast.
const HOST: u8 = 0x0a;

/// MAC of the host end of an attachment: 0x0a, then 40 bits of SHA-256 over network, container id and interface name.
pub fn host_mac(network: &str, container: &str, ifname: &str) -> Mac {
    derived(HOST, network, container, ifname)
}

/// MAC of the pod's end: the same 40 bits behind 0x0e.
pub fn pod_mac(network: &str, container: &str, ifname: &str) -> Mac {
    derived(0x0e, network, container, ifname)
}

fn derived(first: u8, network: &str, container: &str, ifname: &str) -> Mac {
    // NUL can be in none of the three, so no two attachments share a text.
    let digest = Sha256::digest(format!("{network}\0{container}\0{ifname}"));
    let mut mac = [first, 0, 0, 0, 0, 0];
    mac[1..].copy_from_slice(&digest[..5]);
    Mac(mac)
}

/// Name of the host end for a pod's interface number `index`, as Calico and Amazon's network policy
/// agent compute it: prefix + 11 hex digits of SHA-1("namespace.pod"), with ".i" appended from the second
/// interface on.
pub fn ifname_for_pod(prefix: &str, namespace: &str, pod: &str, index: u32) -> String {
    match index {
        0 => hashed(prefix, &format!("{namespace}.{pod}")),
        i => hashed(prefix, &format!("{namespace}.{pod}.{i}")),
    }
}

/// Name of the host end where the runtime gives no Kubernetes arguments.
pub fn ifname_for_attachment(prefix: &str, network: &str, container: &str, ifname: &str) -> String {
    hashed(prefix, &format!("{network}/{container}/{ifname}"))
}

/// The interface whose pod may ask for one on every network card, and takes all of the others along.
pub const FIRST: &str = "eth0";

/// Name of a pod's interface on a further network card, counted from 1; the peer's.
pub fn ifname_on_card(number: u32) -> String {
    format!("{CARD_PREFIX}{number}")
}

/// Whether an interface goes with its container's first one.
pub fn is_on_card(ifname: &str) -> bool {
    ifname.strip_prefix(CARD_PREFIX).is_some_and(|number| number.parse::<u32>().is_ok())
}

/// Name for a link that stands in the way of another attachment's: prefix "old", digits of its own MAC.
pub fn ifname_aside(mac: Mac) -> String {
    hashed("old", &mac.to_string())
}

fn hashed(prefix: &str, text: &str) -> String {
    let hex: String = Sha1::digest(text).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("{prefix}{}", &hex[..11])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_others_compute() {
        // printf default.web-0 | sha1sum
        assert_eq!(ifname_for_pod("eni", "default", "web-0", 0), "eni0d7763386da");
        assert_ne!(ifname_for_pod("eni", "default", "web-0", 1), ifname_for_pod("eni", "default", "web-0", 0));
        assert!(ifname_for_attachment("veth", "enid", "c", "eth0").len() <= IFNAME_MAX);
        assert!(ifname_aside(Mac([1; 6])).len() <= IFNAME_MAX);
    }

    #[test]
    fn macs_tell_attachments_apart() {
        let mac = host_mac("enid", "c1", "eth0");
        assert_eq!(mac, host_mac("enid", "c1", "eth0"));
        assert_ne!(mac, host_mac("enid", "c1", "eth1"));
        assert_ne!(mac, host_mac("enid", "c1e", "th0"));
        assert_eq!(mac.0[0], 0x0a);
        assert_eq!(pod_mac("enid", "c1", "eth0").0[1..], mac.0[1..]);
    }

    #[test]
    fn a_mac_reads_back_and_bad_ones_are_named() {
        assert_eq!("0a:01:02:ff:00:10".parse::<Mac>().unwrap().to_string(), "0a:01:02:ff:00:10");
        for bad in ["", "0a:01", "0a:01:02:03:04:05:06", "02:00:00:3902x:1:2", "+a:01:02:03:04:05", "0a-01-02-03-04-05"]
        {
            assert!(bad.parse::<Mac>().unwrap_err().contains(&format!("{bad:?}")), "{bad}");
        }
    }
}
