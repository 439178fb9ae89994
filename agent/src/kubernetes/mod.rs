//! The API server: which pods are on their way to this node, and what the node's own object says. It is never waited for:
//! pods get addresses without it.
//!
//! `client`: how it is reached. `follow`: objects of a kind, as they change. `pods`, `node`, `eni_config`: what ours tell
//! the core. `node_config`: settings for some of the nodes. `events`, `status_object`, `node_status`,
//! `taints`, `annotations`: what the cluster is told.

mod annotations;
mod client;
mod eni_config;
mod events;
mod follow;
mod node;
mod node_config;
mod node_status;
mod pods;
mod status_object;
mod taints;

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use enid_ipamd::Placement;
use k8s_openapi::api::core::v1;
use kube::{Api, Client, api::ListParams};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tracing::{info, warn};

pub use annotations::Annotations;
pub use events::Reports;
pub use follow::Faults;
pub use node::Own;
pub use node_config::{InForce, Started};
pub use node_status::{ON_HOST, mismatch};
pub use status_object::Phase;

use crate::{
    core::{handle::Handle, readiness::Readiness},
    log::Level,
    record::Record,
    settings::{
        Settings,
        given::{Given, Overrides},
    },
};
use annotations::Annotated;
use events::Reported;
use follow::Follow;
use node_config::Keeper;

/// So long the API server may take for what is written once.
const PATIENCE: Duration = Duration::from_secs(5);
/// What could not be written so is tried again after so long, and then after twice as long each time.
const AGAIN: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(300);

/// Ways to tell the cluster of pods.
#[derive(Clone)]
pub struct Tell {
    /// Why a pod gets no address.
    pub reports: Reports,
    /// Which address it has.
    pub annotations: Annotations,
}

/// What those who ask the daemon are told.
pub struct Seen {
    /// What the API server does not serve.
    pub faults: watch::Receiver<Faults>,
    /// What is given, and by whom.
    pub settings: watch::Receiver<InForce>,
    /// The node's ENIConfig, once its object was read.
    pub eni_config: watch::Receiver<Option<Own>>,
}

/// Takes our taint off this node, for a container that ends (`enid untaint`).
///
/// # Errors
///
/// There is no cluster, or its API server refuses.
pub async fn untaint(settings: &Settings) -> anyhow::Result<()> {
    let client = client::connect(settings.cluster_endpoint.as_deref()).await?;
    taints::remove(client.context("no API server is configured")?, &settings.node_name).await
}

/// Says in the node's status object why its daemon serves no pods, for one that has no watches: tries until it is written, and
/// never ends by itself.
pub async fn keep_saying(settings: &Settings, phase: Phase, message: &str) {
    let (mut pause, mut is_told) = (AGAIN, false);
    while let Err(failure) = say_phase(settings, phase, message).await {
        if !is_told {
            warn!("the node's status object does not say that {message}: {failure:#}");
        }
        is_told = true;
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST);
    }
    std::future::pending().await
}

async fn say_phase(settings: &Settings, phase: Phase, message: &str) -> anyhow::Result<()> {
    let said = async {
        let client = client::connect(settings.cluster_endpoint.as_deref()).await?;
        let Some(client) = client else { return Ok(()) };
        status_object::say(client, &settings.node_name, phase, message).await
    };
    timeout(PATIENCE, said).await.context("the API server does not answer")?
}

/// Whether a pod of Amazon's DaemonSet `aws-node` is on this node; none is where there is no cluster.
///
/// # Errors
///
/// The API server refuses, cannot be reached, or does not answer in time.
pub async fn has_aws_node(settings: &Settings) -> anyhow::Result<bool> {
    let listed = async {
        let Some(client) = client::connect(settings.cluster_endpoint.as_deref()).await? else { return Ok(false) };
        let fields = format!("spec.nodeName={},status.phase!=Succeeded,status.phase!=Failed", settings.node_name);
        let of_node = ListParams::default().fields(&fields).labels("k8s-app=aws-node");
        let pods = Api::<v1::Pod>::namespaced(client, "kube-system").list_metadata(&of_node).await?;
        Ok(!pods.items.is_empty())
    };
    timeout(PATIENCE, listed).await.context("the API server does not answer")?
}

/// What NodeConfigs give to this node, asked once; `None` where no API server is configured.
///
/// # Errors
///
/// The API server refuses, or cannot be reached.
pub async fn node_configs(given: &Given, settings: &Settings) -> anyhow::Result<Option<Overrides>> {
    match client::connect(settings.cluster_endpoint.as_deref()).await? {
        Some(client) => node_config::ask(client, &settings.node_name, given).await.map(Some),
        None => Ok(None),
    }
}

/// What is watched, and what is told.
pub struct Kubernetes {
    started: Started,
    log_level: Level,
    in_force: watch::Sender<InForce>,
    /// The instance's id.
    instance: String,
    handle: Handle,
    record: Arc<Record>,
    readiness: watch::Receiver<Readiness>,
    phase: watch::Receiver<Phase>,
    reports: Reports,
    reported: Reported,
    annotated: Annotated,
    faults: watch::Sender<Faults>,
    own: watch::Sender<Option<Own>>,
}

impl Kubernetes {
    /// What a node that was started so, which is this instance, watches; a way to tell the cluster, and what those who ask
    /// are told. `log_level` sets the log's.
    pub fn new(
        started: Started,
        log_level: Level,
        instance: String,
        handle: Handle,
        record: &Arc<Record>,
        readiness: watch::Receiver<Readiness>,
        phase: watch::Receiver<Phase>,
    ) -> (Self, Tell, Seen) {
        let (faults, seen_faults) = watch::channel(Faults::new());
        let given = InForce { now: started.given.clone(), next: started.given.clone() };
        let (in_force, settings) = watch::channel(given);
        let (own, eni_config) = watch::channel(None);
        let (reports, reported) = events::channel();
        let (annotations, annotated) = annotations::channel(started.settings.annotate_pods);
        let tell = Tell { reports: reports.clone(), annotations };
        let watches = Kubernetes {
            started,
            log_level,
            in_force,
            instance,
            handle,
            record: record.clone(),
            readiness,
            phase,
            reports,
            reported,
            annotated,
            faults,
            own,
        };
        (watches, tell, Seen { faults: seen_faults, settings, eni_config })
    }

    /// Watches until the task is dropped; never ends by itself.
    pub async fn run(self) {
        match client::connect(self.started.settings.cluster_endpoint.as_deref()).await {
            Ok(Some(client)) => self.watch(client).await,
            Ok(None) => info!("no API server is configured: pods that are on their way are not known ahead"),
            Err(failure) => {
                let why = format!("it cannot be asked: {failure:#}");
                follow::note(&self.faults, "anything", Some(why));
            }
        }
        std::future::pending().await
    }

    async fn watch(self, client: Client) {
        let Kubernetes {
            started,
            log_level,
            in_force,
            instance,
            handle,
            record,
            readiness,
            phase,
            reports,
            reported,
            annotated,
            faults,
            own: known,
        } = self;
        let Settings { node_name: node, policy, eni_config, taints, publish_addresses, .. } = started.settings.clone();
        let nodes = Api::<v1::Node>::all(client.clone());
        let own = Follow {
            api: nodes.clone(),
            fields: format!("metadata.name={node}"),
            what: "nodes",
            faults: faults.clone(),
        };
        let bound = Follow {
            api: Api::<v1::Pod>::all(client.clone()),
            // A pod that has ended counts as deleted.
            fields: format!("spec.nodeName={node},status.phase!=Succeeded,status.phase!=Failed"),
            what: "pods",
            faults: faults.clone(),
        };
        let (uids, seen_uids) = watch::channel(pods::Uids::new());
        let seen = known.subscribe();
        let follows_config = policy.placement == Placement::EniConfig;
        let configs = async {
            if follows_config {
                eni_config::tell(Api::all(client.clone()), seen.clone(), handle.clone(), faults.clone()).await;
            }
        };
        let objects = Api::all(client.clone());
        let keeper = Keeper { started, handle: handle.clone(), in_force, log_level, faults: faults.clone() };
        tokio::join!(
            node::tell(own, handle.clone(), eni_config, known),
            keeper.keep(Api::all(client.clone()), seen.clone()),
            configs,
            pods::tell(bound, handle.clone(), record, uids),
            events::tell(client.clone(), node, reported, seen_uids.clone(), readiness.clone(), faults.clone()),
            status_object::tell(
                objects,
                seen.clone(),
                instance,
                handle.clone(),
                readiness.clone(),
                phase,
                faults.clone(),
            ),
            node_status::tell(
                nodes.clone(),
                seen.clone(),
                handle.clone(),
                readiness.clone(),
                reports,
                publish_addresses,
                faults.clone(),
            ),
            annotations::keep(client.clone(), annotated, seen_uids, faults.clone()),
            taints::keep(nodes, seen.clone(), readiness, taints, faults.clone()),
        );
    }
}
