//! Why an ADD was refused: a closed list, the same in the CNI error, the log, the debug socket.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The causes. Their names travel on the wire and into metrics, so they only ever grow in number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Cause {
    /// The daemon has not read its node yet.
    Starting,
    /// The instance type carries no further ENI or address, and none is free.
    EniLimit,
    /// A quota of the AWS account is used up, such as that of network interfaces in the region.
    AccountLimit,
    /// The subnet has no free address.
    SubnetFull,
    /// The subnet has no free /28, and no single address either.
    NoPrefix,
    /// No subnet is tagged for the ENIs of this node.
    NoSubnet,
    /// The node has no ENIConfig, and the settings ask for one.
    NoEniConfig,
    /// Every free address is in its cooldown, and the node can get no further one.
    Cooldown,
    /// The settings forbid to ask EC2 for addresses.
    ProvisioningOff,
    /// An operator has frozen what changes something at EC2, and no address is available.
    WritesFrozen,
    /// EC2 refused for lack of rights.
    Denied,
    /// EC2 throttles this account.
    Throttled,
    /// The daemon gets no credentials to ask EC2 with: STS, the pod identity agent or metadata gives none.
    NoCredentials,
    /// EC2 does not answer.
    Ec2Unreachable,
    /// EC2 refused for another reason.
    Ec2Error,
    /// Addresses were on their way from EC2 when the ADD's timeout ended.
    StillGrowing,
    /// A newer request for the same attachment, or its DEL, came in between.
    Superseded,
    /// Instance metadata cannot be read, so nothing that EC2 gives shows up.
    MetadataUnreadable,
    /// An ENI that carries addresses of running pods is not attached any more, as EC2 and metadata say.
    EniLost,
    /// The kernel refused what the ENIs need: links, routes, rules or the table.
    KernelRefused,
    /// The host's firewall drops packets between pods.
    ForwardDropped,
    /// Files that the runtime needs of us on the host are gone and cannot be put back.
    HostFiles,
    /// The host's own way out does not lead over the primary ENI.
    HostRoute,
    /// EC2 refuses what is signed with another time than its own.
    Clock,
    /// The plugin, or the daemon with it, could not wire the pod.
    WiringFailed,
    /// The store cannot be written: no lease can be promised.
    StoreFailed,
    /// A step was refused because it would have broken an invariant.
    Internal,
}

impl Cause {
    /// All of them.
    pub const ALL: [Cause; 27] = [
        Cause::Starting,
        Cause::EniLimit,
        Cause::AccountLimit,
        Cause::SubnetFull,
        Cause::NoPrefix,
        Cause::NoSubnet,
        Cause::NoEniConfig,
        Cause::Cooldown,
        Cause::ProvisioningOff,
        Cause::WritesFrozen,
        Cause::Denied,
        Cause::Throttled,
        Cause::NoCredentials,
        Cause::Ec2Unreachable,
        Cause::Ec2Error,
        Cause::StillGrowing,
        Cause::Superseded,
        Cause::MetadataUnreadable,
        Cause::EniLost,
        Cause::KernelRefused,
        Cause::ForwardDropped,
        Cause::HostFiles,
        Cause::HostRoute,
        Cause::Clock,
        Cause::WiringFailed,
        Cause::StoreFailed,
        Cause::Internal,
    ];

    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Cause::Starting => "starting",
            Cause::EniLimit => "eni_limit",
            Cause::AccountLimit => "account_limit",
            Cause::SubnetFull => "subnet_full",
            Cause::NoPrefix => "no_prefix",
            Cause::NoSubnet => "no_subnet",
            Cause::NoEniConfig => "no_eni_config",
            Cause::Cooldown => "cooldown",
            Cause::ProvisioningOff => "provisioning_off",
            Cause::WritesFrozen => "writes_frozen",
            Cause::Denied => "denied",
            Cause::Throttled => "throttled",
            Cause::NoCredentials => "no_credentials",
            Cause::Ec2Unreachable => "ec2_unreachable",
            Cause::Ec2Error => "ec2_error",
            Cause::StillGrowing => "still_growing",
            Cause::Superseded => "superseded",
            Cause::MetadataUnreadable => "metadata_unreadable",
            Cause::EniLost => "eni_lost",
            Cause::KernelRefused => "kernel_refused",
            Cause::ForwardDropped => "forward_dropped",
            Cause::HostFiles => "host_files",
            Cause::HostRoute => "host_route",
            Cause::Clock => "clock",
            Cause::WiringFailed => "wiring_failed",
            Cause::StoreFailed => "store_failed",
            Cause::Internal => "internal",
        }
    }

    /// Whether it can end by itself within the timeout of one ADD.
    pub fn is_temporary(self) -> bool {
        matches!(
            self,
            Cause::Starting
                | Cause::Throttled
                | Cause::NoCredentials
                | Cause::Ec2Unreachable
                | Cause::MetadataUnreadable
                | Cause::StillGrowing
                | Cause::Cooldown
        )
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A refused ADD: one cause, one sentence, and what EC2 said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Out of the closed list.
    pub cause: Cause,
    /// One sentence for people.
    pub message: String,
    /// The EC2 request behind it, where there is one.
    pub request_id: Option<String>,
    /// When growth is tried again, in milliseconds from now.
    pub retry_after: Option<u64>,
}

impl Refusal {
    /// A refusal without EC2's part in it.
    pub fn new(cause: Cause, message: impl Into<String>) -> Self {
        Refusal { cause, message: message.into(), request_id: None, retry_after: None }
    }
}
