//! What goes wrong, at the wish of the test.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Faults of the account, of the way to EC2 and of instance metadata. Chances are 0.0 to 1.0 per call.
/// They can change at any time; the default is that nothing goes wrong.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Actions that IAM denies.
    pub deny: BTreeSet<String>,
    /// A create without tags in the request is denied, as with a policy's condition on aws:RequestTag.
    pub deny_untagged_create: bool,
    /// STS and the pod identity agent do not answer.
    pub credentials_away: bool,
    /// By action: the call is carried out and its answer is lost.
    pub lose_answer: BTreeMap<String, f64>,
    /// By action: the call never arrives.
    pub lose_request: BTreeMap<String, f64>,
    /// By action: chance and code of an error instead of carrying it out.
    pub fail: BTreeMap<String, (f64, String)>,
    /// Nothing arrives.
    pub down: bool,
    /// Nothing arrives, and no connection is closed: the caller waits until its own timeout.
    pub silent: bool,
    /// AssignPrivateIpAddresses by count brings fewer than asked, but one at least.
    pub partial_assign: f64,
    /// Metadata repeats its last answer.
    pub imds_stale: bool,
    /// Metadata's answer lacks an ENI other than the primary one, or an address other than a primary one.
    pub imds_partial: f64,
}
