//! Records on their way to the store: written before anything is promised, and again if the store refused them.

use std::sync::Arc;

use enid_ipamd::Write;

use crate::store::Store;

/// The records.
pub struct Journal {
    store: Arc<Store>,
    /// What the store has refused so far.
    unwritten: Vec<Write>,
    failure: Option<String>,
}

impl Journal {
    /// Nothing is to be written yet.
    pub fn new(store: Arc<Store>) -> Self {
        Journal { store, unwritten: Vec::new(), failure: None }
    }

    /// Makes records durable, those first that could not be written before.
    ///
    /// # Errors
    ///
    /// What the store says; the records are kept for the next try.
    pub async fn write(&mut self, writes: Vec<Write>) -> anyhow::Result<()> {
        self.unwritten.extend(writes);
        if self.unwritten.is_empty() {
            return Ok(());
        }
        let store = self.store.clone();
        let writes = std::mem::take(&mut self.unwritten);
        let (writes, written) = tokio::task::spawn_blocking(move || {
            let written = store.write(&writes);
            (writes, written)
        })
        .await?;
        match &written {
            Ok(()) => self.failure = None,
            Err(failure) => {
                self.unwritten = writes;
                self.failure = Some(format!("{failure:#}"));
            }
        }
        written
    }

    /// What the store refused last, one sentence; `None` while it can be written.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }
}
