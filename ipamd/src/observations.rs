//! What has been looked at, and when.

use serde::{Deserialize, Serialize};

use crate::{cause::Refusal, groups::Groups, ids::Millis, plan::Observed};

/// How long a node without memory waits for EC2's word before it believes metadata.
pub(crate) const SETTLED_MS: u64 = 30_000;

/// When the node's surroundings were looked at, and what stands in the way of pods' packets.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Observations {
    /// When metadata was first read in this run.
    imds_read: Option<Millis>,
    /// Since when metadata cannot be read, and why not.
    imds_failed: Option<(Millis, String)>,
    /// When the newest listing of the kernel's links was begun.
    links_listed: Option<Millis>,
    /// Why what pods send would not arrive.
    blocked: Option<Refusal>,
    /// The primary ENI's security groups.
    groups: Groups,
}

impl Observations {
    /// Metadata was read; whether for the first time.
    pub(crate) fn read_imds(&mut self, now: Millis) -> bool {
        self.imds_failed = None;
        let first = self.imds_read.is_none();
        self.imds_read.get_or_insert(now);
        first
    }

    /// Metadata could not be read.
    pub(crate) fn imds_failed(&mut self, now: Millis, message: String) {
        let since = self.imds_failed.as_ref().map_or(now, |(since, _)| *since);
        self.imds_failed = Some((since, message));
    }

    /// Why metadata cannot be read, once that has lasted.
    pub(crate) fn unreadable(&self, now: Millis) -> Option<Refusal> {
        self.as_plan_input(false).unreadable(now)
    }

    /// The kernel's links were listed; whether for the first time.
    pub(crate) fn listed_links(&mut self, begun: Millis) -> bool {
        self.links_listed.replace(begun).is_none()
    }

    pub(crate) fn set_blocked(&mut self, blocked: Option<Refusal>) {
        self.blocked = blocked;
    }

    pub(crate) fn groups(&self) -> &Groups {
        &self.groups
    }

    pub(crate) fn groups_mut(&mut self) -> &mut Groups {
        &mut self.groups
    }

    pub(crate) fn imds_read(&self) -> Option<Millis> {
        self.imds_read
    }

    pub(crate) fn has_listed_links(&self) -> bool {
        self.links_listed.is_some()
    }

    pub(crate) fn blocked(&self) -> Option<&Refusal> {
        self.blocked.as_ref()
    }

    pub(crate) fn as_plan_input(&self, is_broken: bool) -> Observed<'_> {
        Observed {
            imds_read: self.imds_read,
            imds_failed: self.imds_failed.as_ref(),
            links_listed: self.links_listed,
            blocked: self.blocked.as_ref(),
            groups: &self.groups,
            is_broken,
        }
    }
}
