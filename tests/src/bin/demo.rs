//! `make demo`: two nodes, twenty pods each, and every path a packet can take.
//!
//! `KEEP=1` leaves the lab up and says how to look around.

use std::process::{Command, ExitCode};

use anyhow::Context;
use comfy_table::{Table, presets::NOTHING};
use enid_tests::{
    Daemon, Lab, LabConfig, Place, Pod, program,
    traffic::{PORT, Spot, read_counter, serve, wait_for_counter},
};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use vpclab::{INTERNET_SERVER, PEER_CLIENT};

const NODES: usize = 2;
const PODS: usize = 20;
const CLUSTER_IP: &str = "10.96.0.10";
const NODE_PORT: u16 = 30080;
/// The largest echo that fits a jumbo frame: 9001 − 20 (IP) − 8 (ICMP).
const JUMBO: u32 = 8973;

/// A pod that runs.
struct Running {
    pod: Pod,
    address: String,
    eni: String,
    /// 0: it lives on the primary ENI.
    slot: u64,
    add_ms: f64,
}

/// What was checked, and how it went.
#[derive(Default)]
struct Checks {
    passed: usize,
    failed: usize,
}

impl Checks {
    fn check(&mut self, what: &str, job: impl FnOnce() -> anyhow::Result<()>) {
        match job() {
            Ok(()) => {
                self.passed += 1;
                println!("  ✓ {what}");
            }
            Err(error) => {
                self.failed += 1;
                println!("  ✗ {what}: {error:#}");
            }
        }
    }
}

fn main() -> ExitCode {
    let keep = std::env::var("KEEP").is_ok_and(|keep| keep == "1");
    match run(keep) {
        Ok(Checks { passed, failed: 0 }) => {
            println!("\n{passed} checks passed");
            ExitCode::SUCCESS
        }
        Ok(Checks { passed, failed }) => {
            println!("\n{failed} of {} checks failed", passed + failed);
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(keep: bool) -> anyhow::Result<Checks> {
    println!("A VPC with two subnets, two m5.large nodes, LocalStack's EC2, an Internet and a peered network …");
    let lab = if keep { keep_lab()? } else { Lab::up(&LabConfig { name: "demo".to_owned(), ..LabConfig::default() })? };
    let places: Vec<Place<'_>> = (0..NODES).map(|index| Place::node(&lab, index)).collect();
    let daemons: Vec<Daemon> = places.iter().map(|place| Daemon::start(*place, &[])).collect::<anyhow::Result<_>>()?;
    let pods = add_pods(&places)?;
    print_table(&places, &pods);
    let mut checks = Checks::default();
    traffic_checks(&lab, &places, &pods, &mut checks)?;
    if keep {
        daemons.into_iter().for_each(std::mem::forget);
        println!("\nThe lab stays up. Look around, for instance:");
        let (vpclab, enid) = (program("vpclab")?, program("enid")?);
        for line in
            ["node0 -- ENID status", "node0 -- ENID pods", "node1 -- ip rule", "node1 -- nft list table ip enid"]
        {
            println!("  {} exec --name demo {}", vpclab.display(), line.replace("ENID", &enid.to_string_lossy()));
        }
        println!("and take it down with: {} down --name demo", vpclab.display());
        return Ok(checks);
    }
    println!("\nDEL of all pods");
    for running in &pods {
        running.pod.del(places[running.pod.node])?;
    }
    for place in &places {
        checks.check(&format!("{}: no lease, no pod's link is left", place.name), || {
            let leases = place.enid("pods")?;
            anyhow::ensure!(leases.as_array().is_some_and(Vec::is_empty), "leases are left: {leases}");
            let links = place.sh("ip -o link show type veth | grep -c ': eni' || true")?;
            anyhow::ensure!(links.trim() == "0", "{} links are left", links.trim());
            Ok(())
        });
    }
    drop(daemons);
    Ok(checks)
}

fn keep_lab() -> anyhow::Result<Lab> {
    let status =
        Command::new(program("vpclab")?).args(["up", "--name", "demo"]).status().context("cannot run vpclab")?;
    anyhow::ensure!(status.success(), "the lab did not come up");
    Lab::attach("demo")
}

fn add_pods(places: &[Place<'_>]) -> anyhow::Result<Vec<Running>> {
    let bar = ProgressBar::new(u64::try_from(NODES * PODS)?);
    bar.set_style(ProgressStyle::with_template("  ADD {pos}/{len} {bar:40} {msg}")?);
    let mut added = Vec::new();
    for number in 0..PODS {
        for (node, place) in places.iter().enumerate() {
            let pod = Pod::new(node, &format!("web-{node}-{number}"));
            let (address, took) = pod.add(*place)?;
            bar.set_message(format!("{} {address}", pod.name));
            bar.inc(1);
            added.push((pod, address, took));
        }
    }
    bar.finish_and_clear();
    let mut running = Vec::new();
    for (node, place) in places.iter().enumerate() {
        let (leases, enis) = (place.enid("pods")?, place.enid("enis")?);
        for (pod, address, took) in added.iter().filter(|(pod, ..)| pod.node == node) {
            let lease = find(&leases, "address", address)?;
            let eni = lease["eni"].as_str().unwrap_or_default().to_owned();
            let slot = find(&enis, "id", &eni)?["slot"].as_u64().unwrap_or_default();
            let add_ms = took.as_secs_f64() * 1000.0;
            running.push(Running { pod: pod.clone(), address: address.clone(), eni, slot, add_ms });
        }
    }
    Ok(running)
}

fn find<'a>(list: &'a Value, key: &str, value: &str) -> anyhow::Result<&'a Value> {
    let found = list.as_array().and_then(|items| items.iter().find(|item| item[key] == value));
    found.with_context(|| format!("enid shows nothing with {key} {value}"))
}

fn print_table(places: &[Place<'_>], pods: &[Running]) {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(["POD", "NODE", "ENI", "", "ADDRESS", "ADD ms"]);
    for running in pods {
        let kind = if running.slot == 0 { "primary" } else { "secondary" };
        let node = places[running.pod.node].name;
        let took = format!("{:.1}", running.add_ms);
        table.add_row([running.pod.name.as_str(), node, &running.eni, kind, &running.address, &took]);
    }
    println!("{table}");
}

fn traffic_checks(lab: &Lab, places: &[Place<'_>], pods: &[Running], checks: &mut Checks) -> anyhow::Result<()> {
    let names = |node: usize| -> Vec<&str> {
        pods.iter().filter(|running| running.pod.node == node).map(|running| running.pod.name.as_str()).collect()
    };
    let (inet, peer) = (Place { lab, name: "inet" }, Place { lab, name: "peer" });
    let mut servers = vec![serve(inet, &[])?];
    for (node, place) in places.iter().enumerate() {
        servers.push(serve(*place, &names(node))?);
        servers.push(serve(*place, &[])?);
    }
    // Two pods of each kind on each node.
    let pick = |node: usize, secondary: bool, nth: usize| -> anyhow::Result<&Running> {
        let fits = |running: &&Running| running.pod.node == node && (running.slot != 0) == secondary;
        pods.iter().filter(fits).nth(nth).with_context(|| format!("no such pod on node{node}"))
    };
    let spot = |running: &Running| -> (Place<'_>, String) { (places[running.pod.node], running.pod.name.clone()) };
    let kind = |secondary: bool| if secondary { "secondary" } else { "primary" };
    let talk = |from: &Running, to: &str, port: u16, seen_as: &str, answered_by: &str| -> anyhow::Result<()> {
        let (place, netns) = spot(from);
        Spot { place, netns: Some(&netns) }.ask(to, port)?.expect(seen_as, answered_by)
    };
    let echo = |from: &Running, to: &str, bytes: u32| -> anyhow::Result<()> {
        let (place, netns) = spot(from);
        Spot { place, netns: Some(&netns) }.ping(to, bytes)
    };

    println!("\nPod to pod, TCP and ICMP, the server sees the pod's own address");
    let combinations = [(false, false), (false, true), (true, false), (true, true)];
    for (a, b) in combinations {
        for (node, other) in [(0, 0), (1, 1), (0, 1), (1, 0)] {
            let nth = usize::from(node == other);
            let (from, to) = (pick(node, a, 0)?, pick(other, b, nth)?);
            let way = if node == other { format!("on node{node}") } else { format!("node{node} to node{other}") };
            checks.check(&format!("{way}: {} to {} ENI", kind(a), kind(b)), || {
                talk(from, &to.address, PORT, &from.address, &to.address)?;
                echo(from, &to.address, 56)
            });
        }
    }
    println!("\nNode and pod");
    for (node, place) in places.iter().enumerate() {
        let host = &lab.node(node).address;
        for secondary in [false, true] {
            let pod = pick(node, secondary, 0)?;
            checks.check(&format!("node{node} to its pod on a {} ENI", kind(secondary)), || {
                let here = Spot { place: *place, netns: None };
                here.ask(&pod.address, PORT)?.expect(host, &pod.address)?;
                here.ping(&pod.address, 56)
            });
            checks.check(&format!("pod on a {} ENI to its node{node}", kind(secondary)), || {
                talk(pod, host, PORT, &pod.address, host)?;
                echo(pod, host, 56)
            });
            let far = pick(1 - node, secondary, 0)?;
            checks.check(
                &format!("node{node} to a pod on a {} ENI of the other node, and back", kind(secondary)),
                || {
                    Spot { place: *place, netns: None }.ask(&far.address, PORT)?.expect(host, &far.address)?;
                    talk(far, host, PORT, &far.address, host)
                },
            );
        }
    }
    println!("\nServices (plain nft rules in kube-proxy's place)");
    let cluster = pick(1, true, 0)?;
    for place in places {
        let local = pick(usize::from(place.name == "node1"), true, 1)?;
        place.sh(&services(&cluster.address, &local.address))?;
    }
    for node in 0..NODES {
        for secondary in [false, true] {
            let from = pick(node, secondary, 1)?;
            checks.check(&format!("ClusterIP from a pod on a {} ENI of node{node}", kind(secondary)), || {
                talk(from, CLUSTER_IP, 80, &from.address, &cluster.address)
            });
        }
        let (host, other) = (&lab.node(node).address, 1 - node);
        let local = pick(node, true, 1)?;
        checks.check(&format!("NodePort of node{node} to a pod on a secondary ENI, from node{other}"), || {
            let answer = Spot { place: places[other], netns: None }.ask(host, NODE_PORT)?;
            answer.expect(&lab.node(other).address, &local.address)
        });
        for secondary in [false, true] {
            let from = pick(other, secondary, 0)?;
            checks.check(
                &format!("NodePort of node{node}, from a pod on a {} ENI of node{other}", kind(secondary)),
                || talk(from, host, NODE_PORT, &from.address, &local.address),
            );
        }
    }
    println!("\nBeyond the VPC");
    for node in 0..NODES {
        for secondary in [false, true] {
            let pod = pick(node, secondary, 0)?;
            checks.check(&format!("peered network to a pod on a {} ENI of node{node}", kind(secondary)), || {
                Spot { place: peer, netns: None }.ask(&pod.address, PORT)?.expect(PEER_CLIENT, &pod.address)?;
                Spot { place: peer, netns: None }.ping(&pod.address, 56)
            });
            checks.check(
                &format!("pod on a {} ENI of node{node} to the Internet, as the node", kind(secondary)),
                || {
                    talk(pod, INTERNET_SERVER, PORT, &lab.node(node).public_address, INTERNET_SERVER)?;
                    echo(pod, INTERNET_SERVER, 56)
                },
            );
        }
    }
    println!("\nFrames and drops");
    for (a, b) in combinations {
        let (from, to) = (pick(0, a, 0)?, pick(1, b, 0)?);
        checks.check(&format!("jumbo frames (MTU 9001), {} to {} ENI", kind(a), kind(b)), || {
            echo(from, &to.address, JUMBO)
        });
    }
    checks.check("the VPC dropped no packet of a foreign source", || {
        let drops = lab.drops()?;
        anyhow::ensure!(drops.foreign_source == 0 && drops.inet_private == 0, "{drops:?}");
        Ok(())
    });
    checks.check("a packet for an address that no pod holds is dropped and counted here, not sent back", || {
        let free = free_address(places[1])?;
        let before = read_counter(places[1], "unheld")?;
        let from = pick(0, false, 0)?;
        let Err(lost) = echo(from, &free, 56) else { anyhow::bail!("somebody answers for {free}") };
        wait_for_counter(places[1], "unheld", before + 1)
            .with_context(|| format!("after a packet to {free} ({lost:#})"))?;
        anyhow::ensure!(lab.drops()?.foreign_source == 0, "it was sent back");
        Ok(())
    });
    Ok(())
}

fn services(cluster: &str, local: &str) -> String {
    format!(
        "nft -f - <<'NFT'
table ip services {{
  chain prerouting {{
    type nat hook prerouting priority dstnat;
    ip daddr {CLUSTER_IP} tcp dport 80 dnat to {cluster}:{PORT}
    fib daddr type local tcp dport {NODE_PORT} dnat to {local}:{PORT}
  }}
  chain output {{
    type nat hook output priority -100;
    ip daddr {CLUSTER_IP} tcp dport 80 dnat to {cluster}:{PORT}
  }}
}}
NFT"
    )
}

fn free_address(place: Place<'_>) -> anyhow::Result<String> {
    let held = place.enid("pods")?.to_string();
    let enis = place.enid("enis")?;
    let blocks = enis.as_array().into_iter().flatten().filter_map(|eni| eni["blocks"].as_array()).flatten();
    let addresses = blocks.filter_map(Value::as_str).filter_map(|net| net.strip_suffix("/32")).map(str::to_owned);
    let free = addresses.into_iter().find(|address| !held.contains(&format!("\"{address}\"")));
    free.context("every address of the pool is held")
}
