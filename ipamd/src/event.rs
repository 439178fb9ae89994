//! What comes into the core, what goes out, and what is recorded.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde::{Deserialize, Serialize};

use crate::{
    cause::Refusal,
    ec2::{Call, CallError, Class, Ec2Answer, Intent},
    ids::{AttachmentKey, CallId, EniId, Millis, PodRef, Ticket},
    lease::Lease,
    pool::{AddresslessEni, EniFacts},
    restrictions::Restrictions,
    supply::{EniConfig, Policy},
};

/// Something happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the variants say what their fields are")]
pub enum Event {
    /// ADD: a plugin asks for an address and waits this many milliseconds at most; `card`: it has to be on an ENI of that
    /// network card.
    Ask { ticket: Ticket, key: AttachmentKey, pod: Option<PodRef>, timeout_ms: u64, card: Option<u32> },
    /// The plugin says that the link stands; `seen`: the kernel shows it with its MAC.
    Wired { ticket: Ticket, key: AttachmentKey, seen: bool },
    /// The plugin's connection has closed, or what it was offered could not be recorded.
    Closed { ticket: Ticket },
    /// DEL.
    Release { ticket: Ticket, key: AttachmentKey },
    /// GC: only these attachments of the network are alive, says the runtime.
    Gc { network: String, alive: Vec<AttachmentKey> },
    /// A complete listing of the kernel, begun at this moment: the attachments that were asked about, those of them whose
    /// link is there, and all addresses that pods' links use.
    Links { begun: Millis, asked: Vec<AttachmentKey>, seen: Vec<AttachmentKey>, used: Vec<IpAddr> },
    /// What instance metadata shows of the ENIs that were read now, with all that it lists with an address, and all without.
    Imds { enis: Vec<EniFacts>, listed: BTreeSet<EniId>, addressless: Vec<AddresslessEni> },
    /// The security groups of the primary ENI, read from instance metadata.
    Groups { groups: BTreeSet<String> },
    /// Instance metadata could not be read; why.
    ImdsFailed { message: String },
    /// An EC2 call ended.
    Answered { id: CallId, answer: Result<Ec2Answer, CallError> },
    /// Host and nftables table carry this ENI.
    EniConfigured { eni: EniId },
    /// Pods that the scheduler has bound to this node and that show no address yet; all of them. Those that hold a lease
    /// by now are told apart here.
    Bound { pods: BTreeSet<PodRef> },
    /// The node's ENIConfig, as the API server has it, or why there is none.
    EniConfig { config: Result<EniConfig, String> },
    /// The settings changed.
    Settings { policy: Policy },
    /// No pod is given an address while this stands in the way of what it would send; ADDs wait for it to end, as long as it
    /// may end by itself.
    Blocked { blocked: Option<Refusal> },
    /// What an operator restricts from now on.
    Restricted { restrictions: Restrictions },
    /// An operator wants what the pool could do without to be released now, not after a minute.
    ReleaseNow,
    /// An operator wants EC2 to be asked about the ENIs now.
    AuditNow,
    /// Whether the node takes no new pods (the taint node.kubernetes.io/unschedulable).
    Cordoned { cordoned: bool },
    /// What the wall clock shows, in milliseconds since 1970: nodes call at common moments when EC2 has too much to do.
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
    /// Answer an ADD with an address.
    Offer { ticket: Ticket, key: AttachmentKey, lease: Lease },
    /// Refuse an ADD.
    Refuse { ticket: Ticket, refusal: Refusal },
    /// Tell a plugin whether the attachment is still its own.
    Verdict { ticket: Ticket, mine: bool },
    /// Tell a DEL what was released.
    Released { ticket: Ticket, address: Option<IpAddr> },
    /// Send this to EC2.
    Call { id: CallId, call: Call, class: Class },
    /// Drop what connection tracking remembers of these addresses; their cooldown is over.
    ForgetConnections { addresses: Vec<IpAddr> },
}

/// One change of the ledger; `None` removes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// A lease.
    Lease(AttachmentKey, Option<Lease>),
    /// Until when an address is cooling.
    Cooldown(IpAddr, Option<Millis>),
    /// The slot of an ENI.
    Slot(EniId, Option<u32>),
    /// EC2 is about to be asked for something that a kill could leave half done; by its token.
    Intent(String, Option<Intent>),
}

/// What the store remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Leases by attachment.
    pub leases: BTreeMap<AttachmentKey, Lease>,
    /// Addresses in their cooldown, and until when.
    pub cooling: BTreeMap<IpAddr, Millis>,
    /// Slots given to ENIs.
    pub slots: BTreeMap<EniId, u32>,
    /// Slots that the kernel gives to links, by MAC: running pods depend on them, whatever has become of the record.
    pub kernel_slots: BTreeMap<[u8; 6], u32>,
    /// What EC2 was about to be asked, by token.
    pub intents: BTreeMap<String, Intent>,
}

impl Ledger {
    /// What is left of it at another boot. The pods are gone: their addresses, and those whose cooldown was not over, cool
    /// from the moment at which the machine started, which is where the clock begins.
    #[must_use]
    pub fn at_another_boot(self, cooldown_ms: u64) -> Ledger {
        let assigned = self.leases.values().flat_map(Lease::addresses);
        let cooling = self.cooling.keys().copied().chain(assigned).map(|address| (address, Millis(cooldown_ms)));
        Ledger { cooling: cooling.collect(), leases: BTreeMap::new(), ..self }
    }
}
