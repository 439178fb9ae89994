//! How much of metadata the daemon reads: of the ENIs that it knows already only what the core has a reason for, as
//! `agent/src/reconcile/metadata.rs` does.

use std::collections::{BTreeMap, BTreeSet};

use enid_ipamd::{Core, EniFacts, EniId, Event, Millis};

/// How often the list, the primary's groups, and ENIs that are shown otherwise than EC2 has it are read.
const PERIOD_MS: u64 = 30_000;
/// How often everything is read.
const WHOLE_PERIOD_MS: u64 = 600_000;

/// What was read last.
#[derive(Debug, Default)]
pub struct Metadata {
    listed: BTreeSet<EniId>,
    groups: Option<BTreeSet<String>>,
    next: u64,
    next_whole: u64,
    turn: Option<EniId>,
}

impl Metadata {
    /// What the daemon tells the core after a reading, while metadata would show this.
    pub fn read(&mut self, now: u64, core: &Core, at: Millis, shown: Vec<EniFacts>) -> Vec<Event> {
        let is_due = now >= self.next;
        let mut wanted: BTreeSet<EniId> = core.awaited_blocks().map(|(eni, _)| eni.clone()).collect();
        // The list is not read where all that is awaited is in it.
        let lists = is_due || wanted.is_empty() || !wanted.iter().all(|eni| self.listed.contains(eni));
        if is_due {
            self.next = now + PERIOD_MS;
            wanted.extend(core.view(at).unsettled_enis().cloned());
            let after = self.listed.iter().find(|id| self.turn.as_ref().is_none_or(|last| *id > last));
            self.turn = after.or(self.listed.first()).cloned();
            wanted.extend(self.turn.clone());
        }
        let (mut events, mut is_whole) = (Vec::new(), now >= self.next_whole);
        if is_due || core.awaits_groups() {
            let primary = shown.iter().find(|eni| (eni.place.card, eni.place.device_index) == (0, 0));
            if let Some(groups) = primary.map(|eni| eni.groups.clone()) {
                is_whole |= self.groups.as_ref().is_some_and(|before| *before != groups);
                self.groups = Some(groups.clone());
                events.push(Event::Groups { groups });
            }
        }
        if is_whole {
            self.next_whole = now + WHOLE_PERIOD_MS;
        }
        let by_id: BTreeMap<EniId, EniFacts> = shown.into_iter().map(|eni| (eni.id.clone(), eni)).collect();
        let before = std::mem::take(&mut self.listed);
        self.listed = if lists || is_whole { by_id.keys().cloned().collect() } else { before.clone() };
        let is_read = |eni: &EniFacts| {
            self.listed.contains(&eni.id) && (is_whole || wanted.contains(&eni.id) || !before.contains(&eni.id))
        };
        let enis = by_id.into_values().filter(is_read).collect();
        events.push(Event::Imds { enis, listed: self.listed.clone(), addressless: Vec::new() });
        events
    }
}
