//! Objects of a kind, as the API server has them: listed once, then watched, and listed again where a watch was lost or is too
//! old (410 Gone).

use std::{collections::BTreeMap, fmt::Debug, pin::pin, time::Duration};

use backon::ExponentialBuilder;
use futures_util::StreamExt;
use kube::{
    Api, Resource,
    runtime::{
        WatchStreamExt,
        utils::ResetTimerBackoff,
        watcher::{self, Event, ExponentialBackoff, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tracing::{info, warn};

/// It is tried again after so long, and with jitter after up to twice as long: a node is to be back ten seconds after the API
/// server.
const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(3);
const _: () = assert!(LONGEST.as_secs() * 2 < 10, "a node is to be back ten seconds after the API server");
/// Delays begin anew once all has been well for so long.
const CALM: Duration = Duration::from_secs(60);
/// What the API server refuses (no right, no such kind) is asked for after so long, then after twice as long each time.
const REFUSED: Duration = Duration::from_secs(1);
const REFUSED_LONGEST: Duration = Duration::from_secs(60);
/// A watch that goes on where it was says nothing until something changes. As every try that fails says so, all is well again if
/// none does for so long: the longest delay, and what a connection may take.
const HEALED: Duration = Duration::from_secs(15);
const _: () = assert!(LONGEST.as_secs() * 2 + 5 < HEALED.as_secs(), "a try that fails says so in time");
/// HTTP's 410.
const GONE: u16 = 410;
/// What comes within so long is told at once: the scheduler binds the pods of a Deployment one after the other.
const TOGETHER: Duration = Duration::from_millis(50);

/// What the API server does not serve, and why; empty while all is well.
pub type Faults = BTreeMap<&'static str, String>;

/// What is followed.
pub struct Follow<K> {
    pub api: Api<K>,
    /// A field selector.
    pub fields: String,
    /// Its name in messages, a plural.
    pub what: &'static str,
    pub faults: watch::Sender<Faults>,
}

/// What becomes of the objects.
pub trait Sink<K> {
    /// One of them has appeared, changed or gone, or they are listed anew.
    fn take(&mut self, event: Event<K>);
    /// That was all for now.
    async fn tell(&mut self);
    /// The node lacks the right to them, or the cluster does not know the kind.
    async fn refused(&mut self, _why: &str) {}
}

impl<K> Follow<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    /// Follows them until the task is dropped.
    pub async fn into(self, mut sink: impl Sink<K>) {
        let delays = ExponentialBuilder::default()
            .with_min_delay(FIRST)
            .with_max_delay(LONGEST)
            .with_factor(2.0)
            .with_jitter()
            .without_max_times();
        let delays = ResetTimerBackoff::new(ExponentialBackoff::from(delays), CALM);
        // Listed out of the API server's memory: a fleet that starts at once costs etcd nothing.
        let config = watcher::Config::default().fields(&self.fields).any_semantic();
        let mut events = pin!(watcher(self.api.clone(), config).backoff(delays));
        let (mut due, mut refused, mut healed) = (None, REFUSED, None);
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(event)) => {
                        if !matches!(event, Event::Init | Event::InitApply(_)) {
                            (refused, healed) = (REFUSED, None);
                            note(&self.faults, self.what, None);
                            due.get_or_insert(Instant::now() + TOGETHER);
                        }
                        sink.take(event);
                    }
                    // Too old to go on: they are listed anew.
                    Some(Err(watcher::Error::WatchError(status))) if status.code == GONE => {}
                    Some(Err(failure)) => {
                        let why = words(&failure);
                        note(&self.faults, self.what, Some(why.clone()));
                        if is_refusal(&failure) {
                            sink.refused(&why).await;
                            sleep(refused).await;
                            refused = (refused * 2).min(REFUSED_LONGEST);
                        }
                        healed = Some(Instant::now() + HEALED);
                    }
                    // It does not end by itself.
                    None => std::future::pending().await,
                },
                () = sleep_until(healed.unwrap_or_else(Instant::now)), if healed.is_some() => {
                    healed = None;
                    note(&self.faults, self.what, None);
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    due = None;
                    sink.tell().await;
                }
            }
        }
    }
}

/// Whether the node lacks the right, or the cluster the kind.
fn is_refusal(failure: &watcher::Error) -> bool {
    match failure {
        watcher::Error::InitialListFailed(kube::Error::Api(refused))
        | watcher::Error::WatchStartFailed(kube::Error::Api(refused)) => {
            refused.is_not_found() || refused.is_forbidden()
        }
        _ => false,
    }
}

/// Notes that something of the API server can be had, or why not. What is told again and again is logged once.
pub fn note(faults: &watch::Sender<Faults>, what: &'static str, fault: Option<String>) {
    let mut was_bad = false;
    faults.send_if_modified(|faults| {
        let before = match &fault {
            Some(why) => faults.insert(what, why.clone()),
            None => faults.remove(what),
        };
        was_bad = before.is_some();
        before != fault
    });
    match fault {
        Some(why) if !was_bad => warn!("the API server does not serve {what}: {why}"),
        None if was_bad => info!("the API server serves {what} again"),
        _ => {}
    }
}

/// The chain of causes, each once.
pub fn words(failure: &(dyn std::error::Error + 'static)) -> String {
    let mut words = Vec::new();
    let mut next: Option<&dyn std::error::Error> = Some(failure);
    while let Some(error) = next {
        let text = error.to_string();
        // Some repeat what is below them.
        if !words.iter().any(|known: &String| known.contains(&text)) {
            words.push(text);
        }
        next = error.source();
    }
    words.join(": ")
}
