//! Security groups: those of the primary ENI, which all of ours have.
//!
//! An operator changes them at the instance, which is its primary ENI (Amazon EC2 User Guide, "Change the security groups
//! for your Amazon EC2 instance"). Metadata may show a part of a list that is being changed, so ENIs follow a list only
//! that was read twice.

use std::{collections::BTreeSet, sync::Arc};

use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use crate::{
    cause::Refusal,
    ids::{EniId, Millis},
};

/// A list is followed once it has been read for so long; readings are 30 s apart.
const READ_TWICE_MS: u64 = 25_000;
/// The nodes of a fleet follow a change over so long.
pub(crate) const SPREAD_MS: u64 = 5 * 60_000;
/// EC2 is told again after so long, where it has refused, and where metadata does not show what it was told.
const AGAIN_MS: u64 = 5 * 60_000;

/// Ids of security groups.
pub(crate) type List = Arc<BTreeSet<String>>;

/// What is known of them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Groups {
    /// The primary ENI's, read twice; empty before that.
    known: List,
    /// The list that was read last, and since when it has been that.
    read: Option<(List, Millis)>,
    /// EC2 does not know one of them: they are to be read at once, and what is read last counts.
    not_found: bool,
    /// Not read since EC2 said so.
    awaited: bool,
    /// ENIs follow from then on.
    from: Millis,
    /// What EC2 was told for an ENI.
    told: OrdMap<EniId, Told>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Told {
    groups: List,
    /// It is not told again before.
    until: Millis,
    /// Why it refused.
    refusal: Option<Refusal>,
}

/// Whether an ENI's groups are to be changed.
pub(crate) enum Change<'a> {
    /// It has those of the primary, or nothing is known.
    None,
    /// Now.
    Due,
    /// Not before then; and why, where EC2 has refused.
    Later(Millis, Option<&'a Refusal>),
}

impl Groups {
    /// Metadata shows these of the primary ENI; whether they are now others than those that ENIs have followed.
    pub(crate) fn read(&mut self, now: Millis, shown: &BTreeSet<String>) -> bool {
        if shown.is_empty() {
            return false;
        }
        self.awaited = false;
        let (list, since) = match self.read.take() {
            Some((list, since)) if *list == *shown => (list, since),
            _ => (Arc::new(shown.clone()), now),
        };
        let is_new = now.since(since) >= READ_TWICE_MS && self.known != list;
        if is_new {
            (self.known, self.not_found) = (list.clone(), false);
        }
        self.read = Some((list, since));
        is_new
    }

    /// ENIs follow from then on.
    pub(crate) fn follow_from(&mut self, at: Millis) {
        self.from = at;
    }

    /// EC2 does not know one of them.
    pub(crate) fn set_not_found(&mut self) {
        (self.not_found, self.awaited) = (true, true);
    }

    /// Whether they are to be read at once.
    pub(crate) fn is_awaited(&self) -> bool {
        self.awaited
    }

    /// Those of a new ENI; none if metadata has shown none, which leaves the choice to EC2.
    pub(crate) fn of_new(&self) -> List {
        let read = self.read.as_ref().map(|(list, _)| list);
        let newest = read.filter(|_| self.not_found || self.known.is_empty());
        newest.unwrap_or(&self.known).clone()
    }

    /// The primary's, read twice.
    pub(crate) fn known(&self) -> &List {
        &self.known
    }

    /// Whether an ENI that has these is to be changed.
    pub(crate) fn change(&self, now: Millis, eni: &EniId, has: &BTreeSet<String>) -> Change<'_> {
        if self.known.is_empty() || has.is_empty() || *has == *self.known {
            return Change::None;
        }
        let told = self.told.get(eni).filter(|told| told.groups == self.known && told.until > now);
        match told {
            Some(told) => Change::Later(told.until, told.refusal.as_ref()),
            None if self.from > now => Change::Later(self.from, None),
            None => Change::Due,
        }
    }

    /// EC2 was told for an ENI, and has refused or not.
    pub(crate) fn told(&mut self, now: Millis, eni: &EniId, groups: List, refusal: Option<Refusal>) {
        self.told.insert(eni.clone(), Told { groups, until: now.plus(AGAIN_MS), refusal });
    }

    /// ENIs that there are; what is known of others is forgotten.
    pub(crate) fn retain(&mut self, exists: impl Fn(&EniId) -> bool) {
        let gone: Vec<EniId> = self.told.keys().filter(|eni| !exists(eni)).cloned().collect();
        gone.iter().for_each(|eni| drop(self.told.remove(eni)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// The kind: facts of the instance that are read once.
    #[test]
    fn a_list_is_followed_once_it_was_read_twice() {
        let (mut groups, eni) = (Groups::default(), EniId("eni-1".into()));
        assert!(!groups.read(Millis(0), &list(&["a", "b"])), "once");
        assert_eq!(*groups.of_new(), list(&["a", "b"]), "a new ENI has to have some");
        assert!(matches!(groups.change(Millis(1), &eni, &list(&["a"])), Change::None));
        assert!(groups.read(Millis(30_000), &list(&["a", "b"])));
        assert!(!groups.read(Millis(60_000), &list(&["a"])), "a part of it");
        assert!(!groups.read(Millis(90_000), &list(&[])), "nothing is no list");
        assert!(!groups.read(Millis(120_000), &list(&["a", "b"])) && *groups.of_new() == list(&["a", "b"]));
        // A real change.
        assert!(!groups.read(Millis(150_000), &list(&["c"])) && *groups.of_new() == list(&["a", "b"]));
        assert!(groups.read(Millis(180_000), &list(&["c"])) && *groups.of_new() == list(&["c"]));
        groups.follow_from(Millis(200_000));
        let has = list(&["a", "b"]);
        assert!(matches!(groups.change(Millis(190_000), &eni, &has), Change::Later(Millis(200_000), None)));
        assert!(matches!(groups.change(Millis(200_000), &eni, &has), Change::Due));
        groups.told(Millis(200_000), &eni, groups.known().clone(), None);
        assert!(matches!(groups.change(Millis(200_001), &eni, &has), Change::Later(..)), "metadata lags");
        assert!(matches!(groups.change(Millis(200_000 + AGAIN_MS), &eni, &has), Change::Due));
        assert!(matches!(groups.change(Millis(200_001), &eni, &list(&["c"])), Change::None));
    }

    #[test]
    fn what_ec2_does_not_know_is_replaced_by_what_is_read_last() {
        let mut groups = Groups::default();
        for at in [0, 30_000] {
            groups.read(Millis(at), &list(&["gone"]));
        }
        groups.set_not_found();
        assert!(groups.is_awaited());
        groups.read(Millis(40_000), &list(&["new"]));
        assert!(!groups.is_awaited() && *groups.of_new() == list(&["new"]));
        assert_eq!(**groups.known(), list(&["gone"]), "ENIs that there are wait for the second reading");
        assert!(groups.read(Millis(70_000), &list(&["new"])));
    }
}
