//! The kinds of thing that are ours in the kernel.

/// What a change, a repair or a notification is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A routing policy rule.
    Rule,
    /// A route.
    Route,
    /// A neighbour entry.
    Neighbour,
    /// An address of a link.
    Address,
    /// An attribute of a link: up, MTU, MAC, device group, alias.
    Link,
    /// A sysctl.
    Sysctl,
    /// The nftables table.
    Table,
}

impl Kind {
    /// The name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Rule => "rule",
            Kind::Route => "route",
            Kind::Neighbour => "neighbour",
            Kind::Address => "address",
            Kind::Link => "link",
            Kind::Sysctl => "sysctl",
            Kind::Table => "table",
        }
    }
}
