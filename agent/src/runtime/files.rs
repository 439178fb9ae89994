//! Files of ours on the host that somebody may remove: plugins, the network configuration, sockets, the lock, the store.
//! All are looked at in one round, by what tells a file from another one of its name, and put back.
//!
//! A plugin that somebody has replaced by one that answers is accepted: packages and node images bring their own. One that
//! is not there or does not run is taken from the image. What cannot be put back is an obstacle of new pods; STATUS does
//! not say so, since the pods that run have their network.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use anyhow::bail;
use enid_ipamd::{Cause, Refusal};
use serde_json::Value;
use tracing::warn;

use crate::{
    core::handle::Handle,
    host::inode,
    host::sockets::{Claim, Place},
    metrics::Counters,
    runtime::{
        conflist, install,
        versions::{Fault, Versions},
    },
    settings::Settings,
    store::Store,
};

/// What is looked at, and what was seen of it.
pub struct Files {
    settings: Settings,
    handle: Handle,
    counters: Arc<Counters>,
    store: Arc<Store>,
    claim: Claim,
    /// The plugins' socket and the operators'.
    sockets: [Place; 2],
    versions: Versions,
    /// The network configuration as it was found or written last.
    announced: Option<Value>,
    /// The plugin for host ports was there.
    had_portmap: bool,
    /// What could not be put back in the last round, by what it is.
    faults: BTreeMap<&'static str, String>,
}

/// What became of one file.
enum Found {
    /// It is as it should be.
    Right,
    /// It was put back.
    PutBack,
    /// It is not there, and cannot be put back.
    Missing(String),
    /// It is there, and cannot be put right.
    Wrong(String),
}

impl Files {
    /// Nothing has been looked at yet.
    pub fn new(
        settings: Settings,
        handle: Handle,
        counters: Arc<Counters>,
        store: Arc<Store>,
        claim: Claim,
        sockets: [Place; 2],
    ) -> Self {
        let (versions, faults) = Default::default();
        let (announced, had_portmap) = (None, conflist::portmap(&settings).is_file());
        Files { settings, handle, counters, store, claim, sockets, versions, announced, had_portmap, faults }
    }

    /// Looks at everything once, and puts back what is not there. `announces`: the network configuration is to be there.
    ///
    /// # Errors
    ///
    /// A folder has been removed and only its mount is left: what is written there reaches nobody, and only a new mount,
    /// which a new run of the daemon gets, helps.
    pub async fn look(&mut self, announces: bool) -> anyhow::Result<()> {
        self.look_at_folders()?;
        let mut faults = BTreeMap::new();
        let mut missing = None;
        let mut take = |counters: &Counters, what: &'static str, path: &Path, found: Found| {
            let words = match found {
                Found::Right => return,
                Found::PutBack => {
                    counters.put_back();
                    warn!("{} was removed or damaged, and is put back", path.display());
                    return;
                }
                Found::Wrong(words) => words,
                Found::Missing(words) => {
                    missing.get_or_insert(Refusal::new(Cause::HostFiles, words.clone()));
                    words
                }
            };
            counters.not_put_back();
            faults.insert(what, words);
        };
        for path in conflist::needed(&self.settings) {
            take(&self.counters, "plugin", &path, plugin(&mut self.versions, &path).await);
        }
        let portmap = conflist::portmap(&self.settings);
        if self.had_portmap && !portmap.is_file() {
            // Where the image has none, the configuration goes on without it, and says so.
            let found = put_back(&portmap, "it is not there");
            self.had_portmap = matches!(found, Found::PutBack);
            if self.had_portmap {
                take(&self.counters, "portmap", &portmap, found);
            }
        } else if self.had_portmap {
            take(&self.counters, "portmap", &portmap, plugin(&mut self.versions, &portmap).await);
        }
        self.had_portmap |= portmap.is_file();
        let has_plugin = self.settings.bin_dir.join(install::PLUGIN).is_file();
        if announces && has_plugin {
            let found = self.look_at_conflist().await;
            take(&self.counters, "conflist", &conflist::path(&self.settings), found);
        }
        let run_dir = self.settings.run_dir.clone();
        take(&self.counters, "lock", &run_dir, found(self.claim.put_back(), Found::Wrong));
        let [plugins, operators] = &mut self.sockets;
        let bound = found(plugins.put_back(), Found::Missing);
        take(&self.counters, "cni.sock", plugins.path(), bound);
        let bound = found(operators.put_back(), Found::Wrong);
        take(&self.counters, "debug.sock", operators.path(), bound);
        let store = self.store.clone();
        let stored = tokio::task::spawn_blocking(move || store.put_back()).await?;
        take(&self.counters, "store", self.store.path(), found(stored, Found::Wrong));
        self.report(faults, missing).await;
        Ok(())
    }

    /// Whether folders are still those of the host.
    fn look_at_folders(&self) -> anyhow::Result<()> {
        let Settings { bin_dir, conf_dir, run_dir, store_dir, .. } = &self.settings;
        let folders = [
            ("HOST_CNI_BIN_PATH", bin_dir),
            ("HOST_CNI_CONFDIR_PATH", conf_dir),
            ("ENID_RUN_DIR", run_dir),
            ("ENID_STORE_DIR", store_dir),
        ];
        for (setting, folder) in folders {
            if inode::is_removed_folder(folder) {
                bail!(
                    "the folder {} ({setting}) was removed under its mount, and what is written there reaches nobody; \
                     the daemon ends, so that a new one is mounted",
                    folder.display()
                );
            }
        }
        Ok(())
    }

    async fn look_at_conflist(&mut self) -> Found {
        let path = conflist::path(&self.settings);
        match conflist::write(&self.settings, &mut self.versions).await {
            Ok((list, wrote)) => {
                // Which plugins there are changes it too, and is nobody's drift.
                let is_drift = wrote && self.announced.as_ref() == Some(&list);
                self.announced = Some(list);
                if is_drift { Found::PutBack } else { Found::Right }
            }
            Err(failure) if path.exists() => Found::Wrong(format!("{failure:#}")),
            Err(failure) => Found::Missing(format!("{failure:#}")),
        }
    }

    /// Tells of what could not be put back, once.
    async fn report(&mut self, faults: BTreeMap<&'static str, String>, missing: Option<Refusal>) {
        for (what, words) in &faults {
            if self.faults.get(what) != Some(words) {
                warn!("{words}");
            }
        }
        if faults != self.faults {
            self.handle.files(missing).await;
        }
        self.faults = faults;
    }
}

/// A plugin that is not there, or is none, is taken from the image.
async fn plugin(versions: &mut Versions, path: &Path) -> Found {
    match versions.of(path).await {
        Ok(_) => Found::Right,
        Err(Fault::NoPlugin { why, .. }) => put_back(path, &why),
        // It may be slow, or being written: it is asked again.
        Err(Fault::Unknown { .. }) => Found::Right,
    }
}

fn put_back(path: &Path, why: &str) -> Found {
    match install::put_back(path) {
        Ok(true) => Found::PutBack,
        Ok(false) => Found::Missing(format!(
            "pods cannot start without the plugin {}: {why}, and the image has none to put back",
            path.display()
        )),
        Err(failure) => Found::Missing(format!(
            "pods cannot start without the plugin {}: {why}, and it cannot be put back: {failure:#}",
            path.display()
        )),
    }
}

fn found(put_back: anyhow::Result<bool>, otherwise: fn(String) -> Found) -> Found {
    match put_back {
        Ok(false) => Found::Right,
        Ok(true) => Found::PutBack,
        Err(failure) => otherwise(format!("{failure:#}")),
    }
}
