//! What the core's task publishes after every step: what it waits for, and whether pods can be served.

use enid_ipamd::Millis;
use tokio::sync::watch;

use crate::core::readiness::{Readiness, Rule};

/// The task's side.
pub struct Publisher {
    /// Set while something is expected that only metadata or the kernel can show.
    awaits_metadata: watch::Sender<bool>,
    /// Set while a listing of the kernel's links is waited for.
    awaits_listing: watch::Sender<bool>,
    readiness: watch::Sender<Readiness>,
    rule: Rule,
    /// When readiness may change by itself.
    look_again: Option<Millis>,
}

/// The side of whoever wants to know.
pub struct Published {
    /// Whether metadata is to be read often.
    pub awaits_metadata: watch::Receiver<bool>,
    /// Whether a listing of the kernel's links is waited for.
    pub awaits_listing: watch::Receiver<bool>,
    /// Whether pods can be served.
    pub readiness: watch::Receiver<Readiness>,
}

impl Publisher {
    /// Both sides; everything is waited for. `served`: an earlier run of this boot could give an address.
    pub fn new(served: bool) -> (Self, Published) {
        let (metadata, awaits_metadata) = watch::channel(true);
        let (listing, awaits_listing) = watch::channel(true);
        let (ready, readiness) = watch::channel(Readiness::starting(served));
        let publisher = Publisher {
            awaits_metadata: metadata,
            awaits_listing: listing,
            readiness: ready,
            rule: Rule::new(served),
            look_again: None,
        };
        (publisher, Published { awaits_metadata, awaits_listing, readiness })
    }

    /// Whether metadata and the kernel are waited for.
    pub fn awaits(&self, metadata: bool, listing: bool) {
        let set = |sender: &watch::Sender<bool>, value: bool| {
            sender.send_if_modified(|known| std::mem::replace(known, value) != value);
        };
        set(&self.awaits_metadata, metadata);
        set(&self.awaits_listing, listing);
    }

    /// Whether metadata is waited for, as published last.
    pub fn is_awaiting_metadata(&self) -> bool {
        *self.awaits_metadata.borrow()
    }

    /// What is seen of readiness now; the rule says what is published.
    pub fn readiness(&mut self, now: Millis, seen: Readiness) {
        let (said, look_again) = self.rule.look(now, seen);
        self.look_again = look_again;
        let said = said.clone();
        self.readiness.send_if_modified(|known| {
            let changed = said.log(known);
            *known = said;
            changed
        });
    }

    /// When readiness may change by itself.
    pub fn look_again(&self) -> Option<Millis> {
        self.look_again
    }
}
