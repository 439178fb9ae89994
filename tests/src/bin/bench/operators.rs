//! Operators that ask the daemon while ADDs run, and such as ask and never read.

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    pin::Pin,
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    task::{Context as Waiting, Poll},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use enid_api::v1::{
    ExplainRequest, GetPoolRequest, GetRecordingRequest, GetStoryRequest, ListAddressesRequest, ListEnisRequest,
    ListFaultsRequest, ListLeasesRequest, ListOperationsRequest,
};
use hyper_util::rt::TokioIo;
use prost::{
    Message,
    bytes::{Buf, BufMut},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    runtime::Runtime,
    time::sleep,
};
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tower::service_fn;

type Client = Grpc<Channel>;

/// The stream of operations.
const FOLLOW: &str = "/enid.v1.Debug/WatchOperations";
/// Clients of each kind.
const CLIENTS: usize = 4;
/// A client asks again after so long.
const PAUSE: Duration = Duration::from_millis(20);
/// What is asked, in turns.
const QUESTIONS: [Question; 9] = [
    Question::Pool,
    Question::Enis,
    Question::Addresses,
    Question::Leases,
    Question::Operations,
    Question::Faults,
    Question::Story,
    Question::Explain,
    Question::Recording,
];
/// A client that never reads has read so many bytes when it stops: the beginning of the conversation.
const READ: usize = 4 << 10;
/// What a full socket holds at least (unix(7): net.core.wmem_default is some 200 KiB, headers of the kernel included).
const FULL: usize = 64 << 10;
/// Its stream's window: the daemon writes until the socket takes no more, not until HTTP/2 stops it.
const WINDOW: u32 = 1 << 30;

/// What operators do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operators {
    /// Nothing.
    Absent,
    /// They ask everything that can be asked, again and again.
    Ask,
    /// They ask for lists, and follow the operations, and do not read from the socket.
    NeverRead,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Question {
    Pool,
    Enis,
    Addresses,
    Leases,
    Operations,
    Faults,
    Story,
    Explain,
    Recording,
}

/// How long answers took, in milliseconds.
pub type Answers = BTreeMap<Question, Vec<f64>>;

/// Operators at work.
pub struct Working {
    runtime: Runtime,
    answers: Arc<Mutex<anyhow::Result<Answers>>>,
}

impl Operators {
    /// They begin, at the daemon's socket. `pod` is one of the node, for questions about a pod.
    pub fn begin(self, socket: &Path, pod: &str) -> anyhow::Result<Working> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let working = Working { runtime, answers: Arc::new(Mutex::new(Ok(Answers::new()))) };
        if self == Operators::Absent {
            return Ok(working);
        }
        for number in 0..CLIENTS {
            let most = if self == Operators::NeverRead { READ } else { usize::MAX };
            let client = working.runtime.block_on(client(socket, most))?;
            let (answers, pod) = (working.answers.clone(), pod.to_owned());
            match self {
                Operators::Absent => {}
                Operators::Ask => drop(working.runtime.spawn(ask(client, number == 0, pod, answers))),
                Operators::NeverRead => drop(working.runtime.spawn(never_read(client))),
            }
        }
        Ok(working)
    }
}

impl Working {
    /// They end; what they asked was answered, each time.
    pub fn end(self) -> anyhow::Result<Answers> {
        self.runtime.shutdown_timeout(Duration::from_secs(1));
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut answers, Ok(Answers::new()))
    }
}

impl Question {
    /// The method, and the encoded request.
    fn of(self, pod: &str) -> (&'static str, Vec<u8>) {
        match self {
            Question::Pool => ("/enid.v1.Debug/GetPool", GetPoolRequest {}.encode_to_vec()),
            Question::Enis => ("/enid.v1.Debug/ListEnis", ListEnisRequest {}.encode_to_vec()),
            Question::Addresses => ("/enid.v1.Debug/ListAddresses", ListAddressesRequest {}.encode_to_vec()),
            Question::Leases => ("/enid.v1.Debug/ListLeases", ListLeasesRequest {}.encode_to_vec()),
            Question::Operations => ("/enid.v1.Debug/ListOperations", ListOperationsRequest {}.encode_to_vec()),
            Question::Faults => ("/enid.v1.Debug/ListFaults", ListFaultsRequest {}.encode_to_vec()),
            Question::Story => {
                let request = GetStoryRequest { pod_namespace: "default".to_owned(), pod_name: pod.to_owned() };
                ("/enid.v1.Debug/GetStory", request.encode_to_vec())
            }
            Question::Explain => {
                let request = ExplainRequest { source: format!("default/{pod}"), destination: "8.8.8.8".to_owned() };
                ("/enid.v1.Debug/Explain", request.encode_to_vec())
            }
            Question::Recording => ("/enid.v1.Debug/GetRecording", GetRecordingRequest {}.encode_to_vec()),
        }
    }

    async fn ask(self, client: &mut Client, pod: &str) -> Result<(), Status> {
        let (method, request) = self.of(pod);
        client.ready().await.map_err(|failure| Status::unavailable(failure.to_string()))?;
        client.unary(Request::new(request), PathAndQuery::from_static(method), Undecoded).await.map(drop)
    }
}

/// An answer is received and not decoded: what a client of this build does with it is not the daemon's time.
#[derive(Clone, Copy)]
struct Undecoded;

impl Codec for Undecoded {
    type Encode = Vec<u8>;
    type Decode = usize;
    type Encoder = Undecoded;
    type Decoder = Undecoded;

    fn encoder(&mut self) -> Undecoded {
        Undecoded
    }

    fn decoder(&mut self) -> Undecoded {
        Undecoded
    }
}

impl Encoder for Undecoded {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Undecoded {
    type Item = usize;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<usize>, Status> {
        let bytes = from.remaining();
        from.advance(bytes);
        Ok(Some(bytes))
    }
}

/// A client that reads so many bytes of the socket, at most.
async fn client(socket: &Path, most: usize) -> anyhow::Result<Client> {
    let socket = socket.to_owned();
    let connector = service_fn(move |_| {
        let socket = socket.clone();
        async move {
            let stream = UnixStream::connect(socket).await?;
            Ok::<_, io::Error>(TokioIo::new(Stalls { stream, left: most }))
        }
    });
    let endpoint = Endpoint::from_static("http://enid.local");
    let endpoint = endpoint.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
    let channel = endpoint.connect_with_connector(connector).await.context("the daemon does not answer")?;
    Ok(Client::new(channel).max_decoding_message_size(64 << 20))
}

/// Only one client asks for recordings: the daemon takes one at a time.
async fn ask(mut client: Client, has_recordings: bool, pod: String, answers: Arc<Mutex<anyhow::Result<Answers>>>) {
    let asked = QUESTIONS.into_iter().filter(|question| has_recordings || *question != Question::Recording);
    for question in asked.cycle() {
        let began = Instant::now();
        let answer = question.ask(&mut client, &pod).await;
        let took = began.elapsed().as_secs_f64() * 1_000.0;
        keep(&answers, question, answer.map(|()| took));
        sleep(PAUSE).await;
    }
}

/// The first answer that fails stays.
fn keep(answers: &Mutex<anyhow::Result<Answers>>, question: Question, took: Result<f64, Status>) {
    let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
    match (took, answers.as_mut()) {
        (Ok(took), Ok(kept)) => kept.entry(question).or_default().push(took),
        (Err(refused), Ok(_)) => *answers = Err(refused).with_context(|| format!("{question:?} is not answered")),
        (_, Err(_)) => {}
    }
}

/// Follows operations, and asks for lists that are longer than what the socket holds; nothing of it arrives.
async fn never_read(client: Client) {
    let mut asked = tokio::task::JoinSet::new();
    let mut follows = client.clone();
    asked.spawn(async move {
        follows.ready().await.map_err(|failure| Status::unavailable(failure.to_string()))?;
        let (request, method) = (Request::new(Vec::new()), PathAndQuery::from_static(FOLLOW));
        let mut followed = follows.server_streaming(request, method, Undecoded).await?.into_inner();
        while followed.message().await?.is_some() {}
        Ok::<_, Status>(())
    });
    for question in [Question::Recording, Question::Operations, Question::Addresses].into_iter().cycle().take(60) {
        let mut client = client.clone();
        asked.spawn(async move { question.ask(&mut client, "nobody").await });
    }
    while asked.join_next().await.is_some() {}
}

/// A socket of which so many bytes are read, and then nothing.
struct Stalls {
    stream: UnixStream,
    left: usize,
}

impl AsyncRead for Stalls {
    fn poll_read(self: Pin<&mut Self>, waiting: &mut Waiting<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.left == 0 {
            return Poll::Pending;
        }
        let before = into.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(waiting, into);
        this.left = this.left.saturating_sub(into.filled().len() - before);
        read
    }
}

impl AsyncWrite for Stalls {
    fn poll_write(self: Pin<&mut Self>, waiting: &mut Waiting<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(waiting, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, waiting: &mut Waiting<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(waiting)
    }

    fn poll_shutdown(self: Pin<&mut Self>, waiting: &mut Waiting<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(waiting)
    }
}

/// Each client that never reads has a socket that is full of answers. The kernel lists a connection where its client is.
pub fn ensure_stalled() -> anyhow::Result<()> {
    let listed = Command::new("ss").args(["-xHn", "src", "/run/enid/debug.sock"]).output().context("cannot run ss")?;
    let listed = String::from_utf8_lossy(&listed.stdout);
    let unread = listed.lines().filter_map(|line| line.split_whitespace().nth(3)?.parse::<usize>().ok());
    let stalled = unread.filter(|bytes| *bytes >= FULL).count();
    ensure!(stalled >= CLIENTS, "{stalled} of {CLIENTS} sockets have {FULL} unread bytes:\n{listed}");
    Ok(())
}
