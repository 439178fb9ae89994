//! A packet that is sent as its source would send it, out of the source's own namespace, and whether the destination answers. What
//! the host does with it is followed by a table that is there while this command runs ([`super::trace`]).

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, bail};
use enid_api::v1::Explanation;
use enid_datapath::{Error, netns::Netns};
use serde::Serialize;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::trace::{Flow, Trace};

/// Where a UDP packet goes: the first port of traceroute, at which nothing listens, so that the destination says so.
const UDP_PORT: u16 = 33_434;
/// How long an answer may take, and how often it is asked for: a neighbour may have to be looked up first.
const WAIT: Duration = Duration::from_millis(700);
const TRIES: u32 = 3;
/// Where namespaces of pods are named, and where those of processes are.
const NAMED: [&str; 2] = ["/run/netns", "/run/docker/netns"];
const PROCESSES: &str = "/proc";

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// A UDP packet, to a port at which nothing listens.
    Any,
    /// The first packet of a TCP connection to this port.
    Tcp(u16),
}

/// What became of it.
#[derive(Debug, Serialize)]
pub struct Probed {
    /// What was sent, from where.
    pub sent: String,
    /// Where the host's tables saw it.
    pub trace: Vec<String>,
    /// Whether the destination has answered.
    pub arrived: bool,
    /// What it has answered.
    pub answer: String,
}

/// Sends it.
///
/// # Errors
///
/// It cannot be sent from here, or not followed.
pub async fn send(said: &Explanation, port: Port) -> anyhow::Result<Probed> {
    let source: IpAddr = said.source.parse().context("the source has no address")?;
    let destination: IpAddr = said.destination.parse().context("the destination has no address")?;
    let (kind, name, number) = match port {
        Port::Any => (Type::DGRAM, "UDP", UDP_PORT),
        Port::Tcp(number) => (Type::STREAM, "TCP", number),
    };
    let (socket, place) = tokio::task::spawn_blocking(move || socket(source, kind)).await??;
    let own = socket.local_addr().ok().and_then(|own| own.as_socket()).context("the socket has no address")?;
    let to = SocketAddr::new(destination, number);
    let trace = Trace::start(&Flow { protocol: name, from: own, to }).await?;
    let answer = tokio::task::spawn_blocking(move || ask(&socket, kind, to)).await?;
    let (arrived, answer) = match answer {
        Ok(words) => (true, words),
        Err(failure) => (false, failure),
    };
    let sent = format!("{name} from {own} to {to}, out of {place}");
    let trace = trace.seen().await?;
    // A rule that rejects answers in the destination's place.
    let refuses = |line: &&String| line.contains("verdict drop") || line.contains(" reject");
    let (arrived, answer) = match trace.iter().find(refuses) {
        Some(line) => (false, format!("a rule of this host refuses it: {line}")),
        None => (arrived, answer),
    };
    let trace = if trace.is_empty() { vec!["no table: nothing was traced".to_owned()] } else { trace };
    Ok(Probed { sent, trace, arrived, answer })
}

/// A socket in the namespace that has the address, and what that is called.
fn socket(source: IpAddr, kind: Type) -> anyhow::Result<(Socket, String)> {
    let opened = || -> io::Result<Socket> {
        let protocol = if kind == Type::STREAM { Protocol::TCP } else { Protocol::UDP };
        let socket = Socket::new(Domain::for_address(SocketAddr::new(source, 0)), kind, Some(protocol))?;
        // Only where it is an address of the namespace.
        socket.bind(&SockAddr::from(SocketAddr::new(source, 0)))?;
        socket.set_read_timeout(Some(WAIT))?;
        Ok(socket)
    };
    if let Ok(socket) = opened() {
        return Ok((socket, "this namespace".to_owned()));
    }
    let failed = |source: io::Error| Error::new("open a socket in a namespace", source);
    let mut refused = None;
    for path in namespaces() {
        let Ok(netns) = Netns::open(&path) else { continue }; // it has gone
        match netns.within(|| opened().map_err(failed)) {
            Ok(socket) => return Ok((socket, path.display().to_string())),
            Err(error) if error.to_string().contains("enter namespace") => refused = Some(error),
            Err(_) => {} // it is not an address there
        }
    }
    if let Some(refused) = refused {
        bail!("a probe is sent out of the pod's namespace, which needs the capability SYS_ADMIN: {refused:#}");
    }
    bail!(
        "a probe is sent by its source, and no namespace that can be seen from here has the address {source}. A container sees \
         those of its own processes only: run it on the node itself, or in a debugging pod of the node (kubectl debug node/NODE \
         --profile=sysadmin, then chroot /host)"
    )
}

/// Every namespace that can be seen, once.
fn namespaces() -> impl Iterator<Item = PathBuf> {
    let files =
        |folder: &str| fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
    let named = NAMED.iter().flat_map(|folder| files(folder));
    let is_process =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit));
    let of_processes = files(PROCESSES).filter(is_process).map(|path| path.join("ns/net"));
    let mut each: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
    for path in named.chain(of_processes) {
        if let Ok(found) = fs::metadata(&path) {
            each.entry((found.dev(), found.ino())).or_insert(path);
        }
    }
    each.into_values()
}

/// What the destination answers, or why nothing is known of it.
fn ask(socket: &Socket, kind: Type, to: SocketAddr) -> Result<String, String> {
    let answered = |error: &io::Error| match error.kind() {
        io::ErrorKind::ConnectionRefused if kind == Type::STREAM => {
            Some(format!("{to} refuses the connection: nothing listens there"))
        }
        io::ErrorKind::ConnectionRefused => Some(format!("{to} says that nothing listens there, as expected")),
        _ => None,
    };
    if kind == Type::STREAM {
        return match socket.connect_timeout(&to.into(), WAIT * TRIES) {
            Ok(()) => Ok(format!("{to} accepts the connection")),
            Err(error) => answered(&error).ok_or_else(|| format!("no connection to {to}: {error}")),
        };
    }
    socket.connect(&to.into()).map_err(|error| format!("nothing can be sent to {to}: {error}"))?;
    let mut last = format!("{to} does not answer; a firewall may drop the packet, or the answer (--port tries TCP)");
    for _ in 0..TRIES {
        let sent = socket.send(b"enid");
        let heard = sent.and_then(|_| io::Read::read(&mut &*socket, &mut [0; 64]));
        match heard {
            Ok(_) => return Ok(format!("{to} answers")),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) => match answered(&error) {
                Some(words) => return Ok(words),
                None => last = format!("no way to {to}: {error}"),
            },
        }
    }
    Err(last)
}
