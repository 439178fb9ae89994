//! What a fault is made of.

use enid_tests::{Lab, Place, Pod};
use vpclab::model::Faults as Ec2;

/// Where a fault happens.
#[derive(Clone, Copy)]
pub struct Where<'a> {
    /// The lab.
    pub lab: &'a Lab,
    /// Its node.
    pub place: Place<'a>,
}

/// A pod of a fault, by its number: of several labs at once no two have the same name.
pub fn pod(lab: &Lab, number: usize) -> Pod {
    Pod::new(0, &format!("{}-pod-{number}", lab.state().name))
}

/// A change of the node or of what is around it.
pub enum Change {
    /// None.
    Nothing,
    /// A shell line on the node.
    Sh(&'static str),
    /// The same every quarter of a second, until the fault ends.
    Again(&'static str),
    /// EC2 behaves so.
    Ec2(fn() -> Ec2),
    /// Instance metadata does.
    Imds(fn() -> vpclab::Faults),
    /// The daemon is stopped, or goes on.
    Hang(bool),
    /// Something else.
    By(fn(Where<'_>) -> anyhow::Result<()>),
}

/// Which pods there are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pods {
    /// None.
    None,
    /// [`Fault::first`] of them, before the fault begins.
    Before,
    /// As many as the node takes, and one that is refused, before anything else.
    All,
    /// The same once the fault has begun.
    Then,
}

/// A fault.
pub struct Fault {
    /// What it is called here.
    pub name: &'static str,
    /// What the doctor calls it.
    pub finding: &'static str,
    /// Findings that come with it.
    pub beside: &'static [&'static str],
    /// The cause of a refused ADD.
    pub add: Option<&'static str>,
    /// Status and metrics name it: by the cause of refused ADDs, or else by the doctor's name.
    pub is_told: bool,
    /// The daemon's settings.
    pub settings: &'static [(&'static str, &'static str)],
    /// The node is well before it begins.
    pub is_well_before: bool,
    /// Pods.
    pub pods: Pods,
    /// How many, with [`Pods::Before`].
    pub first: usize,
    /// Before the daemon starts.
    pub before: Change,
    /// How it begins.
    pub begins: Change,
    /// How it ends.
    pub ends: Change,
}

impl Fault {
    /// What status, metrics and the cluster call it.
    pub fn cause(&self) -> &'static str {
        self.add.unwrap_or(self.finding)
    }
}
