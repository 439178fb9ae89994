//! ENIs that some node of the cluster created and lost: found in one search, deleted only if the next
//! search finds them again, a few at a time.

use imbl::OrdSet;

use crate::{Call, Class, Core, Effect, EniId, Millis, Provisioning, shrink};

/// Between two searches that find nothing.
const PERIOD_MS: u64 = 4 * 3_600_000;
/// Before what was found is looked for again.
const AGAIN_MS: u64 = 10 * 60_000;
/// Deletions per search.
const MOST: usize = 10;

/// What the search remembers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Search {
    next: Option<Millis>,
    suspects: OrdSet<EniId>,
}

impl Search {
    pub(crate) fn next(&self) -> Option<Millis> {
        self.next
    }
}

impl Core {
    pub(crate) fn search_leaked(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let policy = &self.node.policy;
        let searches =
            policy.clean_leaked && policy.provisioning == Provisioning::On && policy.kind != crate::Kind::V6Prefix;
        if !searches || !self.broken.is_empty() {
            self.leaked.next = None;
            return;
        }
        let Some(next) = self.leaked.next else {
            // Nodes that boot together do not search together.
            self.leaked.next = Some(now.plus(PERIOD_MS / 4 + self.jitter(PERIOD_MS)));
            return;
        };
        let open = self.pace.is_open(now, Call::FindLeaked.action(), Class::Tidy);
        if next <= now && open && !self.is_under_way(|call| *call == Call::FindLeaked) && !self.ec2_ails(now) {
            self.leaked.next = Some(now.plus(PERIOD_MS));
            self.call(now, Call::FindLeaked, Class::Tidy, effects);
        }
    }

    pub(crate) fn found_leaked(&mut self, now: Millis, found: Vec<EniId>, _: &mut Vec<Effect>) {
        let ours = |id: &EniId| {
            self.enis.contains_key(id)
                || self.departures.contains_key(id)
                || self.builds.values().any(|build| build.stage.eni() == Some(id))
        };
        let found: OrdSet<EniId> = found.into_iter().filter(|id| !ours(id)).collect();
        let certain: Vec<EniId> =
            found.iter().filter(|id| self.leaked.suspects.contains(*id)).take(MOST).cloned().collect();
        for id in &certain {
            self.depart(id.clone(), shrink::Stage::ToDelete, None);
        }
        let wait = if found.is_empty() { PERIOD_MS } else { AGAIN_MS };
        self.leaked = Search { next: Some(now.plus(wait + self.jitter(wait / 4))), suspects: found };
    }
}
