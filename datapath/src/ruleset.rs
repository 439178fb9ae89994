//! The one nftables table, `ip enid`, as text.
//!
//! It is replaced whole, in one transaction, whenever what it holds has changed; its size depends on
//! ENIs and their addresses, never on pods. The comment carries a digest of the text, for people.

use std::{collections::BTreeMap, fmt::Write, net::Ipv4Addr};

use ipnet::Ipv4Net;
use sha2::{Digest, Sha256};

use crate::marks;

/// All that the table is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    /// Link of the primary ENI.
    pub primary_ifname: String,
    /// The address that pods' traffic leaves the VPC with.
    pub primary_address: Ipv4Addr,
    /// Destinations that see the pod's own address: the VPC's CIDRs and the excluded ones.
    pub native: Vec<Ipv4Net>,
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
        let Ruleset { primary_ifname: link, primary_address, native, owner } = self;
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
            .flat_map(|(slot, nets)| nets.iter().map(move |net| format!("{net} : goto eni{slot}")))
            .collect();
        let pool: Vec<String> = owner.values().flatten().map(|net| net.to_string()).collect();
        let mut chains = String::new();
        for slot in owner.keys() {
            chains.push_str(&eni_chain(*slot));
        }
        // A verdict map may only name chains that are known already.
        text.push_str(&chains);
        block(&mut text, "map eni", "type devgroup : verdict;", &groups);
        block(&mut text, "map owner", "type ipv4_addr : verdict; flags interval;", &owners);
        block(&mut text, "set pool", "type ipv4_addr; flags interval;", &pool);
        let _ = write!(
            text,
            r#"  counter unheld {{ packets {packets} bytes {bytes} }}
  chain arrive {{
    type filter hook prerouting priority mangle; policy accept;
    iifname "{link}" fib daddr type local ct mark set ct mark | {connmark:#x}
  }}
  chain steer {{
    type filter hook prerouting priority -50; policy accept;
    iifgroup vmap @eni
  }}
  chain leave {{
    type route hook output priority mangle; policy accept;
    ip saddr vmap @owner
  }}
  chain unheld {{
    type filter hook forward priority filter; policy accept;
    ip daddr @pool oifgroup 0 counter name unheld drop
  }}
  chain egress {{
    type nat hook postrouting priority srcnat + 1; policy accept;
    oifname "{link}" fib saddr type local return
    oifname "{link}" ip daddr != @native snat to {primary_address} fully-random
  }}
}}
"#,
            connmark = marks::CONNMARK,
        );
        text
    }
}

/// 16 hex digits that stand for a text.
pub fn digest(text: &[u8]) -> String {
    Sha256::digest(text).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn eni_chain(slot: u32) -> String {
    let keep = !marks::ENI_MASK;
    if slot == 0 {
        // A foreign mark must not pick an ENI.
        return format!("  chain eni0 {{\n    meta mark set meta mark & {keep:#x}\n  }}\n");
    }
    let (mark, connmark) = (marks::mark(slot), marks::CONNMARK);
    // Came in by the primary: same way back. Opened towards the pod's own address, or towards the VPC:
    // by the pod's ENI. The rest leaves by main, that is by the primary, and is SNATed there.
    format!(
        "  chain eni{slot} {{
    ct mark & {connmark:#x} == {connmark:#x} meta mark set meta mark & {keep:#x} | {connmark:#x} return
    ct direction reply meta mark set meta mark & {keep:#x} | {mark:#x} return
    ip daddr @native meta mark set meta mark & {keep:#x} | {mark:#x} return
    meta mark set meta mark & {keep:#x}
  }}
"
    )
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
    fn every_slot_has_its_chain_before_the_map_that_names_it() {
        let text = example().transaction((0, 0));
        for needle in ["chain eni0", "chain eni1"] {
            assert!(text.find(needle).unwrap() < text.find("map eni {").unwrap());
        }
    }
}
