//! The plan as a value.

use std::fmt;

use ipnet::IpNet;

use crate::{
    cause::{Cause, Refusal},
    ec2::{Call, Class, Creation},
    ids::{EniId, Millis},
    supply::Home,
};

/// What the node intends at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What is to be done now, in this order.
    pub actions: Vec<Action>,
    /// What is intended and cannot be done yet, or is waited for.
    pub waits: Vec<Wait>,
}

/// One thing to do, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// What.
    pub step: Step,
    /// Why.
    pub reason: Reason,
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants say what their fields are")]
pub enum Step {
    /// Send this call to EC2.
    Call { call: Call, class: Class },
    /// Record the intent to create an ENI, and ask EC2 for it.
    Create { creation: Creation, home: Home, class: Class },
    /// So many addresses are in use once the orders that follow are filled: they are not surplus for a while.
    PlanAhead { addresses: u64 },
    /// Assign nothing from this ENI any more: it is to be detached.
    WithholdEni(EniId),
    /// Assign nothing from these blocks any more: they are to be unassigned.
    WithholdBlocks(Vec<IpNet>),
    /// Somebody uses it after all: it stays.
    KeepEni(EniId),
    /// Somebody uses it after all: it stays.
    KeepBlock(IpNet),
    /// Record the intent to delete an ENI, and begin with its detachment.
    Delete { eni: EniId, attachment: String },
    /// Record the intent to unassign blocks, and ask EC2 for it.
    Unassign { eni: EniId, blocks: Vec<IpNet> },
}

/// Why something is done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants say what their fields are")]
pub enum Reason {
    /// An answer of EC2 never came, or an earlier run of the daemon left something unfinished.
    Unclear,
    /// The store began with nothing.
    Discovery,
    /// Metadata shows an ENI of which it is not known whether it is ours.
    UnknownEni,
    /// Metadata does not show something that is taken for there.
    Unconfirmed,
    /// Something was seen that only EC2 can settle.
    Unsettled,
    /// The slow audit is due.
    SlowAudit,
    /// The search for leaked ENIs is due.
    LeakSearch,
    /// Whose an ENI is has to be known before it is changed.
    BeforeChange,
    /// An ENI has to carry our tag before it is changed.
    Untagged,
    /// The pool of a card is short of so many addresses; so many ADDs wait.
    Short { card: u32, missing: u64, waiting: u64 },
    /// Pods on the ENI get an IPv6 address as well.
    NoV6Block,
    /// The creation of an ENI goes on.
    NextStep,
    /// The deletion of an ENI goes on.
    Deletion,
    /// New pods get no address of an ENI, and its own have gone.
    Excluded,
    /// The pool has been too large for long enough.
    Surplus,
    /// The kernel's links show that it is not used.
    Unused,
    /// A lease or a link uses it.
    InUse,
    /// An operator has frozen what gives back to EC2.
    Frozen,
    /// The primary ENI has other security groups.
    Groups,
    /// The subnet was short of addresses.
    SubnetShort,
    /// How the subnets are tagged decides where an ENI may be.
    Subnets,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Unclear => f.write_str("an earlier call was not answered, or an earlier run left it unfinished"),
            Reason::Discovery => f.write_str("the store is new: EC2 says what an earlier run left"),
            Reason::UnknownEni => f.write_str("metadata shows an ENI that may be ours"),
            Reason::Unconfirmed => f.write_str("metadata does not show something that EC2 had confirmed"),
            Reason::Unsettled => f.write_str("metadata and the daemon's record differ"),
            Reason::SlowAudit => f.write_str("the periodic audit is due"),
            Reason::LeakSearch => f.write_str("the periodic search for leaked ENIs is due"),
            Reason::BeforeChange => f.write_str("EC2 is asked whose the ENIs are before the first change"),
            Reason::Untagged => f.write_str("an ENI is tagged before it is changed"),
            Reason::Short { card, missing, waiting } => {
                write!(f, "the pool of network card {card} is short of {missing} addresses; {waiting} ADDs wait")
            }
            Reason::NoV6Block => f.write_str("pods on the ENI get an IPv6 address as well"),
            Reason::NextStep => f.write_str("the next step of an ENI's creation"),
            Reason::Deletion => f.write_str("the next step of an ENI's deletion"),
            Reason::Excluded => {
                f.write_str("it is excluded by its subnet's tags, the node's ENIConfig or an operator, and has no pod")
            }
            Reason::Frozen => f.write_str("an operator has frozen what gives back to EC2"),
            Reason::Surplus => f.write_str("the pool has been too large for a minute"),
            Reason::Unused => f.write_str("surplus, and the kernel shows no link that uses it"),
            Reason::Groups => f.write_str("the primary ENI has other security groups"),
            Reason::SubnetShort => f.write_str("the subnet was short of addresses: what has it left?"),
            Reason::Subnets => f.write_str("the tags of the zone's subnets say where ENIs may be"),
            Reason::InUse => f.write_str("a lease or a link uses it after all"),
        }
    }
}

/// Something that is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// What.
    pub awaited: Awaited,
    /// Until when; `None`: until it happens.
    pub until: Option<Millis>,
    /// Out of the closed list, where it is a reason to refuse an ADD.
    pub cause: Option<Cause>,
    /// One sentence.
    pub message: String,
    /// The EC2 request behind it, where there is one.
    pub request_id: Option<String>,
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants say what their fields are")]
pub enum Awaited {
    /// Addresses on a network card: an ADD for it would not succeed at once.
    Addresses { card: u32 },
    /// The moment at which EC2 may be called with this action.
    Permission { action: &'static str },
    /// EC2's answer to this action.
    Answer { action: &'static str },
    /// Instance metadata that shows what EC2 has confirmed for this ENI.
    Metadata { eni: EniId },
    /// A listing of the kernel that shows whether this ENI is used.
    EniListing { eni: EniId },
    /// A listing of the kernel that shows whether these blocks are used.
    BlockListing { blocks: Vec<IpNet> },
    /// The end of an ENI's detachment.
    Detached { eni: EniId },
    /// The moment at which an idle ENI is given up, if it still is.
    SurplusEni { eni: EniId },
    /// The moment at which idle blocks are given up, if they still are.
    SurplusBlocks { blocks: Vec<IpNet> },
    /// The moment at which what a card's pool lacks is ordered.
    Order { card: u32 },
    /// The moment at which an ENI gets the primary's security groups.
    Groups { eni: EniId },
}

impl fmt::Display for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Awaited::Addresses { card } => write!(f, "addresses on network card {card}"),
            Awaited::Permission { action } => write!(f, "the next allowed call of {action}"),
            Awaited::Answer { action } => write!(f, "the answer of {action}"),
            Awaited::Metadata { eni } => write!(f, "instance metadata of {eni}"),
            Awaited::EniListing { eni } => write!(f, "a listing of links before {eni} is detached"),
            Awaited::BlockListing { blocks } => write!(f, "a listing of links before {} is unassigned", List(blocks)),
            Awaited::Detached { eni } => write!(f, "the detachment of {eni}"),
            Awaited::SurplusEni { eni } => write!(f, "{eni} to be surplus for long enough"),
            Awaited::Order { card } => write!(f, "more to order on network card {card}"),
            Awaited::Groups { eni } => write!(f, "the security groups of {eni}"),
            Awaited::SurplusBlocks { blocks } => write!(f, "{} to be surplus for long enough", List(blocks)),
        }
    }
}

struct List<'a>(&'a [IpNet]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&texts.join(", "))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Call { call, .. } => match call.eni() {
                Some(eni) => write!(f, "{} {eni}", call.action()),
                None => f.write_str(call.action()),
            },
            Step::Create { .. } => f.write_str("CreateNetworkInterface"),
            Step::PlanAhead { addresses } => write!(f, "count on {addresses} addresses"),
            Step::WithholdEni(eni) => write!(f, "assign no more addresses of {eni}"),
            Step::WithholdBlocks(blocks) => write!(f, "assign no more addresses of {}", List(blocks)),
            Step::KeepEni(eni) => write!(f, "keep {eni}"),
            Step::KeepBlock(block) => write!(f, "keep {block}"),
            Step::Delete { eni, .. } => write!(f, "detach and delete {eni}"),
            Step::Unassign { eni, blocks } => write!(f, "unassign {} from {eni}", List(blocks)),
        }
    }
}

impl Action {
    pub(super) fn new(step: Step, reason: Reason) -> Self {
        Action { step, reason }
    }

    pub(super) fn call(call: Call, class: Class, reason: Reason) -> Self {
        Action::new(Step::Call { call, class }, reason)
    }
}

impl Wait {
    pub(super) fn new(awaited: Awaited, until: Option<Millis>, message: impl Into<String>) -> Self {
        Wait { awaited, until, cause: None, message: message.into(), request_id: None }
    }

    /// As an ADD hears it that waits for this.
    pub(super) fn refusal(&self, now: Millis) -> Refusal {
        Refusal {
            cause: self.cause.unwrap_or(Cause::StillGrowing),
            message: self.message.clone(),
            request_id: self.request_id.clone(),
            retry_after: self.until.map(|until| until.since(now)).filter(|ms| *ms > 0),
        }
    }
}

impl Plan {
    /// Why an ADD for this network card would not succeed at once; `None` if it would.
    pub fn refusal(&self, now: Millis, card: u32) -> Option<Refusal> {
        let wait = self.waits.iter().find(|wait| wait.awaited == Awaited::Addresses { card });
        wait.map(|wait| wait.refusal(now))
    }

    /// Whether it waits to release surplus.
    pub(crate) fn has_surplus(&self) -> bool {
        let is_surplus =
            |wait: &Wait| matches!(wait.awaited, Awaited::SurplusEni { .. } | Awaited::SurplusBlocks { .. });
        self.waits.iter().any(is_surplus)
    }
}
