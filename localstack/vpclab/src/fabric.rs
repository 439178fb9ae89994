//! The VPC's network: ports, routes, source check, gateway to the Internet, peering. Texts for `ip` and
//! `nft`, computed from what EC2 shows, and the calls that apply them.

use std::fmt::Write;

use anyhow::Context;

use crate::{ec2, nsenter, port::Port};

/// The VPC.
pub const VPC_CIDR: &str = "10.0.0.0/16";
/// Zones.
const ZONES: usize = 2;
/// Its subnets, one per zone, and then a large one per zone.
pub const SUBNETS: [(&str, &str, &str); 2 * ZONES] = [
    ("10.0.1.0/24", "10.0.1.1", "us-east-1a"),
    ("10.0.2.0/24", "10.0.2.1", "us-east-1b"),
    ("10.0.64.0/19", "10.0.64.1", "us-east-1a"),
    ("10.0.96.0/19", "10.0.96.1", "us-east-1b"),
];

/// The IPv6 half of each subnet: its range, and an address that the router has in it.
pub const SUBNETS_V6: [(&str, &str); 2 * ZONES] = [
    ("2001:db8:aa00:1::/64", "2001:db8:aa00:1::1"),
    ("2001:db8:aa00:2::/64", "2001:db8:aa00:2::1"),
    ("2001:db8:aa00:64::/64", "2001:db8:aa00:64::1"),
    ("2001:db8:aa00:96::/64", "2001:db8:aa00:96::1"),
];

/// Place in [`SUBNETS`] of the subnet that this node is in.
pub fn subnet_of(node: usize, large: bool) -> usize {
    node % ZONES + if large { ZONES } else { 0 }
}
/// A server on the Internet.
pub const INTERNET_SERVER: &str = "198.51.100.10";
/// Where the EKS Pod Identity agent of each node listens (Amazon EKS User Guide, "How EKS Pod Identity works").
pub const POD_IDENTITY: &str = "169.254.170.23";
/// A client in the peered network.
pub const PEER_CLIENT: &str = "172.31.0.10";
/// MTU inside a VPC (Amazon EC2 User Guide, jumbo frames).
pub const VPC_MTU: u32 = 9001;

/// Packets that the VPC refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drops {
    /// Source not assigned to the ENI they came from.
    pub foreign_source: u64,
    /// Wanted to leave to the Internet with an address that has no public one.
    pub inet_private: u64,
}

/// The public address of a node.
pub fn public_address(index: usize) -> String {
    format!("203.0.113.{}", 10 + index)
}

/// Links, addresses and the empty filter of the router; once.
pub fn base(vpc: u32, inet: u32, peer: u32) -> anyhow::Result<()> {
    let mut router = String::new();
    for address in
        [ec2::ADDRESS, "169.254.169.254", POD_IDENTITY].into_iter().chain(SUBNETS.map(|(_, gateway, _)| gateway))
    {
        let _ = writeln!(router, "address add {address}/32 dev lo");
    }
    let _ = writeln!(
        router,
        "link add inet mtu 1500 type veth peer name eth0 mtu 1500 netns {inet}
link add peer mtu {VPC_MTU} type veth peer name eth0 mtu {VPC_MTU} netns {peer}
link set inet up
link set peer up
address add 198.51.100.1/24 dev inet
address add 172.31.0.1/24 dev peer
route add blackhole {VPC_CIDR}"
    );
    nsenter::run_with_input(vpc, &["ip", "-batch", "-"], &router)?;
    let outside = |address: &str, gateway: &str| {
        format!("address add {address}/24 dev eth0\nlink set eth0 up\nroute add default via {gateway}\n")
    };
    nsenter::run_with_input(inet, &["ip", "-batch", "-"], &outside(INTERNET_SERVER, "198.51.100.1"))?;
    nsenter::run_with_input(peer, &["ip", "-batch", "-"], &outside(PEER_CLIENT, "172.31.0.1"))?;
    sysctls(vpc, "ipv4/conf/all", &[("rp_filter", "0"), ("forwarding", "1"), ("send_redirects", "0")])?;
    sysctls(vpc, "ipv4/conf/default", &[("rp_filter", "0"), ("send_redirects", "0")])?;
    nsenter::run_with_input(vpc, &["nft", "-f", "-"], FILTER)
}

/// Ports are named p…; only they are checked. The Internet sees public addresses, one for each primary.
const FILTER: &str = r#"
table ip fabric {
  counter foreign_source { }
  counter inet_private { }
  set assigned { type ifname . ipv4_addr; }
  map to_public { type ipv4_addr : ipv4_addr; }
  map to_private { type ipv4_addr : ipv4_addr; }
  set primaries { type ipv4_addr; }
  chain check {
    type filter hook prerouting priority raw; policy accept;
    iifname "p-*" iifname . ip saddr != @assigned counter name foreign_source drop
  }
  chain gateway {
    type filter hook forward priority filter; policy accept;
    oifname "inet" ip saddr != @primaries counter name inet_private drop
  }
  chain arrive {
    type nat hook prerouting priority dstnat; policy accept;
    iifname "inet" dnat to ip daddr map @to_private
  }
  chain leave {
    type nat hook postrouting priority srcnat; policy accept;
    oifname "inet" snat to ip saddr map @to_public
  }
}
"#;

/// The sets that follow EC2, as one transaction. `public`: (private, public).
pub fn sets(ports: &[Port], public: &[(String, String)]) -> String {
    let mut text = String::new();
    let assigned = ports.iter().flat_map(|port| port.addresses.iter().map(|ip| format!("\"{}\" . {ip}", port.name)));
    let mut fill = |set: &str, elements: Vec<String>| {
        let kind = if set.starts_with("to_") { "map" } else { "set" };
        let _ = writeln!(text, "flush {kind} ip fabric {set}");
        if !elements.is_empty() {
            let _ = writeln!(text, "add element ip fabric {set} {{ {} }}", elements.join(", "));
        }
    };
    fill("assigned", assigned.collect());
    fill("primaries", public.iter().map(|(private, _)| private.clone()).collect());
    fill("to_public", public.iter().map(|(private, public)| format!("{private} : {public}")).collect());
    fill("to_private", public.iter().map(|(private, public)| format!("{public} : {private}")).collect());
    text
}

/// The batch that plugs a port in: the link with its far end in the node, up on the VPC's side.
pub fn plug(port: &Port, node_pid: u32) -> String {
    let Port { name, link, mac, .. } = port;
    format!(
        "link add {name} mtu {VPC_MTU} type veth peer name {link} address {mac} mtu {VPC_MTU} netns {node_pid}
link set {name} up
"
    )
}

/// The batch that removes routes and neighbours from a port.
pub fn unassign(port: &Port, gone: &[String]) -> String {
    let mut text = String::new();
    for address in gone {
        let _ = writeln!(text, "route del {address}/32 dev {0}\nneigh del {address} dev {0}", port.name);
    }
    text
}

/// The batch that gives a port its routes and permanent neighbours: a VPC has no ARP.
pub fn assign(port: &Port) -> String {
    let mut text = String::new();
    for address in &port.addresses {
        let _ = writeln!(
            text,
            "neigh replace {address} lladdr {} nud permanent dev {1}\nroute replace {address}/32 dev {1}",
            port.mac, port.name
        );
    }
    text
}

/// A port answers ARP for every address of the VPC, the gateway included, at once.
pub fn port_sysctls(vpc: u32, name: &str) -> anyhow::Result<()> {
    let ours = [("proxy_arp", "1"), ("rp_filter", "0"), ("send_redirects", "0")];
    sysctls(vpc, &format!("ipv4/conf/{name}"), &ours)?;
    sysctls(vpc, &format!("ipv4/neigh/{name}"), &[("proxy_delay", "0")])
}

/// A port that is only a link, as an EFA-only ENI's: it has no address and answers nothing.
pub fn port_without_ip(vpc: u32, name: &str) -> anyhow::Result<()> {
    sysctls(vpc, &format!("ipv6/conf/{name}"), &[("disable_ipv6", "1")])
}

/// Sets values below a folder of `/proc/sys/net`.
pub fn sysctls(pid: u32, folder: &str, values: &[(&str, &str)]) -> anyhow::Result<()> {
    let lines: Vec<String> =
        values.iter().map(|(key, value)| format!("echo {value} > /proc/sys/net/{folder}/{key}")).collect();
    nsenter::output(nsenter::command(pid, "sh").args(["-ec", &lines.join("\n")])).map(drop)
}

/// The primary ENI as a DHCP client leaves it.
pub fn dhcp(node_pid: u32, port: &Port, gateway: &str, prefix_len: &str) -> anyhow::Result<()> {
    let address = port.addresses.first().context("an ENI without an address")?;
    let batch =
        format!("address add {address}/{prefix_len} dev eth0\nlink set eth0 up\nroute add default via {gateway}\n");
    nsenter::run_with_input(node_pid, &["ip", "-batch", "-"], &batch)
}

/// The counters of the filter, both halves of it.
pub fn drops(vpc: u32) -> anyhow::Result<Drops> {
    let text = nsenter::output(nsenter::command(vpc, "nft").args(["list", "counters"]))?;
    Ok(Drops { foreign_source: packets(&text, "foreign_source")?, inet_private: packets(&text, "inet_private")? })
}

fn packets(text: &str, name: &str) -> anyhow::Result<u64> {
    let number = |rest: &str| rest.split("packets ").nth(1)?.split_whitespace().next()?.parse().ok();
    let all: Option<Vec<u64>> = text.split(&format!("counter {name} ")).skip(1).map(number).collect();
    let all = all.filter(|all| !all.is_empty());
    Ok(all.with_context(|| format!("no counter {name} in {text}"))?.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port() -> Port {
        Port {
            name: "p-0123456789a".to_owned(),
            mac: "02:00:00:00:00:01".to_owned(),
            addresses: vec!["10.0.1.20".to_owned()],
            ..Port::default()
        }
    }

    #[test]
    fn sets_follow_ports() {
        let text = sets(&[port()], &[("10.0.1.10".to_owned(), "203.0.113.10".to_owned())]);
        assert!(text.contains("add element ip fabric assigned { \"p-0123456789a\" . 10.0.1.20 }"), "{text}");
        assert!(text.contains("to_private { 203.0.113.10 : 10.0.1.10 }"), "{text}");
        assert!(!sets(&[], &[]).contains("add element"));
    }

    #[test]
    fn counters_are_read() {
        let text = "table ip fabric {\n counter foreign_source {\n packets 3 bytes 180\n }\n counter inet_private {\n packets 0 bytes 0 }}";
        assert_eq!((packets(text, "foreign_source").unwrap(), packets(text, "inet_private").unwrap()), (3, 0));
        let both = format!("{text}\ntable ip6 fabric {{\n counter foreign_source {{\n packets 2 bytes 9\n }}");
        assert_eq!(packets(&both, "foreign_source").unwrap(), 5);
        assert!(packets(text, "no_such").is_err());
    }

    #[test]
    fn addresses_that_left_lose_their_route() {
        assert!(unassign(&port(), &["10.0.1.21".to_owned()]).starts_with("route del 10.0.1.21/32"));
    }
}
