//! How many addresses a node should hold: the peer's targets, with the peer's formulas.
//!
//! Input: the settings and how many addresses are held, given and free. Output: how many are missing.
//! Where they go is `grow`'s business. One knowing difference: "available" is free *and rested*, so
//! churn cannot make an empty pool look full.

/// What the instance type can carry (DescribeInstanceTypes, NetworkInfo).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// ENIs.
    pub enis: u32,
    /// IPv4 addresses per ENI, its primary one included.
    pub addresses_per_eni: u32,
}

/// The settings that decide about supply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// WARM_ENI_TARGET.
    pub warm_enis: u32,
    /// WARM_IP_TARGET.
    pub warm_addresses: u32,
    /// MINIMUM_IP_TARGET.
    pub minimum_addresses: u32,
    /// MAX_ENI, if at least 1.
    pub max_enis: Option<u32>,
    /// Never more addresses than pods fit on the node.
    pub max_pods: Option<u32>,
    /// IP_COOLDOWN_PERIOD, milliseconds.
    pub rest_ms: u64,
    /// MANAGE_UNTAGGED_ENI.
    pub manage_untagged: bool,
}

/// How many addresses there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Held by the node for pods.
    pub total: u32,
    /// Free and rested.
    pub available: u32,
    /// Requests that wait for one.
    pub waiting: u32,
}

impl Policy {
    /// ENIs this node may have.
    pub fn eni_max(&self, limits: Limits) -> u32 {
        match self.max_enis {
            Some(max) if max >= 1 => limits.enis.min(max),
            _ => limits.enis,
        }
    }

    /// How many addresses are missing, 0 if none. Requests that wait come on top of every target and
    /// are served even where all targets are 0.
    pub fn missing(&self, limits: Limits, counts: Counts) -> u32 {
        let Counts { total, available, waiting } = counts;
        let per_eni = limits.addresses_per_eni.saturating_sub(1);
        let free = available.saturating_sub(waiting);
        let waiting_now = waiting.saturating_sub(available);
        let target = if self.warm_addresses != 0 || self.minimum_addresses != 0 {
            let warm = self.warm_addresses.saturating_sub(free);
            let floor = self.minimum_addresses.saturating_sub(total);
            warm.max(floor)
        } else {
            (per_eni * self.warm_enis).saturating_sub(free)
        };
        let room = self.max_pods.map_or(u32::MAX, |pods| pods.saturating_sub(total));
        target.min(room).max(waiting_now)
    }

    /// Whether growth fills whole ENIs (WARM_ENI_TARGET) instead of counting addresses.
    pub fn whole_enis(&self) -> bool {
        self.warm_addresses == 0 && self.minimum_addresses == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(enis: u32, warm: u32, minimum: u32) -> Policy {
        Policy {
            warm_enis: enis,
            warm_addresses: warm,
            minimum_addresses: minimum,
            max_enis: None,
            max_pods: None,
            rest_ms: 30_000,
            manage_untagged: true,
        }
    }

    const M5_LARGE: Limits = Limits { enis: 3, addresses_per_eni: 10 };

    /// (WARM_ENI, WARM_IP, MINIMUM_IP), (total, available, waiting) -> missing.
    #[test]
    fn the_targets_are_the_peers() {
        let rows = [
            // A node without pods holds max(warm, minimum).
            ((1, 2, 0), (0, 0, 0), 2),
            ((1, 16, 0), (0, 0, 0), 16),
            ((1, 0, 2), (0, 0, 0), 2),
            ((1, 0, 16), (0, 0, 0), 16),
            ((1, 6, 10), (0, 0, 0), 10),
            ((1, 6, 10), (10, 10, 0), 0),
            // Address targets switch the ENI target off.
            ((3, 1, 0), (1, 1, 0), 0),
            // A free whole ENI: 9 addresses on this type.
            ((1, 0, 0), (9, 9, 0), 0),
            ((1, 0, 0), (9, 8, 0), 1),
            ((2, 0, 0), (9, 9, 0), 9),
            // All targets 0: nothing ahead, and still a waiting pod is served.
            ((0, 0, 0), (0, 0, 0), 0),
            ((0, 0, 0), (0, 0, 1), 1),
            ((0, 0, 0), (5, 2, 3), 1),
            // Waiting requests are demand on top of the warm target.
            ((1, 2, 0), (0, 0, 3), 3),
            ((1, 2, 0), (4, 3, 2), 1),
        ];
        for ((enis, warm, minimum), (total, available, waiting), missing) in rows {
            let counts = Counts { total, available, waiting };
            assert_eq!(
                policy(enis, warm, minimum).missing(M5_LARGE, counts),
                missing,
                "{enis} {warm} {minimum} {counts:?}"
            );
        }
    }

    #[test]
    fn max_eni_lowers_the_limit_and_zero_means_unset() {
        for (max, expected) in [(None, 3), (Some(0), 3), (Some(2), 2), (Some(9), 3)] {
            assert_eq!(Policy { max_enis: max, ..policy(1, 0, 0) }.eni_max(M5_LARGE), expected);
        }
    }

    #[test]
    fn max_pods_caps_the_targets_but_never_a_waiting_pod() {
        let capped = Policy { max_pods: Some(4), ..policy(1, 16, 0) };
        assert_eq!(capped.missing(M5_LARGE, Counts { total: 0, available: 0, waiting: 0 }), 4);
        assert_eq!(capped.missing(M5_LARGE, Counts { total: 4, available: 0, waiting: 1 }), 1);
    }
}
