//! Pods that the scheduler has bound to this node and that need an address: the core fetches it before the runtime asks.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use enid_ipamd::{Event as Told, PodRef};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::Event;
use tokio::sync::watch;

use super::follow::{Follow, Sink};
use crate::{
    core::handle::Handle,
    record::{Kind, Record},
};

/// Pods with a network of their own, with their uids: also those that show an address, since a sandbox may be made anew.
pub type Uids = BTreeMap<PodRef, String>;

/// Tells the core which pods are on their way, and others what their uids are.
pub async fn tell(bound: Follow<Pod>, handle: Handle, record: Arc<Record>, uids: watch::Sender<Uids>) {
    bound.into(Teller { handle, record, bound: Bound::default(), told: BTreeSet::new(), uids }).await;
}

/// The pods with a network of their own.
#[derive(Default)]
struct Bound {
    pods: Pods,
    /// They are being listed anew.
    listed: Option<Pods>,
}

/// Uids, and whether an address is shown.
type Pods = BTreeMap<PodRef, (String, bool)>;

impl Bound {
    fn take(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => self.listed = Some(Pods::new()),
            Event::InitApply(pod) => {
                if will_ask(&pod)
                    && let Some(listed) = &mut self.listed
                {
                    listed.extend([entry(pod)]);
                }
            }
            Event::InitDone => self.pods = self.listed.take().unwrap_or_default(),
            Event::Apply(pod) if will_ask(&pod) => self.pods.extend([entry(pod)]),
            Event::Apply(pod) | Event::Delete(pod) => drop(self.pods.remove(&entry(pod).0)),
        }
    }

    /// Those that will ask for an address that they do not show yet.
    fn on_their_way(&self) -> BTreeSet<PodRef> {
        self.pods.iter().filter(|(_, (_, has_address))| !has_address).map(|(pod, _)| pod.clone()).collect()
    }

    fn uids(&self) -> Uids {
        self.pods.iter().map(|(pod, (uid, _))| (pod.clone(), uid.clone())).collect()
    }
}

/// Whether it may ask for an address. One that is being deleted asks no more; one on the host's network never does.
fn will_ask(pod: &Pod) -> bool {
    let on_host = pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or_default();
    !on_host && pod.metadata.deletion_timestamp.is_none()
}

fn entry(pod: Pod) -> (PodRef, (String, bool)) {
    let shown = pod.status.and_then(|status| status.pod_ip).unwrap_or_default();
    let (namespace, name, uid) = (pod.metadata.namespace, pod.metadata.name, pod.metadata.uid);
    let reference = PodRef { namespace: namespace.unwrap_or_default(), name: name.unwrap_or_default() };
    (reference, (uid.unwrap_or_default(), !shown.is_empty()))
}

struct Teller {
    handle: Handle,
    record: Arc<Record>,
    bound: Bound,
    /// Those that the core was told of last.
    told: BTreeSet<PodRef>,
    uids: watch::Sender<Uids>,
}

impl Sink<Pod> for Teller {
    fn take(&mut self, event: Event<Pod>) {
        self.bound.take(event);
    }

    async fn tell(&mut self) {
        self.uids.send_replace(self.bound.uids());
        let pods = self.bound.on_their_way();
        if pods != self.told {
            for new in pods.difference(&self.told) {
                self.record.note(Kind::Bound, Some(new), "the scheduler has bound the pod to this node");
            }
            self.told.clone_from(&pods);
            self.handle.tell(Told::Bound { pods }).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, more: Value) -> Pod {
        let mut pod = json!({ "metadata": { "name": name, "namespace": "default" } });
        for (key, value) in more.as_object().unwrap() {
            pod[key] = value.clone();
        }
        if let Some(ended) = pod.get("deleted").cloned() {
            pod["metadata"]["deletionTimestamp"] = ended;
        }
        serde_json::from_value(pod).unwrap()
    }

    fn names(bound: &Bound) -> Vec<String> {
        bound.on_their_way().into_iter().map(|pod| pod.name).collect()
    }

    #[test]
    fn those_that_will_ask_are_on_their_way() {
        let mut bound = Bound::default();
        let apply = |bound: &mut Bound, name: &str, more: Value| bound.take(Event::Apply(pod(name, more)));
        apply(&mut bound, "new", json!({}));
        apply(&mut bound, "host", json!({ "spec": { "hostNetwork": true, "containers": [] } }));
        apply(&mut bound, "runs", json!({ "status": { "podIP": "10.0.1.7" } }));
        apply(&mut bound, "goes", json!({ "deleted": "2026-01-01T00:00:00Z" }));
        assert_eq!(names(&bound), ["new"]);
        apply(&mut bound, "new", json!({ "status": { "podIP": "10.0.1.8" } }));
        assert_eq!(names(&bound), [""; 0]);
        // The kind: a pod whose sandbox is made anew, and finds no address, has no event, since it still shows the old one.
        let known: Vec<String> = bound.uids().into_keys().map(|pod| pod.name).collect();
        assert_eq!(known, ["new", "runs"]);
    }

    /// The kind: a list that is read again is taken for whole before it is.
    #[test]
    fn a_new_list_replaces_the_old_one_when_it_is_complete() {
        let mut bound = Bound::default();
        bound.take(Event::Apply(pod("old", json!({}))));
        bound.take(Event::Init);
        bound.take(Event::InitApply(pod("listed", json!({}))));
        assert_eq!(names(&bound), ["old"]);
        bound.take(Event::InitDone);
        assert_eq!(names(&bound), ["listed"]);
        bound.take(Event::Delete(pod("listed", json!({}))));
        assert_eq!(names(&bound), [""; 0]);
    }
}
