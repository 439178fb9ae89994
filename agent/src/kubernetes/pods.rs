//! Pods that the scheduler has bound to this node and that need an address: the core fetches it before the runtime asks.

use std::collections::BTreeMap;

use enid_ipamd::{Event as Told, PodRef};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::Event;
use tokio::sync::watch;

use super::follow::{Follow, Sink};
use crate::core::handle::Handle;

/// Pods that need an address and show none, with their uids.
pub type Uids = BTreeMap<PodRef, String>;

/// Tells the core which pods are on their way, and others what their uids are.
pub async fn tell(bound: Follow<Pod>, handle: Handle, uids: watch::Sender<Uids>) {
    bound.into(Teller { handle, bound: Bound::default(), uids }).await;
}

/// The pods that need an address and show none.
#[derive(Default)]
struct Bound {
    pods: Uids,
    /// They are being listed anew.
    listed: Option<Uids>,
}

impl Bound {
    fn take(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => self.listed = Some(Uids::new()),
            Event::InitApply(pod) => {
                if needs_address(&pod)
                    && let Some(listed) = &mut self.listed
                {
                    listed.extend([reference(pod)]);
                }
            }
            Event::InitDone => self.pods = self.listed.take().unwrap_or_default(),
            Event::Apply(pod) if needs_address(&pod) => self.pods.extend([reference(pod)]),
            Event::Apply(pod) | Event::Delete(pod) => drop(self.pods.remove(&reference(pod).0)),
        }
    }
}

/// Whether it will ask for an address that it does not show yet. One that is being deleted asks no more; one on the host's
/// network never does.
fn needs_address(pod: &Pod) -> bool {
    let on_host = pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or_default();
    let shown = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref()).unwrap_or_default();
    !on_host && shown.is_empty() && pod.metadata.deletion_timestamp.is_none()
}

fn reference(pod: Pod) -> (PodRef, String) {
    let (namespace, name, uid) = (pod.metadata.namespace, pod.metadata.name, pod.metadata.uid);
    let reference = PodRef { namespace: namespace.unwrap_or_default(), name: name.unwrap_or_default() };
    (reference, uid.unwrap_or_default())
}

struct Teller {
    handle: Handle,
    bound: Bound,
    uids: watch::Sender<Uids>,
}

impl Sink<Pod> for Teller {
    fn take(&mut self, event: Event<Pod>) {
        self.bound.take(event);
    }

    async fn tell(&mut self) {
        let is_news = self.uids.send_if_modified(|told| {
            let differs = *told != self.bound.pods;
            told.clone_from(&self.bound.pods);
            differs
        });
        if is_news {
            self.handle.tell(Told::Bound { pods: self.bound.pods.keys().cloned().collect() }).await;
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

    fn names(bound: &Bound) -> Vec<&str> {
        bound.pods.keys().map(|pod| pod.name.as_str()).collect()
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
