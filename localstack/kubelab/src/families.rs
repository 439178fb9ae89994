//! Which families of IP the cluster has, and what follows from it.

use serde::{Deserialize, Serialize};

/// Address families of pods and Services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Families {
    /// IPv4.
    #[default]
    Ipv4,
    /// IPv6; nodes have both, as EKS's do.
    Ipv6,
    /// IPv4 first.
    Dual,
}

/// EKS's range where the VPC has 10.0.0.0/8 (Amazon EKS User Guide, "Kubernetes service IPv4 CIDR").
const SERVICES_V4: &str = "172.20";
/// EKS takes a /108 out of fc00::/7 (Amazon EKS User Guide, "IPv6 addresses to clusters, Pods, and services").
const SERVICES_V6: &str = "fd30:1c53:5f8a::";

impl Families {
    /// Whether pods have IPv6, so the VPC must have it.
    pub fn has_v6(self) -> bool {
        self != Families::Ipv4
    }

    fn each<T>(self, v4: T, v6: T) -> Vec<T> {
        match self {
            Families::Ipv4 => vec![v4],
            Families::Ipv6 => vec![v6],
            Families::Dual => vec![v4, v6],
        }
    }

    /// Ranges of Services, comma-separated.
    pub fn service_ranges(self) -> String {
        self.each(format!("{SERVICES_V4}.0.0/16"), format!("{SERVICES_V6}/108")).join(",")
    }

    /// The API server's own addresses among the Services.
    pub fn api_services(self) -> Vec<String> {
        self.each(format!("{SERVICES_V4}.0.1"), format!("{SERVICES_V6}1"))
    }

    /// Where pods ask for names: the first family's.
    pub fn dns(self) -> String {
        self.each(format!("{SERVICES_V4}.0.10"), format!("{SERVICES_V6}a")).remove(0)
    }

    /// Addresses of a node, as the kubelet takes them.
    pub fn node_addresses(self, v4: &str, v6: Option<&str>) -> String {
        self.each(v4, v6.unwrap_or_default()).join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dual_stack_cluster_has_both_with_ipv4_first() {
        assert_eq!(Families::Dual.service_ranges(), "172.20.0.0/16,fd30:1c53:5f8a::/108");
        assert_eq!(Families::Dual.node_addresses("10.0.1.10", Some("2001:db8::1")), "10.0.1.10,2001:db8::1");
        assert_eq!(
            (Families::Ipv6.dns().as_str(), Families::Dual.dns().as_str()),
            ("fd30:1c53:5f8a::a", "172.20.0.10")
        );
        assert!(!Families::Ipv4.has_v6());
    }
}
