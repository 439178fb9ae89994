//! A node as Amazon's VPC CNI v1.23.1 leaves it with pods on it: links, routes, rules, chains and files, as they were recorded.
//! Made by commands, since nothing of that daemon is here.

use std::{fmt::Write, net::IpAddr};

use anyhow::{Context, ensure};
use enid_datapath::identity;
use ipnet::IpNet;

use crate::{consistency, node::Place, pod::Pod};

/// How that node has its rules of iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Through nf_tables; then connections are marked in a table of its own.
    Nft,
    /// Through the older modules.
    Legacy,
}

/// The configuration that pods of such a node begin and end with.
#[must_use]
pub fn config() -> String {
    r#"{"cniVersion":"1.0.0","name":"aws-cni","type":"enid-cni","addWaitSeconds":30}"#.to_owned()
}

/// One of its pods.
#[derive(Clone, Debug)]
pub struct PeerPod {
    /// As a runtime knows it.
    pub pod: Pod,
    /// Its address.
    pub address: String,
    /// Device number of the ENI that has the address.
    pub device: u32,
    /// Its link on the host.
    pub ifname: String,
}

/// The addresses for pods that a node's ENIs have, with the ENI's device number.
fn addresses(place: Place<'_>) -> anyhow::Result<Vec<(u32, Vec<IpAddr>)>> {
    let node = place.lab.state().nodes.iter().find(|node| node.name == place.name).context("not a node")?;
    let mut found = Vec::new();
    for eni in place.lab.enis()? {
        let Some(attachment) = eni.attachment.as_ref().filter(|it| it.instance_id == node.instance_id) else {
            continue;
        };
        let of_v6 = eni.ipv6_prefixes.iter().filter_map(|prefix| prefix.parse::<IpNet>().ok());
        let each = consistency::blocks(&eni).chain(of_v6).flat_map(|net| match net {
            IpNet::V4(net) if net.prefix_len() < 32 => {
                let first = u32::from(net.network());
                (0..16).map(|offset| IpAddr::V4((first + offset).into())).collect::<Vec<_>>()
            }
            IpNet::V6(net) if net.prefix_len() < 128 => {
                let first = u128::from(net.network());
                (0..16).map(|offset| IpAddr::V6((first + offset).into())).collect()
            }
            net => vec![net.addr()],
        });
        found.push((attachment.device_index, each.collect()));
    }
    found.sort_by_key(|(device, _)| *device);
    Ok(found)
}

/// Puts a prefix on each of the node's ENIs in the place of its addresses.
pub fn to_prefixes(place: Place<'_>) -> anyhow::Result<()> {
    for eni in place.lab.enis()? {
        let keys: Vec<String> = (1..eni.addresses.len()).map(|number| format!("PrivateIpAddress.{number}")).collect();
        let of_eni = ("NetworkInterfaceId", eni.id.as_str());
        let addresses = keys.iter().map(String::as_str).zip(eni.addresses.iter().skip(1).map(String::as_str));
        let parameters: Vec<(&str, &str)> = [of_eni].into_iter().chain(addresses).collect();
        place.lab.ec2("UnassignPrivateIpAddresses", &parameters)?;
        place.lab.ec2("AssignPrivateIpAddresses", &[of_eni, ("Ipv4PrefixCount", "1")])?;
    }
    Ok(())
}

/// Makes a node of one that has ENIs, and nothing of Enid's any more: so many pods on each of them, in the order of their
/// device numbers.
pub fn make(place: Place<'_>, on_each: &[usize], backend: Backend) -> anyhow::Result<Vec<PeerPod>> {
    let addresses = addresses(place)?;
    let pods = pods(&addresses, on_each)?;
    let mut script = String::new();
    for (device, _) in addresses.iter().filter(|(device, _)| *device > 0) {
        let (table, link) = (device + 1, format!("eth{device}"));
        // The subnet's network address and one.
        let _ = writeln!(
            script,
            "net=$(ip -o -4 addr show {link} | awk '{{print $4}}'); own=${{net%/*}}
             gw=$(python3 -c \"import ipaddress, sys; print(ipaddress.ip_interface(sys.argv[1]).network[1])\" $net)
             ip route replace $gw dev {link} table {table} scope link; ip route replace default via $gw dev {link} table {table}
             ip rule add pref 32765 from $own lookup {table}"
        );
    }
    pods.iter().for_each(|pod| wire(pod, &mut script));
    script.push_str("ip rule add pref 1024 fwmark 0x80/0x80 lookup main\n");
    script.push_str(&chains(backend, &place.lab.node(0).address));
    script.push_str(&files(&pods, CONFLIST));
    place.sh(&script)?;
    Ok(pods)
}

/// The same of an IPv6 cluster: so many pods on the primary ENI, with addresses of its prefix.
pub fn make_v6(place: Place<'_>, number: usize) -> anyhow::Result<Vec<PeerPod>> {
    let pods = pods(&addresses(place)?, &[number])?;
    let mut script = FORWARDS_V6.to_owned();
    pods.iter().for_each(|pod| wire_v6(pod, &mut script));
    script.push_str("ip -6 rule add pref 1024 fwmark 0x80/0x80 lookup main\n");
    script.push_str(&files(&pods, CONFLIST));
    place.sh(&script)?;
    Ok(pods)
}

fn pods(addresses: &[(u32, Vec<IpAddr>)], on_each: &[usize]) -> anyhow::Result<Vec<PeerPod>> {
    let mut pods = Vec::new();
    for ((device, addresses), number) in addresses.iter().zip(on_each) {
        ensure!(addresses.len() >= *number, "ENI {device} has {} addresses, and {number} are wanted", addresses.len());
        for address in addresses.iter().take(*number) {
            let name = format!("pod-{}", pods.len());
            let pod = Pod { config: config(), ..Pod::new(0, &name) };
            let ifname = identity::ifname_for_pod("eni", "default", &name, 0);
            pods.push(PeerPod { pod, address: address.to_string(), device: *device, ifname });
        }
    }
    Ok(pods)
}

fn files(pods: &[PeerPod], conflist: &str) -> String {
    let entries: Vec<String> = pods.iter().map(entry).collect();
    format!(
        "mkdir -p /var/run/aws-node /etc/cni/net.d
         cat > /var/run/aws-node/ipam.json <<'END'\n{{\"version\":\"vpc-cni-ipam/1\",\"allocations\":[{}]}}\nEND
         cat > /etc/cni/net.d/10-aws.conflist <<'END'\n{conflist}\nEND\n",
        entries.join(",")
    )
}

const CONFLIST: &str = r#"{"cniVersion":"0.4.0","name":"aws-cni","disableCheck":true,"plugins":[
  {"name":"aws-cni","type":"aws-cni","vethPrefix":"eni","mtu":"9001","podSGEnforcingMode":"strict"},
  {"type":"portmap","capabilities":{"portMappings":true},"snat":true}]}"#;

/// In this order: what a router has advertised would go otherwise.
const FORWARDS_V6: &str = "sysctl -qw net.ipv6.conf.eth0.accept_ra=2
sysctl -qw net.ipv6.conf.all.forwarding=1 net.ipv4.ip_forward=1
";

/// Gives each of these pods a way out in the other family, as its plugin for that does: a link of its own, an address that only
/// the node knows, and a chain. `own`: the address as which they leave.
pub fn with_egress(place: Place<'_>, pods: &[PeerPod], own: IpAddr) -> anyhow::Result<()> {
    let (subnet, route, folder) = match own {
        IpAddr::V4(_) => ("169.254.172.0/22", "0.0.0.0/0", "v6pd/egress-v4-ipam"),
        IpAddr::V6(_) => ("fd00::ac:00/118", "::/0", "v4pd/egress-v6-ipam"),
    };
    let entry = format!(
        r#"{{"name":"egress-cni","type":"egress-cni","mtu":"9001","enabled":"true","randomizeSNAT":"prng","nodeIP":"{own}","ipam":{{"type":"host-local","ranges":[[{{"subnet":"{subnet}"}}]],"routes":[{{"dst":"{route}"}}],"dataDir":"/run/cni/{folder}"}}}},"#
    );
    let conflist = CONFLIST.replace(r#"  {"type":"portmap""#, &format!(r#"  {entry}{{"type":"portmap""#));
    ensure!(conflist.contains("egress-cni"), "the configuration has no egress-cni: {conflist}");
    let mut script = format!("{FORWARDS_V6}cat > /etc/cni/net.d/10-aws.conflist <<'END'\n{conflist}\nEND\n");
    for (number, PeerPod { pod, .. }) in pods.iter().enumerate() {
        let (name, container, link) = (&pod.name, &pod.container, format!("veth{:08x}", 0xae90_0000 + number));
        let (short, tables, multicast) = match own {
            IpAddr::V4(_) => ("4", "iptables-nft", "224.0.0.0/4"),
            IpAddr::V6(_) => ("6", "ip6tables-nft", "ff00::/8"),
        };
        let inside = format!("v{short}if0");
        let _ = writeln!(
            script,
            "ip link add {link} mtu 9001 type veth peer name {inside} netns {name}
             ip link set {link} up; ip -n {name} link set {inside} up"
        );
        let address: IpAddr = match own {
            IpAddr::V4(_) => std::net::Ipv4Addr::new(169, 254, 172, 2 + u8::try_from(number)?).into(),
            IpAddr::V6(_) => format!("fd00::ac:{:x}", 2 + number).parse()?,
        };
        let _ = match own {
            IpAddr::V4(_) => writeln!(
                script,
                "ip -n {name} addr add {address}/22 dev {inside}; ip -n {name} route del 169.254.172.0/22 dev {inside}
                 ip -n {name} route add 169.254.172.1 dev {inside} scope link src {address}
                 ip -n {name} route add 169.254.172.0/22 via 169.254.172.1 dev {inside} src {address}
                 ip -n {name} route add default via 169.254.172.1 dev {inside}
                 ip addr add 169.254.172.1/32 dev {link} scope link; ip route replace {address} dev {link} scope link"
            ),
            IpAddr::V6(_) => writeln!(
                script,
                "ip netns exec {name} sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1
                 ip -n {name} addr add {address}/118 dev {inside} nodad
                 for i in $(seq 500); do far=$(ip -o -6 addr show dev {link} scope link | awk '{{print $4}}'); [ -z \"$far\" ] || break; done
                 ip -n {name} -6 route add default via ${{far%/*}} dev {inside}; ip -6 route replace {address} dev {link}"
            ),
        };
        let _ = writeln!(
            script,
            "chain=CNI-E{short}-$(printf %s 'aws-cni{container}' | sha512sum | cut -c1-21)
             whose='name: \"aws-cni\" id: \"{container}\"'; {tables} -t nat -N $chain
             {tables} -t nat -A $chain -d {multicast} -m comment --comment \"$whose\" -j ACCEPT
             {tables} -t nat -A $chain -m comment --comment \"$whose\" -j SNAT --to-source {own} --random-fully
             {tables} -t nat -A POSTROUTING -s {address} -m comment --comment \"$whose\" -j $chain
             mkdir -p /run/cni/{folder}/aws-cni; printf '{container}\\r\\neth0' > /run/cni/{folder}/aws-cni/{address}"
        );
    }
    let block = match own {
        IpAddr::V4(_) => {
            "iptables-nft -A FORWARD -d 169.254.172.0/22 -m conntrack --ctstate NEW -m comment --comment 'Block Node Local Pod access via IPv4' -j REJECT"
        }
        IpAddr::V6(_) => {
            "ip6tables-nft -A FORWARD -d fd00::ac:0/118 -m conntrack --ctstate NEW -m comment --comment 'Block Node Local Pod access via IPv6' -j REJECT"
        }
    };
    script.push_str(block);
    place.sh(&script).map(drop)
}

fn wire_v6(PeerPod { pod, address, ifname, .. }: &PeerPod, script: &mut String) {
    let name = &pod.name;
    let _ = writeln!(
        script,
        "ip netns add {name}
         ip link add {ifname} mtu 9001 type veth peer name eth0 netns {name}
         sysctl -qw net.ipv6.conf.{ifname}.accept_ra=0 net.ipv6.conf.{ifname}.forwarding=0
         ip link set {ifname} up; ip -n {name} link set eth0 up; ip -n {name} link set lo up
         ip -n {name} addr add {address}/128 dev eth0 nodad
         ip -n {name} -6 route add fe80::1 dev eth0; ip -n {name} -6 route add default via fe80::1 dev eth0
         ip -n {name} -6 neigh add fe80::1 lladdr $(cat /sys/class/net/{ifname}/address) dev eth0 nud permanent
         ip -6 route replace {address} dev {ifname}
         ip -6 rule add pref 512 to {address} lookup main"
    );
}

fn wire(PeerPod { pod, address, device, ifname }: &PeerPod, script: &mut String) {
    let name = &pod.name;
    let _ = writeln!(
        script,
        "ip netns add {name}
         ip link add {ifname} mtu 9001 type veth peer name eth0 netns {name}
         ip link set {ifname} up; ip -n {name} link set eth0 up
         ip -n {name} route add 169.254.1.1 dev eth0 scope link; ip -n {name} addr add {address}/32 dev eth0
         ip -n {name} route add default via 169.254.1.1 dev eth0
         ip -n {name} neigh add 169.254.1.1 lladdr $(cat /sys/class/net/{ifname}/address) dev eth0 nud permanent
         ip route replace {address} dev {ifname} scope link
         ip rule add pref 512 to {address} lookup main"
    );
    if *device > 0 {
        let _ = writeln!(script, "ip rule add pref 1536 from {address} lookup {}", device + 1);
    }
}

fn entry(PeerPod { pod, address, .. }: &PeerPod) -> String {
    let (container, name) = (&pod.container, &pod.name);
    let family = if address.contains(':') { "ipv6" } else { "ipv4" };
    format!(
        r#"{{"networkName":"aws-cni","containerID":"{container}","ifName":"eth0","{family}":"{address}","allocationTimestamp":1795892511173025619,"metadata":{{"k8sPodNamespace":"default","k8sPodName":"{name}","interfacesCount":1}}}}"#
    )
}

/// The chains, and the mark of what is translated.
fn chains(backend: Backend, primary: &str) -> String {
    let iptables = match backend {
        Backend::Nft => "iptables-nft",
        Backend::Legacy => "iptables-legacy",
    };
    let connmark = match backend {
        Backend::Nft => "nft -f - <<'END'
table ip aws-cni {
    chain snat-mark {
        counter ip daddr 10.0.0.0/16 return
        counter ct mark set ct mark | 0x80
    }
    chain nat-prerouting {
        type nat hook prerouting priority dstnat + 10; policy accept;
        fib daddr type local return
        iifname \"eni*\" counter jump snat-mark
        counter meta mark set ct mark & 0x80
    }
}
END
"
        .to_owned(),
        Backend::Legacy => format!(
            "{iptables} -t nat -N AWS-CONNMARK-CHAIN-0
             {iptables} -t nat -A PREROUTING -i eni+ -m comment --comment 'AWS, outbound connections' -j AWS-CONNMARK-CHAIN-0
             {iptables} -t nat -A PREROUTING -m comment --comment 'AWS, CONNMARK' -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
             {iptables} -t nat -A AWS-CONNMARK-CHAIN-0 -d 10.0.0.0/16 -m comment --comment 'AWS CONNMARK CHAIN' -j RETURN
             {iptables} -t nat -A AWS-CONNMARK-CHAIN-0 -m comment --comment 'AWS, CONNMARK' -j CONNMARK --set-xmark 0x80/0x80\n"
        ),
    };
    format!(
        "sysctl -qw net.ipv4.conf.eth0.rp_filter=2 net.ipv4.ip_forward=1
         {iptables} -t nat -N AWS-SNAT-CHAIN-0
         {iptables} -t nat -A POSTROUTING -m comment --comment 'AWS SNAT CHAIN' -j AWS-SNAT-CHAIN-0
         {iptables} -t nat -A AWS-SNAT-CHAIN-0 -d 10.0.0.0/16 -m comment --comment 'AWS SNAT CHAIN' -j RETURN
         {iptables} -t nat -A AWS-SNAT-CHAIN-0 ! -o vlan+ -m comment --comment 'AWS, SNAT' -m addrtype ! --dst-type LOCAL -j SNAT --to-source {primary} --random-fully
         {iptables} -t mangle -A PREROUTING -i eth0 -m comment --comment 'AWS, primary ENI' -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-xmark 0x80/0x80
         for links in eni+ vlan+; do
             {iptables} -t mangle -A PREROUTING -i $links -m comment --comment 'AWS, primary ENI' -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
         done
         {connmark}"
    )
}

/// What of it is left in kernel and files, but for pods' links: nothing, when the node is another's.
pub fn traces(place: Place<'_>) -> anyhow::Result<String> {
    place.sh("ip rule | grep -e '^512:.* to ' -e '^1536:.*from [0-9]' || true
         ip -6 rule | grep '^512:.* to ' || true; ls -A /run/cni/*/*/aws-cni 2>/dev/null || true
         (ip rule; ip -6 rule) | grep '^1024:.*lookup main$' || true
         ip rule | grep '^32765:' | grep -v 'proto' || true
         for kind in nft legacy; do iptables-$kind-save; ip6tables-$kind-save; done | grep -e AWS -e CNI-E -e 'Block Node' || true
         nft list tables | grep aws-cni || true
         ls /etc/cni/net.d/10-aws.conflist 2>/dev/null || true
         grep -o vpc-cni-ipam/1 /var/run/aws-node/ipam.json || true")
}
