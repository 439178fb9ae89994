//! Our nftables tables, `ip enid` and `ip6 enid`, as text.
//!
//! They are replaced whole, in one transaction, whenever what they hold has changed; their size depends on
//! ENIs and their addresses, never on pods. The comment carries a digest of the text, for people.

use std::{
    collections::BTreeMap,
    fmt::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net};
use sha2::{Digest, Sha256};

use crate::{
    family::Family,
    marks,
    policy::{NodePorts, Policy, Ports, Translation},
};

/// Packets and bytes that a table has counted for addresses that no pod holds.
pub type Unheld = (u64, u64);

/// All that the tables are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    /// Link that carries the primary ENI's address.
    pub primary_ifname: String,
    /// Links of the other ENIs, by slot.
    pub secondary_ifnames: BTreeMap<u32, String>,
    /// The address that pods' IPv4 traffic leaves the VPC with.
    pub primary_address: Ipv4Addr,
    /// The address that IPv6 traffic of the node's own range leaves with.
    pub primary_v6: Option<Ipv6Addr>,
    /// Destinations that see the pod's own IPv4 address: the VPC's CIDRs and the excluded ones.
    pub native: Vec<Ipv4Net>,
    /// What the operator wants.
    pub policy: Policy,
    /// Per slot, the addresses that EC2 put on that ENI for pods.
    pub owner: BTreeMap<u32, Vec<IpNet>>,
}

impl Ruleset {
    /// The transaction that puts the tables in place of any earlier ones: `there` says which there are, and what they
    /// have counted.
    pub fn transaction(&self, there: &BTreeMap<Family, Unheld>) -> String {
        let mut text = String::new();
        for family in Family::ALL {
            let table = self.text(family, &self.digest(), there.get(&family).copied().unwrap_or_default());
            if there.contains_key(&family) || table.is_some() {
                let word = family.word();
                let _ = writeln!(text, "table {word} enid\ndelete table {word} enid");
            }
            text.push_str(&table.unwrap_or_default());
        }
        text
    }

    /// What the tables' comments say when the kernel holds exactly this.
    pub fn digest(&self) -> String {
        let text = |family| self.text(family, "", (0, 0)).unwrap_or_default();
        digest(Family::ALL.map(text).concat().as_bytes())
    }

    /// The families that have a table.
    pub fn families(&self) -> Vec<Family> {
        Family::ALL.into_iter().filter(|family| self.text(*family, "", (0, 0)).is_some()).collect()
    }

    fn text(&self, family: Family, digest: &str, unheld: Unheld) -> Option<String> {
        let mut text = format!("table {} enid {{\n  comment \"{digest}\"\n", family.word());
        let range = self.policy.range(family).zip(self.own(family));
        let of_vpc = self.policy.of_vpc.contains(&family);
        if !of_vpc && range.is_none() {
            return None;
        }
        if of_vpc {
            self.of_the_vpc(family, unheld, &mut text);
        }
        if let Some((range, own)) = range {
            if !of_vpc {
                let to_primary = self.set_mark(self.policy.marks.eni(0));
                let by_primary = format!("{} saddr {range} {to_primary}", family.word());
                chain(&mut text, "steer", "filter hook prerouting priority -50", &[by_primary]);
            }
            self.of_the_node(range, own, &mut text);
        }
        text.push_str("}\n");
        Some(text)
    }

    /// The statement that gives a packet these bits in the place of any that name an ENI.
    fn set_mark(&self, bits: u32) -> String {
        format!("meta mark set meta mark & {:#x} | {bits:#x}", !self.policy.marks.eni_mask())
    }

    /// The statement by which a connection that is translated carries our bit, whatever the settings say of node ports: one
    /// that is silent while another daemon takes the node over, or back, goes on as it began.
    fn remember(&self) -> String {
        format!("ct mark set ct mark | {:#x}", self.policy.marks.connmark())
    }

    fn own(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => Some(self.primary_address.into()),
            Family::V6 => self.primary_v6.map(IpAddr::from),
        }
    }

    /// Pods have addresses of the VPC.
    fn of_the_vpc(&self, family: Family, (packets, bytes): Unheld, text: &mut String) {
        let (link, policy) = (&self.primary_ifname, &self.policy);
        let kind = kind(family);
        if family == Family::V4 {
            let mut native: Vec<Ipv4Net> = Ipv4Net::aggregate(&self.native);
            native.sort();
            // NAT decisions per connection: a set of destinations, merged so that none overlaps.
            let native: Vec<String> = native.iter().map(ToString::to_string).collect();
            block(text, "set native", &format!("type {kind}; flags interval;"), &native);
        }
        let slots = || self.owner.keys().copied();
        if policy.node_ports == NodePorts::SameWayBack {
            self.ways_back(text);
        }
        let groups: Vec<String> = slots().map(|slot| format!("{:#x} : goto eni{slot}", marks::group(slot))).collect();
        // A verdict map may only name chains that are known already.
        for slot in slots() {
            text.push_str(&self.eni_chain(family, "eni", slot));
            text.push_str(&self.eni_chain(family, "host", slot));
        }
        block(text, "map eni", "type devgroup : verdict;", &groups);
        let (mut leave, unheld) = self.of_the_pool(family, text);
        let _ = writeln!(text, "  counter unheld {{ packets {packets} bytes {bytes} }}");
        let mut steer = vec!["iifgroup vmap @eni".to_owned()];
        if policy.node_ports == NodePorts::SameWayBack {
            chain(text, "arrive", "filter hook prerouting priority mangle", &self.arrivals());
            // Whoever answers: a pod, the host itself, or a node that it was passed on to.
            let back = format!("ct direction reply ct mark & {:#x} vmap @back", policy.marks.eni_mask());
            steer.push(back.clone());
            leave.push(back);
        }
        chain(text, "steer", "filter hook prerouting priority -50", &steer);
        chain(text, "leave", "route hook output priority mangle", &leave);
        chain(text, "unheld", "filter hook forward priority filter", &unheld);
        if family == Family::V4 {
            // The chain stays when nothing is translated any more: with the last one of its type the kernel would stop
            // translating what runs.
            let rules = ports(policy.translation).map(|ports| {
                let own = format!(r#"oifname "{link}" fib saddr type local return"#);
                let outside = format!(r#"oifname "{link}" ip daddr != @native"#);
                [own, format!("{outside} {} snat to {}{ports}", self.remember(), self.primary_address)]
            });
            let rules: Vec<&str> = rules.iter().flatten().map(String::as_str).collect();
            chain(text, "egress", EGRESS, &rules);
        }
    }

    /// What is asked at an address of the host by an ENI's link is remembered with the connection, by the bits of that
    /// ENI. The primary's bit is also set by what answers the host's own connections.
    fn arrivals(&self) -> Vec<String> {
        let marks = self.policy.marks;
        let (bits, keep) = (marks.connmark(), !marks.eni_mask());
        let primary =
            format!(r#"iifname "{}" fib daddr type local ct mark set ct mark | {bits:#x}"#, self.primary_ifname);
        let of_slot = |(slot, link): (&u32, &String)| {
            let to_eni = marks.eni(*slot);
            let asked = format!(r#"iifname "{link}" ct direction original fib daddr type local"#);
            format!("{asked} ct mark set ct mark & {keep:#x} | {to_eni:#x}")
        };
        [primary].into_iter().chain(self.secondary_ifnames.iter().map(of_slot)).collect()
    }

    /// By which ENI the answers leave, by the bits that the connection has: also by one that cannot be looked at now.
    fn ways_back(&self, text: &mut String) {
        let marks = self.policy.marks;
        let slots = || self.owner.keys().copied().filter(|slot| *slot != 0);
        for slot in slots() {
            let _ = writeln!(text, "  chain back{slot} {{\n    {}\n  }}", self.set_mark(marks.eni(slot)));
        }
        let ways = slots().map(|slot| format!("{:#x} : goto back{slot}", marks.eni(slot)));
        block(text, "map back", "type mark : verdict;", &ways.collect::<Vec<_>>());
    }

    /// The pool's sets, and the rules that ask them: which ENI the host answers by in a pod's name, and which packets
    /// no pod here takes. One hashed set for each length of prefix, which is one or two of them: every forwarded packet
    /// asks, and a set of intervals is searched the longer the more there are.
    fn of_the_pool(&self, family: Family, text: &mut String) -> (Vec<String>, Vec<String>) {
        let (kind, ip) = (kind(family), family.word());
        let nets = self.owner.iter().flat_map(|(slot, nets)| nets.iter().map(move |net| (*slot, *net)));
        let mut by_len: BTreeMap<u8, Vec<(u32, IpNet)>> = BTreeMap::new();
        for (slot, net) in nets.filter(|(_, net)| Family::of(net.addr()) == family) {
            by_len.entry(net.prefix_len()).or_default().push((slot, net));
        }
        let (mut leave, mut unheld) = (Vec::new(), Vec::new());
        for (len, nets) in by_len {
            let owners: Vec<String> =
                nets.iter().map(|(slot, net)| format!("{} : goto host{slot}", net.network())).collect();
            let networks: Vec<String> = nets.iter().map(|(_, net)| net.network().to_string()).collect();
            block(text, &format!("map owner{len}"), &format!("type {kind} : verdict; flags constant;"), &owners);
            block(text, &format!("set pool{len}"), &format!("type {kind}; flags constant;"), &networks);
            let mask = nets.iter().find(|(_, net)| len < net.max_prefix_len());
            let mask = mask.map(|(_, net)| format!(" & {}", net.netmask())).unwrap_or_default();
            leave.push(format!("{ip} saddr{mask} vmap @owner{len}"));
            unheld.push(format!("oifgroup 0 {ip} daddr{mask} @pool{len} counter name unheld drop"));
        }
        (leave, unheld)
    }

    /// Pods have addresses that only this node knows: whatever leaves does so as the node, and pods do not reach
    /// one another by them.
    fn of_the_node(&self, range: IpNet, own: IpAddr, text: &mut String) {
        let (link, ip) = (&self.primary_ifname, Family::of(own).word());
        let refuse = format!("{ip} daddr {range} ct state new reject");
        chain(text, "between", "filter hook forward priority filter", &[&refuse]);
        let ports = ports(self.policy.translation).unwrap_or(FULLY_RANDOM);
        let remember = self.remember();
        let translate = format!(r#"oifname "{link}" {ip} saddr {range} {remember} snat to {own}{ports}"#);
        chain(text, "lend", EGRESS, &[&translate]);
        // Connection tracking does not translate what fits no connection of its own, a late reset for one.
        let untranslated = format!(r#"oifname "{link}" {ip} saddr {range} drop"#);
        chain(text, "keep", "filter hook postrouting priority srcnat + 2", &[&untranslated]);
    }
}

const EGRESS: &str = "nat hook postrouting priority srcnat + 1";
const FULLY_RANDOM: &str = " fully-random";

/// nft's words for how ports are chosen; `None` where somebody else translates.
fn ports(translation: Translation) -> Option<&'static str> {
    match translation {
        Translation::External => None,
        Translation::Here(Ports::FullyRandom) => Some(FULLY_RANDOM),
        Translation::Here(Ports::Hashed) => Some(" random"),
        Translation::Here(Ports::Kept) => Some(""),
    }
}

impl Ruleset {
    /// Picks the ENI of a packet that a pod behind this slot sent itself (`eni`), or the host in its name (`host`).
    fn eni_chain(&self, family: Family, who: &str, slot: u32) -> String {
        let policy = &self.policy;
        let marks = policy.marks;
        // A foreign mark must not pick an ENI. The primary's is what everything has that no rule gives to another: so
        // it does not depend on main's default route, which a DHCP client may set to another link.
        let (to_primary, to_eni) = (self.set_mark(marks.eni(0)), self.set_mark(marks.eni(slot)));
        let mut rules = vec![to_primary];
        if policy.node_ports == NodePorts::SameWayBack {
            if slot != 0 {
                // Came in by the primary: same way back.
                let bits = marks.connmark();
                rules.push(format!("ct mark & {bits:#x} == {bits:#x} {} return", self.set_mark(bits)));
            }
            rules.push(format!("ct direction reply ct mark & {:#x} vmap @back", marks.eni_mask()));
        }
        if let Some(range) = policy.range(family).filter(|_| slot != 0) {
            // Translated, by the primary.
            rules.push(format!("{} saddr {range} return", family.word()));
        }
        if slot != 0 {
            if family == Family::V4 {
                // Translated here when the settings or the VPC were others: it goes on as it began, by the primary.
                rules.push(format!("ct direction original ct reply ip daddr {} return", self.primary_address));
            }
            // By another link than the primary's: a network that this host alone knows, of containers or a VPN. The
            // kernel is asked with the mark, that is without main's default route.
            let by_link = |is: &str| format!(r#"fib daddr . mark oifname {is} "{}""#, self.primary_ifname);
            let other_link = format!("{} fib daddr . mark oif exists", by_link("!="));
            match policy.translation {
                // Opened towards the pod's own address, or towards the VPC: by the pod's ENI. The rest leaves by main,
                // that is by the primary, and is translated there.
                Translation::Here(_) if family == Family::V4 => {
                    rules.push(format!("ip daddr @native {to_eni} return"));
                    if who == "eni" {
                        rules.push(format!("ct direction reply {other_link} return"));
                    }
                    rules.push(format!("ct direction reply {to_eni} return"));
                    // Began untranslated, by the settings or the VPC of that time, and would leave by the primary with
                    // an address that is not the primary's: it goes on as it began, too. The kernel answers which way
                    // a packet would leave (fib) only where packets come in.
                    if who == "eni" {
                        rules.push(format!("ct state established {} {to_eni} return", by_link("==")));
                    }
                }
                // Somebody behind the ENI translates, or nobody does.
                _ => {
                    if family == Family::V6 && who == "eni" {
                        rules.push(format!("{other_link} return"));
                    }
                    rules.push(to_eni);
                }
            }
        }
        format!("  chain {who}{slot} {{\n    {}\n  }}\n", rules.join("\n    "))
    }
}

/// nft's name for an address.
fn kind(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4_addr",
        Family::V6 => "ipv6_addr",
    }
}

/// A base chain that accepts what its rules leave alone.
fn chain(text: &mut String, name: &str, hook: &str, rules: &[impl AsRef<str>]) {
    let _ = writeln!(text, "  chain {name} {{\n    type {hook}; policy accept;");
    for rule in rules {
        let _ = writeln!(text, "    {}", rule.as_ref());
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
    use std::collections::BTreeSet;

    use super::*;

    fn example() -> Ruleset {
        Ruleset {
            primary_ifname: "eth0".to_owned(),
            secondary_ifnames: BTreeMap::from([(1, "eth1".to_owned())]),
            primary_address: Ipv4Addr::new(10, 0, 1, 10),
            primary_v6: None,
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
        assert!(example().transaction(&BTreeMap::new()).contains("elements = { 10.0.0.0/16 }"));
    }

    #[test]
    fn the_digest_follows_the_content() {
        let (one, mut two) = (example(), example());
        assert_eq!(one.digest(), two.digest());
        two.owner.insert(2, vec![]);
        assert_ne!(one.digest(), two.digest());
        assert!(one.transaction(&BTreeMap::new()).contains(&format!("comment \"{}\"", one.digest())));
    }

    #[test]
    fn who_translates_elsewhere_sees_every_packet_by_its_own_eni() {
        let policy = Policy { translation: Translation::External, ..Policy::default() };
        let text = Ruleset { policy, ..example() }.transaction(&BTreeMap::new());
        assert!(!text.contains("snat to") && !text.contains("ip daddr @native"), "{text}");
        let ports = |ports| {
            let policy = Policy { translation: Translation::Here(ports), ..Policy::default() };
            Ruleset { policy, ..example() }.transaction(&BTreeMap::new())
        };
        assert!(ports(Ports::Hashed).contains("snat to 10.0.1.10 random\n"));
        assert!(ports(Ports::Kept).contains("snat to 10.0.1.10\n"));
    }

    #[test]
    fn without_node_ports_it_is_only_remembered_what_is_translated() {
        let policy = Policy { node_ports: NodePorts::Off, ..Policy::default() };
        let text = Ruleset { policy, ..example() }.transaction(&BTreeMap::new());
        assert!(text.contains("ct mark set ct mark | 0x80 snat to 10.0.1.10 fully-random\n"), "{text}");
        assert!(text.matches("ct mark set").count() == 1 && !text.contains("chain arrive"), "{text}");
    }

    #[test]
    fn answers_find_the_way_back_by_an_eni_that_is_not_to_be_found_now() {
        let text = Ruleset { secondary_ifnames: BTreeMap::new(), ..example() }.transaction(&BTreeMap::new());
        assert!(text.contains("elements = { 0x41 : goto back1 }") && !text.contains(r#"iifname "eth1""#), "{text}");
    }

    #[test]
    fn every_slot_has_its_chain_before_the_map_that_names_it() {
        let text = example().transaction(&BTreeMap::new());
        for needle in ["chain eni0", "chain eni1"] {
            assert!(text.find(needle).unwrap() < text.find("map eni {").unwrap());
        }
    }

    #[test]
    fn the_pool_is_asked_by_hash_once_for_each_length_of_prefix() {
        let text = example().transaction(&BTreeMap::new());
        assert!(text.contains("elements = { 10.0.1.13 : goto host0, 10.0.1.20 : goto host1 }"), "{text}");
        assert!(text.contains("elements = { 10.0.2.0 }"), "{text}");
        assert!(text.contains("oifgroup 0 ip daddr & 255.255.255.240 @pool28 counter"), "{text}");
        assert!(text.contains("ip saddr & 255.255.255.240 vmap @owner28\n    ip saddr vmap @owner32"), "{text}");
        assert_eq!(text.matches("flags interval").count(), 1, "only where to translate: {text}");
    }

    #[test]
    fn ipv6_is_never_translated_and_always_leaves_by_its_own_eni() {
        let policy = Policy { of_vpc: Family::ALL.into(), ..Policy::default() };
        let mut dual = Ruleset { policy, ..example() };
        for (slot, nets) in &mut dual.owner {
            nets.push(format!("2001:db8:0:{slot}::/80").parse().unwrap());
        }
        let text = dual.transaction(&BTreeMap::new());
        let (v4, v6) = text.split_once("table ip6 enid {").unwrap();
        assert_eq!(example().text(Family::V4, "", (0, 0)), dual.text(Family::V4, "", (0, 0)), "IPv4 does not change");
        assert!(v4.contains("10.0.2.0 : goto host1") && !v4.contains("2001:"), "{v4}");
        assert!(v6.contains("2001:db8:0:1:: : goto host1") && !v6.contains("snat") && !v6.contains("10.0."), "{v6}");
        let eni1 = v6.split("chain eni1").nth(1).unwrap().split('}').next().unwrap();
        assert!(eni1.trim_end().ends_with("| 0x41") && !eni1.contains("ip daddr"), "{eni1}");
        assert_eq!(dual.families(), Family::ALL);
    }

    #[test]
    fn what_only_the_node_knows_leaves_as_the_node_and_reaches_no_other_pod() {
        let of_node = BTreeSet::from(["169.254.172.0/22".parse().unwrap()]);
        let policy = Policy { of_vpc: [Family::V6].into(), of_node, ..Policy::default() };
        let text = Ruleset { policy, ..example() }.transaction(&BTreeMap::new());
        let remembered = "ct mark set ct mark | 0x80 snat to";
        assert!(text.contains(&format!("ip saddr 169.254.172.0/22 {remembered} 10.0.1.10 fully-random")), "{text}");
        assert!(text.contains("ip daddr 169.254.172.0/22 ct state new reject"), "{text}");
        let (translates, drops) = (text.find("snat to").unwrap(), text.find("ip saddr 169.254.172.0/22 drop").unwrap());
        assert!(translates < drops && text.contains("postrouting priority srcnat + 2"), "{text}");
        // Without an IPv6 address of its own the node has nothing to lend.
        let of_node = BTreeSet::from(["fd00::ac:0/118".parse().unwrap()]);
        let policy = Policy { of_node: of_node.clone(), ..Policy::default() };
        let mut v4 = Ruleset { policy, ..example() };
        assert_eq!(v4.families(), [Family::V4]);
        v4.primary_v6 = Some("2001:db8::10".parse().unwrap());
        assert!(v4.transaction(&BTreeMap::new()).contains("snat to 2001:db8::10 fully-random"));
        // Pods of earlier settings keep it beside pods with addresses of the VPC, on whichever ENI.
        v4.policy = Policy { of_vpc: Family::ALL.into(), of_node, ..Policy::default() };
        let text = v4.transaction(&BTreeMap::new());
        let eni1 = text.split("ip6 enid {").nth(1).unwrap().split("chain eni1").nth(1).unwrap();
        let (range, to_eni) = (eni1.find("ip6 saddr fd00::ac:0/118 return"), eni1.find("| 0x41"));
        assert!(range.unwrap() < to_eni.unwrap(), "{eni1}");
        assert!(text.contains(&format!("ip6 saddr fd00::ac:0/118 {remembered} 2001:db8::10")), "{text}");
    }

    #[test]
    fn a_table_that_is_not_wanted_any_more_goes_with_the_transaction() {
        let text = example().transaction(&BTreeMap::from([(Family::V4, (7, 588)), (Family::V6, (0, 0))]));
        assert!(text.contains("delete table ip6 enid\n") && text.contains("counter unheld { packets 7 bytes 588 }"));
        assert!(!example().transaction(&BTreeMap::new()).contains("ip6"));
    }
}
