//! How commands end.

/// How a command ended that did what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Nothing is wrong.
    Well,
    /// Something is, and what was printed says what.
    SomethingIsWrong,
}
