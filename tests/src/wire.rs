//! Conversations between plugin and daemon as bare packets: written down, kept, and played to either side.
//!
//! Nothing here knows what a message means beyond its envelope, so what an older plugin or daemon said stays what it
//! was.

use std::{
    fmt,
    io::{self, Read},
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Context;
use socket2::{Domain, SockAddr, Socket, Type};

/// How long an answer may take.
const BOUND: Duration = Duration::from_secs(30);
/// Longer than any packet that the kernel lets through.
const ROOM: usize = 256 * 1024;

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The plugin.
    Plugin,
    /// The daemon.
    Daemon,
}

/// One packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The verb whose conversation it is of, such as `ADD`.
    pub verb: String,
    /// Who says it.
    pub from: Side,
    /// In protobuf's wire format.
    pub bytes: Vec<u8>,
}

/// What both sides said, in order; as text one packet a line: verb, side, bytes in hexadecimal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recording(pub Vec<Packet>);

impl fmt::Display for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|Packet { verb, from, bytes }| {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(f, "{verb} {} {hex}", if *from == Side::Plugin { "plugin" } else { "daemon" })
        })
    }
}

impl FromStr for Recording {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let packet = |line: &str| {
            let mut words = line.split_whitespace();
            let verb = words.next()?.to_owned();
            let from = match words.next()? {
                "plugin" => Side::Plugin,
                "daemon" => Side::Daemon,
                _ => return None,
            };
            let hex = words.next()?;
            let byte = |at: usize| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
            let bytes = (0..hex.len()).step_by(2).map(byte).collect::<Option<_>>()?;
            Some(Packet { verb, from, bytes })
        };
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines
            .map(|line| packet(line).with_context(|| format!("no packet: {line:?}")))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl Recording {
    /// The packets of one conversation.
    pub fn of(&self, verb: &str) -> Vec<Packet> {
        self.0.iter().filter(|packet| packet.verb == verb).cloned().collect()
    }

    /// As a later version might say it: every envelope and every message has fields more, of each wire type.
    pub fn with_unknown_fields(self) -> Self {
        let with_more = |packet: Packet| Packet { bytes: with_unknown_fields(&packet.bytes), ..packet };
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

/// An envelope: its version (field 1), and its kind (a message).
fn with_unknown_fields(packet: &[u8]) -> Vec<u8> {
    let [0x08, version, key, rest @ ..] = packet else { return [packet, UNKNOWN].concat() };
    let (length, inner) = taken_varint(rest);
    assert_eq!(length, inner.len(), "the kind ends the packet: {packet:?}");
    let longer = varint(inner.len() + UNKNOWN.len());
    [&[0x08, *version, *key], &longer[..], inner, UNKNOWN, UNKNOWN].concat()
}

fn varint(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let byte = u8::try_from(value & 0x7f).unwrap_or_default();
        value >>= 7;
        if value == 0 {
            bytes.push(byte);
            return bytes;
        }
        bytes.push(byte | 0x80);
    }
}

fn taken_varint(bytes: &[u8]) -> (usize, &[u8]) {
    let length = bytes.iter().take_while(|byte| **byte >= 0x80).count() + 1;
    let (number, rest) = bytes.split_at(length.min(bytes.len()));
    (number.iter().rev().fold(0, |value, byte| value << 7 | usize::from(byte & 0x7f)), rest)
}

/// The verb whose conversation begins with this packet: the number of its kind says so.
fn verb_of(first: &[u8]) -> &'static str {
    match first {
        [0x08, _, key, ..] => match key >> 3 {
            2 => "ADD",
            4 => "DEL",
            5 => "CHECK",
            6 => "STATUS",
            7 => "GC",
            _ => "unknown",
        },
        _ => "unknown",
    }
}

/// One end of a connection that carries packets.
pub struct Connection(Socket);

impl Connection {
    /// Connects to a socket.
    pub fn to(socket: &Path) -> anyhow::Result<Self> {
        let connected = || {
            let connection = Connection::new(Socket::new(Domain::UNIX, Type::SEQPACKET, None)?)?;
            connection.0.connect(&SockAddr::unix(socket)?)?;
            io::Result::Ok(connection)
        };
        connected().with_context(|| format!("cannot connect to {}", socket.display()))
    }

    fn new(socket: Socket) -> io::Result<Self> {
        socket.set_read_timeout(Some(BOUND))?;
        socket.set_write_timeout(Some(BOUND))?;
        Ok(Connection(socket))
    }

    /// Sends a packet.
    pub fn say(&self, bytes: &[u8]) -> io::Result<()> {
        self.0.send(bytes).map(drop)
    }

    /// The next packet; `None` where the other side has closed.
    pub fn hear(&self) -> io::Result<Option<Vec<u8>>> {
        let mut buffer = vec![0; ROOM];
        loop {
            match (&self.0).read(&mut buffer) {
                Ok(length) => {
                    buffer.truncate(length);
                    return Ok((length > 0).then_some(buffer));
                }
                // The other side closed before it had read everything. What it said before comes next, or the end.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// A conversation of one question and one answer; `None` where the other side closes instead.
    pub fn ask(&self, bytes: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.say(bytes)?;
        self.hear()
    }
}

/// A daemon that speaks from a recording, or passes everything on to a real one and writes it down.
pub struct Stage {
    path: PathBuf,
    ended: Arc<AtomicBool>,
    listening: Option<thread::JoinHandle<()>>,
    log: Log,
}

type Log = Arc<Mutex<Vec<Packet>>>;

#[derive(Clone)]
enum Script {
    Play(Arc<Recording>),
    Relay(PathBuf),
}

/// The daemon's words for a packet that it does not know: version 1, failure (field 10) with not_understood set.
pub const NOT_UNDERSTOOD: &[u8] = &[0x08, 1, 0x52, 2, 0x08, 1];

impl Stage {
    /// Plays the daemon's part. A conversation that the recording has not is not understood.
    pub fn play(socket: &Path, recording: Recording) -> anyhow::Result<Self> {
        Stage::start(socket, Script::Play(Arc::new(recording)))
    }

    /// Passes on to the daemon behind that socket.
    pub fn relay(socket: &Path, daemon: &Path) -> anyhow::Result<Self> {
        Stage::start(socket, Script::Relay(daemon.to_owned()))
    }

    fn start(socket: &Path, script: Script) -> anyhow::Result<Self> {
        let listener = listener(socket, 128)?;
        let (log, ended) = (Log::default(), Arc::new(AtomicBool::new(false)));
        let (noted, over) = (log.clone(), ended.clone());
        let listening = thread::spawn(move || {
            while let Ok((accepted, _)) = listener.accept() {
                if over.load(Ordering::Acquire) {
                    return;
                }
                let (script, log) = (script.clone(), noted.clone());
                // A plugin that goes ends its conversation; the test sees what came of it.
                thread::spawn(move || Connection::new(accepted).and_then(|plugin| converse(plugin, &script, &log)));
            }
        });
        Ok(Stage { path: socket.to_owned(), ended, listening: Some(listening), log })
    }

    /// What was said so far.
    pub fn recording(&self) -> Recording {
        Recording(self.log.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        // Wakes it.
        let _ = Connection::to(&self.path);
        let _ = self.listening.take().map(thread::JoinHandle::join);
        if std::fs::symlink_metadata(&self.path).is_ok_and(|found| found.file_type().is_socket()) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Listens for packets; so many connections may wait.
pub fn listener(socket: &Path, backlog: i32) -> anyhow::Result<Socket> {
    let bound = || {
        let listener = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
        listener.bind(&SockAddr::unix(socket)?)?;
        listener.listen(backlog)?;
        io::Result::Ok(listener)
    };
    bound().with_context(|| format!("cannot listen on {}", socket.display()))
}

fn converse(plugin: Connection, script: &Script, log: &Log) -> io::Result<()> {
    let Some(first) = plugin.hear()? else { return Ok(()) };
    let verb = verb_of(&first);
    let note = |from, bytes: &[u8]| {
        let packet = Packet { verb: verb.to_owned(), from, bytes: bytes.to_vec() };
        log.lock().unwrap_or_else(PoisonError::into_inner).push(packet);
    };
    note(Side::Plugin, &first);
    match script {
        Script::Play(recording) => {
            let part = recording.of(verb);
            if part.is_empty() {
                return plugin.say(NOT_UNDERSTOOD);
            }
            // The first has been heard.
            for Packet { from, bytes, .. } in &part[1..] {
                match from {
                    Side::Daemon => {
                        note(Side::Daemon, bytes);
                        plugin.say(bytes)?;
                    }
                    Side::Plugin => match plugin.hear()? {
                        Some(bytes) => note(Side::Plugin, &bytes),
                        None => return Ok(()),
                    },
                }
            }
            // The plugin reads, and closes.
            plugin.hear().map(drop)
        }
        Script::Relay(path) => {
            let daemon = Connection::to(path).map_err(io::Error::other)?;
            daemon.say(&first)?;
            thread::scope(|scope| {
                scope.spawn(|| {
                    while let Ok(Some(bytes)) = plugin.hear() {
                        note(Side::Plugin, &bytes);
                        if daemon.say(&bytes).is_err() {
                            return;
                        }
                    }
                    let _ = daemon.0.shutdown(std::net::Shutdown::Both);
                });
                while let Ok(Some(bytes)) = daemon.hear() {
                    note(Side::Daemon, &bytes);
                    plugin.say(&bytes)?;
                }
                let _ = plugin.0.shutdown(std::net::Shutdown::Both);
                Ok(())
            })
        }
    }
}
