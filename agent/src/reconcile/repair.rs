//! Drift is repaired: the kernel notifies of changes, and everything is read again.
//!
//! A notification says only that something was changed; what is wrong is found by reading, by the very code that sets up.
//! So a lost notification costs one reading, and nothing is written when nothing is wrong. Notifications are gathered for a
//! moment, shorter for changes that no pod makes, and readings are spaced by their cost, up to a bound: a node where pods
//! come and go all the time spends a twentieth of one processor on readings of 20 ms, and a fifth on those of 100 ms.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use enid_datapath::{
    kind::Kind,
    notification::{Author, Notification, Urgency},
};
use enid_ipamd::{Cause, Refusal};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, timeout_at},
};
use tracing::{debug, warn};

use crate::{
    core::handle::Handle,
    host::{
        kernel::{Applied, Kernel, SECOND_LOOK},
        listener, pod_links,
    },
    metrics::Counters,
    record::{self, Record},
};

/// How long notifications are gathered: of changes that no pod makes, and of those that pods make too.
const SOON: Duration = Duration::from_millis(20);
const LATER: Duration = Duration::from_millis(300);
/// Everything is read so often without any notification. IPv4 routes that go with an address or a link, for one, go
/// silently.
const PERIOD: Duration = Duration::from_secs(30);
/// The same, while it is not known yet which pods have a link.
const PERIOD_AT_START: Duration = Duration::from_millis(200);
/// A reading's cost times this is the time to the next, up to a bound.
const SPACING: u32 = 20;
const LONGEST_SPACING: Duration = Duration::from_millis(400);
/// How long a kind of repair is not reported again; it is counted all the time.
const QUIET: Duration = Duration::from_secs(10);
/// After a refusal of the kernel.
const PAUSE: Duration = Duration::from_millis(500);

/// What the task is made of.
pub struct Repair {
    /// To the leases.
    pub handle: Handle,
    /// The kernel, and what it should carry.
    pub kernel: Kernel,
    /// What `/metrics` counts.
    pub counters: Arc<Counters>,
    /// What is done.
    pub record: Arc<Record>,
    /// Conflicts with others, for whoever asks.
    pub conflicts: watch::Sender<Vec<String>>,
    /// Notified when a chain at a hook has changed.
    pub hooks: Arc<Notify>,
    /// Notified when a link has changed, come or gone.
    pub links: Arc<Notify>,
    /// Notified when somebody wants all to be read now.
    pub asked: Arc<Notify>,
    /// IPv6 concerns us too.
    pub v6: bool,
}

/// Who made changes of which kind.
type Authors = BTreeMap<Kind, BTreeSet<Author>>;

impl Repair {
    /// Runs until the daemon ends.
    pub async fn run(self) -> anyhow::Result<()> {
        let received = listener::start(self.v6).await?;
        let (hooks, links, counters) = (self.hooks.clone(), self.links.clone(), self.counters.clone());
        let mut changes = Changes {
            received,
            hooks,
            links,
            counters,
            asked: self.asked.clone(),
            authors: Authors::new(),
            urgency: None,
            of_pods: BTreeSet::new(),
            of_table: false,
        };
        self.kernel.carries().await;
        let mut way_out = Vec::new();
        let mut reported = BTreeMap::new();
        let mut refused = false;
        // What happened while no daemon ran has no notice.
        let mut table = true;
        loop {
            let started = Instant::now();
            // Whoever changes something from now on did not change what is found now.
            let authors = changes.take_authors();
            let Some((read, settled)) = self.reconcile(table).await else { return Ok(()) }; // the daemon ends
            let mut spacing = (started.elapsed() * SPACING).min(LONGEST_SPACING);
            let mut period = if settled { PERIOD } else { PERIOD_AT_START };
            let failure = match read {
                Ok(applied) => {
                    self.report(&applied, &authors, &mut reported);
                    if way_out != applied.way_out {
                        let words = applied.way_out.join("; ");
                        let fault = (!words.is_empty()).then(|| Refusal::new(Cause::HostRoute, words));
                        self.handle.host(fault).await;
                        way_out.clone_from(&applied.way_out);
                    }
                    if applied.again {
                        (spacing, period) = (SECOND_LOOK, SECOND_LOOK);
                        changes.keep_authors(authors);
                    }
                    applied.failure
                }
                Err(failure) => Some(failure),
            };
            // What was not looked at to the end is still owed, whatever is notified of next.
            let owed = table && failure.is_some();
            if let Some(failure) = failure {
                refused = true;
                self.counters.repair_failed();
                self.handle.kernel_failed(Some(format!("{failure:#}"))).await;
                (spacing, period) = (PAUSE, PAUSE);
            } else {
                self.counters.read_again();
                if std::mem::take(&mut refused) {
                    self.handle.kernel_failed(None).await;
                }
            }
            table = changes.wait(spacing, period).await? || owed;
        }
    }

    /// Reads everything once and puts it right; whether all leases are known to have a link or none.
    async fn reconcile(&self, table: bool) -> Option<(anyhow::Result<Applied>, bool)> {
        let view = self.handle.view().await?;
        let settled = view.leases().all(|(_, lease)| lease.wired || lease.is_being_wired());
        let wired = view.leases().filter(|(_, lease)| lease.wired && !lease.is_being_wired());
        let pods = pod_links::pod_nets(wired);
        Some((self.kernel.repair(&pods, table).await, settled))
    }

    fn report(&self, applied: &Applied, authors: &Authors, reported: &mut BTreeMap<Kind, Instant>) {
        for change in &applied.changes {
            self.counters.repaired(change.kind);
        }
        let by_kind: BTreeSet<Kind> = applied.changes.iter().map(|change| change.kind).collect();
        for kind in by_kind {
            let of_kind: Vec<&str> = applied
                .changes
                .iter()
                .filter(|change| change.kind == kind)
                .map(|change| change.what.as_str())
                .collect();
            let by = authors.get(&kind).map(|by| by.iter().map(Author::to_string).collect::<Vec<_>>().join(", "));
            let by = by.unwrap_or_else(|| Author::Unknown.to_string());
            let (first, number, kind_name) = (of_kind[0], of_kind.len(), kind.name());
            if reported.get(&kind).is_some_and(|at| at.elapsed() < QUIET) {
                debug!(kind = kind_name, number, by, "repaired: {first}");
            } else {
                warn!(kind = kind_name, number, by, "repaired: {first}");
                let mut repair = self.record.begin(record::Kind::Repair, None, None);
                repair.about(kind_name);
                repair.done_with(format_args!("{number} changed by {by}: {first}"));
                reported.insert(kind, Instant::now());
            }
        }
        self.conflicts.send_if_modified(|known| {
            for new in applied.conflicts.iter().filter(|conflict| !known.contains(conflict)) {
                warn!("conflict, left alone: {new}");
            }
            let changed = *known != applied.conflicts;
            known.clone_from(&applied.conflicts);
            changed
        });
    }
}

/// The notifications since the last reading.
struct Changes {
    received: mpsc::UnboundedReceiver<Vec<Notification>>,
    hooks: Arc<Notify>,
    links: Arc<Notify>,
    counters: Arc<Counters>,
    asked: Arc<Notify>,
    authors: Authors,
    urgency: Option<Urgency>,
    /// Pods' links of which something has changed. One that has gone since needs no reading.
    of_pods: BTreeSet<u32>,
    of_table: bool,
}

impl Changes {
    /// Waits for something to read, though not before `spacing` is over, or for the period's end; whether the table may
    /// have been changed.
    async fn wait(&mut self, spacing: Duration, period: Duration) -> anyhow::Result<bool> {
        let spaced = Instant::now() + spacing;
        let after = |wait: Duration| spaced.max(Instant::now() + wait);
        let (at_period, mut due, mut due_of_pods) = (after(period), None, None);
        loop {
            if let Some(urgency) = self.urgency.take() {
                let at = after(if urgency == Urgency::Soon { SOON } else { LATER });
                due = Some(due.map_or(at, |due: Instant| due.min(at)));
            }
            due_of_pods = if self.of_pods.is_empty() { None } else { due_of_pods.or(Some(after(LATER))) };
            let until = [due, due_of_pods].into_iter().flatten().fold(at_period, Instant::min);
            match timeout_at(until, self.receive()).await {
                Ok(received) => received?,
                Err(_) => {
                    self.of_pods.clear();
                    return Ok(std::mem::take(&mut self.of_table) || (due.is_none() && due_of_pods.is_none()));
                }
            }
        }
    }

    async fn receive(&mut self) -> anyhow::Result<()> {
        let received = tokio::select! {
            received = self.received.recv() => received,
            () = self.asked.notified() => {
                (self.urgency, self.of_table) = (Some(Urgency::Soon), true);
                return Ok(());
            }
        };
        let notifications = received.context("the kernel's notifications are not received any more")?;
        for notification in notifications {
            match notification {
                Notification::Changed(kind, urgency, author) => {
                    self.urgency = self.urgency.max(Some(urgency));
                    self.of_table |= kind == Kind::Table;
                    if kind == Kind::Link {
                        self.links.notify_one();
                    }
                    if author != Author::Unknown {
                        self.authors.entry(kind).or_default().insert(author);
                    }
                }
                Notification::OfPod(kind, index, author) => {
                    self.of_pods.insert(index);
                    if kind == Kind::Link {
                        self.links.notify_one();
                    }
                    if author != Author::Unknown {
                        self.authors.entry(kind).or_default().insert(author);
                    }
                }
                Notification::PodGone(index) => {
                    self.of_pods.remove(&index);
                    self.links.notify_one();
                }
                Notification::Hooks => self.hooks.notify_one(),
                Notification::Lost => {
                    self.counters.overrun();
                    self.hooks.notify_one();
                    self.links.notify_one();
                    debug!("notifications were lost: everything is read again");
                    self.urgency = Some(Urgency::Soon);
                    self.of_table = true;
                }
            }
        }
        Ok(())
    }

    /// What they changed is looked at once more.
    fn keep_authors(&mut self, authors: Authors) {
        authors.into_iter().for_each(|(kind, by)| self.authors.entry(kind).or_default().extend(by));
    }

    /// Who made changes since the last call.
    fn take_authors(&mut self) -> Authors {
        std::mem::take(&mut self.authors)
    }
}
