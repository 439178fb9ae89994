//! What comes in and what goes out.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{AttachmentKey, BareEni, Cause, EniFacts, EniId, Kind, Lease, Millis, PodRef, Policy, Refusal};

/// One request of a plugin, from its question to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// One EC2 call on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// Something happened.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the variants say what their fields are")]
pub enum Event {
    /// A plugin asks for an address and waits this many milliseconds at most; `card`: it has to be on an ENI of that
    /// network card.
    Ask { ticket: Ticket, key: AttachmentKey, pod: Option<PodRef>, patience: u64, card: Option<u32> },
    /// The plugin says that the link stands; `seen`: the kernel shows it with its MAC.
    Wired { ticket: Ticket, key: AttachmentKey, seen: bool },
    /// The plugin's connection has closed, or what it was offered could not be written down.
    Gone { ticket: Ticket },
    /// DEL.
    Release { ticket: Ticket, key: AttachmentKey },
    /// GC: only these attachments of the network are alive, says the runtime.
    Collect { network: String, alive: Vec<AttachmentKey> },
    /// A complete listing of the kernel: the attachments that were asked about, those of them whose link is there, and
    /// all addresses that are routed over pods' links.
    Links { asked: Vec<AttachmentKey>, seen: Vec<AttachmentKey>, routed: Vec<IpAddr> },
    /// What instance metadata shows; `bare` are ENIs without any address.
    Imds { enis: Vec<EniFacts>, bare: Vec<BareEni> },
    /// An EC2 call ended.
    Done { id: CallId, answer: Result<Done, CallError> },
    /// Host and table carry this ENI.
    EniUp { eni: EniId },
    /// Pods bound to this node that hold no lease yet.
    Bound { pods: u32 },
    /// The settings changed.
    Settings { policy: Policy },
    /// Whether the node takes no new pods (the taint node.kubernetes.io/unschedulable).
    Cordoned { cordoned: bool },
    /// What the wall clock shows, in milliseconds since 1970: nodes meet at its slots when EC2 has too much to
    /// do.
    Wall { ms: u64 },
    /// Time passed, or a batch of requests is complete: only then the pool grows for them.
    Tick,
}

/// Something to do. Effects are carried out in order; a record is durable before what follows it, but for
/// an offer, which may go ahead: its verdict may not.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants say what their fields are")]
pub enum Effect {
    /// Write this down.
    Record(Write),
    /// Answer a plugin's question.
    Offer { ticket: Ticket, key: AttachmentKey, lease: Lease },
    /// Tell a plugin no.
    Refuse { ticket: Ticket, refusal: Refusal },
    /// Tell a plugin whether the attachment is still its own.
    Verdict { ticket: Ticket, mine: bool },
    /// Tell a DEL what was released.
    Released { ticket: Ticket, address: Option<IpAddr> },
    /// Send this to EC2.
    Call { id: CallId, call: Call, class: Class },
    /// Drop what connection tracking remembers of these addresses; their rest is over.
    Forget { addresses: Vec<IpAddr> },
}

/// One change of the ledger; `None` removes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// A lease.
    Lease(AttachmentKey, Option<Lease>),
    /// When an address may be given again.
    Rest(IpAddr, Option<Millis>),
    /// The slot of an ENI.
    Slot(EniId, Option<u32>),
    /// Something is about to be done to EC2 that a kill could leave half done; by its token.
    Intent(String, Option<Intent>),
}

/// What was written down before EC2 was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Intent {
    /// An ENI is created under this client token.
    Create(Creation),
    /// This ENI is detached and deleted.
    Leave(EniId),
    /// These blocks go back to EC2. It stays open until metadata has forgotten them: stale news must not
    /// bring them back, after a restart either.
    GiveBack(Vec<IpNet>),
    /// The store began with nothing: if an earlier life has been here, all that carries our tag is to be
    /// looked at.
    LookAround,
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
    /// Blocks that pods' first addresses are from.
    #[serde(flatten)]
    pub order: Order,
    /// An IPv6 /80 comes beside them.
    #[serde(default)]
    pub with_v6: bool,
    /// The network card that it is attached to.
    #[serde(default)]
    pub card: u32,
}

/// Where an ENI is attached: device indices repeat over network cards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Network card.
    pub card: u32,
    /// Device index on it.
    pub device_index: u32,
}

/// Who waits for a call; the first class goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// A pod waits.
    PodWaits,
    /// The pool is short.
    PoolShort,
    /// Nobody: tidying up, audits.
    Tidy,
}

/// Which ENIs an audit asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Those that carry our tag for this instance, attached or not.
    Ours,
    /// Those that are attached to this instance, tagged or not.
    Attached,
}

/// A call to EC2.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants say what their fields are")]
pub enum Call {
    /// DescribeNetworkInterfaces: what EC2 knows of our ENIs.
    Audit { scope: Scope },
    /// CreateTags: the ENI becomes ours.
    Tag { eni: EniId },
    /// CreateNetworkInterface with blocks for pods, tagged, in the primary's subnet.
    Create { token: String, creation: Creation },
    /// AttachNetworkInterface.
    Attach { eni: EniId, place: Place },
    /// ModifyNetworkInterfaceAttribute: delete on termination.
    Protect { eni: EniId, attachment: String },
    /// AssignPrivateIpAddresses or AssignIpv6Addresses.
    Assign { eni: EniId, order: Order },
    /// UnassignPrivateIpAddresses or UnassignIpv6Addresses.
    Unassign { eni: EniId, blocks: Vec<IpNet> },
    /// DetachNetworkInterface.
    Detach { eni: EniId, attachment: String },
    /// DeleteNetworkInterface.
    Delete { eni: EniId },
    /// DescribeNetworkInterfaces: ENIs of the cluster that hang nowhere and were made minutes ago.
    FindLeaked,
}

impl Call {
    /// EC2's name of the action.
    pub fn action(&self) -> &'static str {
        let v6 = |kind: Kind| kind == Kind::V6Prefix;
        match self {
            Call::Audit { .. } | Call::FindLeaked => "DescribeNetworkInterfaces",
            Call::Tag { .. } => "CreateTags",
            Call::Create { .. } => "CreateNetworkInterface",
            Call::Attach { .. } => "AttachNetworkInterface",
            Call::Protect { .. } => "ModifyNetworkInterfaceAttribute",
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

    /// The ENI it is about, if it is about one.
    pub fn eni(&self) -> Option<&EniId> {
        match self {
            Call::Tag { eni }
            | Call::Attach { eni, .. }
            | Call::Protect { eni, .. }
            | Call::Assign { eni, .. }
            | Call::Unassign { eni, .. }
            | Call::Detach { eni, .. }
            | Call::Delete { eni } => Some(eni),
            Call::Audit { .. } | Call::Create { .. } | Call::FindLeaked => None,
        }
    }
}

/// What EC2 answered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants say what their fields are")]
pub enum Done {
    /// The ENIs of this instance, and (scope `Ours`) unattached ones that carry our tag.
    Audited { attached: Vec<AuditedEni>, unattached: Vec<LooseEni> },
    /// The ENI that was created, and the blocks on it.
    Created { eni: EniId, blocks: Vec<IpNet> },
    /// The attachment's id.
    Attached { attachment: String },
    /// The ENI carries at least these now: EC2 names the new ones, some stand-ins name all.
    Assigned { blocks: Vec<IpNet> },
    /// ENIs of the cluster that belong to nobody.
    Leaked { enis: Vec<EniId> },
    /// Nothing more to know.
    Fine,
}

/// One attached ENI as EC2 knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditedEni {
    /// Its id.
    pub id: EniId,
    /// It carries our tag for this instance.
    pub ours: bool,
    /// It carries `no_manage`.
    pub no_manage: bool,
    /// It goes when the instance goes.
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

/// An ENI of ours that hangs nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LooseEni {
    /// Its id.
    pub id: EniId,
    /// The client token of its creation, as a tag says.
    pub token: Option<String>,
}

/// A call that failed, classified by the adapter that knows EC2's codes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallError {
    /// Out of the closed list.
    pub cause: Cause,
    /// One sentence: action, code, EC2's own words.
    pub message: String,
    /// EC2's request id.
    pub request_id: Option<String>,
    /// The object is gone, which ends a clean-up well.
    pub not_found: bool,
}
