//! Roles, and the keys that were given out for them.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::policy::Policy;

/// The lab's account.
pub const ACCOUNT: &str = "000000000000";

/// A role, and what its holders show for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Role {
    /// arn:aws:iam::…:role/…
    pub arn: String,
    /// What it may do; `None`: everything.
    #[serde(default)]
    pub policy: Option<Policy>,
    /// Tokens that are accepted for it now; none: every one.
    #[serde(default)]
    pub tokens: Vec<String>,
    /// How long a key is good, in milliseconds.
    pub lifetime_ms: u64,
}

/// Roles by their ARN, and the keys that were given out.
#[derive(Clone, Debug, Default)]
pub(super) struct Identities {
    pub roles: BTreeMap<String, Role>,
    /// By access key: the role, and when the key ends.
    pub keys: BTreeMap<String, (String, u64)>,
}
