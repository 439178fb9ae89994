//! Whether this host forwards packets between pods.
//!
//! A base chain of somebody else that drops at the forward hook cannot be overruled from a table of ours, since a drop
//! is final (nft(8), verdict statement). Which chains could do it is read from nftables; whether one does is found by
//! sending a packet between two namespaces that are wired as pods are.
//!
//! Numbers: linux/netfilter.h and linux/netfilter/nf_tables.h.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr as IpSocketAddr, UdpSocket},
    path::Path,
    thread,
    time::Duration,
};

use ipnet::{Ipv4Net, Ipv6Net};
use netlink_packet_core::NlasIterator;
use nix::sched::{CloneFlags, unshare};

use crate::{
    family::Family,
    identity, marks,
    netfilter::{NFTABLES, Netfilter},
    netlink::{DUMPS, Error, Netlink},
    netns::{self, Netns},
    pod::{self, PodLink, WireError},
};

const NFT_GETCHAIN: u16 = 4;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_HOOK_HOOKNUM: u16 = 1;
/// NF_INET_FORWARD.
const FORWARD: u32 = 2;
/// NF_DROP.
const DROP: u32 = 0;
/// The table of a firewall that accepts by policy and rejects by its last rule (firewalld's nftables backend). Of all
/// others only the policy is looked at, since their rules may be many.
const FIREWALLD: &str = "firewalld";
/// NFPROTO_INET, NFPROTO_IPV4 and NFPROTO_IPV6.
const FAMILIES: [(u8, &str); 3] = [(1, "inet"), (2, "ip"), (10, "ip6")];

/// Discard's number (RFC 863): nobody waits for anything there.
const PORT: u16 = 9;
/// How often a packet is sent, and how long each is waited for.
const TRIES: u32 = 3;
const PATIENCE: Duration = Duration::from_millis(300);

/// Chains that may drop packets of this family which they do not know at the forward hook, as `family table chain`. The
/// tables of the older iptables do not tell their policy: they are named if there is a filter among them.
pub fn suspects(of: Family) -> Result<Vec<String>, Error> {
    let mut suspects = list_chains(of)?;
    let (names, program) = match of {
        Family::V4 => ("/proc/net/ip_tables_names", "iptables"),
        Family::V6 => ("/proc/net/ip6_tables_names", "ip6tables"),
    };
    let legacy = fs::read_to_string(names).unwrap_or_default();
    if legacy.lines().any(|name| name == "filter") {
        suspects.push(format!("the older {program}' filter FORWARD"));
    }
    Ok(suspects)
}

fn suspect(of: Family, family: u8, attributes: &[u8]) -> Option<String> {
    let (_, family) = FAMILIES.into_iter().find(|(number, _)| *number == family)?;
    if family != "inet" && family != of.word() {
        return None;
    }
    let (mut table, mut name, mut policy, mut hook) = (None, None, None, None);
    for attribute in NlasIterator::new(attributes).flatten() {
        let value = attribute.value();
        match attribute.kind() {
            NFTA_CHAIN_TABLE => table = text(value),
            NFTA_CHAIN_NAME => name = text(value),
            NFTA_CHAIN_POLICY => policy = number(value),
            NFTA_CHAIN_HOOK => {
                let mut parts = NlasIterator::new(value).flatten();
                hook = parts.find(|part| part.kind() == NFTA_HOOK_HOOKNUM).and_then(|part| number(part.value()));
            }
            _ => {}
        }
    }
    let table = table.unwrap_or_default();
    (hook == Some(FORWARD) && (policy == Some(DROP) || table == FIREWALLD))
        .then(|| format!("{family} {table} {}", name.unwrap_or_default()))
}

fn text(value: &[u8]) -> Option<String> {
    value.split(|byte| *byte == 0).next().map(|text| String::from_utf8_lossy(text).into_owned())
}

fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

/// The suspects among the chains of nftables. Chains alone, never rules: there may be many of those.
fn list_chains(of: Family) -> Result<Vec<String>, Error> {
    let what = "list the chains of nftables";
    let mut netfilter = Netfilter::open()?;
    for _ in 0..DUMPS {
        let mut suspects = Vec::new();
        let see = |family: u8, attributes: &[u8]| suspects.extend(suspect(of, family, attributes));
        if netfilter.list(what, NFTABLES | NFT_GETCHAIN, 0, see)? {
            return Ok(suspects);
        }
    }
    Err(Error::new(what, io::Error::other(format!("they changed during each of {DUMPS} listings"))))
}

/// Two addresses of this subnet that EC2 gives to nobody: of the first four and the last, which it reserves, those that
/// no resolver answers on (Amazon VPC User Guide, subnet CIDR blocks: the VPC's own is at its base plus two).
pub fn nobodys(subnet: Ipv4Net, vpc: &[Ipv4Net]) -> Option<[IpAddr; 2]> {
    let base = u32::from(subnet.network());
    let at = |offset: u32| Ipv4Addr::from(base + offset);
    let resolves = |address: Ipv4Addr| vpc.iter().any(|net| u32::from(net.network()) + 2 == u32::from(address));
    if subnet.prefix_len() > 28 {
        return None; // no subnet of a VPC is smaller
    }
    let second = if resolves(at(2)) { at(0) } else { at(2) };
    Some([at(3).into(), second.into()])
}

/// Two addresses of a block of ours that no pod is given: the first and the last of so many.
pub fn nobodys_v6(block: Ipv6Net) -> [IpAddr; 2] {
    [block.network().into(), block.broadcast().into()]
}

/// Sends a packet from one address to the other by way of this host, between two namespaces that are wired as pods
/// are and go again; whether it arrived.
pub fn forwards([from, to]: [IpAddr; 2]) -> Result<bool, WireError> {
    let (near, far) = (Space::new("a", from)?, Space::new("b", to)?);
    let failed = |source: io::Error| Error::new("send a packet between two namespaces", source);
    let receiver = far.socket(to)?;
    receiver.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    let sender = near.socket(from)?;
    let arrives = (0..TRIES).any(|_| {
        // Whether it arrives is asked at the other end.
        let _ = sender.send_to(b"enid", IpSocketAddr::new(to, PORT));
        receiver.recv(&mut [0; 8]).is_ok()
    });
    // The kernel takes its time with links that go, some 20 ms for each, and pods wait for the answer.
    // Without a thread to be had they go at once.
    let _ = thread::Builder::new().spawn(move || drop((near, far)));
    Ok(arrives)
}

/// A namespace of ours, wired as a pod's is. It goes with its last file, and its link with it.
struct Space {
    netns: Netns,
    link: PodLink,
}

impl Space {
    fn new(name: &str, address: IpAddr) -> Result<Self, WireError> {
        let failed = |source: io::Error| Error::new("make a namespace", source);
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Netns::open(Path::new("/proc/thread-self/ns/net"))
        };
        let netns = netns::aside(make).and_then(|made| made).map_err(failed)?;
        let link = PodLink {
            host_ifname: format!("probe-enid-{name}"),
            host_mac: identity::host_mac("enid-probe", name, "eth0"),
            pod_ifname: "eth0".to_owned(),
            pod_mac: identity::pod_mac("enid-probe", name, "eth0"),
            address,
            second: None,
            local: None,
            mtu: 1500,
            group: marks::GROUP_PROBE,
        };
        let (mut outside, mut inside) = (Netlink::open()?, netns.netlink()?);
        let own = Netns::own().map_err(failed)?;
        let pair = pod::create(&link, &mut outside, &own, &mut inside)?;
        if address.is_ipv6() {
            // A hardened host gives new links no IPv6.
            netns.allow_ipv6_and_back(&link.pod_ifname, &own)?;
            netns::allow_ipv6(&link.host_ifname)?;
        }
        pod::configure_inside(&link, &pair, &mut outside, &mut inside)?;
        pod::configure_outside(&link, &pair, &mut outside)?;
        Ok(Space { netns, link })
    }

    fn socket(&self, address: IpAddr) -> Result<UdpSocket, Error> {
        self.netns.within(|| {
            UdpSocket::bind((address, PORT)).map_err(|source| Error::new("open a socket in a namespace", source))
        })
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // At once, and not when the kernel comes to it.
        if let Ok(mut host) = Netlink::open() {
            pod::undo(&self.link, &mut host);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vpcs_resolver_is_left_alone() {
        let vpc = ["10.0.0.0/16".parse().unwrap()];
        let of = |subnet: &str| nobodys(subnet.parse().unwrap(), &vpc).unwrap().map(|address| address.to_string());
        assert_eq!(of("10.0.1.10/24"), ["10.0.1.3", "10.0.1.2"]);
        assert_eq!(of("10.0.0.10/24"), ["10.0.0.3", "10.0.0.0"]);
    }
}
