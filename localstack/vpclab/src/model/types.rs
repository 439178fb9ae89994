//! What instance types carry.
//!
//! Figures: `pkg/vpc/vpc_ip_resource_limit.go` of aws/amazon-vpc-cni-k8s v1.23.1, itself generated from
//! DescribeInstanceTypes. An IPv6 figure is not in there; on all types below it equals the IPv4 one
//! (Amazon EC2 User Guide, "IP addresses per network interface per instance type").

use Hypervisor::{Nitro, Xen};

/// How many ENIs and addresses an instance type carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeLimits {
    /// Such as m5.large.
    pub name: String,
    /// ENIs over all cards.
    pub enis: u32,
    /// ENIs on each network card, by card index.
    pub cards: Vec<u32>,
    /// IPv4 slots of an ENI: its primary address, each secondary one and each /28 prefix take one.
    pub ipv4_per_eni: u32,
    /// IPv6 slots of an ENI: each address and each /80 prefix takes one.
    pub ipv6_per_eni: u32,
    /// Nitro, bare metal included; only there can an ENI have prefixes (Amazon EC2 User Guide, "Prefix
    /// delegation").
    pub nitro: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Hypervisor {
    Nitro,
    Xen,
}

struct Row {
    name: &'static str,
    cards: usize,
    enis_per_card: u32,
    slots: u32,
    hypervisor: Hypervisor,
}

const fn row(name: &'static str, cards: usize, enis_per_card: u32, slots: u32, hypervisor: Hypervisor) -> Row {
    Row { name, cards, enis_per_card, slots, hypervisor }
}

/// Name, network cards, ENIs per card, addresses per ENI. No type below has cards of unequal size.
#[rustfmt::skip]
const TYPES: &[Row] = &[
    row("t2.micro", 1, 2, 2, Xen),
    row("t2.small", 1, 3, 4, Xen),
    row("t2.medium", 1, 3, 6, Xen),
    row("t2.large", 1, 3, 12, Xen),
    row("m4.large", 1, 2, 10, Xen),
    row("m4.xlarge", 1, 4, 15, Xen),
    row("c4.large", 1, 3, 10, Xen),
    row("r4.large", 1, 3, 10, Xen),
    row("i3.large", 1, 3, 10, Xen),
    row("i3.xlarge", 1, 4, 15, Xen),
    row("i3.2xlarge", 1, 4, 15, Xen),
    row("t3.nano", 1, 2, 2, Nitro),
    row("t3.micro", 1, 2, 2, Nitro),
    row("t3.small", 1, 3, 4, Nitro),
    row("t3.medium", 1, 3, 6, Nitro),
    row("t3.large", 1, 3, 12, Nitro),
    row("t3.xlarge", 1, 4, 15, Nitro),
    row("t3.2xlarge", 1, 4, 15, Nitro),
    row("t3a.small", 1, 2, 4, Nitro),
    row("t3a.medium", 1, 3, 6, Nitro),
    row("t4g.nano", 1, 2, 2, Nitro),
    row("t4g.medium", 1, 3, 6, Nitro),
    row("t4g.large", 1, 3, 12, Nitro),
    row("m5.large", 1, 3, 10, Nitro),
    row("m5.xlarge", 1, 4, 15, Nitro),
    row("m5.2xlarge", 1, 4, 15, Nitro),
    row("m5.4xlarge", 1, 8, 30, Nitro),
    row("m5.8xlarge", 1, 8, 30, Nitro),
    row("m5.12xlarge", 1, 8, 30, Nitro),
    row("m5.16xlarge", 1, 15, 50, Nitro),
    row("m5.24xlarge", 1, 15, 50, Nitro),
    row("m5.metal", 1, 15, 50, Nitro),
    row("m5a.large", 1, 3, 10, Nitro),
    row("m5d.large", 1, 3, 10, Nitro),
    row("c5.large", 1, 3, 10, Nitro),
    row("c5.xlarge", 1, 4, 15, Nitro),
    row("c5.2xlarge", 1, 4, 15, Nitro),
    row("c5.4xlarge", 1, 8, 30, Nitro),
    row("c5.9xlarge", 1, 8, 30, Nitro),
    row("c5.18xlarge", 1, 15, 50, Nitro),
    row("c5n.large", 1, 3, 10, Nitro),
    row("c5n.18xlarge", 1, 15, 50, Nitro),
    row("r5.large", 1, 3, 10, Nitro),
    row("r5.xlarge", 1, 4, 15, Nitro),
    row("r5.2xlarge", 1, 4, 15, Nitro),
    row("r5.4xlarge", 1, 8, 30, Nitro),
    row("r5.24xlarge", 1, 15, 50, Nitro),
    row("m6i.large", 1, 3, 10, Nitro),
    row("m6i.xlarge", 1, 4, 15, Nitro),
    row("m6i.2xlarge", 1, 4, 15, Nitro),
    row("m6i.32xlarge", 1, 15, 50, Nitro),
    row("m6g.medium", 1, 2, 4, Nitro),
    row("m6g.large", 1, 3, 10, Nitro),
    row("m6a.large", 1, 3, 10, Nitro),
    row("c6i.large", 1, 3, 10, Nitro),
    row("c6g.medium", 1, 2, 4, Nitro),
    row("c6gn.16xlarge", 1, 15, 50, Nitro),
    row("r6i.large", 1, 3, 10, Nitro),
    row("m7g.medium", 1, 2, 4, Nitro),
    row("m7g.large", 1, 3, 10, Nitro),
    row("m7g.xlarge", 1, 4, 15, Nitro),
    row("m7g.2xlarge", 1, 4, 15, Nitro),
    row("m7g.16xlarge", 1, 15, 50, Nitro),
    row("m7i.large", 1, 3, 10, Nitro),
    row("m7i.48xlarge", 1, 15, 50, Nitro),
    row("c7g.large", 1, 3, 10, Nitro),
    row("c7i.large", 1, 3, 10, Nitro),
    row("r7g.large", 1, 3, 10, Nitro),
    row("m8g.large", 1, 3, 10, Nitro),
    row("g4dn.xlarge", 1, 3, 10, Nitro),
    row("g5.xlarge", 1, 4, 15, Nitro),
    row("g5.48xlarge", 1, 7, 50, Nitro),
    row("p3.2xlarge", 1, 4, 15, Xen),
    row("p4d.24xlarge", 4, 15, 50, Nitro),
    row("p5.48xlarge", 32, 2, 50, Nitro),
    row("inf1.xlarge", 1, 4, 10, Nitro),
    row("inf2.xlarge", 1, 4, 15, Nitro),
    row("trn1.2xlarge", 1, 4, 15, Nitro),
    row("trn1.32xlarge", 8, 5, 50, Nitro),
    row("hpc7g.16xlarge", 1, 4, 50, Nitro),
    row("x2idn.32xlarge", 1, 15, 50, Nitro),
    row("z1d.large", 1, 3, 10, Nitro),
    row("c6in.32xlarge", 2, 8, 50, Nitro),
];

/// The most IPv4 slots that any type gives an ENI; the limit before the ENI is attached and its instance type is known.
pub(super) const MOST_SLOTS: u32 = 50;

/// The limits of a type; `None` if the model does not know it.
pub fn limits(kind: &str) -> Option<TypeLimits> {
    TYPES.iter().find(|row| row.name == kind).map(of)
}

/// All types that the model knows.
pub fn all() -> impl Iterator<Item = TypeLimits> {
    TYPES.iter().map(of)
}

fn of(row: &Row) -> TypeLimits {
    let cards = vec![row.enis_per_card; row.cards];
    TypeLimits {
        name: row.name.to_owned(),
        enis: cards.iter().sum(),
        cards,
        ipv4_per_eni: row.slots,
        ipv6_per_eni: row.slots,
        nitro: row.hypervisor == Nitro,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn well_known_types_have_their_figures() {
        for (kind, enis, cards, slots, nitro) in [
            ("m5.large", 3, 1, 10, true),
            ("t3.nano", 2, 1, 2, true),
            ("m5.metal", 15, 1, 50, true),
            ("m4.large", 2, 1, 10, false),
            ("t2.medium", 3, 1, 6, false),
            ("i3.large", 3, 1, 10, false),
            ("p4d.24xlarge", 60, 4, 50, true),
            ("trn1.32xlarge", 40, 8, 50, true),
        ] {
            let limits = limits(kind).unwrap();
            let found = (limits.enis, limits.cards.len(), limits.ipv4_per_eni, limits.nitro);
            assert_eq!(found, (enis, cards, slots, nitro), "{kind}");
        }
        assert_eq!(limits("m1.nosuch"), None);
        assert!(all().count() >= 30 && all().all(|limits| limits.ipv4_per_eni <= MOST_SLOTS));
    }
}
