//! The chains and rules of iptables that Amazon's VPC CNI has, found among all others by their comments and names; and as its
//! daemon makes them.

use std::net::Ipv4Addr;

use enid_datapath::policy::{NodePorts, Policy, Ports, Translation};
use ipnet::Ipv4Net;

use crate::host::xtables::Backend;

/// Which of them go together, in this order: what is translated is so by ours from then on; the mark by which its rule
/// 1024 sends packets stays until its rules for pods have gone; the answers to node ports come last.
pub const PARTS: [Part; 5] = [Part::Snat, Part::Egress, Part::Connmark, Part::Mangle, Part::Forward];

/// Its table of nftables, in which it marks what is translated where the older iptables does not.
pub const TABLE: &str = "aws-cni";

/// One part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What translates.
    Snat,
    /// What translates addresses that only the node knows, a chain for each pod.
    Egress,
    /// What marks connections that are translated, where its table `ip aws-cni` does not.
    Connmark,
    /// What marks connections that come in by the primary ENI.
    Mangle,
    /// What keeps pods from reaching one another by addresses that only the node knows.
    Forward,
}

/// How its chains begin.
const SNAT: &str = "AWS-SNAT-CHAIN-";
const CONNMARK: &str = "AWS-CONNMARK-CHAIN-";
/// In rules for links of pods with ENIs of their own.
const OF_BRANCHES: &str = " -i vlan+ ";

struct Kind {
    table: &'static str,
    /// Chains of its own.
    chains: &'static [&'static str],
    /// Comments of its rules in chains that are everybody's.
    comments: &'static [&'static str],
}

impl Part {
    fn kind(self) -> Kind {
        match self {
            Part::Snat => Kind { table: "nat", chains: &[SNAT], comments: &["AWS SNAT CHAIN"] },
            Part::Egress => Kind { table: "nat", chains: &["CNI-E4-", "CNI-E6-"], comments: &[] },
            Part::Connmark => {
                Kind { table: "nat", chains: &[CONNMARK], comments: &["AWS, outbound connections", "AWS, CONNMARK"] }
            }
            Part::Mangle => Kind { table: "mangle", chains: &[], comments: &["AWS, primary ENI"] },
            Part::Forward => Kind {
                table: "filter",
                chains: &[],
                comments: &["Block Node Local Pod access via IPv4", "Block Node Local Pod access via IPv6"],
            },
        }
    }
}

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
}

/// Its rules of one part, as the arguments of `iptables -A`.
fn rules(part: Part, backend: Backend, node: &Node) -> Vec<String> {
    let Node { primary_ifname, primary, prefix, vpc, excluded, policy } = node;
    let bits = format!("{:#x}", policy.marks.connmark());
    let restore = format!("-j CONNMARK --restore-mark --nfmask {bits} --ctmask {bits}");
    let (ports, node_ports) = (policy.translation, policy.node_ports == NodePorts::SameWayBack);
    let here = ports != Translation::External;
    let to = |net: &Ipv4Net| if net.prefix_len() == 0 { String::new() } else { format!(" -d {net}") };
    let mut rules = Vec::new();
    match part {
        Part::Mangle => {
            let comment = "-m comment --comment \"AWS, primary ENI\"";
            if node_ports {
                rules.push(format!("PREROUTING -i {primary_ifname} {comment} -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-xmark {bits}/{bits}"));
            }
            let links = [(prefix.as_str(), node_ports || here), ("vlan", node_ports)];
            let links = links.iter().filter(|(_, is_there)| *is_there);
            rules.extend(links.map(|(links, _)| format!("PREROUTING -i {links}+ {comment} {restore}")));
        }
        Part::Snat if here => {
            let chain = format!("{SNAT}0");
            let leave = |comment: &'static str| {
                let chain = chain.clone();
                move |net: &Ipv4Net| format!("{chain}{} -m comment --comment \"{comment}\" -j RETURN", to(net))
            };
            rules.extend(vpc.iter().map(leave("AWS SNAT CHAIN")));
            rules.extend(excluded.iter().map(leave("AWS SNAT CHAIN EXCLUSION")));
            let flag = match ports {
                Translation::Here(Ports::FullyRandom) => " --random-fully",
                Translation::Here(Ports::Hashed) => " --random",
                _ => "",
            };
            rules.push(format!("{chain} ! -o vlan+ -m comment --comment \"AWS, SNAT\" -m addrtype ! --dst-type LOCAL -j SNAT --to-source {primary}{flag}"));
            rules.push(format!("POSTROUTING -m comment --comment \"AWS SNAT CHAIN\" -j {chain}"));
        }
        // Elsewhere a table of nftables does it.
        Part::Connmark if here && backend == Backend::Legacy => {
            let chain = format!("{CONNMARK}0");
            let exempt = vpc.iter().chain(excluded);
            let leave =
                |net: &Ipv4Net| format!("{chain}{} -m comment --comment \"AWS CONNMARK CHAIN\" -j RETURN", to(net));
            rules.extend(exempt.map(leave));
            rules.push(format!("{chain} -m comment --comment \"AWS, CONNMARK\" -j CONNMARK --set-xmark {bits}/{bits}"));
            rules
                .push(format!("PREROUTING -i {prefix}+ -m comment --comment \"AWS, outbound connections\" -j {chain}"));
            rules.push(format!("PREROUTING -m comment --comment \"AWS, CONNMARK\" {restore}"));
        }
        Part::Snat | Part::Egress | Part::Connmark | Part::Forward => {}
    }
    rules
}

/// The lines for `iptables-restore` that put one part in place, instead of what is saved of it; `None` if there is nothing to
/// do.
pub fn replacement(part: Part, backend: Backend, saved: &str, node: &Node) -> Option<String> {
    let rules = rules(part, backend, node);
    let Kind { table, chains, .. } = part.kind();
    let mut lines: Vec<String> = found(part, saved, false).rules.iter().map(|rule| format!("-D {rule}")).collect();
    // Named so, a chain of somebody's own is made, or emptied if it is there.
    let is_own = |rule: &&String| chains.iter().any(|own| rule.starts_with(own));
    let is_made = rules.iter().any(|rule| is_own(&rule));
    lines.extend(chains.iter().filter(|_| is_made).map(|own| format!(":{own}0 - [0:0]")));
    lines.extend(rules.iter().map(|rule| format!("-A {rule}")));
    (!lines.is_empty()).then(|| format!("*{table}\n{}\nCOMMIT\n", lines.join("\n")))
}

/// Its table of nftables, which marks what is translated, in the place of what there is of it; `None` if nothing is.
pub fn table(node: &Node) -> Option<String> {
    let Node { prefix, vpc, excluded, policy, .. } = node;
    let bits = policy.marks.connmark();
    let to = |net: &Ipv4Net| if net.prefix_len() == 0 { String::new() } else { format!("ip daddr {net} ") };
    let leave: String = vpc.iter().chain(excluded).map(|net| format!("        counter {}return\n", to(net))).collect();
    (policy.translation != Translation::External).then(|| {
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

/// What of one part is in what is saved.
struct Own<'a> {
    /// Rules in chains that are everybody's.
    rules: Vec<&'a str>,
    /// Chains that are its own.
    chains: Vec<&'a str>,
}

fn found(part: Part, saved: &str, branches: bool) -> Own<'_> {
    let Kind { table, chains, comments } = part.kind();
    let of_table = saved.lines().skip_while(|line| *line != format!("*{table}")).skip(1);
    let lines: Vec<&str> = of_table.take_while(|line| *line != "COMMIT").collect();
    let is_own = |chain: &str| chains.iter().any(|own| chain.starts_with(own));
    let own = lines.iter().filter_map(|line| line.strip_prefix(':')?.split(' ').next()).filter(|chain| is_own(chain));
    let chains: Vec<&str> = own.collect();
    // What its own chains hold goes with them.
    let rules = lines.iter().filter_map(|line| line.strip_prefix("-A ")).filter(|rule| {
        let chain = rule.split(' ').next().unwrap_or_default();
        let has = |comment: &&str| rule.contains(&format!("--comment \"{comment}\""));
        let leads_there = rule.split(' ').skip_while(|word| *word != "-j").nth(1).is_some_and(is_own);
        let stays = branches && rule.contains(OF_BRANCHES);
        !stays && !is_own(chain) && (leads_there || comments.iter().any(has))
    });
    Own { rules: rules.collect(), chains }
}

/// The lines for `iptables-restore` that remove one part of what is saved; `None` if there is nothing of it. `branches`: pods
/// with ENIs of their own run, and keep what is theirs.
pub fn removal(part: Part, saved: &str, branches: bool) -> Option<String> {
    let Own { rules, chains } = found(part, saved, branches);
    let mut removal: Vec<String> = rules.iter().map(|rule| format!("-D {rule}")).collect();
    removal.extend(chains.iter().map(|chain| format!("-F {chain}")));
    removal.extend(chains.iter().map(|chain| format!("-X {chain}")));
    (!removal.is_empty()).then(|| format!("*{}\n{}\nCOMMIT\n", part.kind().table, removal.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = r#"# Generated by iptables-save
*mangle
:PREROUTING ACCEPT [321:70824]
-A PREROUTING -i eth0 -m comment --comment "AWS, primary ENI" -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-xmark 0x80/0x80
-A PREROUTING -i eni+ -m comment --comment "AWS, primary ENI" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
-A PREROUTING -i vlan+ -m comment --comment "AWS, primary ENI" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
-A PREROUTING -i eth0 -m comment --comment "somebody's" -j ACCEPT
COMMIT
*nat
:PREROUTING ACCEPT [1:128]
:POSTROUTING ACCEPT [5:292]
:AWS-CONNMARK-CHAIN-0 - [0:0]
:AWS-SNAT-CHAIN-0 - [0:0]
:KUBE-POSTROUTING - [0:0]
-A PREROUTING -i eni+ -m comment --comment "AWS, outbound connections" -j AWS-CONNMARK-CHAIN-0
-A PREROUTING -m comment --comment "AWS, CONNMARK" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A POSTROUTING -m comment --comment "AWS SNAT CHAIN" -j AWS-SNAT-CHAIN-0
-A AWS-CONNMARK-CHAIN-0 -m comment --comment "AWS, CONNMARK" -j CONNMARK --set-xmark 0x80/0x80
-A AWS-SNAT-CHAIN-0 -d 10.0.0.0/16 -m comment --comment "AWS SNAT CHAIN" -j RETURN
-A AWS-SNAT-CHAIN-0 ! -o vlan+ -m comment --comment "AWS, SNAT" -m addrtype ! --dst-type LOCAL -j SNAT --to-source 10.0.64.10 --random-fully
COMMIT
"#;

    #[test]
    fn its_rules_and_chains_go_and_no_others() {
        assert_eq!(
            removal(Part::Snat, SAVED, false).unwrap(),
            "*nat\n-D POSTROUTING -m comment --comment \"AWS SNAT CHAIN\" -j AWS-SNAT-CHAIN-0\n\
             -F AWS-SNAT-CHAIN-0\n-X AWS-SNAT-CHAIN-0\nCOMMIT\n"
        );
        let connmark = removal(Part::Connmark, SAVED, false).unwrap();
        assert!(connmark.matches("-D PREROUTING").count() == 2 && connmark.contains("-X AWS-CONNMARK-CHAIN-0"));
        assert!(!connmark.contains("SNAT"), "{connmark}");
        let mangle = removal(Part::Mangle, SAVED, false).unwrap();
        assert!(mangle.starts_with("*mangle\n-D PREROUTING -i eth0 -m comment --comment \"AWS, primary ENI\""));
        assert!(mangle.matches("-D ").count() == 3 && !mangle.contains("somebody"), "{mangle}");
        let with_branches = removal(Part::Mangle, SAVED, true).unwrap();
        assert!(with_branches.matches("-D ").count() == 2 && !with_branches.contains("vlan"), "{with_branches}");
        assert_eq!(removal(Part::Forward, SAVED, false), None);
    }

    fn node() -> Node {
        Node {
            primary_ifname: "eth0".to_owned(),
            primary: Ipv4Addr::new(10, 0, 64, 10),
            prefix: "eni".to_owned(),
            vpc: vec!["10.0.0.0/16".parse().unwrap()],
            excluded: Vec::new(),
            policy: Policy::default(),
        }
    }

    #[test]
    fn what_is_put_back_is_what_was_saved() {
        let saved_of = |part: Part| {
            let saved = replacement(part, Backend::Legacy, "", &node()).unwrap();
            assert!(removal(part, &saved, false).is_some(), "it is found again: {saved}");
            assert_eq!(found(part, &saved, false).rules, found(part, SAVED, false).rules);
            saved
        };
        let put_back: String = [Part::Snat, Part::Connmark, Part::Mangle].into_iter().map(saved_of).collect();
        let rules = |text: &str| {
            let rules = text.lines().filter(|line| line.starts_with("-A ") && line.contains("AWS"));
            rules.map(str::to_owned).collect::<std::collections::BTreeSet<_>>()
        };
        let missing = "-A AWS-CONNMARK-CHAIN-0 -d 10.0.0.0/16 -m comment --comment \"AWS CONNMARK CHAIN\" -j RETURN";
        let mut expected = rules(SAVED);
        expected.insert(missing.to_owned());
        assert_eq!(rules(&put_back), expected);
        assert_eq!(replacement(Part::Connmark, Backend::Nft, "", &node()), None, "a table of nftables does it");
        assert_eq!(replacement(Part::Forward, Backend::Nft, "", &node()), None);
        assert!(
            table(&node())
                .unwrap()
                .contains("        counter ip daddr 10.0.0.0/16 return\n        counter ct mark set")
        );
    }

    #[test]
    fn what_an_interrupted_run_has_put_back_is_replaced() {
        let once = replacement(Part::Snat, Backend::Nft, "", &node()).unwrap();
        let again = replacement(Part::Snat, Backend::Nft, &once, &node()).unwrap();
        let (removed, added): (Vec<&str>, Vec<&str>) = again.lines().partition(|line| line.starts_with("-D "));
        assert_eq!(removed, ["-D POSTROUTING -m comment --comment \"AWS SNAT CHAIN\" -j AWS-SNAT-CHAIN-0"]);
        assert_eq!(added.join("\n"), once.trim_end());
    }

    #[test]
    fn chains_are_made_as_the_settings_say() {
        let mut node = node();
        node.excluded = vec!["192.168.0.0/16".parse().unwrap(), "0.0.0.0/0".parse().unwrap()];
        node.policy.translation = Translation::Here(Ports::Kept);
        let snat = replacement(Part::Snat, Backend::Nft, "", &node).unwrap();
        assert!(
            snat.contains("-A AWS-SNAT-CHAIN-0 -d 192.168.0.0/16 -m comment --comment \"AWS SNAT CHAIN EXCLUSION\"")
        );
        assert!(snat.contains("-A AWS-SNAT-CHAIN-0 -m comment --comment \"AWS SNAT CHAIN EXCLUSION\" -j RETURN"));
        assert!(snat.contains("--to-source 10.0.64.10\n"), "{snat}");
        node.policy.translation = Translation::External;
        assert_eq!((replacement(Part::Snat, Backend::Nft, "", &node), table(&node)), (None, None));
        assert_eq!(replacement(Part::Mangle, Backend::Nft, "", &node).unwrap().matches("-A ").count(), 3);
        node.policy.node_ports = NodePorts::Off;
        assert_eq!(replacement(Part::Mangle, Backend::Nft, "", &node), None);
    }

    #[test]
    fn a_pods_way_out_in_the_other_family_goes_with_its_chain() {
        let saved = r#"*nat
:CNI-E4-7d33c36ee843d69b2cecb - [0:0]
:CNI-DN-7d33c36ee843d69b2cecb - [0:0]
-A POSTROUTING -s 169.254.172.2/32 -m comment --comment "name: \"aws-cni\" id: \"sandbox-pod-0\"" -j CNI-E4-7d33c36ee843d69b2cecb
-A CNI-E4-7d33c36ee843d69b2cecb -d 224.0.0.0/4 -j ACCEPT
-A CNI-E4-7d33c36ee843d69b2cecb -j SNAT --to-source 10.0.64.10 --random-fully
COMMIT
"#;
        let gone = removal(Part::Egress, saved, false).unwrap();
        assert!(gone.starts_with("*nat\n-D POSTROUTING -s 169.254.172.2/32 -m comment"), "{gone}");
        assert!(gone.ends_with("-F CNI-E4-7d33c36ee843d69b2cecb\n-X CNI-E4-7d33c36ee843d69b2cecb\nCOMMIT\n"), "{gone}");
        assert!(!gone.contains("CNI-DN"), "portmap's is not its own");
    }

    #[test]
    fn nothing_is_left_to_do_where_nothing_is() {
        for part in PARTS {
            assert_eq!(removal(part, "", false), None);
            assert_eq!(removal(part, "*nat\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n", false), None);
        }
    }
}
