//! `make bench`: ADD and DEL of the plugin as whole process runs, beside a floor that only makes the same
//! netlink changes. All are started by one spawner (`bench spawn`, posix_spawn), turn by turn, by one caller and by many.
//!
//! The floor is linked twice. Against musl, as the plugin is, it is what one ADD is compared with; against glibc, whose
//! programs take longer to start, it is what many callers are compared with, as in earlier figures. `--short` makes
//! fewer rounds, for a first look.

mod operators;

use std::{
    io::Write,
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use anyhow::Context;
use comfy_table::{Table, presets::NOTHING};
use enid_tests::{Daemon, Lab, LabConfig, Place, plugin, pod, wait_until};
use operators::Operators;

/// How much is measured.
struct Rounds {
    /// ADDs of each program in one series; then come as many DELs.
    runs: usize,
    /// Series: a p99 needs more runs than a node has addresses.
    series: usize,
    /// Starts of the daemon of each kind.
    starts: usize,
    /// Bursts of each kind, in turns.
    bursts: usize,
    /// Turns of bursts without operators and with those of each kind.
    turns: usize,
}

const WHOLE: Rounds = Rounds { runs: 200, series: 3, starts: 31, bursts: 9, turns: 7 };
const SHORT: Rounds = Rounds { runs: 200, series: 1, starts: 3, bursts: 3, turns: 2 };

const PODS_FOR_MEMORY: u64 = 100;
/// Callers at once, as a node's runtime may have them.
const CALLERS: usize = 16;
/// Pods of a burst; so many are deleted at once, too.
const BURST: usize = 100;
/// Half of them of the older iptables, half of the newer one.
const FOREIGN_RULES: u32 = 50_000;

/// What is aimed at: times of one caller beside the musl floor's, others beside the glibc floor's.
const ADD_P50: f64 = 1.5;
const ADD_P99: f64 = 2.0;
const DEL_P50: f64 = 1.2;
const ADD_RATE: f64 = 0.85;
const PLUGIN_MIB: f64 = 1.0;
const DAEMON_MIB: f64 = 32.0;
/// Of an answer to an operator while sixteen ADDs run.
const ANSWER_P99_MS: f64 = 50.0;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["spawn", "turns", count, musl, glibc, plugin] => turns(count.parse()?, musl, glibc, plugin),
        ["spawn", "burst", count, _, glibc, plugin] => bursts(count.parse()?, glibc, plugin),
        [musl, glibc] => bench(&WHOLE, musl, glibc),
        ["--short", musl, glibc] => bench(&SHORT, musl, glibc),
        _ => anyhow::bail!("bench [--short] FLOOR_OF_MUSL FLOOR_OF_GLIBC"),
    }
}

fn bench(rounds: &Rounds, musl: &str, glibc: &str) -> anyhow::Result<()> {
    let config = LabConfig { nodes: 1, instance_type: "m5.4xlarge".to_owned(), ..LabConfig::default() };
    let lab = Lab::up(&config)?;
    let place = Place::node(&lab, 0);
    let settings = [("MINIMUM_IP_TARGET", "232"), ("AWS_VPC_K8S_CNI_LOGLEVEL", "warn")];
    let daemon = Daemon::start(place, &settings)?;
    let all_available =
        || wait_until(Duration::from_secs(90), || place.number("available").is_ok_and(|free| free == 232));
    all_available()?;
    let last = rounds.runs - 1;
    place.sh(&format!("for n in $(seq 0 {last}); do for of in musl glibc pod; do ip netns add $of-$n; done; done"))?;
    let plugin = plugin()?;
    let spawn = |phase: &str, count: usize| -> anyhow::Result<serde_json::Value> {
        let (own, count) = (std::env::current_exe()?, count.to_string());
        let output = place.command(&own)?.args(["spawn", phase, &count, musl, glibc]).arg(&plugin).output()?;
        anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let mut series = Vec::new();
    for _ in 0..rounds.series {
        series.push(spawn("turns", rounds.runs)?);
        all_available()?;
    }
    println!("{}\n", one_caller(&series)?);
    let bursts = [spawn("burst", rounds.bursts)?];
    println!("{}\n", many_callers(&bursts)?);
    all_available()?;
    let socket = format!("/proc/{}/root/run/enid/debug.sock", lab.state().pid_of(place.name)?);
    println!("{}\n", beside_operators(rounds.turns, &socket, &|| spawn("burst", 1), &all_available)?);
    let size = std::fs::metadata(&plugin)?.len();
    for number in 0..PODS_FOR_MEMORY {
        enid_tests::Pod::new(0, &format!("pod-{number}")).call(place, "ADD")?;
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid()?))?;
    let resident = |of: &str| -> anyhow::Result<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(of)?.strip_prefix(':'));
        let kib: u64 = line.with_context(|| format!("no {of}"))?.trim().trim_end_matches(" kB").parse()?;
        mib(kib * 1024)
    };
    println!("{}\n", targets(&series, &bursts, mib(size)?, resident("VmRSS")?)?);
    let (files, own) = (resident("RssFile")?, resident("RssAnon")?);
    println!(
        "of the resident memory: program and libraries, pages of files, {files:.1} MiB; heap and stacks {own:.1} MiB\n"
    );
    daemon.kill()?;
    println!("{}\n", starts(rounds.starts, place, &settings)?);
    Ok(())
}

/// What is aimed at, and what was measured.
fn targets(
    series: &[serde_json::Value],
    bursts: &[serde_json::Value],
    plugin: f64,
    daemon: f64,
) -> anyhow::Result<Table> {
    let ratio = |verb: &str, part: f64| -> anyhow::Result<f64> {
        let time = |who: &str| sorted(series, &format!("{who}_{verb}")).map(|times| quantile(&times, part));
        Ok(time("plugin")? / time("musl")?)
    };
    let rate = |who: &str| sorted(bursts, &format!("{who}_add_rate")).map(|rates| quantile(&rates, 0.5));
    let rows = [
        ("ADD p50 / musl floor's", ratio("add", 0.5)?, ADD_P50, true),
        ("ADD p99 / musl floor's", ratio("add", 0.99)?, ADD_P99, true),
        ("DEL p50 / musl floor's", ratio("del", 0.5)?, DEL_P50, true),
        ("ADDs a second, 16 callers / glibc floor's", rate("plugin")? / rate("glibc")?, ADD_RATE, false),
        ("plugin, static, MiB", plugin, PLUGIN_MIB, true),
        ("daemon's resident memory with 100 pods, MiB", daemon, DAEMON_MIB, true),
    ];
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(["target", "measured", "aimed at", ""]);
    for (name, measured, target, at_most) in rows {
        let met = if at_most { measured <= target } else { measured >= target };
        let aimed = format!("{} {target}", if at_most { "at most" } else { "at least" });
        table.add_row([name, &format!("{measured:.2}"), &aimed, if met { "met" } else { "missed" }]);
    }
    Ok(table)
}

/// From the daemon's start to its readiness, on a node without and with many rules of others, whose lock is held.
fn starts(number: usize, place: Place<'_>, settings: &[(&str, &str)]) -> anyhow::Result<Table> {
    let started = || -> anyhow::Result<f64> {
        let mut times = Vec::new();
        for _ in 0..number {
            let started = Instant::now();
            let daemon = Daemon::start(place, settings)?;
            times.push(started.elapsed());
            daemon.kill()?;
        }
        Ok(middle(times))
    };
    let alone = started()?;
    // Its filter table alone is a reason to probe whether the host forwards.
    place.sh("iptables-legacy -t filter -n -L > /run/listed; rm /run/listed")?;
    let probing = started()?;
    place.sh(&format!(
        "for table in filter nat; do
             echo \"*$table\"; echo ':BULK - [0:0]'
             for n in $(seq {0}); do echo \"-A BULK -d 10.$((n / 65536)).$((n / 256 % 256)).$((n % 256)) -j RETURN\"; done
             echo COMMIT
         done > /run/bulk
         iptables-legacy-restore < /run/bulk; iptables-nft-restore < /run/bulk; rm /run/bulk",
        FOREIGN_RULES / 4
    ))?;
    let mut lock = place.command("flock")?;
    let mut lock = lock.args(["/run/xtables.lock", "cat"]).stdin(Stdio::piped()).spawn().context("cannot run flock")?;
    wait_until(Duration::from_secs(10), || place.sh("flock -n /run/xtables.lock true").is_err())
        .context("nobody holds the xtables lock")?;
    let beside = started()?;
    drop(lock.stdin.take());
    let ended = lock.wait().context("cannot wait for flock")?;
    anyhow::ensure!(ended.success(), "flock ended with {ended}: the lock was not held all the time");
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(["start to readiness", "starts", "p50 ms", "ratio"]);
    let rows = [
        ("alone".to_owned(), alone),
        ("beside an empty filter table of the older iptables".to_owned(), probing),
        (format!("beside {FOREIGN_RULES} rules of iptables and a held xtables lock"), beside),
    ];
    for (name, took) in rows {
        table.add_row([name, number.to_string(), format!("{took:.0}"), format!("{:.2}", took / alone)]);
    }
    Ok(table)
}

fn one_caller(series: &[serde_json::Value]) -> anyhow::Result<Table> {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header([
        "one caller",
        "runs",
        "p50 ms",
        "p99 ms",
        "p50 / musl floor's",
        "p99 / musl floor's",
    ]);
    for verb in ["add", "del"] {
        let floor = sorted(series, &format!("musl_{verb}"))?;
        for (name, who) in [("floor, musl", "musl"), ("floor, glibc", "glibc"), ("enid-cni", "plugin")] {
            let times = sorted(series, &format!("{who}_{verb}"))?;
            let ratio = |part: f64| format!("{:.2}", quantile(&times, part) / quantile(&floor, part));
            let (p50, p99) = (format!("{:.2}", quantile(&times, 0.5)), format!("{:.2}", quantile(&times, 0.99)));
            let name = format!("{} {name}", verb.to_uppercase());
            table.add_row([name, times.len().to_string(), p50, p99, ratio(0.5), ratio(0.99)]);
        }
    }
    Ok(table)
}

fn many_callers(series: &[serde_json::Value]) -> anyhow::Result<Table> {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header([
        &format!("{CALLERS} callers"),
        "floor, glibc",
        "enid-cni",
        "enid-cni / floor",
    ]);
    let rows = [
        ("ADDs per second", "add_rate"),
        ("ADD p50 ms", "quiet_p50"),
        ("ADD p50 ms, DELs beside it", "beside_p50"),
        ("the latter / the former", "slower"),
        ("100 DELs at once, ms each", "del_each"),
    ];
    for (what, key) in rows {
        let median = |who: &str| sorted(series, &format!("{who}_{key}")).map(|list| quantile(&list, 0.5));
        let (floor, plugin) = (median("glibc")?, median("plugin")?);
        table.add_row([
            what.to_owned(),
            format!("{floor:.2}"),
            format!("{plugin:.2}"),
            format!("{:.2}", plugin / floor),
        ]);
    }
    Ok(table)
}

/// ADDs of many callers while operators ask the daemon, and while they listen and never read.
fn beside_operators(
    turns: usize,
    socket: &str,
    burst: &dyn Fn() -> anyhow::Result<serde_json::Value>,
    at_rest: &dyn Fn() -> anyhow::Result<()>,
) -> anyhow::Result<Table> {
    let kinds = [
        (Operators::Absent, "nobody asks"),
        (Operators::Ask, "four operators ask again and again"),
        (Operators::NeverRead, "four follow operations and never read"),
    ];
    let mut bursts = vec![Vec::new(); kinds.len()];
    let mut answers = Vec::new();
    for _ in 0..turns {
        for ((operators, _), bursts) in kinds.iter().zip(&mut bursts) {
            let working = operators.begin(std::path::Path::new(socket))?;
            bursts.push(burst()?);
            answers.extend(working.end());
            at_rest()?;
        }
    }
    answers.sort_by(f64::total_cmp);
    let mut table = Table::new();
    table.load_style(NOTHING).set_header([
        &format!("{CALLERS} callers"),
        "ADD p50 ms",
        "ADDs per second",
        "rate / nobody's",
    ]);
    let rate = |bursts: &[serde_json::Value]| sorted(bursts, "plugin_add_rate").map(|rates| quantile(&rates, 0.5));
    let alone = rate(&bursts[0])?;
    for ((_, name), bursts) in kinds.iter().zip(&bursts) {
        let p50 = sorted(bursts, "plugin_quiet_p50").map(|times| quantile(&times, 0.5))?;
        let rate = rate(bursts)?;
        table.add_row([(*name).to_owned(), format!("{p50:.2}"), format!("{rate:.0}"), format!("{:.2}", rate / alone)]);
    }
    let (p50, p99) = (quantile(&answers, 0.5), quantile(&answers, 0.99));
    let met = if p99 <= ANSWER_P99_MS { "met" } else { "missed" };
    table.add_row([
        format!("answers to operators meanwhile: {}", answers.len()),
        format!("p50 {p50:.1} ms"),
        format!("p99 {p99:.1} ms"),
        format!("at most {ANSWER_P99_MS}: {met}"),
    ]);
    Ok(table)
}

fn mib(bytes: u64) -> anyhow::Result<f64> {
    Ok(f64::from(u32::try_from(bytes / 1024)?) / 1024.0)
}

fn sorted(series: &[serde_json::Value], key: &str) -> anyhow::Result<Vec<f64>> {
    let mut list = Vec::new();
    for times in series {
        let times = times[key].as_array().with_context(|| format!("no times of {key}"))?;
        list.extend(times.iter().filter_map(serde_json::Value::as_f64));
    }
    list.sort_by(f64::total_cmp);
    Ok(list)
}

/// The time below which this part of the runs stays (nearest rank).
fn quantile(sorted: &[f64], part: f64) -> f64 {
    let below = sorted.iter().enumerate().filter(|(index, _)| share(*index, sorted.len()) < part).count();
    sorted[below.min(sorted.len() - 1)]
}

fn share(index: usize, length: usize) -> f64 {
    let number = |value: usize| f64::from(u32::try_from(value).unwrap_or(u32::MAX));
    number(index + 1) / number(length)
}

/// Runs on the node: starts all programs turn by turn and prints their times in milliseconds.
fn turns(runs: usize, musl: &str, glibc: &str, plugin: &str) -> anyhow::Result<()> {
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
fn bursts(rounds: usize, floor: &str, plugin: &str) -> anyhow::Result<()> {
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

fn middle(each: Vec<Duration>) -> f64 {
    let mut each: Vec<f64> = each.into_iter().map(ms).collect();
    each.sort_by(f64::total_cmp);
    quantile(&each, 0.5)
}

fn ms(took: Duration) -> f64 {
    took.as_secs_f64() * 1000.0
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
