//! Guards that a test can take away, to prove that somebody would notice. Without the feature `mutations`,
//! which only the simulator switches on, all guards stand.

/// A guard that is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "mutations"), allow(dead_code, reason = "named by the guards, chosen by the simulator"))]
pub enum Mutation {
    /// Addresses are assigned again without a cooldown.
    NoCooldown,
    /// An address that is assigned is assigned once more.
    AssignTwice,
    /// Links that no lease explains are not looked at.
    IgnoreOrphans,
    /// Blocks are unassigned though somebody uses them.
    UnassignInUse,
    /// ENIs are detached though addresses of them are in use.
    DetachInUse,
    /// Blocks are unassigned and ENIs detached without a listing of the kernel after the decision.
    IgnoreKernel,
    /// What metadata does not show is forgotten at once.
    TrustMetadata,
    /// Offers go out without a record.
    OfferUnrecorded,
    /// ENIs are created without an intent.
    CreateUnrecorded,
    /// ENIs are changed before they are ours.
    ChangeUnmanaged,
    /// ENIs are created in the primary's subnet, whatever tags and ENIConfigs say.
    IgnorePlaces,
    /// What an operator has frozen is sent to EC2.
    IgnoreRestrictions,
    /// ENIs serve before they are set to be deleted with the instance.
    ServeUnprotected,
}
