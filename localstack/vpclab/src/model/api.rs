//! What is asked of the model and what it answers, in EC2's words.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::{Ipv4Net, Ipv6Net};

use super::types::TypeLimits;

/// One call of EC2. Names and meaning are those of the Amazon EC2 API Reference; what is not here is not
/// modelled.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are EC2's parameters")]
pub enum Request {
    CreateNetworkInterface {
        subnet: String,
        interface_type: InterfaceType,
        description: String,
        /// Empty: the VPC's default group. Any other id is taken as it is.
        groups: Vec<String>,
        secondary_count: Option<u32>,
        prefix_count: Option<u32>,
        ipv6_prefix_count: Option<u32>,
        client_token: Option<String>,
        tags: BTreeMap<String, String>,
    },
    AttachNetworkInterface {
        eni: String,
        instance: String,
        device_index: u32,
        /// The first one, if it is not named.
        card: Option<u32>,
    },
    ModifyNetworkInterfaceAttribute {
        eni: String,
        /// Goes with `delete_on_termination`.
        attachment: Option<String>,
        delete_on_termination: Option<bool>,
        groups: Option<Vec<String>>,
    },
    DetachNetworkInterface {
        attachment: String,
        force: bool,
    },
    DeleteNetworkInterface {
        eni: String,
    },
    AssignPrivateIpAddresses {
        eni: String,
        count: Option<u32>,
        prefix_count: Option<u32>,
        addresses: Vec<Ipv4Addr>,
    },
    UnassignPrivateIpAddresses {
        eni: String,
        addresses: Vec<Ipv4Addr>,
        prefixes: Vec<Ipv4Net>,
    },
    AssignIpv6Addresses {
        eni: String,
        count: Option<u32>,
        prefix_count: Option<u32>,
    },
    UnassignIpv6Addresses {
        eni: String,
        addresses: Vec<Ipv6Addr>,
        prefixes: Vec<Ipv6Net>,
    },
    DescribeNetworkInterfaces {
        ids: Vec<String>,
        /// Name and values; `*` and `?` stand for any text and any character.
        filters: Vec<(String, Vec<String>)>,
        /// 5 to 1000; not together with ids.
        max_results: Option<u32>,
        next_token: Option<String>,
    },
    DescribeSubnets {
        ids: Vec<String>,
        filters: Vec<(String, Vec<String>)>,
    },
    DescribeInstances {
        ids: Vec<String>,
    },
    DescribeInstanceTypes {
        types: Vec<String>,
    },
    CreateTags {
        resources: Vec<String>,
        tags: BTreeMap<String, String>,
    },
}

impl Request {
    /// EC2's name of the call.
    pub fn action(&self) -> &'static str {
        match self {
            Request::CreateNetworkInterface { .. } => "CreateNetworkInterface",
            Request::AttachNetworkInterface { .. } => "AttachNetworkInterface",
            Request::ModifyNetworkInterfaceAttribute { .. } => "ModifyNetworkInterfaceAttribute",
            Request::DetachNetworkInterface { .. } => "DetachNetworkInterface",
            Request::DeleteNetworkInterface { .. } => "DeleteNetworkInterface",
            Request::AssignPrivateIpAddresses { .. } => "AssignPrivateIpAddresses",
            Request::UnassignPrivateIpAddresses { .. } => "UnassignPrivateIpAddresses",
            Request::AssignIpv6Addresses { .. } => "AssignIpv6Addresses",
            Request::UnassignIpv6Addresses { .. } => "UnassignIpv6Addresses",
            Request::DescribeNetworkInterfaces { .. } => "DescribeNetworkInterfaces",
            Request::DescribeSubnets { .. } => "DescribeSubnets",
            Request::DescribeInstances { .. } => "DescribeInstances",
            Request::DescribeInstanceTypes { .. } => "DescribeInstanceTypes",
            Request::CreateTags { .. } => "CreateTags",
        }
    }

    /// Neither filter nor page size: such describes have a smaller bucket.
    pub(super) fn is_plain(&self) -> bool {
        match self {
            Request::DescribeNetworkInterfaces { filters, max_results, .. } => {
                filters.is_empty() && max_results.is_none()
            }
            Request::DescribeInstances { .. } => true,
            _ => false,
        }
    }
}

/// What comes of a call.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// Milliseconds from the call until its answer is there. The effect is there at once.
    pub takes_ms: u64,
    /// EC2's number of the call, as support asks for it.
    pub request_id: String,
    /// The answer.
    pub outcome: Outcome,
}

impl Reply {
    /// The answer, for callers that expect no lost one; an error otherwise, a lost answer as "Lost".
    pub fn answer(self) -> Result<Answer, ApiError> {
        match self.outcome {
            Outcome::Answer(answer) => Ok(answer),
            Outcome::Error(error) => Err(error),
            Outcome::Lost => Err(ApiError::new("Lost", "there is no answer")),
        }
    }
}

/// How a call ends.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "an answer is read once and dropped")]
pub enum Outcome {
    /// Carried out.
    Answer(Answer),
    /// Refused; nothing has changed.
    Error(ApiError),
    /// The caller gets no answer. Whether it was carried out depends on the fault that lost it.
    Lost,
}

/// EC2's refusal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ApiError {
    /// As in "Error codes for the Amazon EC2 API".
    pub code: String,
    /// For people.
    pub message: String,
    /// Of HTTP.
    pub status: u16,
}

impl ApiError {
    /// An error with the HTTP status that goes with its code.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        let status = match code {
            "UnauthorizedOperation" => 403,
            "InternalError" | "InternalFailure" => 500,
            "RequestLimitExceeded" | "Unavailable" | "ServiceUnavailable" => 503,
            _ => 400,
        };
        ApiError { code: code.to_owned(), message: message.into(), status }
    }
}

/// What a call brings.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "an answer is read once and dropped")]
pub enum Answer {
    /// Of CreateNetworkInterface.
    Interface(EniTruth),
    /// Of DescribeNetworkInterfaces, by id.
    Interfaces {
        /// This page.
        list: Vec<EniTruth>,
        /// For the next page, if there is one.
        next_token: Option<String>,
    },
    /// Of AttachNetworkInterface.
    Attached {
        /// eni-attach-…
        attachment: String,
    },
    /// Of the two assign calls: what is new, not what the ENI has.
    Assigned {
        /// New IPv4 addresses.
        addresses: Vec<Ipv4Addr>,
        /// New /28.
        prefixes: Vec<Ipv4Net>,
        /// New IPv6 addresses.
        ipv6_addresses: Vec<Ipv6Addr>,
        /// New /80.
        ipv6_prefixes: Vec<Ipv6Net>,
    },
    /// Of DescribeSubnets.
    Subnets(Vec<SubnetTruth>),
    /// Of DescribeInstances.
    Instances(Vec<InstanceTruth>),
    /// Of DescribeInstanceTypes.
    InstanceTypes(Vec<TypeLimits>),
    /// Of calls that bring nothing.
    Done,
}

/// What an ENI is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum InterfaceType {
    /// Ordinary traffic.
    #[default]
    Interface,
    /// Elastic Fabric Adapter alone: it has no IP address and never gets one (Amazon EC2 User Guide, "Elastic
    /// Fabric Adapter").
    EfaOnly,
}

impl InterfaceType {
    /// EC2's word.
    pub fn as_str(self) -> &'static str {
        match self {
            InterfaceType::Interface => "interface",
            InterfaceType::EfaOnly => "efa-only",
        }
    }
}

impl FromStr for InterfaceType {
    type Err = ApiError;

    fn from_str(text: &str) -> Result<Self, ApiError> {
        let known = [InterfaceType::Interface, InterfaceType::EfaOnly].into_iter().find(|kind| kind.as_str() == text);
        known.ok_or_else(|| ApiError::new("InvalidParameterValue", format!("There are no '{text}' interfaces here.")))
    }
}

/// The state of an ENI. EC2's reference lists "attaching" and "detaching" here as well; what is seen is
/// in-use with the attachment's own state, which is what Terraform's AWS provider waits by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EniStatus {
    /// Just created.
    Pending,
    /// Attached to nothing.
    Available,
    /// Attaching, attached or detaching.
    InUse,
}

impl EniStatus {
    /// EC2's word.
    pub fn as_str(self) -> &'static str {
        match self {
            EniStatus::Pending => "pending",
            EniStatus::Available => "available",
            EniStatus::InUse => "in-use",
        }
    }
}

/// The state of an attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AttachmentStatus {
    /// The guest does not see the device yet.
    Attaching,
    /// In place.
    Attached,
    /// On its way out; index and addresses are still taken.
    Detaching,
}

impl AttachmentStatus {
    /// EC2's word.
    pub fn as_str(self) -> &'static str {
        match self {
            AttachmentStatus::Attaching => "attaching",
            AttachmentStatus::Attached => "attached",
            AttachmentStatus::Detaching => "detaching",
        }
    }
}

/// An ENI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EniTruth {
    /// eni-…
    pub id: String,
    /// What it is for.
    pub interface_type: InterfaceType,
    /// Its state.
    pub status: EniStatus,
    /// subnet-…
    pub subnet: String,
    /// vpc-…
    pub vpc: String,
    /// Availability zone.
    pub zone: String,
    /// Free text of its creator.
    pub description: String,
    /// Security groups.
    pub groups: Vec<String>,
    /// Six bytes in lower-case hexadecimal with colons.
    pub mac: String,
    /// Its primary address; it never changes. `None`: it is EFA-only.
    pub primary: Option<Ipv4Addr>,
    /// All IPv4 addresses outside of prefixes, the primary one first, others in order of assignment.
    pub addresses: Vec<Ipv4Addr>,
    /// /28 prefixes, in order of assignment.
    pub prefixes: Vec<Ipv4Net>,
    /// IPv6 addresses outside of prefixes.
    pub ipv6_addresses: Vec<Ipv6Addr>,
    /// /80 prefixes.
    pub ipv6_prefixes: Vec<Ipv6Net>,
    /// While it is attached or on its way.
    pub attachment: Option<AttachmentTruth>,
    /// Tags.
    pub tags: BTreeMap<String, String>,
}

impl EniTruth {
    /// The instance, attaching and detaching included.
    pub fn instance(&self) -> Option<&str> {
        self.attachment.as_ref().map(|attachment| attachment.instance.as_str())
    }

    /// Whether it goes away with its instance; never while it is not attached.
    pub fn delete_on_termination(&self) -> bool {
        self.attachment.as_ref().is_some_and(|attachment| attachment.delete_on_termination)
    }

    /// IPv4 slots in use: the primary address, secondary ones and prefixes.
    pub fn ipv4_slots(&self) -> usize {
        self.addresses.len() + self.prefixes.len()
    }

    /// IPv6 slots in use.
    pub fn ipv6_slots(&self) -> usize {
        self.ipv6_addresses.len() + self.ipv6_prefixes.len()
    }
}

/// What ties an ENI to an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachmentTruth {
    /// eni-attach-…
    pub id: String,
    /// i-…
    pub instance: String,
    /// On its card; 0 on card 0 is the primary ENI.
    pub device_index: u32,
    /// Network card.
    pub card: u32,
    /// Its state.
    pub status: AttachmentStatus,
    /// Whether the ENI goes away with the instance.
    pub delete_on_termination: bool,
}

/// A subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetTruth {
    /// subnet-…
    pub id: String,
    /// vpc-…
    pub vpc: String,
    /// Availability zone.
    pub zone: String,
    /// Its IPv4 addresses.
    pub cidr: Ipv4Net,
    /// Its IPv6 addresses.
    pub ipv6: Option<Ipv6Net>,
    /// Free IPv4 addresses, however scattered.
    pub available: u32,
    /// Tags.
    pub tags: BTreeMap<String, String>,
}

/// The state of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceState {
    /// From its start.
    Running,
    /// Terminated by a call, its ENIs still in place.
    ShuttingDown,
    /// Gone, but still described.
    Terminated,
}

impl InstanceState {
    /// EC2's code and word.
    pub fn code_and_name(self) -> (u8, &'static str) {
        match self {
            InstanceState::Running => (16, "running"),
            InstanceState::ShuttingDown => (32, "shutting-down"),
            InstanceState::Terminated => (48, "terminated"),
        }
    }
}

/// An instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceTruth {
    /// i-…
    pub id: String,
    /// Such as m5.large.
    pub kind: String,
    /// Its state.
    pub state: InstanceState,
    /// Subnet of its primary ENI.
    pub subnet: String,
    /// vpc-…
    pub vpc: String,
    /// Availability zone.
    pub zone: String,
    /// Address of its primary ENI.
    pub address: Ipv4Addr,
    /// Its ENIs as DescribeInstances shows them now, by card and device index.
    pub enis: Vec<EniTruth>,
    /// Tags.
    pub tags: BTreeMap<String, String>,
}

/// What instance metadata shows of one ENI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImdsEni {
    /// `interface-id`.
    pub id: String,
    /// `mac`.
    pub mac: String,
    /// `device-number`.
    pub device_index: u32,
    /// `network-card`.
    pub card: u32,
    /// `subnet-id`.
    pub subnet: String,
    /// `vpc-id`.
    pub vpc: String,
    /// `subnet-ipv4-cidr-block`.
    pub subnet_cidr: Ipv4Net,
    /// `subnet-ipv6-cidr-blocks`.
    pub subnet_ipv6: Option<Ipv6Net>,
    /// `local-ipv4s`, the primary one first.
    pub addresses: Vec<Ipv4Addr>,
    /// `ipv4-prefix`.
    pub prefixes: Vec<Ipv4Net>,
    /// `ipv6s`.
    pub ipv6_addresses: Vec<Ipv6Addr>,
    /// `ipv6-prefix`.
    pub ipv6_prefixes: Vec<Ipv6Net>,
    /// `security-group-ids`.
    pub groups: Vec<String>,
}
