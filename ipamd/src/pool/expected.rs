//! What EC2 has confirmed and instance metadata does not show yet, and the reverse: what was unassigned and stale
//! metadata may still show.

use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::ids::{EniId, Millis, Place};

/// Metadata that still shows what was unassigned is taken for stale for so long; then EC2 is asked.
pub(crate) const STALE_MS: u64 = 60_000;

/// An address is assigned once instance metadata shows it, or when it has not for so long after EC2 confirmed it.
pub(crate) const IMDS_LAG_MS: u64 = 10_000;

/// Blocks that EC2 confirmed for an ENI, until metadata shows them, or EC2's confirmation alone is enough.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Expected {
    pub(crate) blocks: OrdSet<IpNet>,
    /// Since when they should be seen; `None` while the ENI is not attached yet.
    pub(crate) since: Option<Millis>,
    /// When they were asked for.
    pub(crate) asked: Millis,
    /// Where a new ENI was attached.
    pub(crate) place: Option<Place>,
}

/// How an expectation ended.
pub(crate) enum Met {
    /// Metadata has never shown the ENI.
    Never,
    /// Everything is there; these blocks by EC2's word alone.
    Delivered { eni: EniId, blocks: Vec<IpNet>, took_ms: u64 },
}

/// What is expected, by ENI.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Expectations {
    by_eni: OrdMap<EniId, Expected>,
}

impl Expectations {
    /// EC2 has confirmed blocks that metadata is to show; `since` is when the ENI was attached.
    pub(super) fn add(&mut self, eni: &EniId, blocks: Vec<IpNet>, since: Option<Millis>, asked: Millis) {
        let blocks = blocks.into_iter().collect();
        match self.by_eni.get_mut(eni) {
            Some(expected) => {
                expected.blocks = expected.blocks.clone().union(blocks);
                expected.since = since.or(expected.since);
            }
            None => drop(self.by_eni.insert(eni.clone(), Expected { blocks, since, asked, place: None })),
        }
    }

    /// A new ENI was attached there, and metadata is to show it.
    pub(super) fn attached(&mut self, now: Millis, eni: &EniId, place: Option<Place>) {
        if let Some(expected) = self.by_eni.get_mut(eni) {
            (expected.since, expected.place) = (Some(now), place);
        }
    }

    pub(super) fn remove(&mut self, eni: &EniId) {
        self.by_eni.remove(eni);
    }

    pub(super) fn get(&self, eni: &EniId) -> Option<&Expected> {
        self.by_eni.get(eni)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&EniId, &Expected)> {
        self.by_eni.iter()
    }

    /// When EC2's word for something that metadata does not show has to do.
    pub(super) fn next(&self) -> impl Iterator<Item = Millis> {
        let since = self.by_eni.values().filter_map(|expected| expected.since);
        since.flat_map(|since| [since.plus(IMDS_LAG_MS), since.plus(STALE_MS)])
    }

    /// Ends expectations that metadata has met, or that have lasted so long that EC2's confirmation alone is enough;
    /// `shown` gives the blocks of ENIs that metadata has shown.
    pub(super) fn end<'a>(&mut self, now: Millis, shown: impl Fn(&EniId) -> Option<&'a OrdSet<IpNet>>) -> Vec<Met> {
        let mut met = Vec::new();
        for (id, expected) in self.by_eni.clone() {
            let waited = |limit: u64| expected.since.is_some_and(|since| now.since(since) >= limit);
            let outcome = match shown(&id) {
                None if waited(STALE_MS) => Met::Never,
                None => continue,
                Some(blocks) => {
                    let open: Vec<IpNet> =
                        expected.blocks.iter().filter(|net| !blocks.contains(*net)).copied().collect();
                    if !open.is_empty() && !waited(IMDS_LAG_MS) {
                        continue;
                    }
                    Met::Delivered { eni: id.clone(), blocks: open, took_ms: now.since(expected.asked) }
                }
            };
            self.by_eni.remove(&id);
            met.push(outcome);
        }
        met
    }
}

/// Blocks that were unassigned: since when, and under which intent.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Unassigned {
    blocks: OrdMap<IpNet, (Millis, String)>,
}

impl Unassigned {
    pub(crate) fn add(&mut self, net: IpNet, at: Millis, token: String) {
        self.blocks.insert(net, (at, token));
    }

    /// When a block was unassigned, if it was.
    pub(crate) fn since(&self, net: &IpNet) -> Option<Millis> {
        self.blocks.get(net).map(|(at, _)| *at)
    }

    /// Blocks that were unassigned long enough ago, and that metadata does not show: it cannot bring them back.
    pub(crate) fn settled(&self, now: Millis, is_shown: impl Fn(&IpNet) -> bool) -> Vec<IpNet> {
        let settled = |(net, (at, _)): &(&IpNet, &(Millis, String))| now.since(*at) >= STALE_MS && !is_shown(net);
        self.blocks.iter().filter(settled).map(|(net, _)| *net).collect()
    }

    /// Forgets one; its intent, if no other block is under it.
    pub(crate) fn remove(&mut self, net: &IpNet) -> Option<String> {
        let (_, token) = self.blocks.remove(net)?;
        self.blocks.values().all(|(_, other)| *other != token).then_some(token)
    }
}
