//! The chains and rules of iptables as Amazon's VPC CNI makes them.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use enid_datapath::{
    Family, peer,
    policy::{NodePorts, Policy, Ports, Translation},
};
use ipnet::{IpNet, Ipv4Net};

use crate::{
    host::xtables::Backend,
    takeover::chains::{CONNMARK, Kind, Part, SNAT, TABLE, found},
};

/// What a node's chains are made for.
#[derive(Clone, Debug)]
pub struct Node {
    /// The link of the primary ENI.
    pub primary_ifname: String,
    /// The address that pods' packets get outside the VPC.
    pub primary: Ipv4Addr,
    /// First letters of pods' links.
    pub prefix: String,
    /// The VPC's CIDRs, in which pods keep their addresses.
    pub vpc: Vec<Ipv4Net>,
    /// Other destinations that see a pod's own address.
    pub excluded: Vec<Ipv4Net>,
    /// Marks, node ports, translation.
    pub policy: Policy,
    /// How pods leave in the family in which they have no address of the VPC, if they do.
    pub egress: Option<Egress>,
}

/// How pods leave in the family in which they have no address of the VPC.
#[derive(Clone, Debug)]
pub struct Egress {
    /// Where their addresses are from.
    pub range: IpNet,
    /// The node's address, as which they leave.
    pub own: IpAddr,
    /// Each pod's container, and its address.
    pub pods: Vec<(String, IpAddr)>,
}

impl Egress {
    fn family(&self) -> Family {
        Family::of(self.range.addr())
    }
}

/// Its rules of one part, as lines for `iptables-restore`.
fn rules(part: Part, backend: Backend, family: Family, node: &Node) -> Vec<String> {
    let egress = node.egress.as_ref().filter(|egress| egress.family() == family);
    match (part, egress) {
        (Part::Egress, Some(egress)) => egress.pods.iter().flat_map(|pod| egress_rules(pod, egress, node)).collect(),
        (Part::Forward, Some(egress)) => vec![forward(egress)],
        // In clusters of IPv6 it has none of these.
        (Part::Snat | Part::Connmark | Part::Mangle, _)
            if family == Family::V4 && node.policy.of_vpc.contains(&family) =>
        {
            rules_v4(part, backend, node)
        }
        _ => Vec::new(),
    }
}

/// One pod's chain, and the rule that leads there.
fn egress_rules((container, address): &(String, IpAddr), egress: &Egress, node: &Node) -> [String; 3] {
    let (chain, own) = (peer::egress_chain(egress.family(), container), egress.own);
    let (multicast, len) = match egress.family() {
        Family::V4 => ("224.0.0.0/4", 32),
        Family::V6 => ("ff00::/8", 128),
    };
    // These are translated, whatever becomes of the VPC's own.
    let flag = match node.policy.translation {
        Translation::Here(ports) => random(ports),
        Translation::External => random(Ports::FullyRandom),
    };
    let comment = format!(r#"-m comment --comment "name: \"{}\" id: \"{container}\"""#, peer::NETWORK);
    [
        format!("-A {chain} -d {multicast} {comment} -j ACCEPT"),
        format!("-A {chain} {comment} -j SNAT --to-source {own}{flag}"),
        format!("-A POSTROUTING -s {address}/{len} {comment} -j {chain}"),
    ]
}

/// What keeps pods from reaching one another by such addresses: the first rule there.
fn forward(egress: &Egress) -> String {
    let (word, refusal) = match egress.family() {
        Family::V4 => ("IPv4", "icmp-port-unreachable"),
        Family::V6 => ("IPv6", "icmp6-port-unreachable"),
    };
    format!(
        "-I FORWARD -d {} -m conntrack --ctstate NEW -m comment --comment \"Block Node Local Pod access via {word}\" \
         -j REJECT --reject-with {refusal}",
        egress.range
    )
}

fn random(ports: Ports) -> &'static str {
    match ports {
        Ports::FullyRandom => " --random-fully",
        Ports::Hashed => " --random",
        Ports::Kept => "",
    }
}

/// Those for pods with IPv4 addresses of the VPC.
fn rules_v4(part: Part, backend: Backend, node: &Node) -> Vec<String> {
    let Node { primary_ifname, primary, prefix, vpc, excluded, policy, .. } = node;
    let bits = format!("{:#x}", policy.marks.connmark());
    let restore = format!("-j CONNMARK --restore-mark --nfmask {bits} --ctmask {bits}");
    let node_ports = policy.node_ports == NodePorts::SameWayBack;
    let to = |net: &Ipv4Net| if net.prefix_len() == 0 { String::new() } else { format!(" -d {net}") };
    let mut rules = Vec::new();
    match (part, policy.translation) {
        (Part::Mangle, ports) => {
            let comment = "-m comment --comment \"AWS, primary ENI\"";
            if node_ports {
                rules.push(format!("-A PREROUTING -i {primary_ifname} {comment} -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-xmark {bits}/{bits}"));
            }
            let links = [(prefix.as_str(), node_ports || ports != Translation::External), ("vlan", node_ports)];
            let links = links.iter().filter(|(_, is_there)| *is_there);
            rules.extend(links.map(|(links, _)| format!("-A PREROUTING -i {links}+ {comment} {restore}")));
        }
        (Part::Snat, Translation::Here(ports)) => {
            let chain = format!("{SNAT}0");
            let leave = |comment: &'static str| {
                let chain = chain.clone();
                move |net: &Ipv4Net| format!("-A {chain}{} -m comment --comment \"{comment}\" -j RETURN", to(net))
            };
            rules.extend(vpc.iter().map(leave("AWS SNAT CHAIN")));
            rules.extend(excluded.iter().map(leave("AWS SNAT CHAIN EXCLUSION")));
            let flag = random(ports);
            rules.push(format!("-A {chain} ! -o vlan+ -m comment --comment \"AWS, SNAT\" -m addrtype ! --dst-type LOCAL -j SNAT --to-source {primary}{flag}"));
            rules.push(format!("-A POSTROUTING -m comment --comment \"AWS SNAT CHAIN\" -j {chain}"));
        }
        // Elsewhere a table of nftables does it.
        (Part::Connmark, Translation::Here(_)) if backend == Backend::Legacy => {
            let chain = format!("{CONNMARK}0");
            let leave =
                |net: &Ipv4Net| format!("-A {chain}{} -m comment --comment \"AWS CONNMARK CHAIN\" -j RETURN", to(net));
            rules.extend(vpc.iter().chain(excluded).map(leave));
            rules.push(format!(
                "-A {chain} -m comment --comment \"AWS, CONNMARK\" -j CONNMARK --set-xmark {bits}/{bits}"
            ));
            rules.push(format!(
                "-A PREROUTING -i {prefix}+ -m comment --comment \"AWS, outbound connections\" -j {chain}"
            ));
            rules.push(format!("-A PREROUTING -m comment --comment \"AWS, CONNMARK\" {restore}"));
        }
        _ => {}
    }
    rules
}

/// The lines for `iptables-restore` that put one part in place, instead of what is saved of it; `None` if there is nothing to
/// do.
pub fn replacement(part: Part, (backend, family): (Backend, Family), saved: &str, node: &Node) -> Option<String> {
    let rules = rules(part, backend, family, node);
    let Kind { table, chains, .. } = part.kind();
    let own = rules.iter().filter_map(|rule| rule.split(' ').nth(1));
    let own: BTreeSet<&str> = own.filter(|chain| chains.iter().any(|own| chain.starts_with(own))).collect();
    let there = found(part, saved, false);
    let mut lines: Vec<String> = there.rules.iter().map(|rule| format!("-D {rule}")).collect();
    let gone = || there.chains.iter().filter(|chain| !own.contains(*chain));
    lines.extend(gone().map(|chain| format!("-F {chain}")));
    lines.extend(gone().map(|chain| format!("-X {chain}")));
    // Named so, a chain of somebody's own is made, or emptied if it is there.
    lines.extend(own.iter().map(|chain| format!(":{chain} - [0:0]")));
    lines.extend(rules);
    (!lines.is_empty()).then(|| format!("*{table}\n{}\nCOMMIT\n", lines.join("\n")))
}

/// Its table of nftables, which marks what is translated, in the place of what there is of it; `None` if nothing is.
pub fn table(node: &Node) -> Option<String> {
    let Node { prefix, vpc, excluded, policy, .. } = node;
    let bits = policy.marks.connmark();
    let to = |net: &Ipv4Net| if net.prefix_len() == 0 { String::new() } else { format!("ip daddr {net} ") };
    let leave: String = vpc.iter().chain(excluded).map(|net| format!("        counter {}return\n", to(net))).collect();
    let is_there = policy.of_vpc.contains(&Family::V4) && policy.translation != Translation::External;
    is_there.then(|| {
        format!(
            "table ip {TABLE} {{}}
delete table ip {TABLE}
table ip {TABLE} {{
    chain snat-mark {{
{leave}        counter ct mark set ct mark | {bits:#x}
    }}
    chain nat-prerouting {{
        type nat hook prerouting priority dstnat + 10; policy accept;
        fib daddr type local return
        iifname \"{prefix}*\" counter jump snat-mark
        counter meta mark set ct mark & {bits:#x}
    }}
}}
"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::takeover::chains::{PARTS, SAVED, removal};

    const NFT: (Backend, Family) = (Backend::Nft, Family::V4);

    fn node() -> Node {
        Node {
            primary_ifname: "eth0".to_owned(),
            primary: Ipv4Addr::new(10, 0, 64, 10),
            prefix: "eni".to_owned(),
            vpc: vec!["10.0.0.0/16".parse().unwrap()],
            excluded: Vec::new(),
            policy: Policy::default(),
            egress: None,
        }
    }

    #[test]
    fn what_is_put_back_is_what_was_saved() {
        let saved_of = |part: Part| {
            let saved = replacement(part, (Backend::Legacy, Family::V4), "", &node()).unwrap();
            assert!(removal(part, &saved, false).is_some(), "it is found again: {saved}");
            assert_eq!(found(part, &saved, false).rules, found(part, SAVED, false).rules);
            saved
        };
        let restored: String = [Part::Snat, Part::Connmark, Part::Mangle].into_iter().map(saved_of).collect();
        let rules = |text: &str| {
            let rules = text.lines().filter(|line| line.starts_with("-A ") && line.contains("AWS"));
            rules.map(str::to_owned).collect::<std::collections::BTreeSet<_>>()
        };
        let missing = "-A AWS-CONNMARK-CHAIN-0 -d 10.0.0.0/16 -m comment --comment \"AWS CONNMARK CHAIN\" -j RETURN";
        let mut expected = rules(SAVED);
        expected.insert(missing.to_owned());
        assert_eq!(rules(&restored), expected);
        assert_eq!(replacement(Part::Connmark, NFT, "", &node()), None, "a table of nftables does it");
        assert_eq!(replacement(Part::Forward, NFT, "", &node()), None);
        assert!(
            table(&node())
                .unwrap()
                .contains("        counter ip daddr 10.0.0.0/16 return\n        counter ct mark set")
        );
    }

    #[test]
    fn what_an_interrupted_run_has_put_back_is_replaced() {
        let once = replacement(Part::Snat, NFT, "", &node()).unwrap();
        let again = replacement(Part::Snat, NFT, &once, &node()).unwrap();
        let (removed, added): (Vec<&str>, Vec<&str>) = again.lines().partition(|line| line.starts_with("-D "));
        assert_eq!(removed, ["-D POSTROUTING -m comment --comment \"AWS SNAT CHAIN\" -j AWS-SNAT-CHAIN-0"]);
        assert_eq!(added.join("\n"), once.trim_end());
    }

    #[test]
    fn chains_are_made_as_the_settings_say() {
        let mut node = node();
        node.excluded = vec!["192.168.0.0/16".parse().unwrap(), "0.0.0.0/0".parse().unwrap()];
        node.policy.translation = Translation::Here(Ports::Kept);
        let snat = replacement(Part::Snat, NFT, "", &node).unwrap();
        assert!(
            snat.contains("-A AWS-SNAT-CHAIN-0 -d 192.168.0.0/16 -m comment --comment \"AWS SNAT CHAIN EXCLUSION\"")
        );
        assert!(snat.contains("-A AWS-SNAT-CHAIN-0 -m comment --comment \"AWS SNAT CHAIN EXCLUSION\" -j RETURN"));
        assert!(snat.contains("--to-source 10.0.64.10\n"), "{snat}");
        node.policy.translation = Translation::External;
        assert_eq!((replacement(Part::Snat, NFT, "", &node), table(&node)), (None, None));
        assert_eq!(replacement(Part::Mangle, NFT, "", &node).unwrap().matches("-A ").count(), 3);
        node.policy.node_ports = NodePorts::Off;
        assert_eq!(replacement(Part::Mangle, NFT, "", &node), None);
    }

    /// A chain of a pod that has gone since an interrupted run goes; the others are made anew.
    #[test]
    fn each_pod_gets_its_way_out_in_the_other_family() {
        let pods = vec![("sandbox-pod-0".to_owned(), "169.254.172.2".parse().unwrap())];
        let egress =
            Egress { range: "169.254.172.0/22".parse().unwrap(), own: Ipv4Addr::new(10, 0, 64, 10).into(), pods };
        let mut node = Node { egress: Some(egress), ..node() };
        node.policy.of_vpc = [Family::V6].into();
        let made = replacement(Part::Egress, NFT, "", &node).unwrap();
        // As it is saved (aws-vpc-cni 1.23.1).
        let expected = r#"*nat
:CNI-E4-7d33c36ee843d69b2cecb - [0:0]
-A CNI-E4-7d33c36ee843d69b2cecb -d 224.0.0.0/4 -m comment --comment "name: \"aws-cni\" id: \"sandbox-pod-0\"" -j ACCEPT
-A CNI-E4-7d33c36ee843d69b2cecb -m comment --comment "name: \"aws-cni\" id: \"sandbox-pod-0\"" -j SNAT --to-source 10.0.64.10 --random-fully
-A POSTROUTING -s 169.254.172.2/32 -m comment --comment "name: \"aws-cni\" id: \"sandbox-pod-0\"" -j CNI-E4-7d33c36ee843d69b2cecb
COMMIT
"#;
        assert_eq!(made, expected);
        let forward = replacement(Part::Forward, NFT, "", &node).unwrap();
        assert!(removal(Part::Forward, &forward.replace("-I ", "-A "), false).is_some(), "{forward}");
        for part in PARTS {
            assert_eq!(replacement(part, (Backend::Nft, Family::V6), "", &node), None, "{part:?}");
        }
        assert_eq!((replacement(Part::Snat, NFT, "", &node), table(&node)), (None, None), "of clusters of IPv4");
        let gone = "CNI-E4-98203bc2ef9714fe1cdf2";
        let saved =
            made.replace("COMMIT", &format!(":{gone} - [0:0]\n-A POSTROUTING -s 169.254.172.3/32 -j {gone}\nCOMMIT"));
        let again = replacement(Part::Egress, NFT, &saved, &node).unwrap();
        let (removed, added): (Vec<&str>, Vec<&str>) =
            again.lines().partition(|line| line.starts_with(['-', '*']) && !line.starts_with("-A"));
        assert_eq!(removed.len(), 5, "{removed:?}");
        assert!(removed.contains(&format!("-X {gone}").as_str()), "{removed:?}");
        assert_eq!(format!("*nat\n{}\n", added.join("\n")), made);
        node.egress.as_mut().unwrap().pods.clear();
        assert!(replacement(Part::Egress, NFT, &made, &node).unwrap().contains("-X CNI-E4-7d33"));
    }
}
