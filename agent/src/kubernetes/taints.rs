//! Taints of the node: one that keeps pods away until they can be served goes then, and one of our own says that the subnets
//! have no address for another pod. Both are off unless the settings name them.

use std::time::Duration;

use anyhow::Context;
use enid_ipamd::Cause;
use k8s_openapi::api::core::v1::{Node, Taint};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::{
    follow::{Faults, note, words},
    node::Own,
};
use crate::{core::readiness::Readiness, settings::Taints};

/// Addresses have to be wanted for so long before the node is tainted.
const WANTED: Duration = Duration::from_secs(60);
/// And they have to be there for so long before it is tainted no more.
const THERE: Duration = Duration::from_secs(10);
/// What could not be written is tried again after so long.
const AGAIN: Duration = Duration::from_secs(5);
/// What is refused, after so long.
const REFUSED: Duration = Duration::from_secs(30);
/// The cluster autoscaler leaves taints with this prefix out of what it takes new nodes to be like (its FAQ, "status taints").
const NO_ADDRESSES: &str = "status-taint.cluster-autoscaler.kubernetes.io/enid-no-addresses";
/// Never NoExecute: the pods that run have their addresses.
const EFFECT: &str = "NoSchedule";
/// So often a container that ends tries to take its taint away.
const TRIES: u32 = 3;

/// Keeps them as they are to be until the task is dropped.
pub async fn keep(
    api: Api<Node>,
    mut own: watch::Receiver<Option<Own>>,
    mut readiness: watch::Receiver<Readiness>,
    settings: Taints,
    faults: watch::Sender<Faults>,
) {
    if settings.startup.is_none() && !settings.no_addresses {
        return;
    }
    let (mut shortage, mut was_there) = (Shortage::default(), false);
    loop {
        let now = Instant::now();
        let known = own.borrow_and_update().clone();
        if let Some(own) = &known {
            let is_there = own.taints.iter().any(is_ours);
            if was_there && !is_there {
                // Somebody has taken it off, the container's end for one: it is not put back at once.
                shortage = Shortage::default();
            }
            was_there = is_there;
        }
        let (served, is_short) = {
            let seen = readiness.borrow_and_update();
            (seen.is_ready(), seen.obstacle.as_ref().is_some_and(|it| is_of_subnets(it.cause)))
        };
        let is_set = settings.no_addresses.then(|| shortage.look(now, is_short));
        let startup = settings.startup.as_deref().filter(|_| served);
        let mut again = shortage.next();
        if let Some(own) = known
            && let Some(taints) = wanted(&own.taints, startup, is_set)
        {
            let mut pause = AGAIN;
            match write(&api, &own.name, &own.resource_version, &taints).await {
                // Somebody else has written: the watch brings what is there now.
                Err(kube::Error::Api(refused)) if refused.is_conflict() => {}
                written => {
                    if matches!(&written, Err(kube::Error::Api(refused)) if refused.is_forbidden()) {
                        pause = REFUSED;
                    }
                    note(&faults, "taints", written.err().map(|failure| words(&failure)));
                }
            }
            again = Some(again.map_or(now + pause, |again| again.min(now + pause)));
        }
        tokio::select! {
            Ok(()) = own.changed() => {}
            Ok(()) = readiness.changed() => {}
            () = sleep_until(again.unwrap_or(now)), if again.is_some() => {}
            else => return,
        }
    }
}

/// Takes our taint off a node whose daemon ends: nobody would take it off once addresses are there.
///
/// # Errors
///
/// The API server refuses it, or cannot be reached.
pub async fn remove(client: Client, node: &str) -> anyhow::Result<()> {
    let api = Api::<Node>::all(client);
    for tried in 1..=TRIES {
        let found = api.list(&ListParams::default().fields(&format!("metadata.name={node}"))).await;
        let Some(found) = found.context("the API server does not show the node")?.items.pop() else { return Ok(()) };
        let taints = found.spec.and_then(|spec| spec.taints).unwrap_or_default();
        let Some(taints) = wanted(&taints, None, Some(false)) else { return Ok(()) };
        let version = found.metadata.resource_version.unwrap_or_default();
        match write(&api, node, &version, &taints).await {
            Err(kube::Error::Api(refused)) if refused.is_conflict() && tried < TRIES => {
                sleep(Duration::from_millis(100)).await;
            }
            written => return written.context("the API server does not take the node's taints"),
        }
    }
    Ok(())
}

/// Under the version that was read, so that what another controller writes at the same moment is kept.
async fn write(api: &Api<Node>, node: &str, version: &str, taints: &[Taint]) -> Result<(), kube::Error> {
    let patch = json!({ "metadata": { "resourceVersion": version }, "spec": { "taints": taints } });
    api.patch(node, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}

/// Causes that another node, in another subnet, may not have.
fn is_of_subnets(cause: Cause) -> bool {
    matches!(cause, Cause::SubnetFull | Cause::NoPrefix)
}

fn is_ours(taint: &Taint) -> bool {
    taint.key == NO_ADDRESSES && taint.effect == EFFECT
}

/// The list in which the startup taint is gone and ours is there or not; `None` if that is how it is.
fn wanted(taints: &[Taint], startup: Option<&str>, no_addresses: Option<bool>) -> Option<Vec<Taint>> {
    let stays =
        |taint: &&Taint| Some(taint.key.as_str()) != startup && !(no_addresses == Some(false) && is_ours(taint));
    let mut list: Vec<Taint> = taints.iter().filter(stays).cloned().collect();
    if no_addresses == Some(true) && !list.iter().any(is_ours) {
        list.push(Taint { key: NO_ADDRESSES.to_owned(), effect: EFFECT.to_owned(), ..Taint::default() });
    }
    (list != taints).then_some(list)
}

/// Whether subnets lack addresses, and for how long.
#[derive(Debug, Default)]
struct Shortage {
    since: Option<Instant>,
    over_since: Option<Instant>,
    is_set: bool,
}

impl Shortage {
    /// Whether the taint is to be there.
    fn look(&mut self, now: Instant, is_short: bool) -> bool {
        if is_short {
            self.over_since = None;
            self.is_set |= now - *self.since.get_or_insert(now) >= WANTED;
        } else {
            self.since = None;
            self.is_set &= now - *self.over_since.get_or_insert(now) < THERE;
        }
        self.is_set
    }

    /// When that may change by itself.
    fn next(&self) -> Option<Instant> {
        match (self.is_set, self.since, self.over_since) {
            (false, Some(since), _) => Some(since + WANTED),
            (true, _, Some(over)) => Some(over + THERE),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taint(key: &str) -> Taint {
        Taint { key: key.to_owned(), effect: EFFECT.to_owned(), ..Taint::default() }
    }

    fn keys(taints: Option<Vec<Taint>>) -> Option<Vec<String>> {
        taints.map(|taints| taints.into_iter().map(|taint| taint.key).collect())
    }

    #[test]
    fn of_all_taints_only_those_two_are_touched() {
        let list = [taint("other"), taint("new-node")];
        assert_eq!(keys(wanted(&list, None, Some(false))), None);
        assert_eq!(keys(wanted(&list, Some("new-node"), None)), Some(vec!["other".to_owned()]));
        let with = wanted(&list, None, Some(true));
        assert_eq!(keys(with.clone()), Some(vec!["other".to_owned(), "new-node".to_owned(), NO_ADDRESSES.to_owned()]));
        let with = with.unwrap();
        assert_eq!(keys(wanted(&with, None, Some(true))), None);
        assert_eq!(keys(wanted(&with, None, Some(false))).unwrap().len(), 2);
        assert_eq!(keys(wanted(&with, None, None)), None, "a setting that is off touches nothing");
        // Somebody else's, of another effect, is theirs.
        let theirs = Taint { effect: "PreferNoSchedule".to_owned(), ..taint(NO_ADDRESSES) };
        assert_eq!(keys(wanted(&[theirs], None, Some(false))), None);
    }

    #[test]
    fn it_comes_after_a_minute_of_want_and_goes_after_ten_seconds() {
        let (mut shortage, start) = (Shortage::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!shortage.look(at(0), true));
        assert_eq!(shortage.next(), Some(at(60)));
        assert!(!shortage.look(at(30), false), "one that is over begins anew");
        assert!(!shortage.look(at(40), true));
        assert!(!shortage.look(at(99), true));
        assert!(shortage.look(at(100), true));
        assert!(shortage.look(at(110), false));
        assert_eq!(shortage.next(), Some(at(120)));
        assert!(shortage.look(at(115), true), "an address that is gone again is none");
        assert!(shortage.look(at(116), false));
        assert!(!shortage.look(at(126), false));
    }
}
