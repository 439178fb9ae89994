//! Our tables, `ip enid` and `ip6 enid`, in the kernel, through `nft`: replaced whole, and only when they are not what
//! they should be.
//!
//! The digest in a table's comment says what was wanted; whether anybody has changed the tables since is told by
//! comparing their listing with the one that was taken right after it was written. What that was lies in the run
//! directory, so that a restart can tell too.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use enid_datapath::{
    Family,
    ruleset::{Ruleset, Unheld, digest},
};
use tokio::{io::AsyncWriteExt, process::Command, runtime::Handle, time::timeout};
use tracing::warn;

/// How long nft may take for our tables; large ones take some milliseconds. Callers block, on a thread that may.
const PATIENCE: Duration = Duration::from_secs(10);

/// Our tables, and what they were last made to hold.
#[derive(Default)]
pub struct Table {
    file: PathBuf,
    written: Option<Written>,
    looked: bool,
}

/// What was put there, and what the kernel listed then.
#[derive(Clone, PartialEq, Eq)]
struct Written {
    ruleset: String,
    listing: String,
}

impl Table {
    /// What an earlier life has noted in the run directory, if anything.
    pub fn new(run_dir: &Path) -> Self {
        let file = run_dir.join("table");
        let note = fs::read_to_string(&file).unwrap_or_default();
        let written = note.trim().split_once(' ');
        let written = written.map(|(ruleset, listing)| Written { ruleset: ruleset.into(), listing: listing.into() });
        Table { file, written, looked: false }
    }

    /// Puts the tables in place, unless they are there; `look` says that somebody may have changed them. Whether they
    /// were written.
    pub fn ensure(&mut self, ruleset: &Ruleset, look: bool) -> anyhow::Result<bool> {
        let wanted = ruleset.digest();
        let as_wanted = self.written.as_ref().is_some_and(|written| written.ruleset == wanted);
        if as_wanted && self.looked && !look {
            return Ok(false);
        }
        if let Some(written) = self.written.as_ref().filter(|_| as_wanted)
            && written.listing == Listed::now()?.digest()
        {
            self.looked = true;
            return Ok(false);
        }
        // Until it is seen there, nobody knows what is.
        self.looked = false;
        replace(&ruleset.transaction(&there()?))?;
        let listed = Listed::now()?;
        // Somebody may have flushed everything again meanwhile.
        if let Some(family) = ruleset.families().into_iter().find(|family| !listed.says(*family, &wanted)) {
            self.written = None;
            bail!("the table {} enid is gone as soon as it is written", family.word());
        }
        let written = Written { ruleset: wanted, listing: listed.digest() };
        let note = format!("{} {}\n", written.ruleset, written.listing);
        // Without the note the next life writes the table once more, and that is all.
        if let Err(failure) = fs::write(&self.file, note) {
            warn!("cannot write {}: {failure}", self.file.display());
        }
        self.written = Some(written);
        self.looked = true;
        Ok(true)
    }
}

/// Whether the kernel has a table of ours.
pub fn is_there(family: Family) -> anyhow::Result<bool> {
    Ok(list(&[], family)?.is_some())
}

/// Whether the program is there.
pub async fn check() -> anyhow::Result<()> {
    let found = Command::new("nft").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().await;
    found.map(drop).context("cannot run nft, the program of the nftables package")
}

/// A table as the kernel lists it; `None` if there is none.
fn list(flags: &[&str], family: Family) -> anyhow::Result<Option<Vec<u8>>> {
    let output = nft(&[flags, &["list", "table", family.word(), "enid"]].concat(), "")?;
    Ok(Some(output.stdout).filter(|_| output.status.success()))
}

/// Runs the program, for so long at most.
fn nft(args: &[&str], input: &str) -> anyhow::Result<Output> {
    let run = async {
        let mut child = Command::new("nft")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot run nft, the program of the nftables package")?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not read to the end says why in its answer.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await.context("cannot wait for nft")
    };
    let limited = async { timeout(PATIENCE, run).await };
    let answer = Handle::current().block_on(limited);
    answer
        .with_context(|| format!("nft {} did not end within {} s, and was ended", args.join(" "), PATIENCE.as_secs()))?
}

/// Both tables as the kernel lists them, without what their counters have come to; empty where there is none.
struct Listed(BTreeMap<Family, Vec<u8>>);

impl Listed {
    fn now() -> anyhow::Result<Self> {
        let listed = |family| Ok((family, list(&["-s"], family)?.unwrap_or_default()));
        Family::ALL.into_iter().map(listed).collect::<anyhow::Result<_>>().map(Listed)
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
fn there() -> anyhow::Result<BTreeMap<Family, Unheld>> {
    let unheld = |listed: Vec<u8>| {
        let text = String::from_utf8_lossy(&listed).into_owned();
        let counter = text.split("counter unheld {").nth(1).unwrap_or_default();
        let number = |name: &str| counter.split(name).nth(1)?.split_whitespace().next()?.parse().ok();
        (number("packets").unwrap_or(0), number("bytes").unwrap_or(0))
    };
    let of = |family| Ok(list(&[], family)?.map(|listed| (family, unheld(listed))));
    Family::ALL.into_iter().filter_map(|family| of(family).transpose()).collect()
}

fn replace(transaction: &str) -> anyhow::Result<()> {
    let output = nft(&["-f", "-"], transaction)?;
    if !output.status.success() {
        bail!("nft refused the tables called enid: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
