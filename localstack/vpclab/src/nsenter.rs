//! Entering the lab's namespaces.

use std::{
    fs::File,
    io::Write,
    os::fd::AsFd,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, setns};

/// A command that will run in all namespaces of a process.
pub fn command(pid: u32, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["-t", &pid.to_string(), "-n", "-m", "-u", "-p", "-i", "--", program]);
    command
}

/// Runs a command; output if it succeeds, its messages if not.
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        let messages = [&output.stdout[..], &output.stderr[..]].concat();
        bail!("{command:?} ended with {}: {}", output.status, String::from_utf8_lossy(&messages).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program with a text as its input, inside a process's network namespace.
pub fn run_with_input(pid: u32, program: &[&str], text: &str) -> anyhow::Result<()> {
    let mut command = Command::new("nsenter");
    command.args(["-t", &pid.to_string(), "-n", "--"]).args(program);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {program:?}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(text.as_bytes()).with_context(|| format!("cannot write to {program:?}"))?;
    }
    let output = child.wait_with_output().with_context(|| format!("cannot wait for {program:?}"))?;
    if !output.status.success() {
        bail!("{program:?} refused: {}; it was given:\n{text}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Runs a closure on a thread inside a process's network namespace, and waits for its end.
pub fn within<T: Send>(pid: u32, job: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
    let entered = thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter(pid)?;
            anyhow::Ok(job())
        });
        thread.join()
    });
    entered.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Moves the calling thread into a process's network namespace for good.
pub fn enter(pid: u32) -> anyhow::Result<()> {
    let path = format!("/proc/{pid}/ns/net");
    let file = File::open(&path).with_context(|| format!("cannot open {path}"))?;
    setns(file.as_fd(), CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {path}"))
}
