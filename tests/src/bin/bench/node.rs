//! Runs on the node: one process that starts floor and plugin as a container runtime starts a plugin.

use std::{
    io::Write,
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use anyhow::Context;
use enid_tests::pod;

use crate::figures::{middle, ms, share};

/// Callers at once, as a node's runtime may have them.
pub const CALLERS: usize = 16;
/// Pods of a burst; so many are deleted at once, too.
const BURST: usize = 100;

/// Runs on the node: starts all programs turn by turn and prints their times in milliseconds.
pub fn turns(runs: usize, musl: &str, glibc: &str, plugin: &str) -> anyhow::Result<()> {
    let mut times = Times::default();
    for verb in ["add", "del"] {
        for number in 0..runs {
            for program in [Program::Musl(musl), Program::Glibc(glibc), Program::Plugin(plugin)] {
                times.keep(program, verb, ms(program.run(verb, number)?));
            }
        }
    }
    times.print()
}

/// The same with many callers at once: a burst of ADDs, a burst of DELs, and ADDs while others are deleted.
pub fn bursts(rounds: usize, floor: &str, plugin: &str) -> anyhow::Result<()> {
    let mut times = Times::default();
    for _ in 0..rounds {
        for program in [Program::Glibc(floor), Program::Plugin(plugin)] {
            let half = BURST / 2;
            let (took, each) = burst(program, "add", 0..half, CALLERS)?;
            times.keep(program, "add_rate", 1000.0 * share(half - 1, 1) / ms(took));
            let quiet = middle(each);
            let (_, beside) = std::thread::scope(|scope| {
                let deleting = scope.spawn(|| burst(program, "del", 0..half, CALLERS));
                let adding = burst(program, "add", half..2 * half, CALLERS);
                deleting.join().map_err(|_| anyhow::anyhow!("a caller failed"))??;
                adding
            })?;
            let beside = middle(beside);
            times.keep(program, "quiet_p50", quiet);
            times.keep(program, "beside_p50", beside);
            times.keep(program, "slower", beside / quiet);
            burst(program, "add", 0..half, CALLERS)?;
            let (took, _) = burst(program, "del", 0..BURST, BURST)?;
            times.keep(program, "del_each", ms(took) / share(BURST - 1, 1));
        }
    }
    times.print()
}

/// Calls a verb for all these numbers, so many at once: how long all took, and each.
fn burst(
    program: Program<'_>,
    verb: &str,
    numbers: std::ops::Range<usize>,
    callers: usize,
) -> anyhow::Result<(Duration, Vec<Duration>)> {
    let next = AtomicUsize::new(numbers.start);
    let started = Instant::now();
    let caller = || -> anyhow::Result<Vec<Duration>> {
        let mut each = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= numbers.end {
                return Ok(each);
            }
            each.push(program.run(verb, number)?);
        }
    };
    let each = std::thread::scope(|scope| {
        let running: Vec<_> = (0..callers).map(|_| scope.spawn(caller)).collect();
        let parts = running.into_iter().map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a caller failed"))?);
        parts.collect::<anyhow::Result<Vec<Vec<Duration>>>>()
    })?;
    Ok((started.elapsed(), each.concat()))
}

/// What is measured, by who and what.
#[derive(Default)]
struct Times(std::collections::BTreeMap<String, Vec<f64>>);

impl Times {
    fn keep(&mut self, program: Program<'_>, what: &str, value: f64) {
        self.0.entry(format!("{}_{what}", program.name())).or_default().push(value);
    }

    fn print(&self) -> anyhow::Result<()> {
        println!("{}", serde_json::to_string(&self.0)?);
        Ok(())
    }
}

/// Who is measured.
#[derive(Clone, Copy)]
enum Program<'a> {
    Musl(&'a str),
    Glibc(&'a str),
    Plugin(&'a str),
}

impl Program<'_> {
    fn name(self) -> &'static str {
        match self {
            Program::Musl(_) => "musl",
            Program::Glibc(_) => "glibc",
            Program::Plugin(_) => "plugin",
        }
    }

    fn run(self, verb: &str, number: usize) -> anyhow::Result<Duration> {
        match self {
            Program::Musl(floor) | Program::Glibc(floor) => {
                let (name, net) = (self.name(), if matches!(self, Program::Musl(_)) { 168 } else { 169 });
                let (netns, link) = (format!("/run/netns/{name}-{number}"), format!("{name}{number}"));
                let address = format!("192.{net}.{}.{}", number / 250, number % 250 + 1);
                let mut command = Command::new(floor);
                match verb {
                    "add" => command.args(["add", &netns, &link, &address, &number.to_string()]),
                    _ => command.args(["del", &link]),
                };
                timed(&mut command, "")
            }
            Program::Plugin(plugin) => timed(&mut cni(plugin, &verb.to_uppercase(), number), &pod::config("1.0.0", 30)),
        }
    }
}

fn cni(plugin: &str, verb: &str, number: usize) -> Command {
    let mut command = Command::new(plugin);
    command
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", format!("bench-{number}"))
        .env("CNI_IFNAME", "eth0")
        .env("CNI_NETNS", format!("/run/netns/pod-{number}"))
        .env("CNI_ARGS", format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-{number}"));
    command
}

fn timed(command: &mut Command, input: &str) -> anyhow::Result<Duration> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let started = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    let took = started.elapsed();
    anyhow::ensure!(output.status.success(), "{command:?} fails: {}", String::from_utf8_lossy(&output.stdout));
    Ok(took)
}
