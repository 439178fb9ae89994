//! ENIs that some node of the cluster created and lost: found in one search, deleted only if the next search finds them
//! again, a few at a time.

use imbl::OrdSet;
use serde::{Deserialize, Serialize};

use crate::ids::{EniId, Millis};

/// Between two searches that find nothing.
pub(crate) const PERIOD_MS: u64 = 4 * 3_600_000;
/// Before what was found is looked for again.
const AGAIN_MS: u64 = 10 * 60_000;
/// Deletions per search.
const MOST: usize = 10;

/// What the search remembers.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct LeakSearch {
    next: Option<Millis>,
    suspects: OrdSet<EniId>,
}

impl LeakSearch {
    /// When the next search is due.
    pub(crate) fn next(&self) -> Option<Millis> {
        self.next
    }

    pub(crate) fn plan(&mut self, next: Option<Millis>) {
        self.next = next;
    }

    /// A search found these: those that an earlier one had found too, and that are deleted now; and how long to wait for
    /// the next search.
    pub(crate) fn found(&mut self, found: OrdSet<EniId>) -> (Vec<EniId>, u64) {
        let certain = found.iter().filter(|id| self.suspects.contains(*id)).take(MOST).cloned().collect();
        let wait = if found.is_empty() { PERIOD_MS } else { AGAIN_MS };
        self.suspects = found;
        (certain, wait)
    }
}
