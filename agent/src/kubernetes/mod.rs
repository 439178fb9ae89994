//! The API server: which pods are on their way to this node, and what the node's own object says. It is never waited for:
//! pods get addresses without it.
//!
//! `client`: how it is reached. `follow`: objects of a kind, as they change. `pods`, `node`, `eni_config`: what ours tell
//! the core. `events`, `status_object`, `taints`: what the cluster is told.

mod client;
mod eni_config;
mod events;
mod follow;
mod node;
mod pods;
mod status_object;
mod taints;

use anyhow::Context;
use enid_ipamd::Placement;
use k8s_openapi::api::core::v1;
use kube::{Api, Client};
use tokio::sync::watch;
use tracing::info;

pub use events::Reports;
pub use follow::Faults;

use crate::{
    core::{handle::Handle, readiness::Readiness},
    settings::Settings,
};
use events::Reported;
use follow::Follow;

/// Takes our taint off this node, for a container that ends (`enid untaint`).
///
/// # Errors
///
/// There is no cluster, or its API server refuses.
pub async fn untaint(settings: &Settings) -> anyhow::Result<()> {
    let client = client::connect(settings.cluster_endpoint.as_deref()).await?;
    taints::remove(client.context("no API server is configured")?, &settings.node_name).await
}

/// What is watched, and what is told.
pub struct Kubernetes {
    settings: Settings,
    /// The instance's id.
    instance: String,
    handle: Handle,
    readiness: watch::Receiver<Readiness>,
    reported: Reported,
    faults: watch::Sender<Faults>,
}

impl Kubernetes {
    /// What a node of these settings, which is this instance, watches; what stands in the way of it, and a way to tell the
    /// cluster.
    pub fn new(
        settings: Settings,
        instance: String,
        handle: Handle,
        readiness: watch::Receiver<Readiness>,
    ) -> (Self, watch::Receiver<Faults>, Reports) {
        let (faults, seen) = watch::channel(Faults::new());
        let (reports, reported) = events::channel();
        (Kubernetes { settings, instance, handle, readiness, reported, faults }, seen, reports)
    }

    /// Watches until the task is dropped; never ends by itself.
    pub async fn run(self) {
        match client::connect(self.settings.cluster_endpoint.as_deref()).await {
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
        let Kubernetes { settings, instance, handle, readiness, reported, faults } = self;
        let Settings { node_name: node, policy, eni_config, taints, .. } = settings;
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
        let (known, seen) = watch::channel(None);
        let follows_config = policy.placement == Placement::EniConfig;
        let configs = async {
            if follows_config {
                eni_config::tell(Api::all(client.clone()), seen.clone(), handle.clone(), faults.clone()).await;
            }
        };
        let objects = Api::all(client.clone());
        tokio::join!(
            node::tell(own, handle.clone(), policy, eni_config, known),
            configs,
            pods::tell(bound, handle.clone(), uids),
            events::tell(client.clone(), node, reported, seen_uids, readiness.clone(), faults.clone()),
            status_object::tell(objects, seen.clone(), instance, handle.clone(), readiness.clone(), faults.clone()),
            taints::keep(nodes, seen.clone(), readiness, taints, faults.clone()),
        );
    }
}
