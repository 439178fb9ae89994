//! ANNOTATE_POD_IP: a pod's address as an annotation of the pod, which network policy engines see before the kubelet has
//! written the pod's status. As Amazon's VPC CNI has it: set with ADD, emptied with DEL.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use enid_ipamd::PodRef;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};

use super::{
    follow::{Faults, note, words},
    pods::Uids,
};

/// What waits to be written; more is dropped, as by a daemon that has ended.
const WAITING: usize = 1024;
/// While the API server is away it is tried this often.
const AGAIN: Duration = Duration::from_secs(5);
/// HTTP's 422.
const UNPROCESSABLE: u16 = 422;
/// HTTP's 429.
const TOO_MANY_REQUESTS: u16 = 429;
const KEY: &str = "vpc.amazonaws.com/pod-ips";

enum Change {
    Has(PodRef, IpAddr),
    Had(PodRef, IpAddr),
}

/// A way to annotate pods; nobody waits for it.
#[derive(Clone)]
pub struct Annotations(Option<mpsc::Sender<Change>>);

/// What is written by it.
pub struct Annotated(mpsc::Receiver<Change>);

/// Both ends; without `wanted` nothing is annotated.
pub fn channel(wanted: bool) -> (Annotations, Annotated) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Annotations(wanted.then_some(sender)), Annotated(receiver))
}

impl Annotations {
    /// Whether pods are annotated.
    pub fn are_wanted(&self) -> bool {
        self.0.is_some()
    }

    /// A pod has this address.
    pub fn has(&self, pod: Option<&PodRef>, address: IpAddr) {
        self.send(pod, |pod| Change::Has(pod, address));
    }

    /// A pod has it no more.
    pub fn had(&self, pod: Option<&PodRef>, address: IpAddr) {
        self.send(pod, |pod| Change::Had(pod, address));
    }

    fn send(&self, pod: Option<&PodRef>, change: impl Fn(PodRef) -> Change) {
        if let (Some(sender), Some(pod)) = (&self.0, pod) {
            let _ = sender.try_send(change(pod.clone()));
        }
    }
}

/// Writes all of it until the task is dropped. `uids`: of the node's pods.
pub async fn keep(
    client: Client,
    mut annotated: Annotated,
    uids: watch::Receiver<Uids>,
    faults: watch::Sender<Faults>,
) {
    let mut last = Last::default();
    while let Some(change) = annotated.0.recv().await {
        let (pod, uid) = match &change {
            Change::Has(pod, _) => (pod.clone(), uids.borrow().get(pod).cloned()),
            Change::Had(pod, _) => (pod.clone(), last.uid(pod)),
        };
        let Some(value) = last.take(change, uid.clone()) else { continue };
        let mut patch = json!({ "metadata": { "annotations": { KEY: value } } });
        if let Some(uid) = uid {
            // Another pod of the name is left alone.
            patch["metadata"]["uid"] = json!(uid);
        }
        let api = Api::<Pod>::namespaced(client.clone(), &pod.namespace);
        loop {
            let written = api.patch(&pod.name, &PatchParams::default(), &Patch::Merge(&patch)).await;
            let fault = written.err().filter(|failure| !is_gone(failure));
            note(&faults, "annotations", fault.as_ref().map(|failure| words(failure)));
            match fault {
                // The API server is away, or has too much to do; what is next waits.
                Some(failure) if !is_refusal(&failure) => sleep(AGAIN).await,
                _ => break,
            }
        }
    }
    std::future::pending().await
}

/// The pod has gone, or another one has its name: its uid cannot be changed (422).
fn is_gone(failure: &kube::Error) -> bool {
    matches!(failure, kube::Error::Api(refused)
        if refused.is_not_found() || refused.is_conflict() || refused.code == UNPROCESSABLE)
}

/// It will be refused again.
fn is_refusal(failure: &kube::Error) -> bool {
    matches!(failure, kube::Error::Api(refused) if refused.code < 500 && refused.code != TOO_MANY_REQUESTS)
}

/// What each pod was given last, and its uid: a DEL may come after the ADD of the pod's next sandbox.
#[derive(Default)]
struct Last(BTreeMap<PodRef, (IpAddr, Option<String>)>);

impl Last {
    fn uid(&self, pod: &PodRef) -> Option<String> {
        self.0.get(pod)?.1.clone()
    }

    /// What is to be written. Nothing for a pod of an earlier run of the daemon: another node may have one of its name by now.
    fn take(&mut self, change: Change, uid: Option<String>) -> Option<String> {
        match change {
            Change::Has(pod, address) => {
                self.0.insert(pod, (address, uid));
                Some(address.to_string())
            }
            Change::Had(pod, address) => {
                if self.0.get(&pod).is_none_or(|(last, _)| *last != address) {
                    return None;
                }
                self.0.remove(&pod);
                Some(String::new())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_del_leaves_the_next_sandbox_alone() {
        let pod = || PodRef { namespace: "default".into(), name: "web-0".into() };
        let [first, second] = ["10.0.1.7", "10.0.1.8"].map(|address| address.parse::<IpAddr>().unwrap());
        let mut last = Last::default();
        let mut value = |change| last.take(change, None);
        assert_eq!(value(Change::Has(pod(), first)).unwrap(), "10.0.1.7");
        assert_eq!(value(Change::Has(pod(), second)).unwrap(), "10.0.1.8");
        assert_eq!(value(Change::Had(pod(), first)), None);
        assert_eq!(value(Change::Had(pod(), second)).unwrap(), "");
        assert_eq!(value(Change::Had(pod(), first)), None, "of an earlier run of the daemon");
    }
}
