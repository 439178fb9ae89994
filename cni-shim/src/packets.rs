//! Packets to and from the daemon: a blocking socket on which nothing takes longer than a deadline.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use enid_api::packet::{self, Malformed, PACKET_MAX};
use enid_api::v1::{from_daemon, from_plugin};
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, setsockopt, socket, sockopt,
        },
        time::TimeVal,
    },
};

/// Room for what a daemon usually answers; some answers may be longer, see [`Room`].
const USUAL: usize = 4 * 1024;

/// When something has to be over.
#[derive(Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    /// So long from now.
    pub fn within(limit: Duration) -> Self {
        Deadline(Instant::now() + limit)
    }

    /// What is left of it, as a socket's timeout. `None` when it is over: a timeout of 0 would be none at all.
    fn left(self) -> Option<TimeVal> {
        let left = self.0.saturating_duration_since(Instant::now());
        let micros = i64::from(left.subsec_micros());
        let seconds = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
        (seconds > 0 || micros > 0).then(|| TimeVal::new(seconds, micros))
    }
}

/// How long an answer may be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// A few names and sentences.
    Usual,
    /// Lists.
    Whole,
}

/// Why there is no packet.
#[derive(Debug)]
pub enum Fault {
    /// The deadline is over.
    Late,
    /// The daemon has closed the connection.
    Closed,
    /// It is longer than a packet may be: bytes.
    TooLong(usize),
    /// What came is no message.
    Malformed(Malformed),
    /// The kernel refused.
    Io(Errno),
}

/// A connection to the daemon.
pub struct Packets(OwnedFd);

impl Packets {
    /// Connects. A daemon that does not accept in time is late: when its queue of connections is full, connect(2) waits
    /// as long as SO_SNDTIMEO says (unix(7), net/unix/af_unix.c).
    pub fn connect(path: &Path, deadline: Deadline) -> Result<Self, Fault> {
        let kind = SockType::SeqPacket;
        let fd = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).map_err(Fault::Io)?;
        let address = UnixAddr::new(path).map_err(Fault::Io)?;
        loop {
            setsockopt(&fd, sockopt::SendTimeout, &deadline.left().ok_or(Fault::Late)?).map_err(Fault::Io)?;
            match connect(fd.as_raw_fd(), &address) {
                Ok(()) => return Ok(Packets(fd)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(Fault::Late),
                Err(errno) => return Err(Fault::Io(errno)),
            }
        }
    }

    /// Sends a message.
    pub fn send(&self, kind: from_plugin::Kind, deadline: Deadline) -> Result<(), Fault> {
        let bytes = packet::from_plugin(kind);
        if bytes.len() > PACKET_MAX {
            return Err(Fault::TooLong(bytes.len()));
        }
        if bytes.len() > packet::SMALL {
            // Where it is refused, sending says so.
            let _ = setsockopt(&self.0, sockopt::SndBufForce, &packet::SEND_BUFFER);
        }
        loop {
            setsockopt(&self.0, sockopt::SendTimeout, &deadline.left().ok_or(Fault::Late)?).map_err(Fault::Io)?;
            match send(self.0.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(Fault::Late),
                // It may have said why before it closed: that is read next.
                Err(Errno::EPIPE) => return Ok(()),
                Err(errno) => return Err(gone(errno)),
            }
        }
    }

    /// Waits for a message.
    pub fn receive(&self, room: Room, deadline: Deadline) -> Result<from_daemon::Kind, Fault> {
        match room {
            Room::Usual => self.receive_into(&mut [0; USUAL], deadline),
            Room::Whole => self.receive_into(&mut vec![0; PACKET_MAX], deadline),
        }
    }

    fn receive_into(&self, buffer: &mut [u8], deadline: Deadline) -> Result<from_daemon::Kind, Fault> {
        loop {
            setsockopt(&self.0, sockopt::ReceiveTimeout, &deadline.left().ok_or(Fault::Late)?).map_err(Fault::Io)?;
            // With MSG_TRUNC the kernel tells the whole length of a packet that it had to cut.
            match recv(self.0.as_raw_fd(), buffer, MsgFlags::MSG_TRUNC) {
                Ok(0) => return Err(Fault::Closed),
                Ok(length) => return packet::read_daemon(buffer, length).map_err(Fault::Malformed),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(Fault::Late),
                Err(errno) => return Err(gone(errno)),
            }
        }
    }
}

/// A daemon that ended before it had read everything resets the connection.
fn gone(errno: Errno) -> Fault {
    if errno == Errno::ECONNRESET { Fault::Closed } else { Fault::Io(errno) }
}

/// The kernel's words for it.
pub fn words(errno: Errno) -> String {
    io::Error::from(errno).to_string()
}
