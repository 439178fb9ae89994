//! What Amazon's VPC CNI has on a node goes, one thing after the other, when all of ours stands. Each step looks for what there
//! is to do: after an interruption the next start goes on with it.

use std::{fs, io, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use enid_datapath::{Family, peer::Rules};
use tokio::{sync::watch, time::sleep};
use tracing::{info, warn};

use super::{
    chains::{PARTS, Part, TABLE, removal},
    evidence, file, wait,
};
use crate::{
    host::{kernel::Kernel, nft, xtables},
    kubernetes::Phase,
    runtime::conflist,
    settings::Settings,
};

/// What of it failed is tried again so soon.
const AGAIN: Duration = Duration::from_secs(5);
/// How soon it is looked again whether our network configuration is there, which comes when an address can be given.
const LOOK: Duration = Duration::from_secs(1);

/// The other plugin had an address, and was still wiring its pod when the links were listed.
#[derive(Debug, thiserror::Error)]
#[error("the link {0} of a pod of Amazon's VPC CNI has come late; the daemon starts anew to take it over")]
struct LatePods(String);

/// The task.
pub struct Retire {
    /// What is ours in the kernel, and what of theirs is beside it.
    pub kernel: Kernel,
    /// Where the configurations are.
    pub settings: Arc<Settings>,
    /// Who hears how far it is.
    pub phase: watch::Sender<Phase>,
}

impl Retire {
    /// Runs until the daemon ends.
    ///
    /// # Errors
    ///
    /// A pod's link has come that the other plugin was still making: only a start takes it over.
    pub async fn run(self) -> anyhow::Result<()> {
        if self.has_traces() {
            self.phase.send_replace(Phase::TakingOver);
            self.kernel.carries().await;
            while !conflist::path(&self.settings).exists() {
                sleep(LOOK).await;
            }
            let mut said = String::new();
            while let Err(failure) = self.retire().await {
                if failure.is::<LatePods>() {
                    return Err(failure);
                }
                let words = format!("{failure:#}");
                if words != said {
                    warn!("what Amazon's VPC CNI has left is still there: {words}");
                }
                said = words;
                sleep(AGAIN).await;
            }
            self.phase.send_replace(Phase::Serving);
            info!("nothing of Amazon's VPC CNI is left on this node but the links of its pods");
        }
        std::future::pending().await
    }

    /// Its state file and its configuration go last of all.
    fn has_traces(&self) -> bool {
        self.conflist().exists() || file::is_theirs(&self.settings.backing_store)
    }

    fn conflist(&self) -> PathBuf {
        self.settings.conf_dir.join(conflist::AMAZONS)
    }

    async fn retire(&self) -> anyhow::Result<()> {
        self.rules(Rules::From).await?;
        let branches = self.kernel.has_branches().await?;
        for part in PARTS {
            self.part(part, branches).await?;
        }
        let (evidence, _) = evidence::begin(&self.settings).await?;
        if let Some(link) = evidence.pods.iter().map(|(link, _)| link).chain(&evidence.egress).next() {
            return Err(LatePods(link.ifname.clone()).into());
        }
        self.rules(Rules::Rest).await?;
        ensure!(!wait::answers(&self.settings), "its daemon is back");
        if file::is_theirs(&self.settings.backing_store) {
            file::stamp(&self.settings.backing_store)?;
        }
        self.egress_addresses()?;
        let (from, to) = (self.conflist(), self.settings.conf_dir.join(conflist::AMAZONS_ASIDE));
        match fs::rename(&from, &to) {
            Ok(()) => info!("{} is renamed to {}", from.display(), to.display()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot rename {}", from.display())),
        }
        Ok(())
    }

    async fn rules(&self, which: Rules) -> anyhow::Result<()> {
        for change in self.kernel.retire(which).await? {
            info!("{}", change.what);
        }
        Ok(())
    }

    /// What its plugin for the other family has noted of addresses, which are withheld by their links from now on.
    fn egress_addresses(&self) -> anyhow::Result<()> {
        let Some(folder) = conflist::egress_addresses(&self.settings)? else { return Ok(()) };
        match fs::remove_dir_all(&folder) {
            Ok(()) => info!("{} is removed", folder.display()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot remove {}", folder.display())),
        }
        Ok(())
    }

    async fn part(&self, part: Part, branches: bool) -> anyhow::Result<()> {
        for (backend, family) in xtables::EACH {
            let saved = xtables::save(backend, family).await?;
            let Some(lines) = removal(part, &saved, branches) else { continue };
            xtables::change(backend, family, &lines).await?;
            lines.lines().filter(|line| line.starts_with('-')).for_each(|line| info!("iptables: {line}"));
        }
        if part == Part::Connmark && nft::remove_table(Family::V4, TABLE).await? {
            info!("remove the nftables table ip {TABLE}");
        }
        Ok(())
    }
}
