//! Our tables, `ip enid` and `ip6 enid`, in the kernel, through `nft`: replaced whole, and only when they are not what
//! they should be.
//!
//! The digest in a table's comment says what was wanted. Whether anybody has changed the tables since is seen from their
//! listing, compared with the one that was taken right after they were written; its digest lies in the run directory, so
//! that a restart can compare too. Nothing is listed while the generation of nftables' ruleset is the one of the last
//! listing: then nobody has committed anything, to any table.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use enid_datapath::{
    Family,
    netfilter::generation::generation,
    ruleset::{Ruleset, Unheld, digest},
};
use tokio::process::Command;
use tracing::warn;

use crate::host::program;

/// The name of ours, in either family.
pub const OURS: &str = "enid";
/// How long nft may take for our tables; large ones take some milliseconds.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Our tables, and what they were last made to hold.
#[derive(Default)]
pub struct Table {
    file: PathBuf,
    written: Option<Written>,
    /// The generation at which the tables were last seen to be as written.
    seen_at: Option<u32>,
}

/// What was put there, and what the kernel listed then.
#[derive(Clone, PartialEq, Eq)]
struct Written {
    ruleset: String,
    listing: String,
}

impl Table {
    /// What an earlier run of the daemon has noted in the run directory, if anything.
    pub fn new(run_dir: &Path) -> Self {
        let file = run_dir.join("table");
        let note = fs::read_to_string(&file).unwrap_or_default();
        let written = note.trim().split_once(' ');
        let written = written.map(|(ruleset, listing)| Written { ruleset: ruleset.into(), listing: listing.into() });
        Table { file, written, seen_at: None }
    }

    /// Puts the tables in place, unless they are there; `look` says that somebody may have changed them. Whether they
    /// were written.
    pub async fn ensure(&mut self, ruleset: &Ruleset, look: bool) -> anyhow::Result<bool> {
        let wanted = ruleset.digest();
        let as_wanted = self.written.as_ref().is_some_and(|written| written.ruleset == wanted);
        if as_wanted && self.seen_at.is_some() && !look {
            return Ok(false);
        }
        // Before the listing: what is committed in between is looked at the next time.
        let now = generation()?;
        if as_wanted && self.seen_at == Some(now) {
            return Ok(false);
        }
        if let Some(written) = self.written.as_ref().filter(|_| as_wanted)
            && written.listing == Listed::now().await?.digest()
        {
            self.seen_at = Some(now);
            return Ok(false);
        }
        // Until it is seen there, nobody knows what is.
        self.seen_at = None;
        change(&ruleset.transaction(&there().await?)).await.context("the tables called enid")?;
        let now = generation()?;
        let listed = Listed::now().await?;
        // Somebody may have flushed everything again meanwhile.
        if let Some(family) = ruleset.families().into_iter().find(|family| !listed.says(*family, &wanted)) {
            self.written = None;
            bail!("the table {} enid is gone as soon as it is written", family.word());
        }
        let written = Written { ruleset: wanted, listing: listed.digest() };
        let note = format!("{} {}\n", written.ruleset, written.listing);
        // Without the note the next run writes the table once more, and that is all.
        if let Err(failure) = fs::write(&self.file, note) {
            warn!("cannot write {}: {failure}", self.file.display());
        }
        self.written = Some(written);
        self.seen_at = Some(now);
        Ok(true)
    }
}

/// Everybody's tables as the kernel lists them.
///
/// # Errors
///
/// nft cannot be run, or refuses.
pub async fn everything() -> anyhow::Result<String> {
    let Output { status, stdout, stderr } =
        program::run(("nft", "nftables"), &["list", "ruleset"], "", TIMEOUT).await?;
    ensure!(status.success(), "nft cannot list the tables: {}", String::from_utf8_lossy(&stderr).trim());
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

/// A table as the kernel lists it; empty if there is none.
pub async fn listing(family: Family, name: &str) -> anyhow::Result<String> {
    let listed = listed(&[], family, name).await?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&listed).into_owned())
}

/// Whether the kernel has it.
pub async fn has_table(family: Family, name: &str) -> anyhow::Result<bool> {
    Ok(!listing(family, name).await?.is_empty())
}

/// Removes a table; whether there was one.
pub async fn remove_table(family: Family, name: &str) -> anyhow::Result<bool> {
    if !has_table(family, name).await? {
        return Ok(false);
    }
    let output = nft(&["delete", "table", family.word(), name], "").await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "nft cannot delete the table {} {name}: {}", family.word(), said.trim());
    Ok(true)
}

/// Whether the program is there.
pub async fn check() -> anyhow::Result<()> {
    let found = Command::new("nft").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().await;
    found.map(drop).context("cannot run nft, the program of the nftables package")
}

/// A table of ours as the kernel lists it; `None` if there is none.
async fn list(flags: &[&str], family: Family) -> anyhow::Result<Option<Vec<u8>>> {
    listed(flags, family, OURS).await
}

/// Any table.
async fn listed(flags: &[&str], family: Family, name: &str) -> anyhow::Result<Option<Vec<u8>>> {
    let output = nft(&[flags, &["list", "table", family.word(), name]].concat(), "").await?;
    if output.status.success() {
        return Ok(Some(output.stdout));
    }
    // Whatever else keeps it from answering says nothing of the table.
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(said.contains("No such file or directory"), "nft cannot list the table {} {name}: {said}", family.word());
    Ok(None)
}

async fn nft(args: &[&str], input: &str) -> anyhow::Result<Output> {
    program::run(("nft", "nftables"), args, input, TIMEOUT).await
}

/// Both tables as the kernel lists them, without what their counters have come to; empty where there is none.
struct Listed(BTreeMap<Family, Vec<u8>>);

impl Listed {
    async fn now() -> anyhow::Result<Self> {
        let mut listed = BTreeMap::new();
        for family in Family::ALL {
            listed.insert(family, list(&["-s"], family).await?.unwrap_or_default());
        }
        Ok(Listed(listed))
    }

    fn digest(&self) -> String {
        digest(&self.0.values().flatten().copied().collect::<Vec<u8>>())
    }

    /// Whether the family's table is the one that carries this digest in its comment.
    fn says(&self, family: Family, wanted: &str) -> bool {
        let comment = format!("comment \"{wanted}\"");
        self.0.get(&family).is_some_and(|listed| String::from_utf8_lossy(listed).contains(&comment))
    }
}

/// Which tables there are, and what their counters have come to.
async fn there() -> anyhow::Result<BTreeMap<Family, Unheld>> {
    let unheld = |listed: Vec<u8>| {
        let text = String::from_utf8_lossy(&listed).into_owned();
        let counter = text.split("counter unheld {").nth(1).unwrap_or_default();
        let number = |name: &str| counter.split(name).nth(1)?.split_whitespace().next()?.parse().ok();
        (number("packets").unwrap_or(0), number("bytes").unwrap_or(0))
    };
    let mut there = BTreeMap::new();
    for family in Family::ALL {
        there.extend(list(&[], family).await?.map(|listed| (family, unheld(listed))));
    }
    Ok(there)
}

/// Makes these changes, all or none.
pub async fn change(transaction: &str) -> anyhow::Result<()> {
    let output = nft(&["-f", "-"], transaction).await?;
    ensure!(output.status.success(), "nft refuses: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
