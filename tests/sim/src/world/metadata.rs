//! How much of metadata the daemon reads: the list of ENIs each time, and of those that it knows already only what the core
//! has a reason for, as `agent/src/reconcile/metadata.rs` does.

use std::collections::{BTreeMap, BTreeSet};

use enid_ipamd::{Core, EniFacts, EniId, Millis};

/// How often the list, the primary's groups, and ENIs that are shown otherwise than EC2 has it are read.
const PERIOD_MS: u64 = 30_000;
/// How often everything is read.
const WHOLE_PERIOD_MS: u64 = 600_000;

/// What was read last.
#[derive(Debug, Default)]
pub struct Metadata {
    known: BTreeMap<EniId, EniFacts>,
    next: u64,
    next_whole: u64,
    turn: Option<EniId>,
}

impl Metadata {
    /// What the daemon knows after a reading, while metadata would show this.
    pub fn read(&mut self, now: u64, core: &Core, at: Millis, shown: Vec<EniFacts>) -> Vec<EniFacts> {
        let is_due = now >= self.next;
        let mut wanted: BTreeSet<EniId> = core.awaited_blocks().map(|(eni, _)| eni.clone()).collect();
        if is_due {
            self.next = now + PERIOD_MS;
            wanted.extend(core.view(at).unsettled_enis().cloned());
            let after = self.known.keys().find(|id| self.turn.as_ref().is_none_or(|last| *id > last));
            self.turn = after.or(self.known.keys().next()).cloned();
            wanted.extend(self.turn.clone());
        }
        let mut is_whole = now >= self.next_whole;
        if is_due || core.awaits_groups() {
            for eni in shown.iter().filter(|eni| (eni.place.card, eni.place.device_index) == (0, 0)) {
                if let Some(known) = self.known.get_mut(&eni.id) {
                    is_whole |= known.groups != eni.groups;
                    known.groups.clone_from(&eni.groups);
                }
            }
        }
        if is_whole {
            self.next_whole = now + WHOLE_PERIOD_MS;
        }
        let mut known = BTreeMap::new();
        for eni in shown {
            let before = self.known.remove(&eni.id).filter(|_| !is_whole && !wanted.contains(&eni.id));
            known.insert(eni.id.clone(), before.unwrap_or(eni));
        }
        self.known = known;
        self.known.values().cloned().collect()
    }
}
