//! The table `ip enid` in the kernel, through `nft`: replaced whole, and only when it is not what it should be.
//!
//! The digest in the table's comment says what was wanted; whether anybody has changed the table since is told by
//! comparing its listing with the one that was taken right after it was written. What that was lies in the run
//! directory, so that a restart can tell too.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use enid_datapath::ruleset::{Ruleset, digest};
use tracing::warn;
use wait_timeout::ChildExt;

/// How long nft may take for one table; a large one takes some milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// Our table, and what it was last made to hold.
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

    /// Puts the table in place, unless it is there; `look` says that somebody may have changed it. Whether it was
    /// written.
    pub fn ensure(&mut self, ruleset: &Ruleset, look: bool) -> anyhow::Result<bool> {
        let wanted = ruleset.digest();
        let as_wanted = self.written.as_ref().is_some_and(|written| written.ruleset == wanted);
        if as_wanted && self.looked && !look {
            return Ok(false);
        }
        if as_wanted && self.written.as_ref().is_some_and(|written| written.listing == listing()) {
            self.looked = true;
            return Ok(false);
        }
        replace(&ruleset.transaction(unheld()))?;
        let written = Written { ruleset: wanted, listing: listing() };
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
pub fn is_there() -> bool {
    let listed = Command::new("nft").args(["list", "table", "ip", "enid"]).output();
    listed.is_ok_and(|output| output.status.success())
}

/// Whether the program is there.
pub fn check() -> anyhow::Result<()> {
    let found = Command::new("nft").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    found.map(drop).context("cannot run nft, the program of the nftables package")
}

/// Digest of the table as the kernel lists it, without what its counters have come to.
fn listing() -> String {
    let listed = Command::new("nft").args(["-s", "list", "table", "ip", "enid"]).stderr(Stdio::null()).output();
    listed.map(|output| digest(&output.stdout)).unwrap_or_default()
}

/// What our counter has come to: packets, bytes.
fn unheld() -> (u64, u64) {
    let listed = Command::new("nft").args(["list", "counter", "ip", "enid", "unheld"]).stderr(Stdio::null()).output();
    let text = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let number = |name: &str| text.split(name).nth(1)?.split_whitespace().next()?.parse().ok();
    (number("packets").unwrap_or(0), number("bytes").unwrap_or(0))
}

fn replace(transaction: &str) -> anyhow::Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run nft, the program of the nftables package")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(transaction.as_bytes()).context("cannot write to nft")?;
    }
    if child.wait_timeout(PATIENCE).context("cannot wait for nft")?.is_none() {
        child.kill().context("cannot end nft")?;
        child.wait().context("cannot wait for nft")?;
        bail!("nft did not replace the table ip enid within {} s, and was ended", PATIENCE.as_secs());
    }
    let output = child.wait_with_output().context("cannot wait for nft")?;
    if !output.status.success() {
        bail!("nft refused the table ip enid: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
