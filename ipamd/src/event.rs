//! What comes in and what goes out.

use std::net::Ipv4Addr;

use crate::{AttachmentKey, Cause, EniFacts, EniId, Lease, Millis, PodRef, Refusal};

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
    /// A plugin asks for an address and waits this many milliseconds at most.
    Ask { ticket: Ticket, key: AttachmentKey, pod: Option<PodRef>, patience: u64 },
    /// The plugin says that the link stands; `seen`: the kernel shows it with its MAC.
    Wired { ticket: Ticket, key: AttachmentKey, seen: bool },
    /// The plugin's connection has closed.
    Gone { ticket: Ticket },
    /// DEL.
    Release { ticket: Ticket, key: AttachmentKey },
    /// A complete listing of the kernel: the attachments of ours whose link is there.
    Links { seen: Vec<AttachmentKey> },
    /// What instance metadata shows.
    Imds { enis: Vec<EniFacts> },
    /// An EC2 call ended.
    Done { id: CallId, answer: Result<Done, CallError> },
    /// Host and table carry this ENI.
    EniUp { eni: EniId },
    /// Time passed.
    Tick,
}

/// Something to do. Effects are carried out in order; a record is durable before what follows it.
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
    Released { ticket: Ticket, address: Option<Ipv4Addr> },
    /// Send this to EC2.
    Call { id: CallId, call: Call },
}

/// One change of the ledger; `None` removes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// A lease.
    Lease(AttachmentKey, Option<Lease>),
    /// When an address may be given again.
    Rest(Ipv4Addr, Option<Millis>),
    /// The slot of an ENI.
    Slot(EniId, Option<u32>),
    /// A creation is about to be sent, or its end is known.
    Intent(String, bool),
}

/// A call to EC2.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants say what their fields are")]
pub enum Call {
    /// DescribeNetworkInterfaces of this instance; with `unattached`, also ENIs that carry our tag for
    /// this instance and hang nowhere.
    Audit { unattached: bool },
    /// CreateTags: the ENI becomes ours.
    Tag { eni: EniId },
    /// CreateNetworkInterface with so many addresses for pods, tagged, in the primary's subnet.
    Create { token: String, addresses: u32 },
    /// AttachNetworkInterface.
    Attach { eni: EniId, device_index: u32 },
    /// ModifyNetworkInterfaceAttribute: delete on termination.
    Protect { eni: EniId, attachment: String },
    /// AssignPrivateIpAddresses.
    Assign { eni: EniId, addresses: u32 },
    /// DetachNetworkInterface, of an ENI that never served.
    Detach { eni: EniId, attachment: String },
    /// DeleteNetworkInterface, of an ENI that never served.
    Delete { eni: EniId },
}

impl Call {
    /// EC2's name of the action.
    pub fn action(&self) -> &'static str {
        match self {
            Call::Audit { .. } => "DescribeNetworkInterfaces",
            Call::Tag { .. } => "CreateTags",
            Call::Create { .. } => "CreateNetworkInterface",
            Call::Attach { .. } => "AttachNetworkInterface",
            Call::Protect { .. } => "ModifyNetworkInterfaceAttribute",
            Call::Assign { .. } => "AssignPrivateIpAddresses",
            Call::Detach { .. } => "DetachNetworkInterface",
            Call::Delete { .. } => "DeleteNetworkInterface",
        }
    }

    /// Whether the call serves growth; there is one order of growth at a time.
    pub(crate) fn grows(&self) -> bool {
        !matches!(self, Call::Detach { .. } | Call::Delete { .. })
    }
}

/// What EC2 answered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants say what their fields are")]
pub enum Done {
    /// The ENIs of this instance, and unattached ones that carry our tag.
    Audited { attached: Vec<AuditedEni>, unattached: Vec<EniId> },
    /// The ENI that was created.
    Created { eni: EniId },
    /// The attachment's id.
    Attached { attachment: String },
    /// The ENI carries at least these now: EC2 names the new ones, some stand-ins name all.
    Assigned { addresses: Vec<Ipv4Addr> },
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
