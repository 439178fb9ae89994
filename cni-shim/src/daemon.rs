//! The conversation with the daemon: packets over its Unix socket, one connection for each conversation.
//!
//! An attachment's connection is kept open until the link stands: when it closes early, the daemon takes the address
//! back. Every step has a deadline for all of its packets, so a daemon that hangs costs no more than that.

use std::{
    cell::Cell,
    path::{Path, PathBuf},
    time::Duration,
};

use enid_api::{
    parts,
    v1::{
        CollectReply, LookupReply, LookupRequest, Pending, Refusal, ReleaseRequest, StatusReply, StatusRequest, Wired,
        from_daemon::Kind as Answer, from_plugin::Kind,
    },
};

use nix::errno::Errno;

use crate::{
    error::Error,
    packets::{Deadline, Fault, Packets, Room, words},
};

// Causes that only the plugin can name, beside the daemon's own (enid_ipamd::Cause): daemon_down,
// daemon_silent, daemon_refused.

/// How long the daemon may take for anything but growth, connection included.
const ANSWER: Duration = Duration::from_secs(2);
/// How long a report may take: its call is over.
const REPORT: Duration = Duration::from_millis(500);
/// How long STATUS may take, connection included: runtimes ask every few seconds.
const STATUS: Duration = Duration::from_millis(900);
/// How long a listing of all links may take, with thousands of them.
const COLLECT: Duration = Duration::from_secs(10);
/// How long a verdict may take: the disk stands before it, and connection tracking's table where the address was
/// used a moment ago (0.7 s for a quarter of a million entries).
const VERDICT: Duration = Duration::from_secs(10);

/// The message types of a request.
pub use enid_api::v1::{Ask, Attachment, Offer, Pod, Report};

/// Where the daemon is.
pub struct Daemon {
    socket: PathBuf,
}

/// An attachment under way.
pub struct Session {
    packets: Packets,
    /// The daemon has been told that the link stands: it listens to nothing else from then on.
    has_said_wired: Cell<bool>,
}

/// A conversation of one question: what it is for, how long it takes, how long its answer may be.
struct Question {
    doing: &'static str,
    limit: Duration,
    room: Room,
}

impl Daemon {
    /// The daemon that listens there.
    pub fn at(socket: &Path) -> Self {
        Daemon { socket: socket.to_owned() }
    }

    /// Connects, for an attachment that is asked for next.
    pub fn connect(&self) -> Result<Session, Error> {
        Ok(Session { packets: self.connected(Deadline::within(ANSWER))?, has_said_wired: Cell::new(false) })
    }

    /// Lets the daemon end an attachment: whether its link is gone as well.
    pub fn release(&self, attachment: Attachment, traceparent: &str) -> Result<bool, Error> {
        let question = Question { doing: "release the address", limit: ANSWER, room: Room::Usual };
        let request = ReleaseRequest { attachment: Some(attachment), traceparent: traceparent.to_owned() };
        match self.ask(&question, [Kind::Release(request)])? {
            Answer::Released(reply) => Ok(reply.link_deleted),
            other => Err(unexpected(&other)),
        }
    }

    /// Says what only the plugin can say. Nothing depends on it.
    pub fn report(&self, report: Report) {
        let deadline = Deadline::within(REPORT);
        if let Ok(packets) = Packets::connect(&self.socket, deadline) {
            let _ = packets.send(Kind::Report(report), deadline);
        }
    }

    /// What the daemon knows of an attachment.
    pub fn lookup(&self, attachment: Attachment) -> Result<LookupReply, Error> {
        let question = Question { doing: "look the attachment up", limit: ANSWER, room: Room::Whole };
        let request = LookupRequest { attachment: Some(attachment) };
        match self.ask(&question, [Kind::Lookup(request)])? {
            Answer::Found(reply) => Ok(reply),
            other => Err(unexpected(&other)),
        }
    }

    /// Whether an ADD would succeed now.
    pub fn status(&self) -> Result<StatusReply, Error> {
        let question = Question { doing: "say whether it is ready", limit: STATUS, room: Room::Whole };
        match self.ask(&question, [Kind::Status(StatusRequest {})])? {
            Answer::Status(reply) => Ok(reply),
            other => Err(unexpected(&other)),
        }
    }

    /// Ends what is not among the valid and not in the kernel.
    pub fn collect(&self, network: &str, valid: &[(String, String)]) -> Result<CollectReply, Error> {
        let question = Question { doing: "collect what is left over", limit: COLLECT, room: Room::Whole };
        let name = |(container, ifname): &(String, String)| Attachment {
            network: network.to_owned(),
            container: container.clone(),
            ifname: ifname.clone(),
        };
        let parts = parts::split(network, valid.iter().map(name)).map_err(|error| Error::config(error.to_string()))?;
        match self.ask(&question, parts.into_iter().map(Kind::Collect))? {
            Answer::Collected(reply) => Ok(reply),
            other => Err(unexpected(&other)),
        }
    }

    fn ask(&self, question: &Question, packets: impl IntoIterator<Item = Kind>) -> Result<Answer, Error> {
        let deadline = Deadline::within(question.limit);
        let connected = self.connected(deadline)?;
        for packet in packets {
            connected.send(packet, deadline).map_err(|fault| failed(question.doing, fault))?;
        }
        answered(&connected, question.doing, question.room, deadline)
    }

    fn connected(&self, deadline: Deadline) -> Result<Packets, Error> {
        Packets::connect(&self.socket, deadline).map_err(|fault| match fault {
            // It is a socket of another type (unix(7)).
            Fault::Io(Errno::EPROTOTYPE) => not_a_daemon("accept a connection"),
            Fault::Io(errno) => {
                let (at, why) = (self.socket.display(), words(errno));
                Error::later(format!("the enid daemon does not answer on {at}: {why}"), "cause=daemon_down")
            }
            fault => failed("accept a connection", fault),
        })
    }
}

impl Session {
    /// Asks for an address and waits for it as long as the question says. A daemon that has none yet says so at once.
    pub fn ask(&self, ask: Ask) -> Result<Offer, Error> {
        const DOING: &str = "offer an address";
        let (first, whole) =
            (Deadline::within(ANSWER), Deadline::within(Duration::from_millis(ask.timeout_ms) + ANSWER));
        self.packets.send(Kind::Ask(ask), first).map_err(|fault| failed("take the request", fault))?;
        let mut answer = answered(&self.packets, "take the request", Room::Usual, first)?;
        while let Answer::Pending(Pending {}) = answer {
            answer = answered(&self.packets, DOING, Room::Usual, whole)?;
        }
        match answer {
            Answer::Offer(offer) => Ok(offer),
            Answer::Refusal(refusal) => Err(refused(refusal)),
            other => Err(unexpected(&other)),
        }
    }

    /// Gives the ADD up and says why, while the daemon listens; whether it has been sent. An earlier daemon closes the
    /// connection, which ends the ADD as well.
    pub fn give_up(&self, report: Report) -> bool {
        !self.has_said_wired.get() && self.packets.send(Kind::Report(report), Deadline::within(REPORT)).is_ok()
    }

    /// Says that the link stands.
    pub fn say_wired(&self, host_ifname: &str) -> Result<(), Error> {
        self.has_said_wired.set(true);
        let wired = Kind::Wired(Wired { host_ifname: host_ifname.to_owned() });
        let said = self.packets.send(wired, Deadline::within(ANSWER));
        said.map_err(|fault| failed("take the news of the link", fault))
    }

    /// Whether the attachment is still ours.
    pub fn verdict(&self) -> Result<bool, Error> {
        match answered(&self.packets, "confirm the attachment", Room::Usual, Deadline::within(VERDICT))? {
            Answer::Verdict(verdict) => Ok(verdict.mine),
            Answer::Refusal(refusal) => Err(refused(refusal)),
            other => Err(unexpected(&other)),
        }
    }
}

/// Something else listens there, or a daemon of another version.
fn not_a_daemon(doing: &str) -> Error {
    let message = format!("what listens on the socket is not an enid daemon of this kind: it cannot {doing}");
    Error::later(message, "cause=daemon_refused")
}

/// The next answer, if the daemon could do it.
fn answered(packets: &Packets, doing: &str, room: Room, deadline: Deadline) -> Result<Answer, Error> {
    match packets.receive(room, deadline) {
        Ok(Answer::Failure(failure)) if failure.not_understood => Err(not_a_daemon(doing)),
        Ok(Answer::Failure(failure)) => {
            Err(Error::later(format!("the enid daemon could not {doing}: {}", failure.message), "cause=daemon_refused"))
        }
        Ok(answer) => Ok(answer),
        Err(fault) => Err(failed(doing, fault)),
    }
}

fn failed(doing: &str, fault: Fault) -> Error {
    match fault {
        Fault::Late => Error::later(format!("the enid daemon did not {doing} in time"), "cause=daemon_silent"),
        Fault::Closed => {
            let words = format!("the enid daemon closed the connection before it could {doing}");
            Error::later(words, "cause=daemon_down")
        }
        Fault::TooLong(length) => Error::internal(format!("the question to {doing} has {length} bytes, too many")),
        Fault::Malformed(malformed) => no_answer(&malformed.to_string()),
        Fault::Io(errno) => {
            let words = format!("the connection to the enid daemon failed, which was to {doing}: {}", words(errno));
            Error::later(words, "cause=daemon_down")
        }
    }
}

fn refused(refusal: Refusal) -> Error {
    let Refusal { cause, message, aws_request_id, retry_at } = refusal;
    let mut details = format!("cause={cause}");
    if !aws_request_id.is_empty() {
        details.push_str(&format!(" aws_request_id={aws_request_id}"));
    }
    if !retry_at.is_empty() {
        details.push_str(&format!(" retry_at={retry_at}"));
    }
    Error::later(format!("no address for the pod ({cause}): {message}"), details)
}

/// The daemon says something that is not its turn.
fn unexpected(answer: &Answer) -> Error {
    no_answer(match answer {
        Answer::Pending(_) => "\"pending\" out of turn",
        Answer::Offer(_) => "an offer out of turn",
        Answer::Verdict(_) => "a verdict out of turn",
        Answer::Refusal(_) => "a refusal out of turn",
        Answer::Released(_) | Answer::Found(_) | Answer::Status(_) | Answer::Collected(_) | Answer::Failure(_) => {
            "the answer to another question"
        }
    })
}

fn no_answer(what: &str) -> Error {
    Error::internal(format!("the enid daemon sent {what}; plugin and daemon do not understand each other"))
}
