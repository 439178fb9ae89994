//! What the kernel refuses.

use std::io;

use nix::errno::Errno;

/// One refusal of the kernel, with what was asked.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {answer}")]
pub struct Error {
    /// What was asked, for people.
    pub what: String,
    /// The kernel's answer: part of this error's own words, so not told once more as its source.
    pub answer: io::Error,
}

impl Error {
    /// The kernel answered so to what was asked.
    pub fn new(what: impl Into<String>, answer: io::Error) -> Self {
        Error { what: what.into(), answer }
    }

    /// Whether the kernel answered with this error number.
    pub fn is(&self, errno: Errno) -> bool {
        self.answer.raw_os_error().map(Errno::from_raw) == Some(errno)
    }
}

/// What the number of an answer, or at the end of a listing, says: 0, or an error number below it.
pub fn of_code(what: &str, code: i32) -> Result<(), Error> {
    if code < 0 { Err(Error::new(what, Errno::from_raw(-code).into())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kind: a chain of errors that repeats its last words.
    #[test]
    fn what_the_kernel_answered_is_told_once() {
        let error = Error::new("take eth0 up", Errno::ENODEV.into());
        assert_eq!(error.to_string().matches("No such device").count(), 1);
        assert!(std::error::Error::source(&error).is_none());
    }
}
