//! The state in a few figures, as a node's status object has it, and when it is told anew.

use std::collections::BTreeMap;

use crate::{
    ids::{Millis, SubnetId},
    view::View,
};

/// It is told at most once in so long.
const PACE_MS: u64 = 60_000;

/// A node's ENIs and addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// ENIs that are attached, and how many may be; 0 if that is not known.
    pub enis: (u32, u32),
    /// Addresses that pods hold.
    pub assigned: u64,
    /// Addresses that can be assigned at once.
    pub available: u64,
    /// Addresses in their cooldown.
    pub cooling: u64,
    /// The subnets of the ENIs.
    pub subnets: BTreeMap<SubnetId, SubnetSummary>,
}

/// One subnet of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SubnetSummary {
    /// ENIs of the node in it.
    pub enis: u32,
    /// Its free addresses, as EC2 has said last.
    pub free: Option<u64>,
}

impl View {
    /// The same in a few figures.
    pub fn summary(&self) -> Summary {
        let mut subnets: BTreeMap<SubnetId, SubnetSummary> = BTreeMap::new();
        for eni in self.enis.values() {
            let id = &eni.facts.subnet_id;
            let subnet = subnets.entry(id.clone()).or_default();
            subnet.enis += 1;
            subnet.free = self.capacity.free.get(id).map(|(free, _)| *free);
        }
        Summary {
            enis: (crate::ids::count(self.enis.len()), self.capacity.enis),
            assigned: self.counts.assigned,
            available: self.counts.available,
            cooling: self.counts.cooling,
            subnets,
        }
    }
}

/// What was told last, and when.
#[derive(Clone, Debug)]
pub struct Told<T>(Option<(T, Millis)>);

impl<T> Default for Told<T> {
    fn default() -> Self {
        Told(None)
    }
}

impl<T: PartialEq> Told<T> {
    /// When this may be told; `None` if it has been told already.
    pub fn due(&self, now: Millis, value: &T) -> Option<Millis> {
        match &self.0 {
            Some((told, _)) if told == value => None,
            Some((_, at)) => Some(at.plus(PACE_MS).max(now)),
            None => Some(now),
        }
    }

    /// It is told; `None`: it was tried, and has to be told again.
    pub fn tell(&mut self, now: Millis, value: Option<T>) {
        self.0 = value.map(|value| (value, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_is_told_once_a_minute() {
        let mut told = Told::default();
        assert_eq!(told.due(Millis(5), &1), Some(Millis(5)));
        told.tell(Millis(5), Some(1));
        assert_eq!(told.due(Millis(6), &1), None);
        assert_eq!(told.due(Millis(6), &2), Some(Millis(5 + PACE_MS)));
        assert_eq!(told.due(Millis(70_000), &2), Some(Millis(70_000)));
    }
}
