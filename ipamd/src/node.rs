//! What does not change while the process runs, the settings, and what an operator restricts.

use serde::{Deserialize, Serialize};

use crate::{
    restrictions::Restrictions,
    supply::{Limits, Policy, Provisioning},
};

/// This node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Node {
    /// EC2's id of this instance.
    pub instance_id: String,
    /// ENIs and addresses that the instance type can carry.
    pub limits: Limits,
    /// The settings.
    pub policy: Policy,
    /// What an operator restricts.
    pub restrictions: Restrictions,
    /// Mixed into client tokens and jitter, so that two runs of the daemon never share them.
    pub token_seed: String,
}

impl Node {
    /// Whether EC2 may be asked at all; otherwise metadata says what there is.
    pub(crate) fn asks_ec2(&self) -> bool {
        self.policy.provisioning != Provisioning::ImdsOnly
    }

    /// Whether EC2 may be changed.
    pub(crate) fn provisions(&self) -> bool {
        self.policy.provisioning == Provisioning::On
    }

    /// Whether ENIs of this network card may be used.
    pub(crate) fn may_use_card(&self, card: u32) -> bool {
        card == 0 || self.policy.multi_card && (card <= self.limits.further_cards || !self.asks_ec2())
    }
}
