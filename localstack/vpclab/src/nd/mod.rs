//! The VPC answers neighbour solicitations, for every address that EC2 has assigned, with its own MAC.
//!
//! A node takes its subnet's /64 for on-link and asks who has an address of it; no other node receives that, as
//! in a VPC. Linux' `proxy_ndp` answers for single addresses, and a /80 has 2⁴⁸, so this is a packet socket.
//! A socket filter keeps it to solicitations, so ordinary traffic does not wake it up. Whatever is not a
//! proper solicitation (RFC 4861, 7.1.1) is ignored.

mod message;

use std::{
    collections::BTreeMap,
    net::Ipv6Addr,
    os::fd::{AsRawFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::Context;
use ipnet::Ipv6Net;
use nix::sys::socket::{LinkAddr, MsgFlags, recvfrom, sendto};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use crate::{fabric::SUBNETS_V6, nsenter, wait};
use message::{Mac, Solicitation};

/// A port, by the number of its link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveryPort {
    /// The port's own MAC.
    pub mac: Mac,
    /// What its ENI has: nobody else answers for that.
    pub own: Vec<Ipv6Net>,
}

/// What is answered, and to whom.
#[derive(Debug, Default)]
struct Answers {
    ports: BTreeMap<usize, DiscoveryPort>,
    assigned: Vec<Ipv6Net>,
}

/// The responder, from outside. Clones are the same one.
#[derive(Clone, Default)]
pub struct Responder(Arc<Mutex<Answers>>);

impl Responder {
    /// Starts it in the VPC's namespace; it ends with the process.
    pub fn start(vpc_pid: u32) -> anyhow::Result<Self> {
        let socket = nsenter::within(vpc_pid, open)??;
        let responder = Responder::default();
        let answering = responder.clone();
        thread::spawn(move || answering.answer(&socket));
        Ok(responder)
    }

    /// Sets the ports and all that EC2 has assigned.
    pub fn update(&self, ports: BTreeMap<usize, DiscoveryPort>, assigned: Vec<Ipv6Net>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Answers { ports, assigned };
    }

    fn answer(&self, socket: &OwnedFd) {
        let mut frame = [0; 256];
        loop {
            // The answer leaves by the link of the solicitation: the destination of the one is the origin of the other.
            let Ok((length, Some(from))) = recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut frame) else {
                wait::pause(Duration::from_millis(20));
                continue;
            };
            let asked = frame.get(..length).and_then(Solicitation::parse);
            let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let answer = asked.and_then(|asked| known.answer(from.ifindex(), &asked));
            drop(known);
            if let Some(answer) = answer {
                // A lost one is asked for again.
                let _ = sendto(socket.as_raw_fd(), &answer, &from, MsgFlags::MSG_DONTWAIT);
            }
        }
    }
}

impl Answers {
    /// The answer to what came in on a link, if there is one.
    fn answer(&self, link: usize, asked: &Solicitation) -> Option<Vec<u8>> {
        let port = self.ports.get(&link)?;
        let within = |nets: &[Ipv6Net], address: Ipv6Addr| nets.iter().any(|net| net.contains(&address));
        let free = asked.source.is_unspecified() || asked.source.is_unicast_link_local();
        if !free && !within(&port.own, asked.source) {
            return None;
        }
        let gateway = SUBNETS_V6.iter().any(|(_, gateway)| gateway.parse() == Ok(asked.target));
        let known = within(&self.assigned, asked.target) && !within(&port.own, asked.target);
        (gateway || known).then(|| asked.advertise(port.mac, gateway))
    }
}

fn open() -> anyhow::Result<OwnedFd> {
    let protocol = Protocol::from(i32::from(0x86dd_u16.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol)).context("cannot open a packet socket")?;
    socket.attach_filter(&SOLICITATIONS).context("cannot filter a packet socket")?;
    Ok(socket.into())
}

/// Only neighbour solicitations: next header 58, type 135. Codes of classic BPF, linux/bpf_common.h.
const SOLICITATIONS: [SockFilter; 6] = [
    SockFilter::new(LOAD_BYTE, 0, 0, 20),
    SockFilter::new(JUMP_IF_EQUAL, 0, 3, 58),
    SockFilter::new(LOAD_BYTE, 0, 0, 54),
    SockFilter::new(JUMP_IF_EQUAL, 0, 1, 135),
    SockFilter::new(RETURN, 0, 0, 256),
    SockFilter::new(RETURN, 0, 0, 0),
];
const LOAD_BYTE: u16 = 0x30;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

#[cfg(test)]
mod tests {
    use super::*;

    /// Link 7 has one address and a prefix, another ENI has a prefix.
    fn known() -> Answers {
        let nets = |nets: &[&str]| nets.iter().map(|net| net.parse().unwrap()).collect::<Vec<Ipv6Net>>();
        let own = nets(&["2001:db8:aa00:1::9/128", "2001:db8:aa00:1:2::/80"]);
        let assigned = [own.clone(), nets(&["2001:db8:aa00:1:3::/80"])].concat();
        Answers { ports: BTreeMap::from([(7, DiscoveryPort { mac: [6, 0, 0, 0, 0, 9], own })]), assigned }
    }

    #[test]
    fn what_another_eni_has_is_answered_and_gateways_are() {
        for (source, target, link, answered) in [
            ("2001:db8:aa00:1::9", "2001:db8:aa00:1:3::77", 7, true),
            ("2001:db8:aa00:1:2::5", "2001:db8:aa00:1:3::77", 7, true),
            ("fe80::9", "2001:db8:aa00:1::1", 7, true),
            ("::", "2001:db8:aa00:1:3::77", 7, true),
            ("::", "2001:db8:aa00:1::9", 7, false),
            ("2001:db8:aa00:1::9", "2001:db8:aa00:1:2::77", 7, false),
            ("2001:db8:aa00:1::9", "2001:db8:aa00:1:4::77", 7, false),
            ("2001:db8:aa00:1::8", "2001:db8:aa00:1:3::77", 7, false),
            ("2001:db8:aa00:1::9", "2001:db8:aa00:1:3::77", 8, false),
        ] {
            let asked = Solicitation { from: [2; 6], source: source.parse().unwrap(), target: target.parse().unwrap() };
            assert_eq!(known().answer(link, &asked).is_some(), answered, "{source} {target} {link}");
        }
    }
}
