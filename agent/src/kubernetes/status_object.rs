//! The node's status object: what it has, and what stands in the way of more, for whoever asks the API server. It is written
//! when something has changed, once a minute at most (but at once when the node changes hands), and goes with the node.

use std::time::Duration;

use anyhow::Context;
use enid_ipamd::{Told, View};
use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{
    Api, Client, CustomResource, Resource,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{sync::watch, time::sleep};

use super::{
    follow::{Faults, note, words},
    node::Own,
};
use crate::{
    clock,
    core::{handle::Handle, readiness::Readiness},
};

/// The state is looked at this often.
const LOOK: Duration = Duration::from_secs(5);
/// What could not be written is tried again after so long, and then after twice as long each time: where the definition is
/// missing, thousands of nodes ask for nothing.
const AGAIN: Duration = Duration::from_secs(30);
const LONGEST: Duration = Duration::from_secs(600);
/// The object of a node that has gone goes with it, a little later: the one of a node that comes under its name is written
/// once more after so long.
const COLLECTED_MS: u64 = 90_000;

/// Nothing is asked for: all of it is status.
#[derive(CustomResource, Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "enid.dev",
    version = "v1alpha1",
    kind = "EnidNode",
    plural = "enidnodes",
    shortname = "en",
    doc = "What a node has for its pods, as its daemon says. It bears the node's name.",
    status = "EnidNodeStatus",
    printcolumn = r#"{"name": "Ready", "type": "boolean", "jsonPath": ".status.ready"}"#,
    printcolumn = r#"{"name": "Phase", "type": "string", "jsonPath": ".status.phase"}"#,
    printcolumn = r#"{"name": "ENIs", "type": "integer", "jsonPath": ".status.enis"}"#,
    printcolumn = r#"{"name": "Assigned", "type": "integer", "jsonPath": ".status.assigned"}"#,
    printcolumn = r#"{"name": "Available", "type": "integer", "jsonPath": ".status.available"}"#,
    printcolumn = r#"{"name": "Cooling", "type": "integer", "jsonPath": ".status.cooling"}"#,
    printcolumn = r#"{"name": "Cause", "type": "string", "jsonPath": ".status.cause"}"#,
    printcolumn = r#"{"name": "Subnets", "type": "string", "priority": 1, "jsonPath": ".status.subnets[*].id"}"#,
    printcolumn = r#"{"name": "Free in them", "type": "string", "priority": 1, "jsonPath": ".status.subnets[*].free"}"#,
    printcolumn = r#"{"name": "Version", "type": "string", "jsonPath": ".status.version"}"#
)]
pub struct EnidNodeSpec {}

/// Whose the node is, where it changes hands between Amazon's VPC CNI and Enid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// Amazon's daemon serves it: this one waits until that has gone.
    Waiting,
    /// Its pods are ours, and what Amazon's VPC CNI has left is being removed.
    TakingOver,
    /// It is ours.
    #[default]
    Serving,
    /// It is given back to Amazon's VPC CNI: this daemon waits.
    GivenBack,
}

/// What the daemon says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EnidNodeStatus {
    /// Whether pods can be started on the node, as the runtime is told (STATUS of the CNI).
    ready: bool,
    /// Whose the node is: Waiting, TakingOver, Serving or GivenBack.
    #[serde(default)]
    phase: Phase,
    /// Why new pods get no address, or pods may have no network: a word of the closed list.
    cause: Option<String>,
    /// The same in a sentence.
    message: Option<String>,
    /// ENIs that are attached.
    enis: u32,
    /// ENIs that may be; 0 if that is not known.
    max_enis: u32,
    /// Addresses that pods hold.
    assigned: u64,
    /// Addresses that can be assigned at once.
    available: u64,
    /// Addresses in their cooldown after use.
    cooling: u64,
    /// The subnets of the ENIs.
    subnets: Vec<SubnetStatus>,
    /// The EC2 instance.
    instance_id: String,
    /// The daemon's.
    version: String,
}

/// A subnet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SubnetStatus {
    /// Its id.
    id: String,
    /// ENIs of the node in it.
    enis: u32,
    /// Its free addresses, as EC2 has said last.
    free: Option<u64>,
}

/// Writes it until the task is dropped.
pub async fn tell(
    api: Api<EnidNode>,
    mut own: watch::Receiver<Option<Own>>,
    instance_id: String,
    handle: Handle,
    mut readiness: watch::Receiver<Readiness>,
    mut phase: watch::Receiver<Phase>,
    faults: watch::Sender<Faults>,
) {
    let (mut told, mut again, mut uid, mut collected) = (Told::default(), AGAIN, String::new(), None);
    let mut said = *phase.borrow();
    loop {
        let Ok(owner) = own.wait_for(Option::is_some).await.map(|own| own.clone()) else { return };
        let (Some(owner), Some(view)) = (owner, handle.view().await) else { return };
        if owner.uid != uid {
            // The node is another one, and its object was the other one's.
            (uid, told) = (owner.uid.clone(), Told::default());
            collected = Some(clock::now().plus(COLLECTED_MS));
        }
        let now = clock::now();
        if collected.take_if(|at| *at <= now).is_some() {
            told = Told::default();
        }
        let phase_now = *phase.borrow_and_update();
        if std::mem::replace(&mut said, phase_now) != phase_now {
            told = Told::default();
        }
        let status = EnidNodeStatus { phase: phase_now, ..status(&view, &readiness.borrow_and_update(), &instance_id) };
        let mut pause = LOOK;
        if told.due(now, &status).is_some_and(|due| due <= now) {
            let written = write(&api, &owner.name, &owner.uid, &status).await;
            (pause, again) = match &written {
                // What is refused is asked for less and less; an API server that is away, at the next look.
                Err(kube::Error::Api(_)) => (again, (again * 2).min(LONGEST)),
                _ => (LOOK, AGAIN),
            };
            told.tell(now, written.is_ok().then_some(status));
            note(&faults, "enidnodes", written.err().map(|failure| words(&failure)));
        }
        tokio::select! {
            () = sleep(pause) => {}
            Ok(()) = phase.changed() => {}
        }
    }
}

fn status(view: &View, readiness: &Readiness, instance_id: &str) -> EnidNodeStatus {
    let summary = view.summary();
    let cause = readiness.causes().map(|(_, refusal)| refusal).next();
    let subnets = summary.subnets.iter().map(|(id, subnet)| SubnetStatus {
        id: id.to_string(),
        enis: subnet.enis,
        free: subnet.free,
    });
    EnidNodeStatus {
        phase: Phase::Serving,
        ready: readiness.is_ready(),
        cause: cause.map(|refusal| refusal.cause.to_string()),
        message: cause.map(|refusal| refusal.message.clone()),
        enis: summary.enis.0,
        max_enis: summary.enis.1,
        assigned: summary.assigned,
        available: summary.available,
        cooling: summary.cooling,
        subnets: subnets.collect(),
        instance_id: instance_id.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// Writes once that a daemon which serves no pods waits, and why.
///
/// # Errors
///
/// The API server refuses, cannot be reached, or does not know the node.
pub async fn say(client: Client, node: &str, phase: Phase, message: &str) -> anyhow::Result<()> {
    let fields = ListParams::default().fields(&format!("metadata.name={node}"));
    let nodes = Api::<Node>::all(client.clone()).list_metadata(&fields).await.context("cannot read the node")?;
    let uid = nodes.items.into_iter().next().and_then(|node| node.metadata.uid);
    let uid = uid.with_context(|| format!("there is no node {node}"))?;
    // What the node has is left as it was said last: an object that is made now has none of it.
    let status = json!({ "phase": phase, "ready": false, "cause": null, "message": message });
    write(&Api::all(client), node, &uid, &status).await.context("cannot write the node's status object")
}

/// One request, unless the object is not there yet.
async fn write(api: &Api<EnidNode>, node: &str, uid: &str, status: &impl Serialize) -> Result<(), kube::Error> {
    let patch = Patch::Merge(json!({ "status": status }));
    let patched = api.patch_status(node, &PatchParams::default(), &patch).await;
    match patched {
        Err(kube::Error::Api(refused)) if refused.is_not_found() => {
            match api.create(&PostParams::default(), &new(node, uid)).await {
                Err(kube::Error::Api(refused)) if refused.is_already_exists() => {}
                created => drop(created?),
            }
            api.patch_status(node, &PatchParams::default(), &patch).await.map(drop)
        }
        patched => patched.map(drop),
    }
}

/// It goes with the node (garbage collection by owner references).
fn new(node: &str, uid: &str) -> EnidNode {
    let mut object = EnidNode::new(node, EnidNodeSpec {});
    object.metadata.owner_references = Some(vec![OwnerReference {
        api_version: Node::api_version(&()).into_owned(),
        kind: Node::kind(&()).into_owned(),
        name: node.to_owned(),
        uid: uid.to_owned(),
        ..OwnerReference::default()
    }]);
    object
}

#[cfg(test)]
pub mod tests {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
    use kube::CustomResourceExt;

    use super::*;

    /// A file of the chart is the definition's text. ENID_WRITE_DOCS=1 writes it.
    pub fn is_definition(definition: CustomResourceDefinition, file: &str) {
        let mut definition = serde_json::to_value(definition).unwrap();
        definition.as_object_mut().unwrap().remove("status");
        let text = serde_saphyr::to_string(&definition).unwrap();
        let path = format!("{}/../charts/enid/crds/{file}", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("ENID_WRITE_DOCS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn the_chart_has_its_definition() {
        is_definition(EnidNode::crd(), "enidnodes.yaml");
    }
}
