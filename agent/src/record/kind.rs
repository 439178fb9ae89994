//! What operations are, and how they end.

/// What an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// CNI's, and so are the next three.
    Add,
    /// A lease ends.
    Del,
    /// An attachment is looked at.
    Check,
    /// What the runtime does not know any more ends.
    Gc,
    /// A call of EC2's API.
    Ec2,
    /// The scheduler has bound a pod to this node.
    Bound,
    /// Drift was found, and repaired or not.
    Repair,
    /// An operator has the daemon do something.
    Admin,
    /// The plugin says something that only it can.
    Plugin,
    /// What the node says of itself is another.
    State,
}

impl Kind {
    /// As contract, log and metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Add => "ADD",
            Kind::Del => "DEL",
            Kind::Check => "CHECK",
            Kind::Gc => "GC",
            Kind::Ec2 => "EC2",
            Kind::Bound => "BOUND",
            Kind::Repair => "REPAIR",
            Kind::Admin => "ADMIN",
            Kind::Plugin => "PLUGIN",
            Kind::State => "STATE",
        }
    }
}

/// How an operation ended.
pub mod outcome {
    /// As it should.
    pub const DONE: &str = "done";
    /// For a cause.
    pub const REFUSED: &str = "refused";
    /// It could not be done.
    pub const FAILED: &str = "failed";
    /// Who asked did not wait for the answer.
    pub const GONE: &str = "gone";
    /// A newer request for the same attachment, or its DEL, came in between.
    pub const SUPERSEDED: &str = "superseded";
}
