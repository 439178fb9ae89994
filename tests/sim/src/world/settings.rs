//! Settings that a node may have.

use enid_ipamd::{Kind, Placement, Policy, Provisioning, Second, Target};

/// How long an address is cooling here.
pub const COOLDOWN_MS: u64 = 5_000;

/// A few settings that a node may have.
pub fn settings(number: u8) -> Policy {
    let warm = |enis, addresses, minimum, prefixes| Target::Warm { enis, addresses, minimum, prefixes };
    let (target, kind) = match number % 8 {
        0 => (Target::Auto, Kind::Single),
        1 => (warm(1, 0, 0, 0), Kind::Single),
        2 => (warm(1, 2, 0, 0), Kind::Single),
        3 => (warm(1, 1, 6, 0), Kind::Single),
        4 => (Target::Auto, Kind::Prefix),
        5 => (warm(1, 0, 0, 1), Kind::Prefix),
        6 => (warm(1, 3, 0, 1), Kind::Prefix),
        _ => (warm(0, 0, 0, 0), Kind::Single),
    };
    Policy {
        target,
        kind,
        second: Second::None,
        placement: Placement::Primary,
        multi_card: false,
        max_enis: None,
        max_pods: Some(110),
        cooldown_ms: COOLDOWN_MS,
        manage_untagged: true,
        provisioning: Provisioning::On,
        clean_leaked: true,
        manage_cordoned: false,
    }
}
