//! What an operator keeps the daemon from doing, until the operator lifts it.

use imbl::OrdSet;
use serde::{Deserialize, Serialize};

use crate::ids::EniId;

/// Actions that give something back to EC2.
const RELEASES: [&str; 4] =
    ["UnassignPrivateIpAddresses", "UnassignIpv6Addresses", "DetachNetworkInterface", "DeleteNetworkInterface"];

/// What is restricted; by default nothing is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Restrictions {
    /// Nothing is unassigned, detached or deleted.
    pub releases_frozen: bool,
    /// EC2 is only asked what there is: nothing that changes something is sent.
    pub writes_frozen: bool,
    /// New pods get no addresses of these ENIs. A secondary one is given back once it has no pod, as any excluded ENI is.
    pub excluded_enis: OrdSet<EniId>,
}

impl Restrictions {
    /// Whether anything is restricted.
    pub fn is_any(&self) -> bool {
        *self != Restrictions::default()
    }

    /// Why EC2 may not be called with this action, one sentence; `None` if it may.
    pub(crate) fn forbids(&self, action: &str) -> Option<&'static str> {
        if self.writes_frozen && !action.starts_with("Describe") {
            return Some("an operator has frozen all that changes something at EC2 (enid admin unfreeze writes)");
        }
        let is_release = RELEASES.contains(&action);
        (self.releases_frozen && is_release)
            .then_some("an operator has frozen what gives back to EC2 (enid admin unfreeze releases)")
    }

    /// Whether something could be given back.
    pub(crate) fn lets_release(&self) -> bool {
        !self.releases_frozen && !self.writes_frozen
    }
}
