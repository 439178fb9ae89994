//! How fast EC2 lets an account call.
//!
//! Source: "Request throttling for the Amazon EC2 API" (Amazon EC2 Developer Guide), tables "Request token
//! bucket sizes and refill rates" as of 2025. Buckets are per account, region and action: the model is one
//! account in one region, so one bucket per action. Two readings where the page is silent: refill is
//! continuous here (the page adds tokens once a second), and a describe by ids alone counts as unfiltered.
//! The second kind of bucket, for resources of RunInstances and the like, is not modelled.

use std::collections::BTreeMap;

/// Size in tokens, and tokens added per second.
type Figures = (f64, f64);

const NON_MUTATING: Figures = (100.0, 20.0);
const UNFILTERED: Figures = (50.0, 10.0);
const MUTATING: Figures = (50.0, 5.0);

/// Actions that have a smaller bucket when called with neither filter nor page size.
const UNFILTERED_ACTIONS: &[&str] = &["DescribeInstances", "DescribeNetworkInterfaces"];

/// The page's "uncategorized actions", as far as the model has them. AttachNetworkInterface,
/// DetachNetworkInterface and UnassignIpv6Addresses are not among them and so plain mutating ones.
const OWN: &[(&str, Figures)] = &[
    ("AssignIpv6Addresses", (100.0, 5.0)),
    ("AssignPrivateIpAddresses", (100.0, 5.0)),
    ("CreateNetworkInterface", (100.0, 5.0)),
    ("CreateTags", (100.0, 10.0)),
    ("DeleteNetworkInterface", (100.0, 5.0)),
    ("ModifyNetworkInterfaceAttribute", (100.0, 5.0)),
    ("UnassignPrivateIpAddresses", (100.0, 5.0)),
];

fn figures(action: &str, plain: bool) -> Figures {
    if let Some((_, own)) = OWN.iter().find(|(name, _)| *name == action) {
        return *own;
    }
    match (action.starts_with("Describe"), plain && UNFILTERED_ACTIONS.contains(&action)) {
        (true, true) => UNFILTERED,
        (true, false) => NON_MUTATING,
        (false, _) => MUTATING,
    }
}

/// Size of an action's bucket in tokens, and tokens that it gets back each second; a describe is taken to have
/// a filter or a page size.
pub fn bucket(action: &str) -> (f64, f64) {
    figures(action, false)
}

/// The account's buckets. Each starts full.
#[derive(Clone, Debug, Default)]
pub(super) struct Buckets {
    /// By action and whether it is the bucket for unfiltered calls.
    levels: BTreeMap<(String, bool), Level>,
}

#[derive(Clone, Debug)]
struct Level {
    tokens: f64,
    at: u64,
}

impl Buckets {
    /// Takes one token at `now` (ms). `plain`: neither filter nor page size was given. `others`: the part of
    /// size and refill that others use up. `charge_refused`: a refused call drains what there is, too.
    pub fn take(&mut self, now: u64, action: &str, plain: bool, others: f64, charge_refused: bool) -> bool {
        let plain = plain && UNFILTERED_ACTIONS.contains(&action);
        let (size, refill) = figures(action, plain);
        let left = 1.0 - others.clamp(0.0, 1.0);
        let level = self.levels.entry((action.to_owned(), plain)).or_insert(Level { tokens: size * left, at: now });
        let elapsed = f64::from(u32::try_from(now.saturating_sub(level.at)).unwrap_or(u32::MAX));
        level.tokens = (level.tokens + elapsed * refill * left / 1000.0).min(size * left);
        level.at = level.at.max(now);
        let granted = level.tokens >= 1.0;
        if granted || charge_refused {
            level.tokens = (level.tokens - 1.0).max(0.0);
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(buckets: &mut Buckets, now: u64, action: &str, plain: bool, others: f64) -> usize {
        (0..1000).filter(|_| buckets.take(now, action, plain, others, false)).count()
    }

    #[test]
    fn every_action_has_its_size_and_refill() {
        for (action, plain, size, per_second) in [
            ("DescribeSubnets", true, 100, 20),
            ("DescribeNetworkInterfaces", false, 100, 20),
            ("DescribeNetworkInterfaces", true, 50, 10),
            ("AttachNetworkInterface", false, 50, 5),
            ("AssignPrivateIpAddresses", false, 100, 5),
            ("CreateTags", false, 100, 10),
            ("UnassignIpv6Addresses", false, 50, 5),
        ] {
            let mut buckets = Buckets::default();
            assert_eq!(granted(&mut buckets, 7, action, plain, 0.0), size, "{action}");
            assert_eq!(granted(&mut buckets, 1007, action, plain, 0.0), per_second, "{action}");
            assert_eq!(granted(&mut buckets, 1_000_000, action, plain, 0.0), size, "{action}");
        }
    }

    #[test]
    fn actions_do_not_share_but_accounts_do() {
        let mut buckets = Buckets::default();
        assert_eq!(granted(&mut buckets, 0, "CreateNetworkInterface", false, 0.0), 100);
        assert_eq!(granted(&mut buckets, 0, "DeleteNetworkInterface", false, 0.0), 100);
        let mut shared = Buckets::default();
        assert_eq!(granted(&mut shared, 0, "CreateNetworkInterface", false, 0.75), 25);
        assert_eq!(granted(&mut shared, 1000, "CreateNetworkInterface", false, 0.75), 1);
    }

    #[test]
    fn hammering_starves_itself_if_refusals_are_charged() {
        for (charged, some) in [(true, false), (false, true)] {
            let mut buckets = Buckets::default();
            granted(&mut buckets, 0, "AttachNetworkInterface", false, 0.0);
            // 20 calls a second against 5 tokens a second.
            let served = (1..200).filter(|at| buckets.take(at * 50, "AttachNetworkInterface", false, 0.0, charged));
            assert_eq!(served.count() > 0, some, "charged: {charged}");
        }
    }
}
