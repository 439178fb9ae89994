//! Files of ours on the host that somebody may remove: plugins, the network configuration, sockets, the lock, the store.
//! All are looked at in one round, by what tells a file from another one of its name, and put back.
//!
//! A plugin that somebody has replaced by one that answers is accepted: packages and node images bring their own. One that
//! is not there or does not run is taken from the image. What cannot be put back is an obstacle of new pods; STATUS does
//! not say so, since the pods that run have their network.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

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
    /// What could not be put back in the last round, and why not.
    wrong: BTreeMap<PathBuf, String>,
}

/// What one round has found.
#[derive(Default)]
struct Round {
    put_back: Vec<PathBuf>,
    wrong: BTreeMap<PathBuf, String>,
    /// Why pods cannot start.
    missing: Option<String>,
}

/// What became of one file.
enum Found {
    /// It is as it should be.
    Right,
    /// It was put back.
    PutBack,
    /// It cannot be put back: why.
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
        let (versions, wrong) = Default::default();
        let (announced, had_portmap) = (None, conflist::portmap(&settings).is_file());
        Files { settings, handle, counters, store, claim, sockets, versions, announced, had_portmap, wrong }
    }

    /// Looks at everything once, and puts back what is not there. `announces`: the network configuration is to be there.
    ///
    /// # Errors
    ///
    /// A folder has been removed and only its mount is left: what is written there reaches nobody, and only a new mount,
    /// which a new run of the daemon gets, helps.
    pub async fn look(&mut self, announces: bool) -> anyhow::Result<()> {
        self.look_at_folders()?;
        let mut round = Round::default();
        for path in conflist::needed(&self.settings) {
            let found = plugin(&mut self.versions, &path).await;
            round.found(&path, found, true);
        }
        let portmap = conflist::portmap(&self.settings);
        if self.had_portmap {
            // The configuration goes on without one that cannot be put back.
            let found = plugin(&mut self.versions, &portmap).await;
            round.found(&portmap, found, false);
        }
        // What the image has comes back once it can.
        self.had_portmap = portmap.is_file() || self.had_portmap && install::is_in_image(&portmap);
        if announces && self.settings.bin_dir.join(install::PLUGIN).is_file() {
            let path = conflist::path(&self.settings);
            let found = self.look_at_conflist().await;
            round.found(&path, found, !path.exists());
        }
        round.found(&self.settings.run_dir.join("lock"), Found::of(self.claim.put_back()), false);
        let [plugins, operators] = &mut self.sockets;
        let (of_plugins, of_operators) = (Found::of(plugins.put_back()), Found::of(operators.put_back()));
        round.found(plugins.path(), of_plugins, true);
        round.found(operators.path(), of_operators, false);
        let store = self.store.clone();
        let stored = tokio::task::spawn_blocking(move || store.put_back()).await?;
        round.found(self.store.path(), Found::of(stored), false);
        self.report(round).await;
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
        let written = match self.store.network() {
            Ok(network) => conflist::write(&self.settings, network, &mut self.versions).await,
            Err(failure) => Err(failure),
        };
        match written {
            Ok((list, wrote)) => {
                // Which plugins there are changes it too, and is nobody's drift.
                let is_drift = wrote && self.announced.as_ref() == Some(&list);
                self.announced = Some(list);
                if is_drift { Found::PutBack } else { Found::Right }
            }
            Err(failure) => Found::Wrong(format!("{failure:#}")),
        }
    }

    /// Counts, and tells of what could not be put back, once.
    async fn report(&mut self, round: Round) {
        for path in &round.put_back {
            self.counters.put_back();
            warn!("{} was removed or damaged, and is put back", path.display());
        }
        for (path, words) in &round.wrong {
            self.counters.not_put_back();
            if self.wrong.get(path) != Some(words) {
                warn!("{words}");
            }
        }
        if round.wrong != self.wrong {
            self.handle.files(round.missing.map(|words| Refusal::new(Cause::HostFiles, words))).await;
        }
        self.wrong = round.wrong;
    }
}

impl Found {
    fn of(put_back: anyhow::Result<bool>) -> Self {
        match put_back {
            Ok(false) => Found::Right,
            Ok(true) => Found::PutBack,
            Err(failure) => Found::Wrong(format!("{failure:#}")),
        }
    }
}

impl Round {
    /// `is_needed`: pods cannot start without it.
    fn found(&mut self, path: &Path, found: Found, is_needed: bool) {
        match found {
            Found::Right => {}
            Found::PutBack => self.put_back.push(path.to_owned()),
            Found::Wrong(words) => {
                if is_needed {
                    self.missing.get_or_insert(words.clone());
                }
                self.wrong.insert(path.to_owned(), words);
            }
        }
    }
}

/// A plugin that is not there, or is none, is taken from the image.
async fn plugin(versions: &mut Versions, path: &Path) -> Found {
    let why = match versions.of(path).await {
        Err(Fault::NoPlugin { why, .. }) => why,
        // It may be slow, or being written: it is asked again.
        Ok(_) | Err(Fault::Unknown { .. }) => return Found::Right,
    };
    let and = match install::put_back(path) {
        Ok(install::PutBack::Done) => return Found::PutBack,
        Ok(install::PutBack::Same) => "it is the image's own".to_owned(),
        Ok(install::PutBack::NoneThere) => "the image has none to put back".to_owned(),
        Err(failure) => format!("it cannot be put back: {failure:#}"),
    };
    Found::Wrong(format!("pods cannot start without the plugin {}: {why}, and {and}", path.display()))
}
