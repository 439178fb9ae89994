//! What happened to each pod, in its own words: bound, asked, refused, wired, deleted. Of pods that have gone, too.

use std::collections::{BTreeMap, BTreeSet};

use enid_api::v1::{ListOperationsResponse, Operation};
use prost::Message;

use super::kind::{Kind, outcome};

/// How long a story is kept after its last event.
const KEPT_MS: u64 = 24 * 60 * 60 * 1_000;
/// Pods that stories are kept of.
const PODS: usize = 5_000;
/// Operations of one story: its first, and its last ones.
const LENGTH: usize = 32;

/// The stories. In memory as on disk: encoded, since hardly any is ever read.
#[derive(Default)]
pub struct Stories {
    /// By namespace/name.
    of_pods: BTreeMap<String, Story>,
    /// Not on disk as they are here.
    changed: BTreeSet<String>,
}

struct Story {
    last_unix_ms: u64,
    /// A `ListOperationsResponse`.
    encoded: Vec<u8>,
}

/// How stories name a pod.
pub fn name_of(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

/// Namespace and name of a pod as people write it: NAMESPACE/POD, the namespace default where it is left out. `None` if it is no
/// name of a pod.
pub fn pod_of(written: &str) -> Option<(&str, &str)> {
    let (namespace, name) = written.split_once('/').unwrap_or(("default", written));
    (!namespace.is_empty() && !name.is_empty() && !name.contains('/')).then_some((namespace, name))
}

/// Whether a pod's story tells of it.
pub(super) fn is_told(operation: &Operation) -> bool {
    let kinds = [Kind::Add, Kind::Del, Kind::Bound, Kind::Plugin].map(Kind::name);
    !operation.pod.is_empty() && kinds.contains(&&*operation.kind)
}

/// The operations of a story as it is kept; none of one that cannot be read.
pub fn decode(encoded: &[u8]) -> Vec<Operation> {
    ListOperationsResponse::decode(encoded).map(|story| story.operations).unwrap_or_default()
}

impl Stories {
    /// Those that were kept, as of `now` (milliseconds since 1970).
    pub fn of_kept(kept: impl IntoIterator<Item = (String, Vec<u8>)>, now: u64) -> Self {
        let mut stories = Stories::default();
        for (pod, encoded) in kept {
            let last_unix_ms = decode(&encoded).last().map_or(0, |last| last.began_unix_ms);
            stories.of_pods.insert(pod, Story { last_unix_ms, encoded });
        }
        stories.forget(now);
        stories
    }

    /// A pod's, encoded, unless it is too old.
    pub(super) fn of(&self, pod: &str, now: u64) -> Option<&[u8]> {
        self.of_pods.get(pod).filter(|story| !is_old(story, now)).map(|story| &*story.encoded)
    }

    /// An operation has ended.
    pub(super) fn take(&mut self, operation: &Operation) {
        if !is_told(operation) {
            return;
        }
        let mut operations = self.of(&operation.pod, operation.began_unix_ms).map(decode).unwrap_or_default();
        match operations.last_mut().filter(|last| is_same(last, operation)) {
            Some(last) => {
                let first = if last.first_unix_ms == 0 { last.began_unix_ms } else { last.first_unix_ms };
                let times = last.times.max(1).saturating_add(1);
                *last = Operation { times, first_unix_ms: first, ..operation.clone() };
            }
            None => operations.push(operation.clone()),
        }
        if operations.len() > LENGTH {
            operations.remove(1);
        }
        let story = Story {
            last_unix_ms: operation.began_unix_ms,
            encoded: ListOperationsResponse { operations }.encode_to_vec(),
        };
        self.of_pods.insert(operation.pod.clone(), story);
        self.changed.insert(operation.pod.clone());
        if self.of_pods.len() > PODS {
            let oldest = self.of_pods.iter().min_by_key(|(_, story)| story.last_unix_ms);
            if let Some(pod) = oldest.map(|(pod, _)| pod.clone()) {
                self.remove(&pod);
            }
        }
    }

    /// What is to be written down: `None` for one that is kept no longer.
    pub(super) fn take_changed(&mut self, now: u64) -> Vec<(String, Option<Vec<u8>>)> {
        self.forget(now);
        let changed = std::mem::take(&mut self.changed);
        let with_words = |pod: String| {
            let encoded = self.of_pods.get(&pod).map(|story| story.encoded.clone());
            (pod, encoded)
        };
        changed.into_iter().map(with_words).collect()
    }

    /// Those could not be written down.
    pub(super) fn put_back(&mut self, pods: impl Iterator<Item = String>) {
        self.changed.extend(pods);
    }

    fn forget(&mut self, now: u64) {
        let old = self.of_pods.iter().filter(|(_, story)| is_old(story, now)).map(|(pod, _)| pod.clone());
        old.collect::<Vec<_>>().iter().for_each(|pod| self.remove(pod));
    }

    fn remove(&mut self, pod: &str) {
        self.of_pods.remove(pod);
        self.changed.insert(pod.to_owned());
    }
}

fn is_old(story: &Story, now: u64) -> bool {
    now.saturating_sub(story.last_unix_ms) > KEPT_MS
}

/// Whether one is the other once more: runtimes ask again and again.
fn is_same(last: &Operation, next: &Operation) -> bool {
    let of = |it: &Operation| (it.kind.clone(), it.outcome.clone(), it.cause.clone());
    next.outcome != outcome::DONE && of(last) == of(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(kind: Kind, pod: &str, outcome: &str, cause: &str, at: u64) -> Operation {
        Operation {
            kind: kind.name().into(),
            pod: pod.into(),
            outcome: outcome.into(),
            cause: cause.into(),
            began_unix_ms: at,
            ..Operation::default()
        }
    }

    fn of(stories: &Stories, pod: &str, now: u64) -> Vec<Operation> {
        stories.of(pod, now).map(decode).unwrap_or_default()
    }

    fn told(stories: &Stories, pod: &str) -> Vec<(String, u32)> {
        of(stories, pod, 0).into_iter().map(|it| (format!("{} {}", it.kind, it.cause), it.times)).collect()
    }

    #[test]
    fn the_same_refusal_again_is_counted() {
        let mut stories = Stories::default();
        for (at, cause) in [(1, "subnet_full"), (2, "subnet_full"), (3, "subnet_full"), (4, "throttled")] {
            stories.take(&operation(Kind::Add, "a/b", "refused", cause, at));
        }
        stories.take(&operation(Kind::Add, "a/b", "done", "", 5));
        stories.take(&operation(Kind::Check, "a/b", "done", "", 6));
        stories.take(&operation(Kind::Add, "", "done", "", 6));
        let told = told(&stories, "a/b");
        let wanted = [("ADD subnet_full", 3), ("ADD throttled", 0), ("ADD ", 0)];
        assert_eq!(told, wanted.map(|(words, times)| (words.to_owned(), times)));
        assert_eq!((of(&stories, "a/b", 0)[0].first_unix_ms, of(&stories, "a/b", 0)[0].began_unix_ms), (1, 3));
    }

    #[test]
    fn a_long_story_keeps_its_beginning_and_its_end() {
        let mut stories = Stories::default();
        (0..100).for_each(|at| stories.take(&operation(Kind::Add, "a/b", "done", "", at)));
        let story = of(&stories, "a/b", 0);
        assert_eq!((story.len(), story[0].began_unix_ms, story[LENGTH - 1].began_unix_ms), (LENGTH, 0, 99));
    }

    #[test]
    fn of_more_pods_than_are_kept_the_oldest_go() {
        let mut stories = Stories::default();
        for number in 0..PODS + 2 {
            stories.take(&operation(Kind::Add, &format!("a/{number}"), "done", "", u64::try_from(number).unwrap()));
        }
        assert_eq!(stories.of_pods.len(), PODS);
        assert!(of(&stories, "a/1", 0).is_empty() && !of(&stories, "a/2", 0).is_empty());
        assert_eq!(stories.take_changed(0).iter().filter(|(_, encoded)| encoded.is_none()).count(), 2);
    }

    #[test]
    fn a_story_is_kept_for_a_day() {
        let mut stories = Stories::default();
        stories.take(&operation(Kind::Add, "a/b", "done", "", 1_000));
        let kept: Vec<_> = stories.take_changed(1_000).into_iter().map(|(pod, it)| (pod, it.unwrap())).collect();
        assert!(stories.take_changed(1_000).is_empty(), "it is on disk");
        let again = Stories::of_kept(kept.clone(), 1_000 + KEPT_MS);
        assert_eq!(of(&again, "a/b", 1_000 + KEPT_MS).len(), 1);
        assert!(of(&again, "a/b", 1_001 + KEPT_MS).is_empty());
        let mut late = Stories::of_kept(kept, 1_001 + KEPT_MS);
        assert_eq!(late.take_changed(1_001 + KEPT_MS), [("a/b".to_owned(), None)]);
    }
}
