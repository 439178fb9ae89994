//! What others change under us, as the kernel notifies of it.
//!
//! A notification says what kind of thing was changed and, where the kernel tells, by whom; what the change was is found
//! by reading. So a lost notification costs nothing but the reading of all. The sockets live with the daemon.
//!
//! - [`route`]: what rtnetlink's messages mean; [`table`]: what nftables' do.

use std::fmt;

use crate::kind::Kind;

pub mod route;
pub mod table;

/// How soon a change is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Pods come and go with such changes all the time.
    Later,
    /// No pod makes such a change.
    Soon,
}

/// Who made a change, as far as the kernel tells; not this process.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Author {
    /// The kernel itself, or it does not tell.
    Unknown,
    /// A process, by its number and name; the name is unknown when it had ended before it could be looked at.
    Process(u32, Option<String>),
}

impl fmt::Display for Author {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Author::Unknown => f.write_str("unknown"),
            Author::Process(pid, Some(name)) => write!(f, "{name} (process {pid})"),
            Author::Process(pid, None) => write!(f, "process {pid}, of which no more is known"),
        }
    }
}

/// Somebody changed something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notification {
    /// A thing of this kind.
    Changed(Kind, Urgency, Author),
    /// A thing of this kind that goes with the pod's link of this index.
    OfPod(Kind, u32, Author),
    /// The pod's link of this index is gone, and all that went with it: nothing of it is left to be put right.
    PodGone(u32),
    /// A chain at a hook, whoever's it is.
    Hooks,
    /// More was changed than was notified of.
    Lost,
}
