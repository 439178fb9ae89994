//! `make bench`: ADD and DEL of the plugin as whole process runs, beside a floor that only makes the same
//! netlink changes. Both are started by one spawner (`bench spawn`, posix_spawn), turn by turn.

use std::{
    io::Write,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context;
use comfy_table::{Table, presets::NOTHING};
use enid_tests::{Daemon, Lab, LabConfig, Place, plugin, pod, wait_until};

const RUNS: usize = 200;
const PODS_FOR_MEMORY: u64 = 100;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["spawn", floor, plugin] => spawn(floor, plugin),
        [floor] => bench(floor),
        _ => anyhow::bail!("bench FLOOR"),
    }
}

fn bench(floor: &str) -> anyhow::Result<()> {
    let config = LabConfig { nodes: 1, instance_type: "m5.4xlarge".to_owned(), ..LabConfig::default() };
    let lab = Lab::up(&config)?;
    let place = Place::node(&lab, 0);
    let daemon = Daemon::start(place, &[("MINIMUM_IP_TARGET", "232"), ("AWS_VPC_K8S_CNI_LOGLEVEL", "warn")])?;
    wait_until(Duration::from_secs(60), || place.enid("status").is_ok_and(|status| status["available"] == 232))?;
    place.sh(&format!("for n in $(seq 0 {}); do ip netns add floor-$n; ip netns add pod-$n; done", RUNS - 1))?;
    let own = std::env::current_exe()?;
    let plugin = plugin()?;
    let output = place.command(&own)?.arg("spawn").arg(floor).arg(&plugin).output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let times: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(["", "runs", "p50 ms", "p99 ms", "p50 / floor's"]);
    for verb in ["add", "del"] {
        let floor = sorted(&times, &format!("floor_{verb}"))?;
        for (name, key) in [("floor", format!("floor_{verb}")), ("enid-cni", format!("plugin_{verb}"))] {
            let times = sorted(&times, &key)?;
            let ratio = format!("{:.2}", quantile(&times, 0.5) / quantile(&floor, 0.5));
            let (p50, p99) = (format!("{:.2}", quantile(&times, 0.5)), format!("{:.2}", quantile(&times, 0.99)));
            table.add_row([format!("{} {name}", verb.to_uppercase()), times.len().to_string(), p50, p99, ratio]);
        }
    }
    println!("{table}\n");
    let size = std::fs::metadata(&plugin)?.len();
    println!("plugin, static: {:.2} MiB", mib(size)?);
    place.sh(&format!("for n in $(seq 0 {}); do ip netns add mem-$n; done", PODS_FOR_MEMORY - 1))?;
    wait_until(Duration::from_secs(90), || {
        place.enid("status").is_ok_and(|status| status["available"].as_u64() >= Some(PODS_FOR_MEMORY))
    })?;
    for number in 0..PODS_FOR_MEMORY {
        enid_tests::Pod::new(0, &format!("mem-{number}")).call(place, "ADD")?;
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid()?))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = resident.trim().trim_end_matches(" kB").parse()?;
    println!("daemon's resident memory with {PODS_FOR_MEMORY} pods: {:.1} MiB", mib(kib * 1024)?);
    Ok(())
}

fn mib(bytes: u64) -> anyhow::Result<f64> {
    Ok(f64::from(u32::try_from(bytes / 1024)?) / 1024.0)
}

fn sorted(times: &serde_json::Value, key: &str) -> anyhow::Result<Vec<f64>> {
    let list = times[key].as_array().with_context(|| format!("no times of {key}"))?;
    let mut list: Vec<f64> = list.iter().filter_map(serde_json::Value::as_f64).collect();
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

/// Runs on the node: starts both programs turn by turn and prints their times in milliseconds.
fn spawn(floor: &str, plugin: &str) -> anyhow::Result<()> {
    let mut times = serde_json::json!({ "floor_add": [], "plugin_add": [], "floor_del": [], "plugin_del": [] });
    let mut keep = |key: &str, took: Duration| {
        if let Some(list) = times[key].as_array_mut() {
            list.push((took.as_secs_f64() * 1000.0).into());
        }
    };
    for number in 0..RUNS {
        let (netns, link) = (format!("/run/netns/floor-{number}"), format!("floor{number}"));
        let address = format!("192.168.{}.{}", number / 250, number % 250 + 1);
        let mut command = Command::new(floor);
        command.args(["add", &netns, &link, &address, &number.to_string()]);
        keep("floor_add", timed(&mut command, "")?);
        keep("plugin_add", timed(&mut cni(plugin, "ADD", number), &pod::config("1.0.0", 30))?);
    }
    for number in 0..RUNS {
        keep("floor_del", timed(Command::new(floor).args(["del", &format!("floor{number}")]), "")?);
        keep("plugin_del", timed(&mut cni(plugin, "DEL", number), &pod::config("1.0.0", 30))?);
    }
    println!("{times}");
    Ok(())
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
