//! The rules of kube-proxy for two services, written here, in each of its modes.
//!
//! Endpoint `k` has the cluster address 10.96.0.1k, the node port 3008k for which any node serves, and the node port
//! 3009k for which only its own node serves, with the client's address. A policy rejects one of its ports with a reset,
//! where there is a proxy. Marks and order are kube-proxy's (its 0x4000).

use std::fmt::Write;

use enid_tests::{
    Place,
    traffic::{PORT, REJECTED},
};

/// An address of no endpoint: refused, as kube-proxy refuses a service without endpoints.
pub const NO_ENDPOINT: &str = "10.96.0.99";

/// What implements services on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxy {
    Legacy,
    Nft,
    Nftables,
    /// There are no services.
    None,
    /// Needs a kernel with it: `make test-vm`.
    Ipvs,
}

impl Proxy {
    /// What this kernel can do, or the one that ENID_PROXY names.
    pub fn all() -> Vec<Proxy> {
        match std::env::var("ENID_PROXY").as_deref() {
            Ok("ipvs") => vec![Proxy::Ipvs],
            _ => vec![Proxy::Legacy, Proxy::Nft, Proxy::Nftables, Proxy::None],
        }
    }

    /// Adds the rules on a node; `local`: the endpoints are there.
    pub fn install(self, place: Place<'_>, endpoints: &[String], local: bool) -> anyhow::Result<()> {
        match self {
            Proxy::Legacy => restore(place, "iptables-legacy-restore --noflush", &iptables(endpoints, local)),
            Proxy::Nft => restore(place, "iptables-nft-restore --noflush", &iptables(endpoints, local)),
            Proxy::Nftables => restore(place, "nft -f -", &nftables(endpoints, local)),
            Proxy::None => Ok(()),
            Proxy::Ipvs => place.sh(&ipvs(endpoints, local)).map(drop),
        }
    }

    /// Removes them.
    pub fn remove(self, place: Place<'_>) -> anyhow::Result<()> {
        let empty = "for t in nat filter; do echo \"*$t\"; echo COMMIT; done";
        match self {
            Proxy::Legacy => place.sh(&format!("({empty}) | iptables-legacy-restore")),
            Proxy::Nft => place.sh("nft delete table ip nat; nft delete table ip filter"),
            Proxy::Nftables => place.sh("nft delete table ip services"),
            Proxy::None => Ok(String::new()),
            Proxy::Ipvs => {
                place.sh("ipvsadm -C; ip link del kube-ipvs0; nft delete table ip nat; nft delete table ip filter")
            }
        }
        .map(drop)
    }
}

fn restore(place: Place<'_>, program: &str, text: &str) -> anyhow::Result<()> {
    place.sh(&format!("{program} <<'RULES'\n{text}RULES")).map(drop)
}

fn iptables(endpoints: &[String], local: bool) -> String {
    let mut nat = String::from(
        "*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
",
    );
    let mut filter = format!(
        "*filter
-A FORWARD -d {NO_ENDPOINT} -p tcp -j REJECT
-A OUTPUT -d {NO_ENDPOINT} -p tcp -j REJECT
-A FORWARD -m conntrack --ctstate INVALID -j DROP
"
    );
    for (k, address) in endpoints.iter().enumerate() {
        let _ = write!(
            nat,
            ":KUBE-SEP-{k} - [0:0]
-A KUBE-SEP-{k} -s {address} -j KUBE-MARK-MASQ
-A KUBE-SEP-{k} -p tcp -j DNAT --to-destination {address}:{PORT}
-A KUBE-SERVICES -d 10.96.0.1{k} -p tcp --dport 80 -j KUBE-SEP-{k}
-A KUBE-NODEPORTS -p tcp --dport 3008{k} -j KUBE-MARK-MASQ
-A KUBE-NODEPORTS -p tcp --dport 3008{k} -j KUBE-SEP-{k}
"
        );
        if local {
            let _ = writeln!(nat, "-A KUBE-NODEPORTS -p tcp --dport 3009{k} -j KUBE-SEP-{k}");
        }
        let _ = writeln!(filter, "-A FORWARD -d {address} -p tcp --dport {REJECTED} -j REJECT --reject-with tcp-reset");
    }
    nat.push_str("-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\nCOMMIT\n");
    filter.push_str("-A FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\n-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n");
    nat + &filter
}

/// Cluster addresses are the node's own, on a link of their own; IPVS forwards what comes in for them, and keeps the
/// client's address. iptables translates what kube-proxy's sets would have it translate.
fn ipvs(endpoints: &[String], local: bool) -> String {
    let mut text = format!(
        "sysctl -q net.ipv4.vs.conntrack=1
ip link add kube-ipvs0 type dummy
ip addr add {NO_ENDPOINT}/32 dev kube-ipvs0
own=$(ip -4 -o addr show dev eth0 | awk '{{ print $4 }}' | cut -d/ -f1)
ipvsadm -A -t {NO_ENDPOINT}:80 -s rr
iptables-nft -t nat -N KUBE-MARK-MASQ
iptables-nft -t nat -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
iptables-nft -t nat -A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE --random-fully
iptables-nft -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
"
    );
    for (k, address) in endpoints.iter().enumerate() {
        let _ = write!(
            text,
            "ip addr add 10.96.0.1{k}/32 dev kube-ipvs0
iptables-nft -t nat -A POSTROUTING -s {address} -d {address} -p tcp --dport {PORT} -j MASQUERADE
iptables-nft -A FORWARD -d {address} -p tcp --dport {REJECTED} -j REJECT --reject-with tcp-reset
# The node itself would send with the address of the service, which it has.
iptables-nft -t nat -A OUTPUT -s 10.96.0.1{k} -d 10.96.0.1{k} -p tcp --dport 80 -j KUBE-MARK-MASQ
for chain in PREROUTING OUTPUT; do
    iptables-nft -t nat -A $chain -m addrtype --dst-type LOCAL -p tcp --dport 3008{k} -j KUBE-MARK-MASQ
done
for service in 10.96.0.1{k}:80 $own:3008{k}; do
    ipvsadm -A -t $service -s rr
    ipvsadm -a -t $service -r {address}:{PORT} -m
done
"
        );
        if local {
            let _ =
                writeln!(text, "ipvsadm -A -t $own:3009{k} -s rr; ipvsadm -a -t $own:3009{k} -r {address}:{PORT} -m");
        }
    }
    text
}

fn nftables(endpoints: &[String], local: bool) -> String {
    let mut text = String::from("table ip services {\n  chain masq { meta mark set meta mark | 0x4000; }\n");
    let (mut services, mut ports, mut rejects) = (String::new(), String::new(), String::new());
    for (k, address) in endpoints.iter().enumerate() {
        let _ = writeln!(
            text,
            "  chain endpoint{k} {{ ip saddr {address} jump masq; meta l4proto tcp dnat to {address}:{PORT}; }}"
        );
        let _ = writeln!(services, "    ip daddr 10.96.0.1{k} tcp dport 80 goto endpoint{k}");
        let _ = writeln!(ports, "    fib daddr type local tcp dport 3008{k} jump masq");
        let _ = writeln!(ports, "    fib daddr type local tcp dport 3008{k} goto endpoint{k}");
        if local {
            let _ = writeln!(ports, "    fib daddr type local tcp dport 3009{k} goto endpoint{k}");
        }
        let _ = writeln!(rejects, "    ip daddr {address} tcp dport {REJECTED} reject with tcp reset");
    }
    let no_endpoint = format!("    ip daddr {NO_ENDPOINT} meta l4proto tcp reject");
    let _ = write!(
        text,
        "  chain prerouting {{ type nat hook prerouting priority dstnat;
{services}{ports}  }}
  chain output {{ type nat hook output priority -100;
{services}{ports}  }}
  chain postrouting {{ type nat hook postrouting priority srcnat;
    meta mark & 0x4000 == 0x4000 meta mark set meta mark ^ 0x4000 masquerade fully-random
  }}
  chain forward {{ type filter hook forward priority filter;
{no_endpoint}
    ct state invalid drop
{rejects}  }}
  chain refuse {{ type filter hook output priority filter;
{no_endpoint}
  }}
}}
"
    );
    text
}
