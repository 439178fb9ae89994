//! The conversation with the daemon.
//!
//! An attachment is one stream, kept open until the link stands: when it closes early, the daemon takes
//! the address back. Every step has a deadline, so a daemon that hangs costs no more than that.

use std::{future::Future, path::Path, time::Duration};

use enid_api::{
    Cork,
    v1::{
        AttachReply, AttachRequest, CollectReply, CollectRequest, LookupReply, LookupRequest, Refusal, ReleaseRequest,
        StatusReply, StatusRequest, Wired, attach_reply, attach_request, cni_client::CniClient,
    },
};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, runtime::Runtime, sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel, transport::Endpoint};
use tower::service_fn;

use crate::error::Error;

// Causes that only the plugin can name, beside the daemon's own (enid_ipamd::Cause): daemon_down,
// daemon_silent, daemon_refused.

/// How long the daemon may take for anything but growth.
const ANSWER: Duration = Duration::from_secs(2);
/// How long STATUS may take, connection included: runtimes ask every few seconds.
const STATUS: Duration = Duration::from_millis(900);
/// How long a listing of all links may take, with thousands of them.
const COLLECT: Duration = Duration::from_secs(10);
/// How long a verdict may take: the disk stands before it, and connection tracking's table where the address has
/// just rested (0.7 s for a quarter of a million entries).
const VERDICT: Duration = Duration::from_secs(10);

/// The message types of a request.
pub use enid_api::v1::{Ask, Attachment, Offer, Pod};

/// A connected daemon, and the one-thread runtime that the connection lives on.
pub struct Daemon {
    runtime: Runtime,
    client: CniClient<Channel>,
}

/// An attachment under way.
pub struct Session<'a> {
    daemon: &'a Daemon,
    requests: mpsc::Sender<AttachRequest>,
    replies: Streaming<AttachReply>,
}

impl Daemon {
    /// Connects to the daemon's socket.
    pub fn connect(socket: &Path) -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| Error::io(format!("cannot start the plugin's runtime: {source}")))?;
        let path = socket.to_owned();
        let connector = service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(|socket| TokioIo::new(Cork::new(socket))) }
        });
        // The name is not looked up: the connector goes to the socket.
        let endpoint = Endpoint::from_static("http://enid.local");
        let channel = runtime
            .block_on(async { timeout(ANSWER, endpoint.connect_with_connector(connector)).await })
            .map_err(|_| silent("accept a connection"))?
            .map_err(|error| {
                let why = std::error::Error::source(&error).map_or_else(|| error.to_string(), root);
                let at = socket.display();
                Error::later(format!("the enid daemon does not answer on {at}: {why}"), "cause=daemon_down")
            })?;
        Ok(Daemon { runtime, client: CniClient::new(channel) })
    }

    /// Asks for an address and waits for it as long as the question says.
    pub fn attach(&self, ask: Ask) -> Result<(Session<'_>, Offer), Error> {
        let patience = Duration::from_millis(ask.patience_ms);
        let (requests, stream) = mpsc::channel(2);
        let mut client = self.client.clone();
        let first = AttachRequest { step: Some(attach_request::Step::Ask(ask)) };
        let replies = self.within("take the request", ANSWER, async {
            requests.send(first).await.map_err(|_| Status::cancelled("the stream closed"))?;
            client.attach(ReceiverStream::new(stream)).await
        })?;
        let mut session = Session { daemon: self, requests, replies: replies.into_inner() };
        match session.next("offer an address", patience + ANSWER)? {
            attach_reply::Step::Offer(offer) => Ok((session, offer)),
            attach_reply::Step::Refusal(refusal) => Err(refused(refusal)),
            attach_reply::Step::Verdict(_) => Err(unexpected("a verdict before an offer")),
        }
    }

    /// Lets the daemon end an attachment: whether its link is gone as well.
    pub fn release(&self, attachment: Attachment) -> Result<bool, Error> {
        let mut client = self.client.clone();
        let request = ReleaseRequest { attachment: Some(attachment) };
        let reply = self.within("release the address", ANSWER, client.release(request))?;
        Ok(reply.into_inner().link_deleted)
    }

    /// What the daemon knows of an attachment.
    pub fn lookup(&self, attachment: Attachment) -> Result<LookupReply, Error> {
        let mut client = self.client.clone();
        let request = LookupRequest { attachment: Some(attachment) };
        self.within("look the attachment up", ANSWER, client.lookup(request)).map(tonic::Response::into_inner)
    }

    /// Whether an ADD would succeed now.
    pub fn status(&self) -> Result<StatusReply, Error> {
        let mut client = self.client.clone();
        let call = client.status(StatusRequest::default());
        self.within("say whether it is ready", STATUS, call).map(tonic::Response::into_inner)
    }

    /// Ends what is not among the valid and not in the kernel.
    pub fn collect(&self, network: &str, valid: &[(String, String)]) -> Result<CollectReply, Error> {
        let name = |(container, ifname): &(String, String)| Attachment {
            network: network.to_owned(),
            container: container.clone(),
            ifname: ifname.clone(),
        };
        let request = CollectRequest { network: network.to_owned(), valid: valid.iter().map(name).collect() };
        let mut client = self.client.clone();
        self.within("collect what is left over", COLLECT, client.collect(request)).map(tonic::Response::into_inner)
    }

    fn within<T>(
        &self,
        doing: &str,
        limit: Duration,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Error> {
        let answer = self.runtime.block_on(async { timeout(limit, call).await }).map_err(|_| silent(doing))?;
        answer.map_err(|status| match status.code() {
            Code::Unimplemented => Error::later(
                format!("what listens on the socket is not an enid daemon of this kind: it cannot {doing}"),
                "cause=daemon_refused",
            ),
            // A stream that breaks off is a daemon that ended.
            Code::Unavailable | Code::Unknown | Code::Internal if gone(&status) => {
                Error::later(format!("the enid daemon went away: could not {doing}"), "cause=daemon_down")
            }
            code => {
                let words = if status.message().is_empty() { code.description() } else { status.message() };
                Error::later(format!("the enid daemon could not {doing}: {words}"), "cause=daemon_refused")
            }
        })
    }
}

impl Session<'_> {
    /// Says that the link stands.
    pub fn say_wired(&mut self, host_ifname: &str) -> Result<(), Error> {
        let wired = Wired { host_ifname: host_ifname.to_owned() };
        let request = AttachRequest { step: Some(attach_request::Step::Wired(wired)) };
        self.daemon.within("take the news of the link", ANSWER, async {
            self.requests.send(request).await.map_err(|_| Status::unavailable("the connection has closed"))?;
            // Lets the connection's tasks put it on the wire now; left out, it would go with the verdict's wait.
            tokio::task::yield_now().await;
            Ok(())
        })
    }

    /// Whether the attachment is still ours.
    pub fn verdict(&mut self) -> Result<bool, Error> {
        match self.next("confirm the attachment", VERDICT)? {
            attach_reply::Step::Verdict(verdict) => Ok(verdict.mine),
            attach_reply::Step::Refusal(refusal) => Err(refused(refusal)),
            attach_reply::Step::Offer(_) => Err(unexpected("a second offer")),
        }
    }

    fn next(&mut self, doing: &str, limit: Duration) -> Result<attach_reply::Step, Error> {
        let reply = self.daemon.within(doing, limit, self.replies.message())?.ok_or_else(|| {
            Error::later(format!("the enid daemon closed the connection before it could {doing}"), "cause=daemon_down")
        })?;
        reply.step.ok_or_else(|| unexpected("a step that this plugin does not know"))
    }
}

fn refused(refusal: Refusal) -> Error {
    let Refusal { cause, message, aws_request_id, retry_after_ms } = refusal;
    let mut details = format!("cause={cause}");
    if !aws_request_id.is_empty() {
        details.push_str(&format!(" aws_request_id={aws_request_id}"));
    }
    if retry_after_ms > 0 {
        details.push_str(&format!(" retry_after_ms={retry_after_ms}"));
    }
    Error::later(format!("no address for the pod ({cause}): {message}"), details)
}

/// The connection itself ended, which the daemon cannot say.
fn gone(status: &Status) -> bool {
    status.code() == Code::Unavailable || std::error::Error::source(status).is_some()
}

fn silent(doing: &str) -> Error {
    Error::later(format!("the enid daemon did not {doing} in time"), "cause=daemon_silent")
}

fn unexpected(what: &str) -> Error {
    Error::internal(format!("the enid daemon sent {what}; plugin and daemon do not understand each other"))
}

fn root(error: &(dyn std::error::Error + 'static)) -> String {
    error.source().map_or_else(|| error.to_string(), root)
}
