//! EC2 calls as values: what is asked, for whom, and what comes back.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    cause::Cause,
    ids::{EniId, Place, SubnetId},
    supply::{Home, Kind, SubnetFacts},
};

/// What is recorded before EC2 is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Intent {
    /// An ENI is created under this client token.
    Create(Recorded),
    /// This ENI is detached and deleted.
    Delete(EniId),
    /// These blocks are unassigned. It stays open until metadata does not show them any more: stale metadata must not
    /// bring them back, after a restart either.
    Unassign(Vec<IpNet>),
    /// The store began with nothing: if an earlier run of the daemon has been here, all that carries our tag is to be
    /// looked at.
    Discover,
}

/// So many blocks of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Order {
    /// Which kind.
    pub kind: Kind,
    /// How many.
    pub count: u32,
}

impl Order {
    /// Addresses that it brings.
    pub fn addresses(self) -> u64 {
        u64::from(self.count) * self.kind.size()
    }
}

/// A new ENI: what it comes with, and where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Creation {
    /// Blocks for pods' first addresses.
    #[serde(flatten)]
    pub order: Order,
    /// It also comes with an IPv6 /80.
    #[serde(default)]
    pub with_v6: bool,
    /// The network card that it is attached to.
    #[serde(default)]
    pub card: u32,
}

/// A creation as it is recorded: EC2 takes a token again only with the very same request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// What was asked for.
    #[serde(flatten)]
    pub creation: Creation,
    /// Where it was asked for.
    #[serde(flatten)]
    pub home: Home,
}

/// Who waits for a call; the first class goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Class {
    /// A pod waits.
    PodWaits,
    /// The pool is short.
    PoolShort,
    /// Nobody: release of surplus, clean-up, audits.
    Background,
}

impl Class {
    /// The name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Class::PodWaits => "pod_waits",
            Class::PoolShort => "pool_short",
            Class::Background => "background",
        }
    }
}

/// Which ENIs an audit asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Scope {
    /// Those that carry our tag for this instance, attached or not.
    Ours,
    /// Those that are attached to this instance, tagged or not.
    Attached,
}

/// A call to EC2.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the variants say what their fields are")]
pub enum Call {
    /// DescribeNetworkInterfaces: what EC2 knows of our ENIs.
    Audit { scope: Scope },
    /// CreateTags: the ENI becomes ours.
    Tag { eni: EniId },
    /// CreateNetworkInterface with blocks for pods, tagged.
    Create { token: String, creation: Creation, home: Home },
    /// AttachNetworkInterface.
    Attach { eni: EniId, place: Place },
    /// ModifyNetworkInterfaceAttribute: delete on termination.
    DeleteOnTermination { eni: EniId, attachment: String },
    /// ModifyNetworkInterfaceAttribute: security groups.
    SetGroups { eni: EniId, groups: Arc<BTreeSet<String>> },
    /// AssignPrivateIpAddresses or AssignIpv6Addresses.
    Assign { eni: EniId, order: Order },
    /// UnassignPrivateIpAddresses or UnassignIpv6Addresses.
    Unassign { eni: EniId, blocks: Vec<IpNet> },
    /// DetachNetworkInterface.
    Detach { eni: EniId, attachment: String },
    /// DeleteNetworkInterface.
    Delete { eni: EniId },
    /// DescribeSubnets: what these have left, and how they are tagged; without ids all of the node's zone and VPC.
    Subnets { ids: BTreeSet<SubnetId> },
    /// DescribeNetworkInterfaces: unattached ENIs of the cluster that were created minutes ago.
    FindLeaked,
}

/// EC2's names of all actions that calls have.
pub(super) const ACTIONS: [&str; 12] = [
    "AssignIpv6Addresses",
    "AssignPrivateIpAddresses",
    "AttachNetworkInterface",
    "CreateNetworkInterface",
    "CreateTags",
    "DeleteNetworkInterface",
    "DescribeNetworkInterfaces",
    "DescribeSubnets",
    "DetachNetworkInterface",
    "ModifyNetworkInterfaceAttribute",
    "UnassignIpv6Addresses",
    "UnassignPrivateIpAddresses",
];

impl Call {
    /// EC2's name of the action, one of [`ACTIONS`].
    pub fn action(&self) -> &'static str {
        let v6 = |kind: Kind| kind == Kind::V6Prefix;
        match self {
            Call::Audit { .. } | Call::FindLeaked => "DescribeNetworkInterfaces",
            Call::Subnets { .. } => "DescribeSubnets",
            Call::Tag { .. } => "CreateTags",
            Call::Create { .. } => "CreateNetworkInterface",
            Call::Attach { .. } => "AttachNetworkInterface",
            Call::DeleteOnTermination { .. } | Call::SetGroups { .. } => "ModifyNetworkInterfaceAttribute",
            Call::Assign { order, .. } if v6(order.kind) => "AssignIpv6Addresses",
            Call::Assign { .. } => "AssignPrivateIpAddresses",
            Call::Unassign { blocks, .. } if blocks.iter().any(|net| matches!(net, IpNet::V6(_))) => {
                "UnassignIpv6Addresses"
            }
            Call::Unassign { .. } => "UnassignPrivateIpAddresses",
            Call::Detach { .. } => "DetachNetworkInterface",
            Call::Delete { .. } => "DeleteNetworkInterface",
        }
    }

    /// Whether it changes nothing at EC2.
    pub(crate) fn reads(&self) -> bool {
        match self {
            Call::Audit { .. } | Call::Subnets { .. } | Call::FindLeaked => true,
            Call::Tag { .. }
            | Call::Create { .. }
            | Call::Attach { .. }
            | Call::DeleteOnTermination { .. }
            | Call::SetGroups { .. }
            | Call::Assign { .. }
            | Call::Unassign { .. }
            | Call::Detach { .. }
            | Call::Delete { .. } => false,
        }
    }

    /// Whether it gives something back to EC2.
    pub(crate) fn gives_back(&self) -> bool {
        match self {
            Call::Unassign { .. } | Call::Detach { .. } | Call::Delete { .. } => true,
            Call::Audit { .. }
            | Call::Subnets { .. }
            | Call::FindLeaked
            | Call::Tag { .. }
            | Call::Create { .. }
            | Call::Attach { .. }
            | Call::DeleteOnTermination { .. }
            | Call::SetGroups { .. }
            | Call::Assign { .. } => false,
        }
    }

    /// The ENI it is about, if it is about one.
    pub fn eni(&self) -> Option<&EniId> {
        match self {
            Call::Tag { eni }
            | Call::Attach { eni, .. }
            | Call::DeleteOnTermination { eni, .. }
            | Call::SetGroups { eni, .. }
            | Call::Assign { eni, .. }
            | Call::Unassign { eni, .. }
            | Call::Detach { eni, .. }
            | Call::Delete { eni } => Some(eni),
            Call::Audit { .. } | Call::Create { .. } | Call::Subnets { .. } | Call::FindLeaked => None,
        }
    }
}

/// What EC2 answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the variants say what their fields are")]
pub enum Ec2Answer {
    /// The ENIs of this instance, and (scope `Ours`) unattached ones that carry our tag.
    Audited { attached: Vec<AuditedEni>, unattached: Vec<UnattachedEni> },
    /// The ENI that was created, and the blocks on it.
    Created { eni: EniId, blocks: Vec<IpNet> },
    /// The attachment's id.
    Attached { attachment: String },
    /// The ENI carries at least these now: EC2 names the new ones, some emulators name all.
    Assigned { blocks: Vec<IpNet> },
    /// ENIs of the cluster that belong to nobody.
    Leaked { enis: Vec<EniId> },
    /// The subnets.
    Subnets { list: BTreeMap<SubnetId, SubnetFacts> },
    /// It is done; there is nothing more to know.
    Done,
}

/// One attached ENI as EC2 knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditedEni {
    /// Its id.
    pub id: EniId,
    /// It carries our tag for this instance.
    pub ours: bool,
    /// It carries `no_manage`.
    pub no_manage: bool,
    /// EC2 deletes it with the instance.
    pub delete_on_termination: bool,
    /// Id of the attachment.
    pub attachment: String,
    /// Where it is attached.
    pub place: Place,
    /// The client token of its creation, as a tag says.
    pub token: Option<String>,
    /// The blocks on it, its own address left out.
    pub blocks: BTreeSet<IpNet>,
}

/// An ENI of ours that is attached to nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnattachedEni {
    /// Its id.
    pub id: EniId,
    /// The client token of its creation, as a tag says.
    pub token: Option<String>,
}

/// A call that failed, classified by the adapter that knows EC2's codes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallError {
    /// Out of the closed list.
    pub cause: Cause,
    /// One sentence: action, code, EC2's own words.
    pub message: String,
    /// EC2's request id.
    pub request_id: Option<String>,
    /// What the refusal tells of EC2's state.
    pub fact: Fact,
}

impl CallError {
    /// What it means for a call that asked for these addresses; its words name amount and subnet.
    pub(crate) fn of_order(self, order: Order, subnet: &SubnetId) -> CallError {
        let Order { kind, count } = order;
        let cause = match (self.cause, kind) {
            // One sentence of EC2's is about both.
            (Cause::NoPrefix, Kind::Single) => Cause::SubnetFull,
            (cause, _) => cause,
        };
        let what = match kind {
            Kind::Single => "addresses",
            Kind::Prefix => "prefixes of IPv4",
            Kind::V6Prefix => "prefixes of IPv6",
        };
        let message = format!("{} ({what} asked for in {subnet}: {count})", self.message);
        CallError { cause, message, ..self }
    }
}

/// What a refusal tells of EC2's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fact {
    /// Nothing that could be worked with.
    #[default]
    None,
    /// EC2 does not know the object (any more), which ends a deletion well.
    NotFound,
    /// Something is attached at the place already.
    PlaceTaken,
    /// EC2 does not know one of the security groups.
    GroupGone,
    /// EC2 has had another request under this client token.
    OtherRequest,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_what_was_asked_for_and_where() {
        let error = CallError { cause: Cause::NoPrefix, message: "no".into(), request_id: None, fact: Fact::None };
        let asked = |kind| error.clone().of_order(Order { kind, count: 14 }, &SubnetId("subnet-1".into()));
        assert_eq!(asked(Kind::Single).cause, Cause::SubnetFull);
        assert_eq!(asked(Kind::Prefix).cause, Cause::NoPrefix);
        assert_eq!(asked(Kind::Single).message, "no (addresses asked for in subnet-1: 14)");
    }
}
