//! What the kernel refuses.

use std::io;

use nix::errno::Errno;

/// One refusal of the kernel, with what was asked.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct Error {
    /// What was asked, for people.
    pub what: String,
    /// The kernel's answer.
    pub source: io::Error,
}

impl Error {
    /// The kernel answered so to what was asked.
    pub fn new(what: impl Into<String>, source: io::Error) -> Self {
        Error { what: what.into(), source }
    }

    /// Whether the kernel answered with this error number.
    pub fn is(&self, errno: Errno) -> bool {
        self.source.raw_os_error().map(Errno::from_raw) == Some(errno)
    }
}

/// What the number of an answer, or at the end of a listing, says: 0, or an error number below it.
pub fn of_code(what: &str, code: i32) -> Result<(), Error> {
    if code < 0 { Err(Error::new(what, Errno::from_raw(-code).into())) } else { Ok(()) }
}
