//! The subnets that ENIs are in or are created in: each may be short of addresses while others are not.

use std::collections::BTreeSet;

use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use super::subnet::Subnet;
use crate::ids::{Millis, SubnetId};

/// How often EC2 is asked what subnets have left while one is short.
const ASK_MS: u64 = 60_000;

/// What EC2 has said of them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Subnets {
    by_id: OrdMap<SubnetId, Subnet>,
    /// When EC2 was asked what they have left.
    asked: Option<Millis>,
}

impl Subnets {
    /// One of them, if EC2 has said anything of it.
    pub(crate) fn get(&self, id: &SubnetId) -> Option<&Subnet> {
        self.by_id.get(id)
    }

    /// One of them, to note what EC2 says of it.
    pub(crate) fn of(&mut self, id: &SubnetId) -> &mut Subnet {
        self.by_id.entry(id.clone()).or_default()
    }

    /// Those that EC2 is to be asked about now; empty if none.
    pub(crate) fn due(&self, now: Millis) -> BTreeSet<SubnetId> {
        if self.next_question().is_some_and(|next| next > now) {
            return BTreeSet::new();
        }
        self.by_id.iter().filter(|(_, subnet)| subnet.is_short(now)).map(|(id, _)| id.clone()).collect()
    }

    /// When the next question is due, if one is short then.
    pub(crate) fn next_question(&self) -> Option<Millis> {
        self.asked.map(|asked| asked.plus(ASK_MS))
    }

    /// EC2 is asked.
    pub(crate) fn asked(&mut self, now: Millis) {
        self.asked = Some(now);
    }

    /// When one that is taken to have no /28 may have one again.
    pub(crate) fn next_prefixes(&self) -> impl Iterator<Item = Millis> {
        self.by_id.values().filter_map(Subnet::no_prefix_until)
    }

    /// Free addresses of those that EC2 has said something of.
    pub(crate) fn free(&self) -> impl Iterator<Item = (SubnetId, (u64, Millis))> {
        self.by_id.iter().filter_map(|(id, subnet)| Some((id.clone(), subnet.free()?)))
    }

    /// What those that are short have left, in words.
    pub(crate) fn words(&self, now: Millis) -> Option<String> {
        let words: Vec<String> = self.by_id.iter().filter_map(|(id, subnet)| subnet.words(id, now)).collect();
        (!words.is_empty()).then(|| words.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_short_subnets_have_left_is_asked_for_once_a_minute() {
        let mut subnets = Subnets::default();
        let [one, two] = ["subnet-1", "subnet-2"].map(|id| SubnetId(id.into()));
        assert!(subnets.due(Millis(5)).is_empty() && subnets.words(Millis(5)).is_none());
        subnets.of(&one).ask_for_less(Millis(5), 14, 0);
        subnets.of(&two).given(1);
        assert_eq!(subnets.due(Millis(5)), BTreeSet::from([one.clone()]));
        subnets.asked(Millis(5));
        assert!(subnets.due(Millis(6)).is_empty());
        subnets.of(&one).has_left(Millis(7), 3);
        assert_eq!(subnets.words(Millis(7)).unwrap(), "the subnet subnet-1 has 3 free addresses left");
        assert_eq!(subnets.due(Millis(5 + ASK_MS)), BTreeSet::from([one]));
    }
}
