//! What the node's own object says: whether it takes new pods, how many fit on it, and which ENIConfig is its own.

use std::collections::BTreeMap;

use enid_ipamd::Event as Told;
use k8s_openapi::api::core::v1::{Node, Taint};
use kube::runtime::watcher::Event;
use tokio::sync::watch;

use super::follow::{Follow, Sink};
use crate::{core::handle::Handle, settings::EniConfigNames};

/// The node's object, to those who write about it or follow what it names.
#[derive(Clone, Debug, PartialEq)]
pub struct Own {
    /// Its name.
    pub name: String,
    /// It is another one when the node comes back under its name.
    pub uid: String,
    /// Its ENIConfig.
    pub eni_config: EniConfigName,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Pods that it takes at most.
    pub max_pods: Option<u32>,
    /// What it says of its pods' addresses.
    pub condition: Option<Condition>,
    /// The extended resource, as published.
    pub addresses: Option<String>,
    /// Its taints.
    pub taints: Vec<Taint>,
    /// The version that they were read in.
    pub resource_version: String,
}

/// The condition's type.
pub const CONDITION: &str = "PodAddresses";
/// The extended resource (ENID_PUBLISH_ADDRESSES).
pub const RESOURCE: &str = "enid.dev/addresses";

/// A condition as it is on the node, without its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Whether pods get addresses and have their network.
    pub is_true: bool,
    /// One word.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

impl Condition {
    /// That of a node's object, if it is there.
    pub fn of(node: &Node) -> Option<Self> {
        let conditions = node.status.as_ref()?.conditions.as_ref()?;
        let own = conditions.iter().find(|condition| condition.type_ == CONDITION)?;
        Some(Condition {
            is_true: own.status == "True",
            reason: own.reason.clone().unwrap_or_default(),
            message: own.message.clone().unwrap_or_default(),
        })
    }

    /// Whether the other one says the same, in whatever words: those may change from minute to minute.
    pub fn says(&self, other: &Condition) -> bool {
        (self.is_true, &self.reason) == (other.is_true, &other.reason)
    }
}

/// What is read of it.
#[derive(Clone, Debug, Default, PartialEq)]
struct Seen {
    /// It takes no new pods.
    cordoned: bool,
    /// What others are told of it.
    own: Option<Own>,
}

/// The label that comes before what the settings name: cluster administrators set it.
const EXTERNAL: &str = "vpc.amazonaws.com/externalEniConfig";
/// The ENIConfig of nodes that name none.
const DEFAULT: &str = "default";

/// Which ENIConfig a node has, and what says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EniConfigName {
    /// Its name.
    pub name: String,
    /// As in "which the node's label x names".
    pub named_by: String,
}

impl EniConfigName {
    fn of(node: &Node, names: &EniConfigNames) -> Self {
        let (labels, annotations) = (node.metadata.labels.as_ref(), node.metadata.annotations.as_ref());
        let value =
            |map: Option<&BTreeMap<String, String>>, key: &str| map?.get(key).filter(|it| !it.is_empty()).cloned();
        let places = [
            ("label", EXTERNAL, value(labels, EXTERNAL)),
            ("annotation", &names.annotation, value(annotations, &names.annotation)),
            ("label", &names.label, value(labels, &names.label)),
        ];
        let found = places.into_iter().find_map(|(kind, key, name)| {
            Some(EniConfigName { name: name?, named_by: format!("which the node's {kind} {key} names") })
        });
        found.unwrap_or_else(|| {
            let (annotation, label) = (&names.annotation, &names.label);
            let named_by = format!("which nodes have without the annotation {annotation} and the label {label}");
            EniConfigName { name: DEFAULT.to_owned(), named_by }
        })
    }
}

fn read(node: &Node, names: &EniConfigNames) -> Seen {
    let capacity = node.status.as_ref().and_then(|status| status.capacity.as_ref());
    let pods = node.status.as_ref().and_then(|status| status.allocatable.as_ref()?.get("pods"));
    Seen {
        cordoned: node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or_default(),
        own: Some(Own {
            name: node.metadata.name.clone().unwrap_or_default(),
            uid: node.metadata.uid.clone().unwrap_or_default(),
            eni_config: EniConfigName::of(node, names),
            condition: Condition::of(node),
            addresses: capacity.and_then(|capacity| capacity.get(RESOURCE)).map(|count| count.0.clone()),
            labels: node.metadata.labels.clone().unwrap_or_default(),
            max_pods: pods.and_then(|pods| pods.0.parse().ok()),
            taints: node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default(),
            resource_version: node.metadata.resource_version.clone().unwrap_or_default(),
        }),
    }
}

/// Tells the core whether the node takes pods, and others what else its object says.
pub async fn tell(own: Follow<Node>, handle: Handle, names: EniConfigNames, known: watch::Sender<Option<Own>>) {
    own.into(Teller { handle, names, known, now: Seen::default(), told: Seen::default() }).await;
}

struct Teller {
    handle: Handle,
    names: EniConfigNames,
    known: watch::Sender<Option<Own>>,
    now: Seen,
    told: Seen,
}

impl Sink<Node> for Teller {
    fn take(&mut self, event: Event<Node>) {
        if let Event::Apply(node) | Event::InitApply(node) = event {
            self.now = read(&node, &self.names);
        }
    }

    async fn tell(&mut self) {
        let told = std::mem::replace(&mut self.told, self.now.clone());
        self.known.send_if_modified(|own| std::mem::replace(own, self.now.own.clone()) != *own);
        if told.cordoned != self.now.cordoned {
            self.handle.tell(Told::Cordoned { cordoned: self.now.cordoned }).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Seen {
        let key = || "k8s.amazonaws.com/eniConfig".to_owned();
        read(&serde_json::from_str(text).unwrap(), &EniConfigNames { annotation: key(), label: key() })
    }

    #[test]
    fn what_a_node_says() {
        let seen = |text: &str| Seen { own: None, ..of(text) };
        assert_eq!(seen("{}"), Seen::default());
        let full = r#"{ "spec": { "unschedulable": true }, "status": { "allocatable": { "pods": "58" } } }"#;
        assert_eq!(seen(full), Seen { cordoned: true, own: None });
        assert_eq!(of(full).own.unwrap().max_pods, Some(58));
        assert_eq!(of(r#"{ "status": { "allocatable": { "pods": "many" } } }"#).own.unwrap().max_pods, None);
    }

    /// The peer's order.
    #[test]
    fn which_eniconfig_a_node_has() {
        let external = r#""vpc.amazonaws.com/externalEniConfig": "external""#;
        let name = |labels: &str, annotations: &str| {
            let text = format!(r#"{{ "metadata": {{ "labels": {{{labels}}}, "annotations": {{{annotations}}} }} }}"#);
            of(&text).own.unwrap().eni_config
        };
        let (label, annotation) =
            (r#""k8s.amazonaws.com/eniConfig": "label""#, r#""k8s.amazonaws.com/eniConfig": "annotation""#);
        assert_eq!(name(&format!("{label}, {external}"), annotation).name, "external");
        assert_eq!(name(label, annotation).name, "annotation");
        let by_label = name(label, r#""k8s.amazonaws.com/eniConfig": """#);
        assert_eq!(
            (by_label.name.as_str(), by_label.named_by.contains("label k8s.amazonaws.com/eniConfig")),
            ("label", true)
        );
        assert_eq!(name("", "").name, "default");
    }
}
