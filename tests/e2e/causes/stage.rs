//! A fault is played: a node is well, the fault begins, what is said is read, the fault ends, the node is well.

use std::{
    collections::BTreeSet,
    process::Child,
    sync::{Arc, atomic::AtomicUsize},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use enid_tests::{Backend, Daemon, Lab, LabConfig, Place, Pod, api_server::ApiServer, pod, program, wait_until};
use serde_json::Value;

use crate::{
    cluster::Told,
    fault::{self, Change, Fault, Pods, Where},
};

/// What is looked for shows within this.
const BOUND: Duration = Duration::from_secs(30);
/// The doctor answers within five seconds, here with whatever else runs on the machine.
const DOCTOR: Duration = Duration::from_secs(7);
/// Somebody who looks for a fault has so long.
const HELD: Duration = Duration::from_secs(1_800);
/// Pods that use up what a node has without growing, at most.
const MANY: usize = 24;

/// A node with one fault.
pub struct Stage {
    /// It ends before its lab does.
    daemon: Option<Daemon>,
    /// Its lab.
    pub lab: Lab,
    /// What makes a change again and again.
    loops: Vec<Child>,
    /// The environment of the daemon's container, in which an operator runs commands.
    environment: String,
    /// What the cluster is told, if there is one.
    told: Option<Told>,
}

impl Stage {
    /// The node.
    pub fn place(&self) -> Place<'_> {
        Place::node(&self.lab, 0)
    }

    /// A pod that the cluster knows of, if there is one.
    fn bind(&self, pod: &Pod) -> anyhow::Result<()> {
        self.told.as_ref().map_or(Ok(()), |told| told.bind(pod))
    }

    fn make(&mut self, change: &Change) -> anyhow::Result<()> {
        match change {
            Change::Nothing => {}
            Change::Sh(line) => drop(self.place().sh(line)?),
            Change::Ec2(faults) => self.lab.set_ec2(&faults())?,
            Change::Imds(faults) => self.lab.set_imds(&faults())?,
            Change::By(make) => make(Where { lab: &self.lab, place: self.place() })?,
            Change::Hang(hangs) => self.daemon.as_ref().context("there is no daemon")?.hang(*hangs)?,
            // It ends by itself, too.
            Change::Again(line) => {
                let line = format!("for n in $(seq 400); do {line} 2>/dev/null; sleep 0.25; done");
                self.loops.push(self.place().command("sh")?.args(["-c", &line]).spawn()?);
            }
        }
        Ok(())
    }

    fn end_loops(&mut self) {
        for mut child in self.loops.drain(..) {
            let _ = std::process::Command::new("pkill").args(["-P", &child.id().to_string()]).status();
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// The doctor's findings, notes apart; the exit code has to say the same.
    fn findings(&self) -> anyhow::Result<BTreeSet<String>> {
        let enid = program("enid")?;
        let doctor = format!("env {} {} doctor -o json", self.environment, enid.display());
        let line = format!("code=0; {doctor} || code=$?; echo; echo $code");
        let began = Instant::now();
        let said = self.place().sh(&line)?;
        // It has a deadline of its own; what the shell takes comes on top.
        ensure!(began.elapsed() < DOCTOR, "the doctor took {:?}", began.elapsed());
        let (text, code) = said.trim_end().rsplit_once('\n').context("the doctor says nothing")?;
        let found: Vec<Value> = serde_json::from_str(text).with_context(|| text.to_owned())?;
        let wrong = found.iter().filter(|finding| finding["note"] == false);
        ensure!(found.iter().all(|finding| finding["cure"].as_str().is_some_and(|cure| cure.len() > 20)), "{text}");
        let wrong: BTreeSet<String> = wrong.filter_map(|it| it["name"].as_str().map(str::to_owned)).collect();
        ensure!((code == "1") != wrong.is_empty(), "exit code {code}: {text}");
        Ok(wrong)
    }

    /// A bundle that is taken now ends in the same state and plan when the simulator takes it again.
    fn is_replayed(&self) -> anyhow::Result<()> {
        let (enid, sim) = (program("enid")?, program("enid-sim")?);
        let (environment, enid, sim) = (&self.environment, enid.display(), sim.display());
        let file = format!("/tmp/{}.tar.gz", self.lab.state().name);
        let line = format!(
            "env {environment} {enid} bundle >{file} && {sim} replay {file}; code=$?; rm -f {file}; exit $code"
        );
        let said = self.place().sh(&line).context("the bundle is not replayed")?;
        ensure!(said.contains("state and plan are the recorded ones"), "{said}");
        Ok(())
    }

    fn status(&self) -> anyhow::Result<Value> {
        self.place().enid("status")
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.end_loops();
    }
}

/// Plays it; on a node of a cluster, if there is an API server.
pub fn play(fault: &Fault, api_server: Option<&Arc<ApiServer>>) -> anyhow::Result<()> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let name = format!("c{}x{number}", std::process::id());
    let lab = Lab::up(&LabConfig { name, nodes: 1, ec2: Backend::Model, ..LabConfig::default() })?;
    let told = api_server.map(|api| Told::new(api, Place::node(&lab, 0), &lab.state().name)).transpose()?;
    let mut stage = Stage { lab, loops: Vec::new(), daemon: None, environment: String::new(), told };
    stage.make(&fault.before)?;
    let common = [("IP_COOLDOWN_PERIOD", "0"), ("WARM_IP_TARGET", "1"), ("MAX_PODS", "29")];
    let common = common.iter().filter(|(name, _)| fault.settings.iter().all(|(other, _)| other != name));
    let of_cluster = stage.told.as_ref().map(Told::settings).unwrap_or_default();
    let of_cluster: Vec<(&str, &str)> = of_cluster.iter().map(|(name, value)| (*name, &**value)).collect();
    let settings: Vec<(&str, &str)> = common.chain(fault.settings).chain(&of_cluster).copied().collect();
    let endpoint = stage.lab.state().ec2_endpoint.clone();
    let more = [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_ENDPOINT_URL_EC2", &endpoint)];
    let environment = settings.iter().chain(&more).map(|(name, value)| format!("{name}={value}"));
    stage.environment = environment.collect::<Vec<_>>().join(" ");
    stage.daemon = Some(Daemon::spawn(stage.place(), &settings)?);
    let holds = || if fault.is_well_before { stage.place().serves() } else { stage.status().is_ok() };
    let started = wait_until(2 * BOUND, holds);
    started.with_context(|| {
        format!("it does not start: {}", stage.daemon.as_ref().map(Daemon::log).unwrap_or_default())
    })?;
    let played = acts(fault, &mut stage);
    played.with_context(|| {
        let log = stage.daemon.as_ref().map(Daemon::log).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(12).collect();
        last.into_iter().rev().collect::<Vec<_>>().join("\n")
    })
}

fn acts(fault: &Fault, stage: &mut Stage) -> anyhow::Result<()> {
    let well = |stage: &Stage, when: &str| {
        let mut last = Ok(BTreeSet::new());
        let ended = wait_until(2 * BOUND, || {
            last = stage.findings();
            last.as_ref().is_ok_and(BTreeSet::is_empty)
        });
        ended.with_context(|| format!("{when} the doctor says {last:?}"))
    };
    if fault.is_well_before {
        well(stage, "before")?;
    }
    let before = match fault.pods {
        Pods::None => None,
        Pods::Before | Pods::All => Some(fill(fault, stage, fault.pods == Pods::All)?),
        Pods::Then => None,
    };
    stage.make(&fault.begins)?;
    let refused = match fault.pods {
        Pods::None | Pods::Before => None,
        Pods::All => before.flatten(),
        Pods::Then => fill(fault, stage, true)?,
    };
    if let (Some(cause), Some(pod)) = (fault.add, &refused) {
        has_cause(stage, cause, pod)?;
    }
    if let Some(told) = &stage.told {
        told.is_told(stage.place(), fault, refused.as_ref())?;
    }
    let mut last = Ok(BTreeSet::new());
    let named = wait_until(BOUND, || {
        last = stage.findings();
        last.as_ref().is_ok_and(|found| found.iter().any(|name| name == fault.finding))
    });
    named.with_context(|| format!("the doctor says {last:?}, and not {}", fault.finding))?;
    let others: Vec<String> = last?.into_iter().filter(|name| name != fault.finding).collect();
    ensure!(others.iter().all(|name| fault.beside.contains(&&**name)), "the doctor says {others:?}, too");
    if fault.is_told {
        is_told(stage, fault)?;
    }
    if stage.told.is_none() && stage.status().is_ok() {
        stage.is_replayed()?;
    }
    held(stage, refused.as_ref())?;
    stage.end_loops();
    stage.make(&fault.ends)?;
    if let Some(pod) = refused {
        let mut last = None;
        let served = wait_until(2 * BOUND, || {
            last = pod.call(stage.place(), "ADD").err();
            last.is_none()
        });
        served.with_context(|| format!("when it is gone an ADD is refused: {last:?}"))?;
    }
    well(stage, "when it is gone")
}

/// The fault lasts while the file that ENID_TEST_HOLD names is there, for half an hour at most: somebody looks for it. The file then
/// says how to run a command of the node.
fn held(stage: &Stage, refused: Option<&Pod>) -> anyhow::Result<()> {
    let Some(file) = std::env::var_os("ENID_TEST_HOLD").map(std::path::PathBuf::from) else { return Ok(()) };
    ensure!(std::env::var_os("ENID_TEST_FAULT").is_some(), "ENID_TEST_HOLD holds one fault: ENID_TEST_FAULT names it");
    let (lab, environment) = (&stage.lab.state().name, &stage.environment);
    let (vpclab, enid) = (program("vpclab")?, program("enid")?);
    let line = format!("{} exec --name {lab} node0 -- env {environment} {}", vpclab.display(), enid.display());
    let unfinished = file.with_extension("new");
    std::fs::write(&unfinished, line + "\n")?;
    std::fs::rename(&unfinished, &file)?;
    let ended = wait_until(HELD, || {
        // A refusal of two minutes ago is none of now: the runtime asks again.
        if let Some(pod) = refused {
            let _ = pod.try_call(stage.place(), "ADD");
        }
        !file.exists()
    });
    let _ = std::fs::remove_file(&file);
    ended.context("the fault was held for too long")
}

/// Adds pods until one is refused, or so many; the refused one.
fn fill(fault: &Fault, stage: &Stage, until_refused: bool) -> anyhow::Result<Option<Pod>> {
    for number in 0..MANY {
        let wait = if until_refused { 1 } else { 30 };
        let pod = Pod { config: pod::config("1.0.0", wait), ..fault::pod(&stage.lab, number) };
        pod.make_namespace(stage.place())?;
        stage.bind(&pod)?;
        let (ok, answer, _) = pod.try_call(stage.place(), "ADD")?;
        if !until_refused {
            ensure!(ok, "{answer}");
            if number + 1 >= fault.first {
                return Ok(None);
            }
            continue;
        }
        if ok {
            continue;
        }
        let cause = fault.add.context("an ADD is refused, and none should be")?;
        let words = answer["details"].to_string() + &answer["msg"].to_string();
        // Until it has shown itself an address may only be on its way.
        if words.contains("still_growing") && cause != "still_growing" {
            return again(stage, pod, cause).map(Some);
        }
        ensure!(words.contains(cause), "{cause} is not in {answer}");
        return Ok(Some(pod));
    }
    bail!("none of {MANY} pods was refused")
}

/// The runtime asks again until the cause has shown itself.
fn again(stage: &Stage, pod: Pod, cause: &str) -> anyhow::Result<Pod> {
    let mut last = Value::Null;
    let shown = wait_until(BOUND, || {
        let called = pod.try_call(stage.place(), "ADD");
        called.is_ok_and(|(ok, answer, _)| {
            last = answer;
            !ok && last.to_string().contains(cause)
        })
    });
    shown.with_context(|| format!("{cause} is not in {last}"))?;
    Ok(pod)
}

/// The values of a label.
fn labels(metrics: &str, name: &str, label: &str) -> BTreeSet<String> {
    let (start, before) = (format!("{name}{{"), format!("{label}=\""));
    let of_name = metrics.lines().filter(|line| line.starts_with(&start));
    of_name.filter_map(|line| Some(line.split_once(&before)?.1.split_once('"')?.0.to_owned())).collect()
}

/// The pod's story and the metrics have the cause of the plugin's error.
fn has_cause(stage: &Stage, cause: &str, pod: &Pod) -> anyhow::Result<()> {
    let story = stage.place().enid(&format!("why {}", pod.name))?;
    let mut adds = story["operations"].as_array().into_iter().flatten().filter(|operation| operation["kind"] == "ADD");
    let last = adds.next_back().cloned().unwrap_or_default();
    ensure!(last["cause"] == cause && last["outcome"] == "refused", "the story says {last}");
    let metrics = stage.place().metrics()?;
    let ended = labels(&metrics, "enid_add_seconds_count", "outcome");
    ensure!(ended.contains(cause), "{cause} is not among the metrics' {ended:?}");
    // Until the cause has shown itself an address may only be on its way, or the daemon may only just run.
    let others = ended.iter().filter(|it| ![cause, "wired", "still_growing", "starting"].contains(&&***it));
    let others: Vec<&String> = others.collect();
    ensure!(others.is_empty(), "the metrics have {others:?}, too");
    Ok(())
}

/// Status and metrics name the same cause.
fn is_told(stage: &Stage, fault: &Fault) -> anyhow::Result<()> {
    let mut last = Value::Null;
    // Metadata may fail for a while before it is said.
    let told = wait_until(3 * BOUND, || {
        last = stage.status().map_or(Value::Null, |status| status["troubles"].clone());
        last.as_array().is_some_and(|troubles| troubles.iter().any(|trouble| trouble["cause"] == fault.cause()))
    });
    told.with_context(|| format!("the status says {last}"))?;
    let is_other = |cause: &str| cause != fault.cause() && cause != fault.finding && !fault.beside.contains(&cause);
    let causes = last.as_array().into_iter().flatten().filter_map(|trouble| trouble["cause"].as_str());
    let others: Vec<&str> = causes.filter(|cause| is_other(cause)).collect();
    ensure!(others.is_empty(), "the status says {others:?}, too");
    let metrics = stage.place().metrics()?;
    let causes = labels(&metrics, "enid_cause", "cause");
    ensure!(causes.contains(fault.cause()), "{} is not among the metrics' {causes:?}", fault.cause());
    ensure!(!causes.iter().any(|cause| is_other(cause)), "the metrics have {causes:?}");
    Ok(())
}
