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
        let each = consistency::blocks(&eni).flat_map(|net| match net {
            IpNet::V4(net) if net.prefix_len() < 32 => {
                let first = u32::from(net.network());
                (0..16).map(|offset| IpAddr::V4((first + offset).into())).collect::<Vec<_>>()
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
    let mut pods = Vec::new();
    let addresses = addresses(place)?;
    for ((device, addresses), number) in addresses.iter().zip(on_each) {
        ensure!(addresses.len() >= *number, "ENI {device} has {} addresses, and {number} are wanted", addresses.len());
        for address in addresses.iter().take(*number) {
            let name = format!("pod-{}", pods.len());
            let pod = Pod { config: config(), ..Pod::new(0, &name) };
            let ifname = identity::ifname_for_pod("eni", "default", &name, 0);
            pods.push(PeerPod { pod, address: address.to_string(), device: *device, ifname });
        }
    }
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
    let entries: Vec<String> = pods.iter().map(entry).collect();
    let _ = write!(
        script,
        "mkdir -p /var/run/aws-node /etc/cni/net.d
         cat > /var/run/aws-node/ipam.json <<'END'\n{{\"version\":\"vpc-cni-ipam/1\",\"allocations\":[{}]}}\nEND
         cat > /etc/cni/net.d/10-aws.conflist <<'END'\n{CONFLIST}\nEND\n",
        entries.join(",")
    );
    place.sh(&script)?;
    Ok(pods)
}

const CONFLIST: &str = r#"{"cniVersion":"0.4.0","name":"aws-cni","disableCheck":true,"plugins":[
  {"name":"aws-cni","type":"aws-cni","vethPrefix":"eni","mtu":"9001","podSGEnforcingMode":"strict"},
  {"type":"portmap","capabilities":{"portMappings":true},"snat":true}]}"#;

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
    format!(
        r#"{{"networkName":"aws-cni","containerID":"{container}","ifName":"eth0","ipv4":"{address}","allocationTimestamp":1795892511173025619,"metadata":{{"k8sPodNamespace":"default","k8sPodName":"{name}","interfacesCount":1}}}}"#
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
         ip rule | grep '^1024:.*lookup main$' || true
         ip rule | grep '^32765:' | grep -v 'proto' || true
         for kind in nft legacy; do iptables-$kind-save; ip6tables-$kind-save; done | grep AWS || true
         nft list tables | grep aws-cni || true
         ls /etc/cni/net.d/10-aws.conflist 2>/dev/null || true
         grep -o vpc-cni-ipam/1 /var/run/aws-node/ipam.json || true")
}
