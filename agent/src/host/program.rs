//! Programs of the host's packages, run with what they are to read.

use std::{
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::Context;
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

/// Runs a program of this package, for so long at most. What it answers is for the caller to judge.
///
/// # Errors
///
/// It cannot be run, or did not end in time, and was ended.
pub async fn run(
    (program, package): (&str, &str),
    args: &[&str],
    input: &str,
    limit: Duration,
) -> anyhow::Result<Output> {
    let run = async {
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot run {program}, a program of the {package} package"))?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not read to the end says why in its answer.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await.with_context(|| format!("cannot wait for {program}"))
    };
    let did_not_end =
        || format!("{program} {} did not end within {} s, and was ended", args.join(" "), limit.as_secs());
    timeout(limit, run).await.with_context(did_not_end)?
}
