//! Runs that once broke, and the bugs that users of the peer know by number: each must pass.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::{
    run::play,
    story::{self, Boundary, Move},
};

/// A run in a file.
#[derive(Serialize, Deserialize)]
pub struct Recorded {
    /// Decides how EC2 behaves and the first settings.
    pub seed: u64,
    /// What broke.
    pub what: String,
    /// What happened.
    pub moves: Vec<Move>,
}

/// The peer's bugs, as stories. The seed chooses the settings (seed mod 8).
fn known() -> Vec<(&'static str, u64, Vec<Move>)> {
    use Move::{Bound, Down, Kill, LoseAnswers, Pass, Pause, Stale, Start, StartAgain, Stop, Torn};
    vec![
        (
            "stale metadata takes a live pod's address (V3887, V3019)",
            1,
            vec![
                Pass(10_000),
                Start(4),
                Pass(2_000),
                Stale(true),
                Start(10),
                Pass(60_000),
                Stop(0),
                Pass(400_000),
                Stale(false),
                Pass(90_000),
            ],
        ),
        (
            "partial metadata takes a live pod's address (V3824)",
            4,
            vec![
                Pass(10_000),
                Start(20),
                Pass(20_000),
                Torn(60),
                Pass(900_000),
                Start(4),
                Pass(120_000),
                Torn(0),
                Pass(90_000),
            ],
        ),
        (
            "a crash between create and attach",
            2,
            vec![
                Pass(10_000),
                Start(9),
                Kill(Boundary::After(0)),
                Pass(150),
                Kill(Boundary::AfterDisk),
                Pass(150),
                Start(3),
                Kill(Boundary::After(0)),
                Pass(200_000),
            ],
        ),
        (
            "an answer to a creation that never comes",
            2,
            vec![Pass(10_000), LoseAnswers(100), Start(12), Pass(30_000), LoseAnswers(0), Pass(120_000)],
        ),
        (
            "cooldown forgotten at restart",
            2,
            vec![
                Pass(10_000),
                Start(3),
                Pass(2_000),
                Stop(0),
                Kill(Boundary::AfterDisk),
                Pass(100),
                Start(6),
                Pass(1_000),
                Stop(1),
                Kill(Boundary::After(0)),
                Start(3),
                Pass(30_000),
            ],
        ),
        (
            "a pod is started while its ENI is being released",
            2,
            vec![
                Pass(10_000),
                Start(14),
                Pass(30_000),
                Stop(9),
                Stop(9),
                Stop(9),
                Stop(9),
                Stop(9),
                Stop(9),
                Stop(9),
                Pass(75_000),
                Start(2),
                Pass(200),
                Start(8),
                Pass(6_000),
                Start(4),
                Pass(90_000),
            ],
        ),
        (
            "ADD and DEL of one pod race",
            2,
            vec![
                Pass(10_000),
                Start(2),
                Pause(0, 70_000),
                Pass(50),
                Stop(0),
                StartAgain(0),
                Pass(10),
                StartAgain(0),
                Stop(0),
                Pass(120_000),
            ],
        ),
        (
            "EC2 is down when the daemon starts with pods running",
            1,
            vec![
                Pass(20_000),
                Start(8),
                Pass(20_000),
                Down(true),
                Kill(Boundary::AfterDisk),
                Pass(600_000),
                Start(1),
                Pass(60_000),
                Down(false),
                Pass(90_000),
            ],
        ),
        (
            "cooling addresses counted as available",
            2,
            vec![
                Pass(10_000),
                Start(9),
                Pass(8_000),
                Stop(0),
                Stop(0),
                Stop(0),
                Stop(0),
                Stop(0),
                Start(5),
                Pass(30_000),
            ],
        ),
        (
            "zero warm targets",
            7,
            vec![Pass(60_000), Start(1), Pass(20_000), Start(12), Pass(60_000), Bound(5), Pass(30_000)],
        ),
    ]
}

/// Replays one file.
pub fn one(path: &str) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let Recorded { seed, moves, .. } = serde_json::from_str(&text).with_context(|| format!("{path} is no story"))?;
    match play(seed, &moves, None).0 {
        None => Ok(()),
        Some(what) => anyhow::bail!("seed {seed} breaks: {what}"),
    }
}

/// Replays all of them.
pub fn replay() -> anyhow::Result<()> {
    println!("Stories");
    let mut failed = 0;
    for (name, seed, moves) in known() {
        let (broken, tally) = play(seed, &moves, None);
        failed += u32::from(broken.is_some());
        match broken {
            None => println!("  ✓ {name} ({} ADDs)", tally.added),
            Some(what) => println!("  ✗ {name}: {what}"),
        }
    }
    let files = std::fs::read_dir(folder()).with_context(|| format!("cannot read {}", folder().display()))?;
    let mut paths: Vec<_> = files.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    for path in paths {
        let text = std::fs::read_to_string(&path)?;
        let Recorded { seed, what, moves } =
            serde_json::from_str(&text).with_context(|| format!("{} is no story", path.display()))?;
        let (broken, _) = play(seed, &moves, None);
        failed += u32::from(broken.is_some());
        match broken {
            None => println!("  ✓ seed {seed}, which once broke: {what}"),
            Some(what) => println!("  ✗ seed {seed}: {what}"),
        }
    }
    println!();
    anyhow::ensure!(failed == 0, "{failed} stories break");
    Ok(())
}

/// Shrinks a run that broke, writes it to a file and describes it.
pub fn record(seed: u64, story: &[Move], what: &str) -> anyhow::Result<anyhow::Error> {
    let head = |text: &str| {
        text.split([' ', ':'])
            .filter(|word| word.chars().all(char::is_alphabetic))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let wanted = head(what);
    let short = story::shrink(story, |shorter| play(seed, shorter, None).0.is_some_and(|found| head(&found) == wanted));
    let path = folder().join(format!("seed-{seed}.json"));
    let text = serde_json::to_string(&Recorded { seed, what: what.to_owned(), moves: short.clone() })?;
    std::fs::write(&path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    let lines: Vec<String> = short.iter().map(|step| format!("  {step:?}")).collect();
    Ok(anyhow::anyhow!("seed {seed} breaks: {what}\n{}\nwritten to {}", lines.join("\n"), path.display()))
}

/// Where runs that broke are kept.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("stories")
}
