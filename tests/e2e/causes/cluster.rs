//! What a cluster is told of a fault: the event of the pod that gets no address, the event of the node, and the node's status object.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use enid_tests::{
    Place, Pod,
    api_server::{ApiServer, Door},
    wait_until,
};
use serde_json::Value;

use crate::fault::Fault;

/// A status object is written once a minute at most.
const BOUND: Duration = Duration::from_secs(100);

/// A node of a cluster without anything but an API server.
pub struct Told {
    api: Arc<ApiServer>,
    door: Door,
    node: String,
}

impl Told {
    /// The node of a lab, under this name.
    pub fn new(api: &Arc<ApiServer>, place: Place<'_>, node: &str) -> anyhow::Result<Self> {
        api.create_node(node)?;
        Ok(Told { api: api.clone(), door: api.door(place)?, node: node.to_owned() })
    }

    /// What the daemon is told of it.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        vec![("KUBECONFIG", self.api.kubeconfig_of_nodes()), ("MY_NODE_NAME", self.node.clone())]
    }

    /// The API server goes, for this node; or is back.
    pub fn cut_off(&self, is_cut_off: bool) {
        if is_cut_off { self.door.shut() } else { self.door.open() }
    }

    /// The scheduler binds a pod to the node.
    pub fn bind(&self, pod: &Pod) -> anyhow::Result<()> {
        self.api.create_pod(&pod.name, &self.node)
    }

    /// Each has the fault's cause, and no other.
    pub fn is_told(&self, place: Place<'_>, fault: &Fault, refused: Option<&Pod>) -> anyhow::Result<()> {
        if let (Some(cause), Some(pod)) = (fault.add, refused) {
            let mut last = Vec::new();
            let told = wait_until(BOUND, || {
                // The runtime asks again and again.
                let _ = pod.try_call(place, "ADD");
                last = self.reasons("Pod", &pod.name);
                !last.is_empty()
            });
            told.with_context(|| format!("nothing is told of {}", pod.name))?;
            // Until it has shown itself an address may only be on its way.
            last.retain(|reason| reason != "StillGrowing");
            let others: Vec<&String> = last.iter().filter(|it| **it != reason(cause)).collect();
            ensure!(others.is_empty(), "{others:?} is told of {}, and not only {cause}", pod.name);
            if last.is_empty() {
                let told = wait_until(BOUND, || {
                    let _ = pod.try_call(place, "ADD");
                    self.reasons("Pod", &pod.name).contains(&reason(cause))
                });
                told.with_context(|| format!("{cause} is not told of {}", pod.name))?;
            }
        }
        if fault.is_told {
            let mut last = Value::Null;
            let told = wait_until(BOUND, || {
                last = self.api.get("enidnode", &self.node).map_or(Value::Null, |object| object["status"].clone());
                last["cause"].as_str().is_some_and(|cause| cause == fault.cause() || fault.beside.contains(&cause))
            });
            told.with_context(|| format!("the status object has {last}"))?;
            // What ends by itself is no event of the node while it is only why new pods wait.
            let ends =
                ["cooldown", "throttled", "no_credentials", "ec2_unreachable", "starting"].contains(&fault.cause());
            let is_of_node = || self.reasons("Node", &self.node).contains(&reason(fault.cause()));
            let told = if ends { Ok(()) } else { wait_until(BOUND, is_of_node) };
            let reasons = self.reasons("Node", &self.node);
            told.with_context(|| format!("{reasons:?} is told of the node"))?;
            let may_be: Vec<String> =
                fault.beside.iter().chain([&fault.cause(), &fault.finding]).map(|it| reason(it)).collect();
            let others: Vec<&String> = reasons.iter().filter(|reason| !may_be.contains(reason)).collect();
            ensure!(others.is_empty(), "{others:?} is told of the node, too");
        }
        Ok(())
    }

    fn reasons(&self, kind: &str, name: &str) -> Vec<String> {
        let events = self.api.events_of(kind, name).unwrap_or_default();
        let mut reasons: Vec<String> =
            events.iter().filter_map(|it| it["reason"].as_str().map(str::to_owned)).collect();
        reasons.sort();
        reasons.dedup();
        reasons
    }
}

/// As events name a cause.
fn reason(cause: &str) -> String {
    if cause == "denied" {
        return "MissingIAMPermissions".to_owned();
    }
    let word = |word: &str| word[..1].to_uppercase() + &word[1..];
    cause.split('_').map(word).collect()
}
