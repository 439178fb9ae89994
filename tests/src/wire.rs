//! Conversations between plugin and daemon as bare gRPC messages: written down, kept, and played to either side.
//!
//! Nothing here knows what a message means, so what an older plugin or daemon said stays what it was.

use std::{
    collections::VecDeque,
    convert::Infallible,
    fmt,
    future::Future,
    path::Path,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    task::{self, Poll},
    time::Duration,
};

use anyhow::Context;
use hyper_util::rt::TokioIo;
use prost::bytes::{Buf, BufMut};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::mpsc,
};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{
    Code, Request, Response, Status, Streaming,
    body::Body,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::{BoxFuture, http},
    server::{NamedService, StreamingService},
    transport::{Channel, Endpoint, Server},
};
use tower::{Service, service_fn};

/// How long an answer may take.
const BOUND: Duration = Duration::from_secs(30);

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The plugin.
    Plugin,
    /// The daemon.
    Daemon,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The call, such as `Attach`.
    pub method: String,
    /// Who says it.
    pub from: Side,
    /// In protobuf's wire format.
    pub bytes: Vec<u8>,
}

/// What both sides said, in order; as text one message a line: call, side, bytes in hexadecimal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recording(pub Vec<Message>);

impl fmt::Display for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|Message { method, from, bytes }| {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(f, "{method} {} {hex}", if *from == Side::Plugin { "plugin" } else { "daemon" })
        })
    }
}

impl FromStr for Recording {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let message = |line: &str| {
            let mut words = line.split_whitespace();
            let method = words.next()?.to_owned();
            let from = match words.next()? {
                "plugin" => Side::Plugin,
                "daemon" => Side::Daemon,
                _ => return None,
            };
            let hex = words.next().unwrap_or_default();
            let byte = |at: usize| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
            let bytes = (0..hex.len()).step_by(2).map(byte).collect::<Option<_>>()?;
            Some(Message { method, from, bytes })
        };
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines
            .map(|line| message(line).with_context(|| format!("no message: {line:?}")))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl Recording {
    /// The messages of one call.
    pub fn of(&self, method: &str) -> Vec<Message> {
        self.0.iter().filter(|message| message.method == method).cloned().collect()
    }

    /// As a later version might say it: every message has fields more, of each wire type.
    pub fn with_unknown_fields(self) -> Self {
        let with_more = |message: Message| {
            let bytes = with_unknown_fields(&message.bytes, message.method == "Attach");
            Message { bytes, ..message }
        };
        Recording(self.0.into_iter().map(with_more).collect())
    }
}

/// Fields 1000…1003: a number, eight bytes, a text, four bytes (protobuf's encoding, "Message Structure").
const UNKNOWN: &[u8] = &[
    0xc0, 0x3e, 0x2a, // 1000: 42
    0xc9, 0x3e, 1, 2, 3, 4, 5, 6, 7, 8, // 1001
    0xd2, 0x3e, 5, b'l', b'a', b't', b'e', b'r', // 1002: "later"
    0xdd, 0x3e, 9, 9, 9, 9, // 1003
];

fn with_unknown_fields(bytes: &[u8], is_step: bool) -> Vec<u8> {
    // The step of a stream is a message within.
    if is_step
        && let [key, length, inner @ ..] = bytes
        && usize::from(*length) == inner.len()
        && let Ok(longer @ ..0x80) = u8::try_from(inner.len() + UNKNOWN.len())
    {
        return [&[*key, longer], inner, UNKNOWN, UNKNOWN].concat();
    }
    [bytes, UNKNOWN].concat()
}

/// Messages as they are.
#[derive(Clone, Copy, Default)]
struct Bare;

impl Codec for Bare {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Bare
    }

    fn decoder(&mut self) -> Self {
        Bare
    }
}

impl Encoder for Bare {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, target: &mut EncodeBuf<'_>) -> Result<(), Status> {
        target.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Bare {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(source.copy_to_bytes(source.remaining()).to_vec()))
    }
}

/// A plugin that speaks from a recording.
pub struct Plugin {
    runtime: tokio::runtime::Runtime,
    channel: Channel,
}

/// A call that it has open.
pub struct Open<'a> {
    plugin: &'a Plugin,
    said: mpsc::Sender<Vec<u8>>,
    answers: Streaming<Vec<u8>>,
}

impl Plugin {
    /// Connects to a daemon's socket.
    pub fn connect(socket: &Path) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let channel = runtime.block_on(connect(socket))?;
        Ok(Plugin { runtime, channel })
    }

    /// Opens a call with its first message.
    pub fn open(&self, method: &str, first: &[u8]) -> Result<Open<'_>, Status> {
        let (said, stream) = mpsc::channel(4);
        self.within(async {
            said.send(first.to_vec()).await.map_err(|_| Status::cancelled("closed"))?;
            let answers = call(self.channel.clone(), method, stream).await?;
            Ok(Open { plugin: self, said, answers })
        })
    }

    /// A call of one message and one answer.
    pub fn ask(&self, method: &str, message: &[u8]) -> Result<Vec<u8>, Status> {
        let (said, stream) = mpsc::channel(1);
        self.within(async {
            said.send(message.to_vec()).await.map_err(|_| Status::cancelled("closed"))?;
            // A daemon answers such a call when it has ended.
            drop(said);
            let mut answers = call(self.channel.clone(), method, stream).await?;
            answers.message().await?.ok_or_else(|| Status::cancelled("no answer"))
        })
    }

    fn within<T>(&self, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        let late = |_| Status::deadline_exceeded("no answer in time");
        self.runtime.block_on(async { tokio::time::timeout(BOUND, call).await }).map_err(late)?
    }
}

impl Open<'_> {
    /// Says more.
    pub fn say(&self, message: &[u8]) -> Result<(), Status> {
        self.plugin.within(async { self.said.send(message.to_vec()).await.map_err(|_| Status::cancelled("closed")) })
    }

    /// The next answer.
    pub fn hear(&mut self) -> Result<Vec<u8>, Status> {
        let answer = self.answers.message();
        self.plugin.within(async { answer.await?.ok_or_else(|| Status::cancelled("the stream ended")) })
    }
}

async fn connect(socket: &Path) -> anyhow::Result<Channel> {
    let socket = socket.to_owned();
    let connector = service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://enid.local").connect_with_connector(connector).await.context("no daemon")
}

async fn call(channel: Channel, method: &str, said: mpsc::Receiver<Vec<u8>>) -> Result<Streaming<Vec<u8>>, Status> {
    let path = format!("/enid.v1.Cni/{method}").parse().map_err(|_| Status::internal("no path"))?;
    let mut client = Grpc::new(channel);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    client.streaming(Request::new(ReceiverStream::new(said)), path, Bare).await.map(Response::into_inner)
}

/// A daemon that speaks from a recording, or passes everything on to a real one and writes it down.
pub struct Stage {
    // Ends the server's tasks when it goes.
    _runtime: tokio::runtime::Runtime,
    log: Log,
}

type Log = Arc<Mutex<Vec<Message>>>;

#[derive(Clone)]
enum Script {
    Play(Arc<Recording>),
    Relay(Channel),
}

impl Stage {
    /// Plays the daemon's part. A call that the recording has not is not implemented.
    pub fn play(socket: &Path, recording: Recording) -> anyhow::Result<Self> {
        Stage::start(socket, |_| Ok(Script::Play(Arc::new(recording))))
    }

    /// Passes on to the daemon behind that socket.
    pub fn relay(socket: &Path, daemon: &Path) -> anyhow::Result<Self> {
        Stage::start(socket, |runtime| runtime.block_on(connect(daemon)).map(Script::Relay))
    }

    fn start(
        socket: &Path,
        script: impl FnOnce(&tokio::runtime::Runtime) -> anyhow::Result<Script>,
    ) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let log = Log::default();
        let actor = Actor { script: script(&runtime)?, log: log.clone() };
        let listener = runtime.block_on(async { UnixListener::bind(socket) }).context("cannot listen")?;
        runtime.spawn(Server::builder().add_service(actor).serve_with_incoming(UnixListenerStream::new(listener)));
        Ok(Stage { _runtime: runtime, log })
    }

    /// What was said so far.
    pub fn recording(&self) -> Recording {
        Recording(self.log.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

#[derive(Clone)]
struct Actor {
    script: Script,
    log: Log,
}

impl NamedService for Actor {
    const NAME: &'static str = "enid.v1.Cni";
}

impl Service<http::Request<Body>> for Actor {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let part = Part { method, actor: self.clone() };
        Box::pin(async move { Ok(tonic::server::Grpc::new(Bare).streaming(part, request).await) })
    }
}

/// One call's part.
struct Part {
    method: String,
    actor: Actor,
}

impl StreamingService<Vec<u8>> for Part {
    type Response = Vec<u8>;
    type ResponseStream = ReceiverStream<Result<Vec<u8>, Status>>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<Streaming<Vec<u8>>>) -> Self::Future {
        let (method, Actor { script, log }) = (self.method.clone(), self.actor.clone());
        let note = move |from, bytes: &[u8]| {
            let message = Message { method: method.clone(), from, bytes: bytes.to_vec() };
            log.lock().unwrap_or_else(PoisonError::into_inner).push(message);
        };
        let method = self.method.clone();
        Box::pin(async move {
            let (answers, stream) = mpsc::channel(4);
            let said = request.into_inner();
            match script {
                Script::Play(recording) => {
                    let part = recording.of(&method);
                    if part.is_empty() {
                        return Err(Status::new(Code::Unimplemented, ""));
                    }
                    tokio::spawn(play(part.into(), said, answers, note));
                }
                Script::Relay(channel) => drop(tokio::spawn(relay(channel, method, said, answers, note))),
            }
            Ok(Response::new(ReceiverStream::new(stream)))
        })
    }
}

type Answers = mpsc::Sender<Result<Vec<u8>, Status>>;

async fn play(mut part: VecDeque<Message>, mut said: Streaming<Vec<u8>>, answers: Answers, note: impl Fn(Side, &[u8])) {
    while let Some(Message { from, bytes, .. }) = part.pop_front() {
        match from {
            Side::Plugin => match said.message().await {
                Ok(Some(bytes)) => note(Side::Plugin, &bytes),
                _ => return,
            },
            Side::Daemon => {
                note(Side::Daemon, &bytes);
                if answers.send(Ok(bytes)).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn relay(
    channel: Channel,
    method: String,
    mut said: Streaming<Vec<u8>>,
    answers: Answers,
    note: impl Fn(Side, &[u8]) + Clone + Send + 'static,
) {
    let (onward, stream) = mpsc::channel(4);
    let noted = note.clone();
    tokio::spawn(async move {
        while let Ok(Some(bytes)) = said.message().await {
            noted(Side::Plugin, &bytes);
            if onward.send(bytes).await.is_err() {
                return;
            }
        }
    });
    match call(channel, &method, stream).await {
        Ok(mut heard) => {
            while let Some(answer) = heard.message().await.transpose() {
                if let Ok(bytes) = &answer {
                    note(Side::Daemon, bytes);
                }
                if answers.send(answer).await.is_err() {
                    return;
                }
            }
        }
        Err(status) => drop(answers.send(Err(status)).await),
    }
}
