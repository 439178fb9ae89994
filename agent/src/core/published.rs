//! What the core's task publishes after every step: what it waits for, and whether pods can be served.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use enid_ipamd::{EniId, Kind, Millis};
use tokio::sync::watch;

use crate::{
    core::readiness::{Readiness, Rule},
    record::{Kind as Recorded, Record},
};

/// The task's side.
pub struct Publisher {
    awaited: watch::Sender<Awaited>,
    /// Something is expected that only metadata or the kernel can show.
    looks_soon: bool,
    /// Set while a listing of the kernel's links is waited for.
    awaits_listing: watch::Sender<bool>,
    readiness: watch::Sender<Readiness>,
    rule: Rule,
    /// When readiness may change by itself.
    look_again: Option<Millis>,
    record: Arc<Record>,
}

/// What is expected of metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Awaited {
    /// It is to be read often.
    pub soon: bool,
    /// ENIs of which blocks of these kinds are to show.
    pub enis: BTreeMap<EniId, BTreeSet<Kind>>,
    /// The primary ENI's security groups are to be read at once.
    pub groups: bool,
}

/// The side of whoever wants to know.
pub struct Published {
    /// What is expected of metadata.
    pub awaited: watch::Receiver<Awaited>,
    /// Whether a listing of the kernel's links is waited for.
    pub awaits_listing: watch::Receiver<bool>,
    /// Whether pods can be served.
    pub readiness: watch::Receiver<Readiness>,
}

impl Publisher {
    /// Both sides; everything is waited for. `served`: an earlier run of this boot could give an address.
    pub fn new(served: bool, record: Arc<Record>) -> (Self, Published) {
        let (metadata, awaited) = watch::channel(Awaited { soon: true, ..Awaited::default() });
        let (listing, awaits_listing) = watch::channel(true);
        let (ready, readiness) = watch::channel(Readiness::starting(served));
        let publisher = Publisher {
            awaited: metadata,
            looks_soon: true,
            awaits_listing: listing,
            readiness: ready,
            rule: Rule::new(served),
            look_again: None,
            record,
        };
        (publisher, Published { awaited, awaits_listing, readiness })
    }

    /// What is waited for: of metadata, of the kernel for ENIs that are being configured, and a listing of its links.
    pub fn awaits(&mut self, metadata: Awaited, links: bool, listing: bool) {
        self.looks_soon = metadata.soon || links;
        self.awaited.send_if_modified(|known| {
            let is_new = *known != metadata;
            *known = metadata;
            is_new
        });
        self.awaits_listing.send_if_modified(|known| std::mem::replace(known, listing) != listing);
    }

    /// Whether something is waited for that metadata or the kernel will show.
    pub fn looks_soon(&self) -> bool {
        self.looks_soon
    }

    /// What is seen of readiness now; the rule says what is published.
    pub fn readiness(&mut self, now: Millis, seen: Readiness) {
        let (said, look_again) = self.rule.look(now, seen);
        self.look_again = look_again;
        let said = said.clone();
        self.readiness.send_if_modified(|known| {
            let told = said.log(known);
            told.iter().for_each(|words| self.record.note(Recorded::State, None, words));
            *known = said;
            !told.is_empty()
        });
    }

    /// When readiness may change by itself.
    pub fn look_again(&self) -> Option<Millis> {
        self.look_again
    }
}
