//! The daemon's rtnetlink: complete listings, and batches of changes, each acknowledged.
//!
//! Messages come from `enid_datapath`, which makes them with rtnetlink's builders; the connection is netlink-proto's, on
//! which rtnetlink stands. rtnetlink's own requests are not used: they hide a message's header, and with it
//! NLM_F_DUMP_INTR; and they drop a message that cannot be decoded, without which a listing is not complete.
//!
//! A connection lives for one piece of work, in the runtime that opens it. When it loses something (a full buffer, an end
//! of its stream, no answer in time) it is opened anew; a listing is then asked for again, and a change that was not
//! acknowledged is an error.

use std::{convert::Infallible, io, time::Duration};

use enid_datapath::{
    Error, Family, Request,
    netlink::{
        answer::link,
        error::of_code,
        listing::{LISTINGS, Listed, ask_link, ask_link_in},
    },
};
use futures_util::{
    StreamExt,
    stream::{BoxStream, Fuse, FusedStream},
};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::{RouteNetlinkMessage, link::LinkMessage, route::RouteMessage};
use netlink_proto::{
    ConnectionHandle, new_connection,
    sys::{SocketAddr, protocols::NETLINK_ROUTE},
};
use nix::{
    errno::Errno,
    libc::{RTM_DELLINK, RTM_NEWLINK},
};
use tokio::time::timeout;

/// Requests that travel in one datagram: they and their acknowledgements fit a socket's buffers.
const TOGETHER: usize = 128;
/// How long the kernel may take to answer. It answers at once, unless the answer was lost.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What comes from the kernel: nothing is left out, whatever it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A message of rtnetlink.
    Route(RouteNetlinkMessage),
    /// A message that the library has no type for, or cannot decode; its type.
    Unknown(u16),
}

impl NetlinkDeserializable for Incoming {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        let decoded = match header.message_type {
            RTM_NEWLINK => link(payload).map(RouteNetlinkMessage::NewLink),
            RTM_DELLINK => link(payload).map(RouteNetlinkMessage::DelLink),
            _ => RouteNetlinkMessage::deserialize(header, payload),
        };
        Ok(decoded.map_or(Incoming::Unknown(header.message_type), Incoming::Route))
    }
}

impl NetlinkSerializable for Incoming {
    fn message_type(&self) -> u16 {
        match self {
            Incoming::Route(message) => message.message_type(),
            Incoming::Unknown(kind) => *kind,
        }
    }

    fn buffer_len(&self) -> usize {
        match self {
            Incoming::Route(message) => message.buffer_len(),
            Incoming::Unknown(_) => 0,
        }
    }

    fn serialize(&self, buffer: &mut [u8]) {
        if let Incoming::Route(message) = self {
            message.serialize(buffer);
        }
    }
}

impl From<Incoming> for NetlinkPayload<Incoming> {
    fn from(message: Incoming) -> Self {
        NetlinkPayload::InnerMessage(message)
    }
}

/// Messages that answer no request, with their sender.
type Unsolicited = BoxStream<'static, (NetlinkMessage<Incoming>, SocketAddr)>;

/// A connection that speaks to this process's network namespace.
pub struct Netlink {
    handle: ConnectionHandle<Incoming>,
    unsolicited: Fuse<Unsolicited>,
}

/// How an exchange ended.
#[derive(Debug)]
enum Ended<T> {
    /// With all of its messages.
    Whole(T),
    /// Something changed during the listing (NLM_F_DUMP_INTR): it may lack what was there all the time (the kernel's
    /// introduction to netlink).
    Changed,
    /// A message was lost, or may have been.
    Lost,
}

impl Netlink {
    /// Opens a connection; it runs in the current runtime, and ends with this value.
    pub fn open() -> Result<Self, Error> {
        let failed = |source| Error::new("open a netlink socket", source);
        let (mut connection, handle, unsolicited) = new_connection(NETLINK_ROUTE).map_err(failed)?;
        // The end of a listing carries flags like every other message of it, and an acknowledgement is counted.
        connection.set_forward_done(true);
        connection.set_forward_ack(true);
        tokio::spawn(connection);
        Ok(Netlink { handle, unsolicited: unsolicited.boxed().fuse() })
    }

    /// Everything of one kind, of these families, as it was at one moment.
    pub async fn list<T: Listed>(&mut self, families: &[Family]) -> Result<Vec<T>, Error> {
        let mut found = Vec::new();
        for family in families {
            match self.list_family::<T>(*family).await {
                Ok(listed) => found.extend(listed),
                // A kernel without IPv6 lists nothing of it.
                Err(error) if *family == Family::V6 && error.is(Errno::EAFNOSUPPORT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    async fn list_family<T: Listed>(&mut self, family: Family) -> Result<Vec<T>, Error> {
        for _ in 0..LISTINGS {
            let mut ask = NetlinkMessage::from(Incoming::Route(T::ask(family)));
            ask.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
            let Ok(answers) = self.handle.request(ask, SocketAddr::new(0, 0)) else {
                *self = Netlink::open()?;
                continue;
            };
            let listed = timeout(TIMEOUT, listing(T::WHAT, answers.fuse(), &mut self.unsolicited)).await;
            match listed.unwrap_or(Ok(Ended::Lost))? {
                Ended::Whole(found) => return Ok(found.into_iter().filter_map(T::shown_by).collect()),
                Ended::Changed => {}
                Ended::Lost => *self = Netlink::open()?,
            }
        }
        let source = io::Error::other(format!("it changed, or was lost, during each of {LISTINGS} listings"));
        Err(Error::new(T::WHAT, source))
    }

    /// The link of this name, if there is one.
    pub async fn link(&mut self, name: &str) -> Result<Option<LinkMessage>, Error> {
        self.one_link(format!("look for link {name}"), ask_link(name)).await
    }

    /// The link of this number in another namespace, which this one knows by an id, if there is one.
    pub async fn link_in(&mut self, netns: i32, index: u32) -> Result<Option<LinkMessage>, Error> {
        self.one_link(format!("look for link {index} in namespace {netns}"), ask_link_in(netns, index)).await
    }

    async fn one_link(&mut self, what: String, ask: RouteNetlinkMessage) -> Result<Option<LinkMessage>, Error> {
        match self.one(&what, ask).await {
            Ok(RouteNetlinkMessage::NewLink(link)) => Ok(Some(link)),
            Ok(_) => Err(lost(&what)),
            Err(error) if error.is(Errno::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The route that the kernel gives to a packet (`question`: RTM_GETROUTE).
    pub async fn route(&mut self, question: RouteMessage) -> Result<RouteMessage, Error> {
        let what = "ask for a route";
        match self.one(what, RouteNetlinkMessage::GetRoute(question)).await? {
            RouteNetlinkMessage::NewRoute(route) => Ok(route),
            _ => Err(lost(what)),
        }
    }

    /// The one message that answers a question.
    async fn one(&mut self, what: &str, ask: RouteNetlinkMessage) -> Result<RouteNetlinkMessage, Error> {
        let mut ask = NetlinkMessage::from(Incoming::Route(ask));
        ask.header.flags = NLM_F_REQUEST;
        let mut answers = self.handle.request(ask, SocketAddr::new(0, 0)).map_err(|_| lost(what))?;
        match timeout(TIMEOUT, answers.next()).await.ok().flatten().map(|answer| answer.payload) {
            Some(NetlinkPayload::InnerMessage(Incoming::Route(answer))) => Ok(answer),
            Some(NetlinkPayload::Error(answer)) => Err(Error::new(what, answer.to_io())),
            _ => Err(lost(what)),
        }
    }

    /// Sends all requests, many in one datagram, and waits for every answer; the first refusal is returned. Those after
    /// it have been carried out as well: only what may stand on its own is sent together.
    pub async fn apply(&mut self, requests: &[Request]) -> Result<(), Error> {
        let mut refusal = None;
        for together in requests.chunks(TOGETHER) {
            let what = together[0].to_string();
            let messages: Vec<_> = together.iter().map(|request| outgoing(request.message(NLM_F_ACK))).collect();
            let answers = self.handle.request_batch(messages, SocketAddr::new(0, 0)).map_err(|_| lost(&what))?;
            let answered = timeout(TIMEOUT, acknowledged(together, answers.fuse(), &mut self.unsolicited)).await;
            match answered.unwrap_or(Ended::Lost) {
                Ended::Whole(Ok(())) => {}
                Ended::Whole(Err(error)) => drop(refusal.get_or_insert(error)),
                Ended::Changed | Ended::Lost => return Err(refusal.unwrap_or_else(|| lost(&what))),
            }
        }
        refusal.map_or(Ok(()), Err)
    }
}

fn outgoing(message: NetlinkMessage<RouteNetlinkMessage>) -> NetlinkMessage<Incoming> {
    let (header, payload) = message.into_parts();
    let payload = match payload {
        NetlinkPayload::InnerMessage(message) => NetlinkPayload::InnerMessage(Incoming::Route(message)),
        _ => NetlinkPayload::Noop, // no request is anything else
    };
    NetlinkMessage::new(header, payload)
}

fn lost(what: &str) -> Error {
    Error::new(what, io::Error::other("the kernel's answer was lost"))
}

/// The next message of either stream. What answers no request is looked at first: an overrun is reported there, before the
/// end of the listing that it took messages from.
async fn next<M: Unpin>(
    answers: &mut (impl FusedStream<Item = M> + Unpin),
    unsolicited: &mut (impl FusedStream<Item = (M, SocketAddr)> + Unpin),
) -> Next<M> {
    tokio::select! {
        biased;
        other = unsolicited.next(), if !unsolicited.is_terminated() => other.map_or(Next::End, |(other, _)| Next::Unsolicited(other)),
        answer = answers.next() => answer.map_or(Next::End, Next::Answer),
    }
}

enum Next<M> {
    Answer(M),
    Unsolicited(M),
    End,
}

/// The messages of one listing, up to its end.
async fn listing(
    what: &str,
    answers: impl FusedStream<Item = NetlinkMessage<Incoming>> + Unpin,
    unsolicited: &mut (impl FusedStream<Item = (NetlinkMessage<Incoming>, SocketAddr)> + Unpin),
) -> Result<Ended<Vec<RouteNetlinkMessage>>, Error> {
    let mut answers = answers;
    let (mut found, mut whole) = (Vec::new(), true);
    loop {
        let message = match next(&mut answers, unsolicited).await {
            Next::Answer(message) => message,
            Next::Unsolicited(message) if matches!(message.payload, NetlinkPayload::Overrun(_)) => {
                return Ok(Ended::Lost);
            }
            Next::Unsolicited(_) => continue,
            Next::End => return Ok(Ended::Lost),
        };
        whole &= message.header.flags & NLM_F_DUMP_INTR == 0;
        match message.payload {
            NetlinkPayload::InnerMessage(Incoming::Route(message)) => found.push(message),
            NetlinkPayload::InnerMessage(Incoming::Unknown(kind)) => {
                let source =
                    io::Error::new(io::ErrorKind::InvalidData, format!("a message of type {kind} cannot be read"));
                return Err(Error::new(what, source));
            }
            // A listing that did not come to its end says so here.
            NetlinkPayload::Done(end) => {
                return of_code(what, end.code).map(|()| if whole { Ended::Whole(found) } else { Ended::Changed });
            }
            NetlinkPayload::Error(answer) => return Err(Error::new(what, answer.to_io())),
            NetlinkPayload::Overrun(_) => return Ok(Ended::Lost),
            _ => {}
        }
    }
}

/// The answers to these requests, which the kernel gives in their order; the first refusal.
async fn acknowledged(
    requests: &[Request],
    answers: impl FusedStream<Item = NetlinkMessage<Incoming>> + Unpin,
    unsolicited: &mut (impl FusedStream<Item = (NetlinkMessage<Incoming>, SocketAddr)> + Unpin),
) -> Ended<Result<(), Error>> {
    let mut answers = answers;
    let mut refusal = None;
    for request in requests {
        let answer = loop {
            match next(&mut answers, unsolicited).await {
                Next::Answer(NetlinkMessage { payload: NetlinkPayload::Error(answer), .. }) => break answer,
                Next::Answer(message) | Next::Unsolicited(message)
                    if matches!(message.payload, NetlinkPayload::Overrun(_)) =>
                {
                    return Ended::Lost;
                }
                Next::Answer(_) | Next::Unsolicited(_) => {}
                Next::End => return Ended::Lost,
            }
        };
        let answered = request.answered(answer.code.map_or(0, Into::into));
        refusal = refusal.or(answered.err());
    }
    Ended::Whole(refusal.map_or(Ok(()), Err))
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use netlink_packet_core::{DoneMessage, ErrorMessage};
    use netlink_packet_route::rule::RuleMessage;

    use super::*;

    type Message = NetlinkMessage<Incoming>;

    fn message(flags: u16, payload: NetlinkPayload<Incoming>) -> Message {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        NetlinkMessage::new(header, payload)
    }

    fn shown(flags: u16) -> Message {
        let rule = RouteNetlinkMessage::NewRule(RuleMessage::default());
        message(flags, NetlinkPayload::InnerMessage(Incoming::Route(rule)))
    }

    fn done(flags: u16, code: i32) -> Message {
        let mut done = DoneMessage::default();
        done.code = code;
        message(flags, NetlinkPayload::Done(done))
    }

    fn overrun() -> Message {
        message(0, NetlinkPayload::Overrun(Vec::new()))
    }

    fn answer(code: i32) -> Message {
        let mut error = ErrorMessage::default();
        error.code = code.try_into().ok();
        message(0, NetlinkPayload::Error(error))
    }

    /// The listing that these messages make, the connection staying open or not.
    async fn listed(answers: Vec<Message>, unsolicited: Vec<Message>) -> Result<Option<usize>, String> {
        let others = unsolicited.into_iter().map(|message| (message, SocketAddr::new(0, 0)));
        let mut others = stream::iter(others).chain(stream::pending()).fuse();
        match listing("list rules", stream::iter(answers).fuse(), &mut others).await {
            Ok(Ended::Whole(found)) => Ok(Some(found.len())),
            Ok(Ended::Changed) => Ok(None),
            Ok(Ended::Lost) => Err("lost".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[tokio::test]
    async fn a_listing_during_which_something_changed_is_void_whichever_message_says_so() {
        assert_eq!(listed(vec![shown(0), shown(0), done(0, 0)], vec![]).await, Ok(Some(2)));
        assert_eq!(listed(vec![shown(NLM_F_DUMP_INTR), shown(0), done(0, 0)], vec![]).await, Ok(None));
        assert_eq!(listed(vec![shown(0), shown(0), done(NLM_F_DUMP_INTR, 0)], vec![]).await, Ok(None));
        assert_eq!(listed(vec![done(NLM_F_DUMP_INTR, 0)], vec![]).await, Ok(None));
    }

    #[tokio::test]
    async fn a_listing_that_lacks_a_message_is_none() {
        let lost = Err("lost".to_owned());
        assert_eq!(listed(vec![shown(0)], vec![]).await, lost, "its stream ends without the end of the listing");
        assert_eq!(listed(vec![], vec![]).await, lost, "the connection is closed");
        assert_eq!(listed(vec![shown(0), done(0, 0)], vec![overrun()]).await, lost, "the socket's buffer was full");
        assert_eq!(listed(vec![shown(0), overrun()], vec![]).await, lost);
        let mut closed = stream::empty::<(Message, SocketAddr)>().fuse();
        let answers = stream::pending::<Message>().fuse();
        assert!(matches!(listing("list rules", answers, &mut closed).await, Ok(Ended::Lost)), "the connection ends");
        let unknown = message(0, NetlinkPayload::InnerMessage(Incoming::Unknown(4711)));
        let failure = listed(vec![unknown, done(0, 0)], vec![]).await.unwrap_err();
        assert!(failure.contains("type 4711 cannot be read"), "{failure}");
        let cut = listed(vec![shown(0), done(0, -12)], vec![]).await.unwrap_err();
        assert!(cut.contains("Cannot allocate memory"), "{cut}");
        let refused = listed(vec![answer(-1)], vec![]).await.unwrap_err();
        assert!(refused.contains("Operation not permitted"), "{refused}");
    }

    #[tokio::test]
    async fn every_change_needs_its_own_answer() {
        let request = || Request::delete_rule("remove a rule", RuleMessage::default());
        let requests = [request(), request(), request()];
        let apply = async |codes: &[i32]| {
            let answers: Vec<Message> = codes.iter().copied().map(answer).collect();
            let mut others = stream::pending::<(Message, SocketAddr)>().fuse();
            match acknowledged(&requests, stream::iter(answers).fuse(), &mut others).await {
                Ended::Whole(answered) => Ok(answered.map_err(|error| error.to_string()).err()),
                Ended::Changed | Ended::Lost => Err("lost"),
            }
        };
        assert_eq!(apply(&[0, 0, 0]).await, Ok(None));
        assert_eq!(apply(&[0, -2, 0]).await, Ok(None), "ENOENT: the rule is gone already");
        let refused = apply(&[0, -1, -13]).await.unwrap().unwrap();
        assert!(refused.contains("Operation not permitted"), "{refused}");
        assert_eq!(apply(&[0, 0]).await, Err("lost"));
    }

    #[test]
    fn what_cannot_be_decoded_is_not_left_out() {
        let mut header = NetlinkHeader::default();
        header.message_type = 24; // RTM_NEWROUTE
        assert_eq!(Incoming::deserialize(&header, &[2]), Ok(Incoming::Unknown(24)));
    }
}
