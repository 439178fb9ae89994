//! Sees to it that the node has what its NodeConfigs give, and that they say what it cannot have.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use enid_ipamd::{Event as Told, Policy};
use kube::{
    Api,
    api::{Patch, PatchParams},
    runtime::watcher::Event,
};
use serde_json::json;
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{Instant, sleep_until},
};
use tracing::{info, warn};

use super::{
    choose::{Choice, Problems, Reason, add, choose},
    object::{NodeConfig, NodeConfigSpec},
    status,
};
use crate::{
    core::handle::Handle,
    kubernetes::{
        follow::{Faults, Follow, Sink, note, words},
        node::Own,
    },
    log::Level,
    settings::{
        Settings,
        given::{Given, OF_INSTANCES, Overrides},
        remembered,
    },
};

/// Nodes that have the same to say write over so long: the first ones say it for all.
const SPREAD: Duration = Duration::from_secs(3);
/// What the API server refuses is tried again after so long; while it is away, as often as others write.
const AGAIN: Duration = Duration::from_secs(30);

/// NodeConfigs by name.
type Configs = BTreeMap<String, NodeConfig>;

/// What is given: what is in force, and what will be at the next start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InForce {
    /// Now.
    pub now: Given,
    /// Then.
    pub next: Given,
}

/// What the daemon was started with.
#[derive(Clone)]
pub struct Started {
    /// As given.
    pub given: Given,
    /// As fitted to the instance.
    pub settings: Settings,
    /// What NodeConfigs gave, and the node cannot have.
    pub refused: Option<Overrides>,
    /// What the next start will find.
    pub remembered: Option<Overrides>,
}

/// What it takes.
pub struct Keeper {
    /// What the daemon was started with.
    pub started: Started,
    /// To the core's task.
    pub handle: Handle,
    /// What is in force, for those who ask.
    pub in_force: watch::Sender<InForce>,
    /// Sets the log's level.
    pub log_level: Level,
    /// What the API server does not serve.
    pub faults: watch::Sender<Faults>,
}

impl Keeper {
    /// Keeps the node's settings until the task is dropped. `own`: the node's object.
    pub async fn keep(self, api: Api<NodeConfig>, own: watch::Receiver<Option<Own>>) {
        let (known, configs) = watch::channel(None);
        let follow =
            Follow { api: api.clone(), fields: String::new(), what: "nodeconfigs", faults: self.faults.clone() };
        let overrides = self.started.given.overrides().clone();
        let policy = self.started.settings.policy.clone();
        let settings = self.started.settings.clone();
        let remembered = self.started.remembered.clone();
        let keeping =
            Keeping { keeper: self, api, overrides, remembered, settings, told: policy, due: BTreeMap::new() };
        tokio::join!(
            follow.into(Teller { known, there: Configs::new(), listed: Configs::new() }),
            keeping.run(own, configs)
        );
    }
}

/// Hands on what is there.
struct Teller {
    known: watch::Sender<Option<Configs>>,
    there: Configs,
    /// They are being listed anew.
    listed: Configs,
}

impl Sink<NodeConfig> for Teller {
    fn take(&mut self, event: Event<NodeConfig>) {
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(config) => self.listed.extend([by_name(config)]),
            Event::InitDone => self.there = std::mem::take(&mut self.listed),
            Event::Apply(config) => self.there.extend([by_name(config)]),
            Event::Delete(config) => drop(self.there.remove(&by_name(config).0)),
        }
    }

    async fn tell(&mut self) {
        self.known.send_if_modified(|known| known.replace(self.there.clone()) != *known);
    }
}

fn by_name(mut config: NodeConfig) -> (String, NodeConfig) {
    config.metadata.managed_fields = None;
    (config.metadata.name.clone().unwrap_or_default(), config)
}

struct Keeping {
    keeper: Keeper,
    api: Api<NodeConfig>,
    /// What NodeConfigs gave last.
    overrides: Overrides,
    /// What of that the next start will find.
    remembered: Option<Overrides>,
    /// What is in force, as read.
    settings: Settings,
    /// What the core was told last.
    told: Policy,
    /// When which status is to be written.
    due: BTreeMap<String, Instant>,
}

impl Keeping {
    async fn run(mut self, mut own: watch::Receiver<Option<Own>>, mut configs: watch::Receiver<Option<Configs>>) {
        let mut problems = Problems::new();
        loop {
            let node = own.borrow_and_update().clone();
            let known = configs.borrow_and_update().clone();
            if let (Some(node), Some(known)) = (&node, &known) {
                problems = self.look(node, known).await;
            }
            self.tell(node.as_ref()).await;
            if let (Some(node), Some(known)) = (&node, &known) {
                self.write(node, known, &problems).await;
            }
            let next = self.due.values().min().copied();
            tokio::select! {
                Ok(()) = own.changed() => {}
                Ok(()) = configs.changed() => {}
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
                else => return,
            }
        }
    }

    /// Decides what the node has, and remembers it; what does not count, by the NodeConfigs that name the node.
    async fn look(&mut self, node: &Own, known: &Configs) -> Problems {
        let started = self.keeper.started.clone();
        let specs: BTreeMap<String, NodeConfigSpec> =
            known.iter().map(|(name, config)| (name.clone(), config.spec.clone())).collect();
        // What is in force: of what counts at a start, what this one was given.
        let before = started.given.until_next_start(&self.overrides);
        let mut choice = choose(&started.given, &specs, &node.labels, before.overrides());
        let is_new = choice.overrides != self.overrides;
        self.overrides.clone_from(&choice.overrides);
        if self.remembered.as_ref() != Some(&choice.overrides) || !remembered::is_there(&started.settings) {
            let (settings, heard) = (started.settings.clone(), choice.overrides.clone());
            let had = started.given.overrides().clone();
            match spawn_blocking(move || remembered::write(&settings, &heard, &had)).await {
                Ok(Err(failure)) => warn!("the next start may lack what NodeConfigs give: {failure:#}"),
                _ => self.remembered = Some(choice.overrides.clone()),
            }
        }
        let (now, next) =
            (started.given.until_next_start(&choice.overrides), started.given.with(choice.overrides.clone()));
        if is_new {
            info!("NodeConfigs give {}", in_words(&choice.overrides));
        }
        match now.read() {
            Ok(settings) => self.settings = settings,
            // All that is given makes sense, and so does what was; a mix of both may not.
            Err(mistakes) => mistakes.iter().for_each(|mistake| warn!("{}", mistake.text)),
        }
        pending(&started, &next, &mut choice);
        self.keeper.in_force.send_if_modified(|before| {
            let new = InForce { now, next };
            std::mem::replace(before, new) != *before
        });
        for name in &choice.of_node {
            choice.problems.entry(name.clone()).or_default();
        }
        choice.problems
    }

    /// Tells the core and the log what is in force.
    async fn tell(&mut self, node: Option<&Own>) {
        let mut policy = self.keeper.started.settings.policy.with_live(&self.settings.policy);
        if policy.max_pods.is_none() {
            policy.max_pods = node.and_then(|node| node.max_pods);
        }
        (self.keeper.log_level)(&self.settings.log_level);
        if policy != self.told {
            self.told = policy.clone();
            self.keeper.handle.tell(Told::Settings { policy }).await;
        }
    }

    /// Writes what is due, and notes when the rest is.
    async fn write(&mut self, node: &Own, known: &Configs, problems: &Problems) {
        let names: BTreeSet<&String> = known.keys().collect();
        self.due.retain(|name, _| names.contains(name));
        for (name, config) in known {
            let generation = config.metadata.generation.unwrap_or_default();
            let wanted = status::wanted(config.status.as_ref(), generation, &node.name, problems.get(name));
            let Some(status) = wanted else {
                self.due.remove(name);
                continue;
            };
            let due = *self.due.entry(name.clone()).or_insert_with(|| Instant::now() + jitter(&node.name, name));
            if due > Instant::now() {
                continue;
            }
            // Under the version that was read: what another node writes at the same moment is kept.
            let version = config.metadata.resource_version.clone();
            let patch = json!({ "metadata": { "resourceVersion": version }, "status": status });
            match self.api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Err(kube::Error::Api(refused)) if refused.is_conflict() || refused.is_not_found() => {
                    // The watch brings what is there now.
                    self.due.insert(name.clone(), Instant::now() + SPREAD + jitter(&node.name, name));
                }
                written => {
                    // The watch brings it back, and then nothing is wanted.
                    let again = if matches!(&written, Err(failure) if !is_refusal(failure)) { SPREAD } else { AGAIN };
                    self.due.insert(name.clone(), Instant::now() + again);
                    note(&self.keeper.faults, "nodeconfigs/status", written.err().map(|failure| words(&failure)));
                }
            }
        }
        if self.due.is_empty() {
            // Another node has written it, if this one could not.
            note(&self.keeper.faults, "nodeconfigs/status", None);
        }
    }
}

/// What counts at the next start only is named by the NodeConfigs that give it.
fn pending(started: &Started, next: &Given, choice: &mut Choice) {
    for setting in started.given.pending(next) {
        let Some(value) = choice.overrides.get(setting.name) else { continue };
        let is_refused = started.refused.as_ref().is_some_and(|refused| {
            OF_INSTANCES.contains(&setting.name) && refused.get(setting.name).is_some_and(|it| it.value == value.value)
        });
        let (reason, words) = if is_refused {
            (Reason::Refused, "the node cannot have it, as its daemon saw at its start and logged")
        } else {
            (Reason::AtNextStart, "it counts at the next start of the node's daemon")
        };
        let config = value.config.clone();
        add(&mut choice.problems, &config, setting.name, reason, words.to_owned());
    }
}

fn is_refusal(failure: &kube::Error) -> bool {
    matches!(failure, kube::Error::Api(_))
}

/// So much later than others a node writes.
fn jitter(node: &str, config: &str) -> Duration {
    let mut hasher = DefaultHasher::new();
    (node, config).hash(&mut hasher);
    SPREAD * u32::try_from(hasher.finish() % 1000).unwrap_or_default() / 1000
}

fn in_words(overrides: &Overrides) -> String {
    if overrides.is_empty() {
        return "nothing to this node".to_owned();
    }
    let each = overrides.iter().map(|(name, it)| format!("{name}={:?} ({})", it.value, it.config));
    each.collect::<Vec<_>>().join(", ")
}
