//! `make bench`: ADD and DEL of the plugin as whole process runs, beside a floor that only makes the same
//! netlink changes. All are started by one spawner (`bench spawn`, posix_spawn), turn by turn, by one caller and by many.
//!
//! The floor is linked twice. Against musl, as the plugin is, it is what one ADD is compared with; against glibc, whose
//! programs take longer to start, it is what many callers are compared with, as in earlier figures. `--short` makes
//! fewer rounds, for a first look.

mod beside;
mod figures;
mod node;
mod operators;

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::Context;
use beside::{Beside, STAYS, answered, rate_beside, rates_beside};
use comfy_table::{Table, presets::NOTHING};
use enid_tests::{Backend, Daemon, Lab, LabConfig, Place, plugin, wait_until};
use figures::{mib, middle, quantile, sorted};
use node::CALLERS;
use operators::{Answers, Operators};

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
const SHORT: Rounds = Rounds { runs: 200, series: 1, starts: 3, bursts: 3, turns: 4 };

/// All that an m5.4xlarge has for pods, and has to fetch ahead.
const ADDRESSES: u64 = 232;
const PODS_FOR_MEMORY: u64 = 100;
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
/// Of operators who never read.
const BESIDE_UNREAD: f64 = 0.95;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["spawn", "turns", count, musl, glibc, plugin] => node::turns(count.parse()?, musl, glibc, plugin),
        ["spawn", "burst", count, _, glibc, plugin] => node::bursts(count.parse()?, glibc, plugin),
        [musl, glibc] => bench(&WHOLE, musl, glibc),
        ["--short", musl, glibc] => bench(&SHORT, musl, glibc),
        _ => anyhow::bail!("bench [--short] FLOOR_OF_MUSL FLOOR_OF_GLIBC"),
    }
}

fn bench(rounds: &Rounds, musl: &str, glibc: &str) -> anyhow::Result<()> {
    // EC2's model takes less of the two processors than LocalStack.
    let ec2 = Backend::Model;
    let config = LabConfig { nodes: 1, instance_type: "m5.4xlarge".to_owned(), ec2, ..LabConfig::default() };
    let lab = Lab::up(&config)?;
    let place = Place::node(&lab, 0);
    // All of it is on but traces (OTLP), which need a collector.
    let settings = [("MINIMUM_IP_TARGET", "232"), ("ENID_ADMIN", "true"), ("ENID_DEBUG_ADDRESS", "127.0.0.1:50052")];
    let daemon = Daemon::start(place, &settings)?;
    let available = |number: u64| {
        wait_until(Duration::from_secs(90), || place.number("available").is_ok_and(|free| free == number))
    };
    let all_available = || available(ADDRESSES);
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
    // Operators ask about one that stays.
    let stays = enid_tests::Pod::new(0, STAYS);
    stays.add(place)?;
    let beside = Beside { turns: rounds.turns, socket: socket.as_ref() };
    let (rates, answers) = beside.measure(&|| spawn("burst", 1), &|| available(ADDRESSES - 1))?;
    println!("{}\n\n{}\n", rates_beside(&rates)?, answered(&answers));
    stays.del(place)?;
    all_available()?;
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
    let measured = Measured { plugin: mib(size)?, daemon: resident("VmRSS")?, rates, answers };
    println!("{}\n", targets(&series, &bursts, &measured)?);
    let (files, own) = (resident("RssFile")?, resident("RssAnon")?);
    println!(
        "of the resident memory: program and libraries, pages of files, {files:.1} MiB; heap and stacks {own:.1} MiB\n"
    );
    daemon.kill()?;
    println!("{}\n", starts(rounds.starts, place, &settings)?);
    Ok(())
}

/// Beside the times of ADDs and DELs.
struct Measured {
    /// MiB.
    plugin: f64,
    /// MiB.
    daemon: f64,
    /// Bursts beside each kind of operators.
    rates: Vec<Vec<serde_json::Value>>,
    answers: Answers,
}

/// What is aimed at, and what was measured.
fn targets(series: &[serde_json::Value], bursts: &[serde_json::Value], measured: &Measured) -> anyhow::Result<Table> {
    let ratio = |verb: &str, part: f64| -> anyhow::Result<f64> {
        let time = |who: &str| sorted(series, &format!("{who}_{verb}")).map(|times| quantile(&times, part));
        Ok(time("plugin")? / time("musl")?)
    };
    let rate = |who: &str| sorted(bursts, &format!("{who}_add_rate")).map(|rates| quantile(&rates, 0.5));
    let beside = |operators| rate_beside(&measured.rates, operators);
    let slowest = measured.answers.values().map(|took| quantile(took, 0.99)).fold(0.0, f64::max);
    anyhow::ensure!(slowest > 0.0, "no operator had an answer");
    let rows = [
        ("ADD p50 / musl floor's", ratio("add", 0.5)?, ADD_P50, true),
        ("ADD p99 / musl floor's", ratio("add", 0.99)?, ADD_P99, true),
        ("DEL p50 / musl floor's", ratio("del", 0.5)?, DEL_P50, true),
        ("ADDs a second, 16 callers / glibc floor's", rate("plugin")? / rate("glibc")?, ADD_RATE, false),
        (
            "ADDs a second beside operators who never read / nobody's",
            beside(Operators::NeverRead)? / beside(Operators::Absent)?,
            BESIDE_UNREAD,
            false,
        ),
        ("slowest kind of answer to operators meanwhile, p99, ms", slowest, ANSWER_P99_MS, true),
        ("plugin, static, MiB", measured.plugin, PLUGIN_MIB, true),
        ("daemon's resident memory with 100 pods, MiB", measured.daemon, DAEMON_MIB, true),
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
