//! Guards that a test can take away, to prove that somebody would notice. Without the feature `mutations`,
//! which only the simulator switches on, all guards stand.

use crate::Core;

/// A guard that is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "mutations"), allow(dead_code, reason = "named by the guards, chosen by the simulator"))]
pub enum Mutation {
    /// Addresses are given again without rest.
    NoRest,
    /// An address that somebody holds is given once more.
    GiveTwice,
    /// Links that no lease explains are not looked at.
    IgnoreStrangers,
    /// Blocks go back to EC2 though somebody uses them.
    UnassignHeld,
    /// ENIs are detached though pods live on them.
    DetachHeld,
    /// What metadata does not show is forgotten at once.
    BelieveMetadata,
    /// Offers go out without a record.
    OfferUnrecorded,
    /// ENIs are created without an intent.
    CreateUnrecorded,
    /// ENIs are changed before they are ours.
    ChangeForeign,
    /// ENIs serve before they are set to go with the instance.
    ServeUnprotected,
}

impl Core {
    /// Takes a guard away.
    #[cfg(feature = "mutations")]
    pub fn mutate(&mut self, mutation: Mutation) {
        self.mutation = Some(mutation);
    }

    /// Whether this guard has been taken away.
    #[cfg(feature = "mutations")]
    pub(crate) fn is_mutated(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    /// Whether this guard has been taken away: never.
    #[cfg(not(feature = "mutations"))]
    pub(crate) fn is_mutated(&self, _: Mutation) -> bool {
        false
    }
}
