//! The one nftables table, `ip enid`, as text.
//!
//! It is replaced whole, in one transaction, whenever what it holds has changed; its size depends on
//! ENIs and their addresses, never on pods. The comment carries a digest of the text, for people.

use std::{collections::BTreeMap, fmt::Write, net::Ipv4Addr};

use ipnet::Ipv4Net;
use sha2::{Digest, Sha256};

use crate::{
    marks,
    policy::{NodePorts, Policy, Ports, Translation},
};

/// All that the table is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    /// Link of the primary ENI.
    pub primary_ifname: String,
    /// The address that pods' traffic leaves the VPC with.
    pub primary_address: Ipv4Addr,
    /// Destinations that see the pod's own address: the VPC's CIDRs and the excluded ones.
    pub native: Vec<Ipv4Net>,
    /// What the operator wants.
    pub policy: Policy,
    /// Per slot, the addresses that EC2 put on that ENI for pods.
    pub owner: BTreeMap<u32, Vec<Ipv4Net>>,
}

impl Ruleset {
    /// The transaction that puts the table in place of any earlier one, which had counted so many packets
    /// and bytes for nobody.
    pub fn transaction(&self, unheld: (u64, u64)) -> String {
        format!("table ip enid\ndelete table ip enid\n{}", self.text(&self.digest(), unheld))
    }

    /// What the table's comment says when the kernel holds exactly this.
    pub fn digest(&self) -> String {
        digest(self.text("", (0, 0)).as_bytes())
    }

    fn text(&self, digest: &str, (packets, bytes): (u64, u64)) -> String {
        let Ruleset { primary_ifname: link, native, owner, policy, .. } = self;
        let mut text = format!("table ip enid {{\n  comment \"{digest}\"\n");
        let mut native: Vec<Ipv4Net> = Ipv4Net::aggregate(native);
        native.sort();
        // NAT decisions per connection: a set of destinations, merged so that none overlaps.
        block(
            &mut text,
            "set native",
            "type ipv4_addr; flags interval;",
            &native.iter().map(|net| net.to_string()).collect::<Vec<_>>(),
        );
        let groups: Vec<String> =
            owner.keys().map(|slot| format!("{:#x} : goto eni{slot}", marks::group(*slot))).collect();
        let owners: Vec<String> = owner
            .iter()
            .flat_map(|(slot, nets)| nets.iter().map(move |net| format!("{net} : goto host{slot}")))
            .collect();
        let pool: Vec<String> = owner.values().flatten().map(|net| net.to_string()).collect();
        let mut chains = String::new();
        for slot in owner.keys() {
            chains.push_str(&self.eni_chain("eni", *slot));
            chains.push_str(&self.eni_chain("host", *slot));
        }
        // A verdict map may only name chains that are known already.
        text.push_str(&chains);
        block(&mut text, "map eni", "type devgroup : verdict;", &groups);
        block(&mut text, "map owner", "type ipv4_addr : verdict; flags interval;", &owners);
        block(&mut text, "set pool", "type ipv4_addr; flags interval;", &pool);
        let _ = writeln!(text, "  counter unheld {{ packets {packets} bytes {bytes} }}");
        if policy.node_ports == NodePorts::SameWayBack {
            let bits = policy.marks.connmark();
            let rule = format!(r#"iifname "{link}" fib daddr type local ct mark set ct mark | {bits:#x}"#);
            chain(&mut text, "arrive", "filter hook prerouting priority mangle", &[&rule]);
        }
        chain(&mut text, "steer", "filter hook prerouting priority -50", &["iifgroup vmap @eni"]);
        chain(&mut text, "leave", "route hook output priority mangle", &["ip saddr vmap @owner"]);
        let drop = "ip daddr @pool oifgroup 0 counter name unheld drop";
        chain(&mut text, "unheld", "filter hook forward priority filter", &[drop]);
        // The chain stays when nothing is translated any more: with the last one of its type the kernel would stop
        // translating what runs.
        let how = match policy.translation {
            Translation::Elsewhere => None,
            Translation::Here(Ports::FullyRandom) => Some(" fully-random"),
            Translation::Here(Ports::Hashed) => Some(" random"),
            Translation::Here(Ports::Kept) => Some(""),
        };
        let rules = how.map(|how| {
            let own = format!(r#"oifname "{link}" fib saddr type local return"#);
            [own, format!(r#"oifname "{link}" ip daddr != @native snat to {}{how}"#, self.primary_address)]
        });
        let rules: Vec<&str> = rules.iter().flatten().map(String::as_str).collect();
        chain(&mut text, "egress", "nat hook postrouting priority srcnat + 1", &rules);
        text.push_str("}\n");
        text
    }
}

impl Ruleset {
    /// Picks the ENI of a packet that a pod behind this slot sent itself (`eni`), or the host in its name (`host`).
    fn eni_chain(&self, who: &str, slot: u32) -> String {
        let policy = &self.policy;
        let (marks, keep) = (policy.marks, !policy.marks.eni_mask());
        // A foreign mark must not pick an ENI.
        let unmarked = format!("meta mark set meta mark & {keep:#x}");
        let to_eni = format!("{unmarked} | {:#x}", marks.eni(slot));
        let mut rules = Vec::new();
        if slot != 0 {
            if policy.node_ports == NodePorts::SameWayBack {
                // Came in by the primary: same way back.
                let bits = marks.connmark();
                rules.push(format!("ct mark & {bits:#x} == {bits:#x} {unmarked} | {bits:#x} return"));
            }
            // Translated here when the settings or the VPC were others: it goes on as it began, by the primary.
            rules.push(format!("ct direction original ct reply ip daddr {} {unmarked} return", self.primary_address));
            match policy.translation {
                // Somebody behind the ENI translates.
                Translation::Elsewhere => rules.push(format!("{to_eni} return")),
                // Opened towards the pod's own address, or towards the VPC: by the pod's ENI. The rest leaves by main,
                // that is by the primary, and is translated there.
                Translation::Here(_) => {
                    rules.push(format!("ct direction reply {to_eni} return"));
                    rules.push(format!("ip daddr @native {to_eni} return"));
                    // Began untranslated, by the settings or the VPC of that time, and would leave by the primary with
                    // an address that is not the primary's: it goes on as it began, too. The kernel answers which way
                    // a packet would leave (fib) only where packets come in.
                    if who == "eni" {
                        let began = format!(r#"ct state established fib daddr oifname "{}""#, self.primary_ifname);
                        rules.push(format!("{began} {to_eni} return"));
                    }
                }
            }
        }
        rules.push(unmarked);
        format!("  chain {who}{slot} {{\n    {}\n  }}\n", rules.join("\n    "))
    }
}

/// A base chain that accepts what its rules leave alone.
fn chain(text: &mut String, name: &str, hook: &str, rules: &[&str]) {
    let _ = writeln!(text, "  chain {name} {{\n    type {hook}; policy accept;");
    for rule in rules {
        let _ = writeln!(text, "    {rule}");
    }
    text.push_str("  }\n");
}

/// 16 hex digits that stand for a text.
pub fn digest(text: &[u8]) -> String {
    Sha256::digest(text).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn block(text: &mut String, head: &str, kind: &str, elements: &[String]) {
    let _ = writeln!(text, "  {head} {{\n    {kind}");
    if !elements.is_empty() {
        let _ = writeln!(text, "    elements = {{ {} }}", elements.join(", "));
    }
    text.push_str("  }\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Ruleset {
        Ruleset {
            primary_ifname: "eth0".to_owned(),
            primary_address: Ipv4Addr::new(10, 0, 1, 10),
            policy: Policy::default(),
            native: vec!["10.0.0.0/16".parse().unwrap(), "10.0.4.0/24".parse().unwrap()],
            owner: BTreeMap::from([
                (0, vec!["10.0.1.13/32".parse().unwrap()]),
                (1, vec!["10.0.1.20/32".parse().unwrap(), "10.0.2.0/28".parse().unwrap()]),
            ]),
        }
    }

    #[test]
    fn overlapping_destinations_are_merged() {
        assert!(example().transaction((0, 0)).contains("elements = { 10.0.0.0/16 }"));
    }

    #[test]
    fn the_digest_follows_the_content() {
        let (one, mut two) = (example(), example());
        assert_eq!(one.digest(), two.digest());
        two.owner.insert(2, vec![]);
        assert_ne!(one.digest(), two.digest());
        assert!(one.transaction((7, 588)).contains(&format!("comment \"{}\"", one.digest())));
    }

    #[test]
    fn who_translates_elsewhere_sees_every_packet_by_its_own_eni() {
        let policy = Policy { translation: Translation::Elsewhere, ..Policy::default() };
        let text = Ruleset { policy, ..example() }.transaction((0, 0));
        assert!(!text.contains("snat to") && !text.contains("ip daddr @native"), "{text}");
        let ports = |ports| {
            let policy = Policy { translation: Translation::Here(ports), ..Policy::default() };
            Ruleset { policy, ..example() }.transaction((0, 0))
        };
        assert!(ports(Ports::Hashed).contains("snat to 10.0.1.10 random\n"));
        assert!(ports(Ports::Kept).contains("snat to 10.0.1.10\n"));
    }

    #[test]
    fn without_node_ports_nothing_is_remembered() {
        let policy = Policy { node_ports: NodePorts::Off, ..Policy::default() };
        let text = Ruleset { policy, ..example() }.transaction((0, 0));
        assert!(!text.contains("ct mark") && !text.contains("chain arrive"), "{text}");
    }

    #[test]
    fn every_slot_has_its_chain_before_the_map_that_names_it() {
        let text = example().transaction((0, 0));
        for needle in ["chain eni0", "chain eni1"] {
            assert!(text.find(needle).unwrap() < text.find("map eni {").unwrap());
        }
    }
}
