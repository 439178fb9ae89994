//! Whether this host forwards packets between pods.
//!
//! A base chain of somebody else that drops at the forward hook cannot be overruled from a table of ours, since a drop
//! is final (nft(8), verdict statement). Which chains could do it is read from nftables
//! ([`crate::netfilter::chains`]); whether one does is found by sending a packet between two namespaces that are wired as
//! pods are.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr as IpSocketAddr, UdpSocket},
    path::Path,
    thread,
    time::Duration,
};

use ipnet::{Ipv4Net, Ipv6Net};
use nix::sched::{CloneFlags, unshare};

use crate::{
    identity, marks,
    netlink::{error::Error, socket::Netlink},
    netns::{self, Netns},
    pod::{self, PodLink, WireError},
};

/// Both namespaces are ours, so nobody else is there; a number below 1024 would need a capability (ip(7)).
const PORT: u16 = 61009;
/// How often a packet is sent, and how long each is waited for.
const TRIES: u32 = 3;
const TIMEOUT: Duration = Duration::from_millis(300);

/// Two addresses of this subnet that EC2 gives to nobody: of the first four and the last, which it reserves, those that
/// no resolver answers on (Amazon VPC User Guide, subnet CIDR blocks: the VPC's own is at its base plus two).
pub fn reserved(subnet: Ipv4Net, vpc: &[Ipv4Net]) -> Option<[IpAddr; 2]> {
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
pub fn reserved_v6(block: Ipv6Net) -> [IpAddr; 2] {
    [block.network().into(), block.broadcast().into()]
}

/// Sends a packet from one address to the other by way of this host, between two namespaces that are wired as pods
/// are and go again; whether it arrived. `sys_net` as in [`netns::allow_ipv6`].
pub fn forwards([from, to]: [IpAddr; 2], sys_net: &Path) -> Result<bool, WireError> {
    let (near, far) = (Space::new("a", from, sys_net)?, Space::new("b", to, sys_net)?);
    let failed = |source: io::Error| Error::new("send a packet between two namespaces", source);
    let receiver = far.socket(to)?;
    receiver.set_read_timeout(Some(TIMEOUT)).map_err(failed)?;
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
    fn new(name: &str, address: IpAddr, sys_net: &Path) -> Result<Self, WireError> {
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
            netns.allow_ipv6_and_back(sys_net, &link.pod_ifname, &own)?;
            netns::allow_ipv6(sys_net, &link.host_ifname)?;
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
        let of = |subnet: &str| reserved(subnet.parse().unwrap(), &vpc).unwrap().map(|address| address.to_string());
        assert_eq!(of("10.0.1.10/24"), ["10.0.1.3", "10.0.1.2"]);
        assert_eq!(of("10.0.0.10/24"), ["10.0.0.3", "10.0.0.0"]);
    }
}
