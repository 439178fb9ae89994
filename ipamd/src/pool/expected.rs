//! What EC2 has confirmed and instance metadata does not show yet, and the reverse: what was unassigned and stale
//! metadata may still show.

use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;

use crate::ids::{Millis, Place};

/// Metadata that still shows what was unassigned is taken for stale for so long; then EC2 is asked.
pub(crate) const STALE_MS: u64 = 60_000;

/// Blocks that EC2 confirmed for an ENI, until metadata shows them or its word has to do.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    pub(crate) blocks: OrdSet<IpNet>,
    /// Since when they should be seen; `None` while the ENI is not attached yet.
    pub(crate) since: Option<Millis>,
    /// When they were asked for.
    pub(crate) asked: Millis,
    /// Where a new ENI was attached.
    pub(crate) place: Option<Place>,
}

/// Blocks that were unassigned: since when, and under which intent.
#[derive(Clone, Debug, Default)]
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
