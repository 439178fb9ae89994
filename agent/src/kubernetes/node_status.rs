//! What the node's own status says of addresses: a condition, for whoever looks at nodes, and, where it is wanted, an extended
//! resource, for the scheduler.

use std::time::Duration;

use enid_ipamd::{Capacity, Cause, Counts};
use k8s_openapi::{api::core::v1::Node, jiff::Timestamp};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    events::{Reports, of_node, reason},
    follow::{Faults, note, words},
    node::{CONDITION, Condition, Own, RESOURCE},
};
use crate::core::{handle::Handle, readiness::Readiness};

/// The state is looked at this often.
const LOOK: Duration = Duration::from_secs(5);
/// It is written at most this often.
const PACE: Duration = Duration::from_secs(60);
/// What the API server refuses is tried again after so long; while it is away, at the next look.
const AGAIN: Duration = Duration::from_secs(30);
/// Pods on the host's network that a node has: this daemon and kube-proxy, as in Amazon's formula for max-pods.
pub const ON_HOST: u64 = 2;
const MISMATCH: &str = "MaxPodsMismatch";

/// What it is to say.
fn wanted(readiness: &Readiness, max_pods: Option<u32>, capacity: u64) -> Condition {
    if let Some(refusal) = of_node(readiness).into_iter().next() {
        return Condition { is_true: false, reason: reason(refusal.cause), message: refusal.message };
    }
    if let Some(message) = mismatch(max_pods, capacity) {
        return Condition { is_true: false, reason: MISMATCH.to_owned(), message };
    }
    let message = "pods get addresses, and have their network".to_owned();
    Condition { is_true: true, reason: "AddressesAvailable".to_owned(), message }
}

/// Pods for which the node can have no address, in a sentence.
pub fn mismatch(max_pods: Option<u32>, capacity: u64) -> Option<String> {
    let max_pods = u64::from(max_pods?);
    (capacity > 0 && max_pods > capacity + ON_HOST).then(|| {
        let fit = capacity + ON_HOST;
        format!(
            "the kubelet takes {max_pods} pods, and this node can have addresses for {capacity}: set its max-pods to {fit} \
             at most, or ENABLE_PREFIX_DELEGATION"
        )
    })
}

/// Addresses that the node's pods can have: those that it has, and what it can still get unless something stands in the way.
fn addresses(counts: &Counts, capacity: &Capacity, readiness: &Readiness) -> u64 {
    let lasts = readiness.obstacle.as_ref().is_some_and(|obstacle| !obstacle.cause.is_temporary());
    if lasts { counts.total } else { capacity.for_pods.max(counts.total) }
}

/// Writes them until the task is dropped. `publishes`: the resource too.
pub async fn tell(
    api: Api<Node>,
    mut own: watch::Receiver<Option<Own>>,
    handle: Handle,
    readiness: watch::Receiver<Readiness>,
    reports: Reports,
    publishes: bool,
    faults: watch::Sender<Faults>,
) {
    let (mut next, mut told) = (Instant::now(), None);
    loop {
        let Ok(node) = own.wait_for(Option::is_some).await.map(|own| own.clone()) else { return };
        let (Some(node), Some(view)) = (node, handle.view().await) else { return };
        let seen = readiness.borrow().clone();
        let condition = wanted(&seen, node.max_pods, view.capacity.for_pods);
        let count = publishes.then(|| addresses(&view.counts, &view.capacity, &seen).to_string());
        // The condition says it for as long as it lasts, and thousands of nodes may have it.
        let is_mismatch = condition.reason == MISMATCH;
        if is_mismatch && told.as_ref() != Some(&condition.message) {
            reports.of_node(MISMATCH, &condition.message);
            told = Some(condition.message.clone());
        }
        let is_said = node.condition.as_ref().is_some_and(|now| now.says(&condition));
        // Nothing is known yet.
        let is_starting = seen.obstacle.as_ref().is_some_and(|obstacle| obstacle.cause == Cause::Starting);
        // One that was published before goes, too.
        let is_news = !is_said || node.addresses != count;
        if is_news && !is_starting && Instant::now() >= next {
            let written = write(&api, &node.name, &condition, is_said, count).await;
            next = Instant::now()
                + match &written {
                    Ok(()) => PACE,
                    Err(kube::Error::Api(_)) => AGAIN,
                    Err(_) => LOOK,
                };
            note(&faults, "nodes/status", written.err().map(|failure| words(&failure)));
        }
        if !is_news {
            note(&faults, "nodes/status", None);
        }
        sleep(LOOK).await;
    }
}

async fn write(
    api: &Api<Node>,
    node: &str,
    condition: &Condition,
    is_said: bool,
    count: Option<String>,
) -> Result<(), kube::Error> {
    let mut status = json!({});
    if !is_said {
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        // Lists of conditions are merged by their type.
        status["conditions"] = json!([{
            "type": CONDITION,
            "status": if condition.is_true { "True" } else { "False" },
            "reason": condition.reason,
            "message": condition.message,
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }]);
    }
    status["capacity"] = json!({ RESOURCE: count });
    let patch = Patch::Strategic(json!({ "status": status }));
    api.patch_status(node, &PatchParams::default(), &patch).await.map(drop)
}

#[cfg(test)]
mod tests {
    use enid_ipamd::Refusal;

    use super::*;

    #[test]
    fn the_condition_says_what_lasts_and_then_that_max_pods_is_too_large() {
        let of = |cause: Option<Cause>, max_pods| {
            let obstacle = cause.map(|cause| Refusal::new(cause, "words"));
            let condition = wanted(&Readiness { obstacle, ..Readiness::default() }, max_pods, 27);
            (condition.is_true, condition.reason)
        };
        assert_eq!(of(None, None), (true, "AddressesAvailable".to_owned()));
        assert!(of(None, Some(29)).0);
        assert_eq!(of(None, Some(30)), (false, MISMATCH.to_owned()));
        assert_eq!(of(Some(Cause::Denied), Some(30)), (false, "MissingIAMPermissions".to_owned()));
        assert!(of(Some(Cause::StillGrowing), None).0, "it ends by itself");
        let words = mismatch(Some(110), 27).unwrap();
        assert!(words.contains("takes 110 pods") && words.contains("to 29 at most"), "{words}");
        assert_eq!(mismatch(Some(110), 0), None, "what the type carries is not known");
    }

    #[test]
    fn what_a_node_can_still_get_counts_while_nothing_stands_in_the_way() {
        let counts = Counts { total: 9, ..Counts::default() };
        let capacity = Capacity { for_pods: 27, ..Capacity::default() };
        let refusal = Some(Refusal::new(Cause::SubnetFull, "words"));
        assert_eq!(addresses(&counts, &capacity, &Readiness::default()), 27);
        assert_eq!(addresses(&counts, &capacity, &Readiness { obstacle: refusal, ..Readiness::default() }), 9);
    }
}
