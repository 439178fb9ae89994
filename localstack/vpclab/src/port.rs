//! One ENI's port in the VPC, as a value: what its links are called and what EC2 assigned to it.

use ipnet::{Ipv4AddrRange, Ipv4Net, Ipv6Net};

use crate::ec2::{Attachment, Eni};

/// One ENI's port in the VPC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// Link on the VPC's side.
    pub name: String,
    /// Link in the node.
    pub link: String,
    /// The ENI's MAC.
    pub mac: String,
    /// Whether it is the node's first ENI.
    pub primary: bool,
    /// What EC2 assigned, the primary address first, prefixes address by address.
    pub addresses: Vec<String>,
    /// What EC2 assigned of IPv6, addresses as /128 first and then prefixes.
    pub nets_v6: Vec<Ipv6Net>,
}

impl Port {
    /// The port of an ENI that is attached.
    pub fn of(eni: &Eni, attachment: &Attachment) -> Self {
        // Names have 15 bytes at most, and ids differ in their last digits too.
        let id = eni.id.trim_start_matches("eni-");
        let name = format!("p-{}", &id[id.len().saturating_sub(12)..]);
        let mut addresses = eni.addresses.clone();
        for prefix in eni.prefixes.iter().filter_map(|prefix| prefix.parse::<Ipv4Net>().ok()) {
            let all = Ipv4AddrRange::new(prefix.network(), prefix.broadcast());
            addresses.extend(all.map(|address| address.to_string()));
        }
        Port {
            name,
            link: link(attachment.card, attachment.device_index),
            mac: eni.mac.clone(),
            primary: attachment.is_primary(),
            addresses,
            nets_v6: nets_v6(eni),
        }
    }

    /// The MAC of its link on the VPC's side, where the node's packets go: the ENI's but for one bit.
    /// `None`: the ENI's is malformed.
    pub fn own_mac(&self) -> Option<[u8; 6]> {
        let mut bytes = self.mac.split(':').map(|byte| u8::from_str_radix(byte, 16));
        let mut mac = [0; 6];
        for byte in &mut mac {
            *byte = bytes.next()?.ok()?;
        }
        mac[0] ^= 4;
        bytes.next().is_none().then_some(mac)
    }
}

/// What EC2 assigned to an ENI of IPv6, addresses first.
pub fn nets_v6(eni: &Eni) -> Vec<Ipv6Net> {
    let addresses = eni
        .ipv6_addresses
        .iter()
        .filter_map(|address| Some(Ipv6Net::from(address.parse::<std::net::Ipv6Addr>().ok()?)));
    let prefixes = eni.ipv6_prefixes.iter().filter_map(|prefix| prefix.parse().ok());
    addresses.chain(prefixes).collect()
}

/// Device indices repeat from card to card; names in a node do not.
fn link(card: u32, device_index: u32) -> String {
    format!("eth{}", 100 * card + device_index)
}

/// A locally administered unicast MAC out of an ENI's id (FNV-1a).
pub fn mac(id: &str) -> String {
    let hash = id
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let [a, b, c, d, e, ..] = hash.to_be_bytes();
    format!("02:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eni() -> Eni {
        Eni {
            id: "eni-0123456789abcdef0".to_owned(),
            addresses: vec!["10.0.1.9".to_owned()],
            prefixes: vec!["10.0.1.16/28".to_owned()],
            mac: "02:00:00:00:00:0a".to_owned(),
            ..Eni::default()
        }
    }

    fn at(card: u32, device_index: u32) -> Attachment {
        Attachment { instance_id: "i-1".to_owned(), card, device_index }
    }

    #[test]
    fn ports_have_names_that_linux_takes() {
        let port = Port::of(&eni(), &at(0, 1));
        assert_eq!((port.name.as_str(), port.addresses.len()), ("p-56789abcdef0", 17));
        assert_eq!((port.addresses[0].as_str(), port.addresses[16].as_str()), ("10.0.1.9", "10.0.1.31"));
        assert!(mac("eni-1").starts_with("02:") && mac("eni-1").len() == 17);
        assert_ne!(mac("eni-1"), mac("eni-2"));
    }

    #[test]
    fn links_of_different_cards_have_different_names() {
        let names = [(0, 0), (0, 1), (1, 0), (1, 1), (31, 1)].map(|(card, index)| Port::of(&eni(), &at(card, index)));
        assert_eq!(names.each_ref().map(|port| port.link.as_str()), ["eth0", "eth1", "eth100", "eth101", "eth3101"]);
        assert_eq!(names.map(|port| port.primary), [true, false, false, false, false]);
    }

    #[test]
    fn the_vpcs_end_has_a_mac_of_its_own() {
        let port = Port::of(&eni(), &at(0, 0));
        assert_eq!(port.own_mac(), Some([6, 0, 0, 0, 0, 10]));
        for malformed in ["", "02:00", "02:00:00:18902x:7902x:23602x", "02:00:00:00:00:0a:00"] {
            assert_eq!(Port { mac: malformed.to_owned(), ..port.clone() }.own_mac(), None, "{malformed}");
        }
    }

    #[test]
    fn an_eni_without_addresses_has_a_port_all_the_same() {
        let bare = Eni { addresses: vec![], prefixes: vec![], ..eni() };
        let port = Port::of(&bare, &at(1, 1));
        assert!(port.addresses.is_empty() && port.nets_v6.is_empty());
        let v6 = |text: &str| vec![text.to_owned()];
        let full = Eni { ipv6_addresses: v6("2001:db8::5"), ipv6_prefixes: v6("2001:db8:0:0:7::/80"), ..bare };
        let nets: Vec<String> = Port::of(&full, &at(0, 1)).nets_v6.iter().map(ToString::to_string).collect();
        assert_eq!(nets, ["2001:db8::5/128", "2001:db8:0:0:7::/80"]);
    }
}
