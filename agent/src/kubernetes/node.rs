//! What the node's own object says: whether it takes new pods, and how many fit on it.

use enid_ipamd::{Event as Told, Policy};
use k8s_openapi::api::core::v1::Node;
use kube::runtime::watcher::Event;

use super::follow::{Follow, Sink};
use crate::core::handle::Handle;

/// What is read of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    /// It takes no new pods.
    cordoned: bool,
    /// Pods that it takes at most.
    max_pods: Option<u32>,
}

fn read(node: &Node) -> Seen {
    let pods = node.status.as_ref().and_then(|status| status.allocatable.as_ref()?.get("pods"));
    Seen {
        cordoned: node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or_default(),
        max_pods: pods.and_then(|pods| pods.0.parse().ok()),
    }
}

/// Tells the core what the node's object says. `policy`: the settings', whose MAX_PODS comes first.
pub async fn tell(own: Follow<Node>, handle: Handle, policy: Policy) {
    own.into(Teller { handle, policy, now: Seen::default(), told: Seen::default() }).await;
}

struct Teller {
    handle: Handle,
    policy: Policy,
    now: Seen,
    told: Seen,
}

impl Sink<Node> for Teller {
    fn take(&mut self, event: Event<Node>) {
        if let Event::Apply(node) | Event::InitApply(node) = event {
            self.now = read(&node);
        }
    }

    async fn tell(&mut self) {
        let told = std::mem::replace(&mut self.told, self.now);
        if told.cordoned != self.now.cordoned {
            self.handle.tell(Told::Cordoned { cordoned: self.now.cordoned }).await;
        }
        if told.max_pods != self.now.max_pods && self.policy.max_pods.is_none() {
            let policy = Policy { max_pods: self.now.max_pods, ..self.policy.clone() };
            self.handle.tell(Told::Settings { policy }).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_says() {
        let of = |text: &str| read(&serde_json::from_str(text).unwrap());
        assert_eq!(of("{}"), Seen::default());
        let full = r#"{ "spec": { "unschedulable": true }, "status": { "allocatable": { "pods": "58" } } }"#;
        assert_eq!(of(full), Seen { cordoned: true, max_pods: Some(58) });
        assert_eq!(of(r#"{ "status": { "allocatable": { "pods": "many" } } }"#).max_pods, None);
    }
}
