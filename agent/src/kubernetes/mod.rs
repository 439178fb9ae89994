//! The API server: which pods are on their way to this node, and what the node's own object says. It is never waited for:
//! pods get addresses without it.
//!
//! `client`: how it is reached. `follow`: objects of a kind, as they change. `pods`, `node`: what ours tell the core.
//! `events`: what the cluster is told.

mod client;
mod events;
mod follow;
mod node;
mod pods;

use enid_ipamd::Policy;
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

/// What is watched, and what is told.
pub struct Kubernetes {
    reported: Reported,
    readiness: watch::Receiver<Readiness>,
    handle: Handle,
    node: String,
    endpoint: Option<String>,
    policy: Policy,
    faults: watch::Sender<Faults>,
}

impl Kubernetes {
    /// What a node of these settings watches; what stands in the way of it, and a way to tell the cluster.
    pub fn new(
        settings: &Settings,
        handle: Handle,
        readiness: watch::Receiver<Readiness>,
    ) -> (Self, watch::Receiver<Faults>, Reports) {
        let (faults, seen) = watch::channel(Faults::new());
        let (reports, reported) = events::channel();
        let Settings { node_name, cluster_endpoint, policy, .. } = settings;
        let (node, endpoint, policy) = (node_name.clone(), cluster_endpoint.clone(), policy.clone());
        (Kubernetes { reported, readiness, handle, node, endpoint, policy, faults }, seen, reports)
    }

    /// Watches until the task is dropped; never ends by itself.
    pub async fn run(self) {
        match client::connect(self.endpoint.as_deref()).await {
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
        let Kubernetes { reported, readiness, handle, node, policy, faults, .. } = self;
        let (nodes, pods) = (Api::<v1::Node>::all(client.clone()), Api::<v1::Pod>::all(client.clone()));
        let (uids, seen_uids) = watch::channel(pods::Uids::new());
        let own = Follow { api: nodes, fields: format!("metadata.name={node}"), what: "nodes", faults: faults.clone() };
        let bound = Follow {
            api: pods,
            // A pod that has ended counts as deleted.
            fields: format!("spec.nodeName={node},status.phase!=Succeeded,status.phase!=Failed"),
            what: "pods",
            faults: faults.clone(),
        };
        tokio::join!(
            node::tell(own, handle.clone(), policy),
            pods::tell(bound, handle, uids),
            events::tell(client, node, reported, seen_uids, readiness, faults),
        );
    }
}
