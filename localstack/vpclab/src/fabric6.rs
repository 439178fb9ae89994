//! The VPC's network, its IPv6 half. Texts for `ip` and `nft` and the calls that apply them, as in [`fabric`].
//!
//! What differs from IPv4: the gateway of every node is the VPC router's link-local address; there is no NAT;
//! a /80 has too many addresses for a permanent neighbour each, so what EC2 assigned to an ENI is routed to it
//! by way of one next hop that does not exist but has the ENI's MAC; and what a node asks of its neighbours
//! is answered by [`nd`](crate::nd), since the kernel can only answer for single addresses.

use std::fmt::Write;

use anyhow::Context;
use ipnet::Ipv6Net;

use crate::{
    fabric::{self, SUBNETS_V6},
    nsenter,
    port::Port,
};

/// The VPC's IPv6 range.
pub const VPC_CIDR_V6: &str = "2001:db8:aa00::/56";
/// A server on the Internet.
pub const INTERNET_SERVER_V6: &str = "2001:db8:ffff::10";
/// A client in the peered network.
pub const PEER_CLIENT_V6: &str = "2001:db8:bbbb::10";
/// The VPC's router, on every port (Amazon VPC User Guide, "VPC subnet routers").
const ROUTER: &str = "fe80:ec2::1";
/// What every port has behind it: not an address of the node, only a name for its MAC.
const NEXT_HOP: &str = "fe80::fe";

/// No link waits for duplicate address detection, which EC2 makes needless. Set before any link exists: a link takes
/// the default when it is created, and Linux sends no solicitation from a link whose own address is still tentative.
pub fn prepare(vpc: u32, inet: u32, peer: u32) -> anyhow::Result<()> {
    let mut places = [vpc, inet, peer].into_iter();
    places.try_for_each(|place| fabric::sysctls(place, "ipv6/conf/default", &[("accept_dad", "0")]))
}

/// Links, addresses and the empty filter of the router, once the IPv4 half is there.
pub fn base(vpc: u32, inet: u32, peer: u32) -> anyhow::Result<()> {
    fabric::sysctls(vpc, "ipv6/conf/all", &[("forwarding", "1")])?;
    let mut router = String::new();
    for (_, gateway) in SUBNETS_V6 {
        let _ = writeln!(router, "address add {gateway}/128 dev lo");
    }
    let _ = writeln!(
        router,
        "address add 2001:db8:ffff::1/64 dev inet nodad
address add 2001:db8:bbbb::1/64 dev peer nodad
route add blackhole {VPC_CIDR_V6}"
    );
    nsenter::run_with_input(vpc, &BATCH, &router)?;
    let outside = |address: &str, gateway: &str| {
        format!("address add {address}/64 dev eth0 nodad\nroute add default via {gateway} dev eth0\n")
    };
    nsenter::run_with_input(inet, &BATCH, &outside(INTERNET_SERVER_V6, "2001:db8:ffff::1"))?;
    nsenter::run_with_input(peer, &BATCH, &outside(PEER_CLIENT_V6, "2001:db8:bbbb::1"))?;
    nsenter::run_with_input(vpc, &["nft", "-f", "-"], &filter())
}

/// How `ip` takes a batch for IPv6.
pub const BATCH: [&str; 4] = ["ip", "-6", "-batch", "-"];

/// Link-local and unspecified sources are neighbour discovery's: they reach the router and no further, and
/// so does discovery from any other source.
fn filter() -> String {
    format!(
        r#"
table ip6 fabric {{
  counter foreign_source {{ }}
  counter inet_private {{ }}
  set assigned {{ type ifname . ipv6_addr; flags interval; }}
  chain check {{
    type filter hook prerouting priority raw; policy accept;
    iifname "p-*" ip6 saddr {{ ::, fe80::/10 }} accept
    iifname "p-*" iifname . ip6 saddr != @assigned counter name foreign_source drop
  }}
  chain gateway {{
    type filter hook forward priority filter; policy accept;
    ip6 saddr {{ ::, fe80::/10 }} drop
    icmpv6 type {{ nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, nd-redirect }} drop
    oifname "inet" ip6 saddr != {VPC_CIDR_V6} counter name inet_private drop
  }}
  chain out {{
    type filter hook output priority filter; policy accept;
    icmpv6 type nd-redirect drop
  }}
}}
"#
    )
}

/// The set that follows EC2, as one transaction.
pub fn sets(ports: &[Port]) -> String {
    let assigned: Vec<String> =
        ports.iter().flat_map(|port| port.nets_v6.iter().map(|net| format!("\"{}\" . {net}", port.name))).collect();
    let fill = format!("add element ip6 fabric assigned {{ {} }}\n", assigned.join(", "));
    format!("flush set ip6 fabric assigned\n{}", if assigned.is_empty() { "" } else { &fill })
}

/// Makes a new port a router's, before its node's link is up: it has the VPC's address and the next hop. The
/// node's link needs no DAD either, as EC2 gives no address twice.
pub fn plug(vpc: u32, node: u32, port: &Port) -> anyhow::Result<()> {
    fabric::sysctls(node, &format!("ipv6/conf/{}", port.link), &[("accept_dad", "0")])?;
    let mac = port.own_mac().with_context(|| format!("{:?} is no MAC", port.mac))?;
    let own: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    nsenter::run_with_input(vpc, &BATCH, &router_port(port, &own.join(":")))
}

fn router_port(port: &Port, own_mac: &str) -> String {
    let Port { name, mac, .. } = port;
    format!(
        "link set dev {name} address {own_mac}
link set dev {name} addrgenmode none
address add {ROUTER}/64 dev {name} nodad
route append fe80::/64 dev {name}
neigh replace {NEXT_HOP} lladdr {mac} nud permanent dev {name}
"
    )
}

/// The batch that takes from a port what EC2 does not assign to the ENI any more.
pub fn unassign(port: &Port, gone: &[Ipv6Net]) -> String {
    let mut text = String::new();
    for net in gone {
        let _ = writeln!(text, "route del {net} dev {}", port.name);
    }
    text
}

/// The batch that brings what EC2 assigned to the ENI.
pub fn assign(port: &Port) -> String {
    let mut text = String::new();
    for net in &port.nets_v6 {
        let _ = writeln!(text, "route replace {net} via {NEXT_HOP} dev {}", port.name);
    }
    text
}

/// The primary ENI as DHCPv6 and router advertisements leave it; its link is up.
pub fn dhcp(node_pid: u32, address: &Ipv6Net, subnet: &str) -> anyhow::Result<()> {
    let batch = format!(
        "address add {address} dev eth0 nodad
route add {subnet} dev eth0 proto ra
route add default via {ROUTER} dev eth0 proto ra
"
    );
    nsenter::run_with_input(node_pid, &BATCH, &batch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(nets: &[&str]) -> Port {
        Port {
            name: "p-0123456789a".to_owned(),
            mac: "02:00:00:00:00:01".to_owned(),
            nets_v6: nets.iter().map(|net| net.parse().unwrap()).collect(),
            ..Port::default()
        }
    }

    #[test]
    fn sets_hold_addresses_and_prefixes() {
        let text = sets(&[port(&["2001:db8:aa00::5/128", "2001:db8:aa00:0:7::/80"])]);
        assert!(text.contains("\"p-0123456789a\" . 2001:db8:aa00:0:7::/80"), "{text}");
        assert!(!sets(&[port(&[])]).contains("add element"));
    }

    #[test]
    fn nothing_is_sent_to_a_node_by_way_of_discovery() {
        let port = port(&["2001:db8:aa00:0:7::/80"]);
        let gone = "2001:db8:aa00:0:8::/80".parse().unwrap();
        assert_eq!(unassign(&port, &[gone]), "route del 2001:db8:aa00:0:8::/80 dev p-0123456789a\n");
        assert_eq!(assign(&port), "route replace 2001:db8:aa00:0:7::/80 via fe80::fe dev p-0123456789a\n");
    }
}
