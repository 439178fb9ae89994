//! What the cluster is told as events: of a pod why it gets no address, of the node what it lacks. The same thing is told with
//! the same reason and the same words, and not again within minutes, however often a runtime asks.
//!
//! kube's recorder makes one event of what is told again under one reason, with the words of the first: other words need a
//! new recorder, and so does an event that somebody has deleted.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use enid_ipamd::{Cause, PodRef, Refusal};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::{
    sync::{mpsc, watch},
    time,
};

use super::{follow::Faults, pods::Uids};
use crate::core::readiness::Readiness;

/// Reports that wait to be sent; more are dropped, since what lasts is told again.
const WAITING: usize = 256;
/// What lasts is told again after so long.
const AGAIN: Duration = Duration::from_secs(300);
/// Other words for it are told after so long.
const OTHER_WORDS: Duration = Duration::from_secs(30);
/// The node's causes are looked at this often: what could not be told is told then.
const LOOK: Duration = Duration::from_secs(60);
/// An event's words have at most so many bytes (Kubernetes API reference, Event v1, "note").
const NOTE_BYTES: usize = 1024;
/// Who says it.
const CONTROLLER: &str = "enid";
/// As the peer calls it.
const NO_RIGHTS: &str = "MissingIAMPermissions";

/// Whom it is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum About {
    Pod(PodRef),
    Node,
}

/// What is told: of whom, the reason in the words of events, and a sentence.
struct Report(About, String, String);

/// A way to tell the cluster; nobody waits for it.
#[derive(Clone)]
pub struct Reports(mpsc::Sender<Report>);

/// What is told by it.
pub struct Reported(mpsc::Receiver<Report>);

/// Both ends.
pub fn channel() -> (Reports, Reported) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Reports(sender), Reported(receiver))
}

impl Reports {
    /// A pod's ADD was refused.
    pub fn refused(&self, pod: &PodRef, refusal: &Refusal) {
        if refusal.cause != Cause::Superseded {
            let report = Report(About::Pod(pod.clone()), reason(refusal.cause), refusal.message.clone());
            let _ = self.0.try_send(report);
        }
    }

    /// Something of the node that is no cause of a refusal.
    pub fn of_node(&self, reason: &str, message: &str) {
        let _ = self.0.try_send(Report(About::Node, reason.to_owned(), message.to_owned()));
    }
}

/// Tells all of it until the task is dropped.
pub async fn tell(
    client: Client,
    node: String,
    mut reported: Reported,
    uids: watch::Receiver<Uids>,
    mut readiness: watch::Receiver<Readiness>,
    faults: watch::Sender<Faults>,
) {
    let reporter = Reporter { controller: CONTROLLER.to_owned(), instance: Some(node.clone()) };
    let new_recorder = || Recorder::new(client.clone(), reporter.clone());
    let (mut recorder, mut said, mut look) = (new_recorder(), Said::default(), time::interval(LOOK));
    loop {
        let of_readiness = |readiness: &mut watch::Receiver<Readiness>| -> Vec<Report> {
            let refusals = of_node(&readiness.borrow_and_update());
            refusals.into_iter().map(|it| Report(About::Node, reason(it.cause), it.message)).collect()
        };
        let reports = tokio::select! {
            Some(report) = reported.0.recv() => vec![report],
            Ok(()) = readiness.changed() => of_readiness(&mut readiness),
            _ = look.tick() => of_readiness(&mut readiness),
        };
        for Report(about, reason, message) in reports {
            match said.due(&about, &reason, &message, Instant::now()) {
                Due::Not => continue,
                Due::OtherWords => recorder = new_recorder(),
                Due::Now => {}
            }
            let reference = match &about {
                About::Node => of_kind("Node", &node, None, Some(node.clone())),
                // Without its uid nobody who describes the pod would see it.
                About::Pod(pod) => {
                    let Some(uid) = uids.borrow().get(pod).cloned() else {
                        said.forget(&about, &reason);
                        continue;
                    };
                    of_kind("Pod", &pod.name, Some(pod.namespace.clone()), Some(uid))
                }
            };
            let event = Event {
                type_: EventType::Warning,
                reason: reason.clone(),
                note: Some(shortened(message)),
                action: "AssignAddress".to_owned(),
                secondary: None,
            };
            let mut sent = recorder.publish(&event, &reference).await;
            if matches!(&sent, Err(kube::Error::Api(refused)) if refused.is_not_found()) {
                recorder = new_recorder();
                sent = recorder.publish(&event, &reference).await;
            }
            if sent.is_err() {
                said.forget(&about, &reason);
            }
            super::follow::note(&faults, "events", sent.err().map(|failure| super::follow::words(&failure)));
        }
    }
}

fn of_kind(kind: &str, name: &str, namespace: Option<String>, uid: Option<String>) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some(kind.to_owned()),
        name: Some(name.to_owned()),
        namespace,
        uid,
        ..ObjectReference::default()
    }
}

/// What is told of the node: whatever does not end by itself, each cause once.
pub fn of_node(readiness: &Readiness) -> Vec<Refusal> {
    let lasting = |(name, refusal): &(&str, &Refusal)| *name != "obstacle" || !refusal.cause.is_temporary();
    let mut told: Vec<Refusal> = Vec::new();
    for (_, refusal) in readiness.causes().filter(lasting) {
        if told.iter().all(|other| other.cause != refusal.cause) {
            told.push(refusal.clone());
        }
    }
    told
}

/// The cause as events name their reasons: SubnetFull.
pub fn reason(cause: Cause) -> String {
    if cause == Cause::Denied {
        return NO_RIGHTS.to_owned();
    }
    let word =
        |word: &str| word.chars().take(1).map(|first| first.to_ascii_uppercase()).chain(word.chars().skip(1)).collect();
    cause.name().split('_').map(word).collect::<Vec<String>>().concat()
}

/// As many whole characters as an event takes.
fn shortened(mut words: String) -> String {
    words.truncate(words.floor_char_boundary(NOTE_BYTES));
    words
}

/// What has been told, and when.
#[derive(Default)]
struct Said {
    last: BTreeMap<(About, String), (String, Instant)>,
}

/// Whether something is to be told.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    Not,
    Now,
    /// Now, and it was told in other words before.
    OtherWords,
}

impl Said {
    /// Whether it is to be told now; then it counts as told.
    fn due(&mut self, about: &About, reason: &str, words: &str, now: Instant) -> Due {
        let key = (about.clone(), reason.to_owned());
        let due = match self.last.get(&key) {
            None => Due::Now,
            Some((known, at)) if known == words && now.duration_since(*at) >= AGAIN => Due::Now,
            Some((known, at)) if known != words && now.duration_since(*at) >= OTHER_WORDS => Due::OtherWords,
            Some(_) => return Due::Not,
        };
        self.last.retain(|_, (_, at)| now.duration_since(*at) < AGAIN);
        self.last.insert(key, (words.to_owned(), now));
        due
    }

    /// It could not be told.
    fn forget(&mut self, about: &About, reason: &str) {
        self.last.remove(&(about.clone(), reason.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_the_causes_in_the_words_of_events() {
        assert_eq!(reason(Cause::SubnetFull), "SubnetFull");
        assert_eq!(reason(Cause::Ec2Error), "Ec2Error");
        assert_eq!(reason(Cause::Denied), NO_RIGHTS);
    }

    /// The kind: what a runtime asks again and again is told as often.
    #[test]
    fn what_lasts_is_told_once_in_five_minutes() {
        let (mut said, begun) = (Said::default(), Instant::now());
        let pod = |name: &str| About::Pod(PodRef { namespace: "default".into(), name: name.into() });
        let mut due = |about: &About, words: &str, seconds: u64| {
            said.due(about, "SubnetFull", words, begun + Duration::from_secs(seconds))
        };
        assert_eq!(due(&pod("a"), "no address", 0), Due::Now);
        assert_eq!(due(&pod("a"), "no address", 299), Due::Not);
        assert_eq!(due(&pod("b"), "no address", 1), Due::Now, "another pod");
        assert_eq!(due(&pod("b"), "two addresses", 20), Due::Not);
        assert_eq!(due(&pod("b"), "two addresses", 40), Due::OtherWords);
        assert_eq!(due(&pod("a"), "no address", 300), Due::Now);
    }

    #[test]
    fn words_are_as_long_as_an_event_takes() {
        assert_eq!(shortened("short".to_owned()), "short");
        let long = shortened("ü".repeat(600));
        assert!(long.len() <= NOTE_BYTES && long.chars().all(|it| it == 'ü') && long.chars().count() == 512);
    }

    #[test]
    fn of_the_node_is_told_what_does_not_end_by_itself() {
        let refusal = |cause| Some(Refusal::new(cause, "words"));
        let of = |obstacle, risk| of_node(&Readiness { obstacle, risk, ..Readiness::default() }).len();
        assert_eq!(of(refusal(Cause::StillGrowing), None), 0);
        assert_eq!(of(refusal(Cause::SubnetFull), refusal(Cause::EniLost)), 2);
        assert_eq!(of(refusal(Cause::EniLost), refusal(Cause::EniLost)), 1, "in the words of the first");
    }
}
