//! What vanishes or changes under us comes back: the kernel tells of changes, and everything is read again.
//!
//! A notice says only that something was changed; what is wrong is found by reading, by the very code that sets up. So
//! a lost notice costs one reading, and nothing is written when nothing is wrong. Notices are gathered for a moment,
//! shorter for changes that no pod makes, and readings are spaced by their cost, up to a bound: a node where pods come and
//! go all the time spends a twentieth of one processor on readings of 20 ms, and a fifth on those of 100 ms.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use enid_datapath::watch::{By, Kind, Notice, Urgency, Watch};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, timeout_at},
};
use tracing::{debug, warn};

use crate::{
    core::handle::Handle,
    host::kernel::{self, Applied, Kernel},
    metrics::Counters,
};

/// How long notices are gathered: of changes that only strangers make, and of those that pods make too.
const SOON: Duration = Duration::from_millis(20);
const LATER: Duration = Duration::from_millis(300);
/// Everything is read so often without any notice. IPv4 routes that go with an address or a link, for one, go silently.
const PERIOD: Duration = Duration::from_secs(30);
/// The same, while it is not known yet which pods have a link.
const PERIOD_AT_START: Duration = Duration::from_millis(200);
/// A reading's cost times this is the time to the next, up to a bound.
const SPACING: u32 = 20;
const LONGEST_REST: Duration = Duration::from_millis(400);
/// How long a kind of repair is not told again; it is counted all the time.
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
    /// What is in the way, for whoever asks.
    pub shadows: watch::Sender<Vec<String>>,
    /// Told when a chain at a hook has changed.
    pub hooks: Arc<Notify>,
    /// IPv6 concerns us too.
    pub v6: bool,
}

/// Who made changes of which kind.
type Culprits = BTreeMap<Kind, BTreeSet<By>>;

impl Repair {
    /// Runs until the daemon ends.
    pub async fn run(self) -> anyhow::Result<()> {
        let mut ears = Ears::open(self.hooks.clone(), self.counters.clone(), self.v6)?;
        self.kernel.carries().await;
        let mut told = BTreeMap::new();
        let mut refused = false;
        // What happened while no daemon ran has no notice.
        let mut table = true;
        loop {
            let started = Instant::now();
            // Whoever changes something from now on did not change what is found now.
            let culprits = ears.take();
            let Some((looked, settled)) = self.look(table).await? else { return Ok(()) }; // the daemon ends
            let mut rest = (started.elapsed() * SPACING).min(LONGEST_REST);
            let mut period = if settled { PERIOD } else { PERIOD_AT_START };
            let failure = match looked {
                Ok(applied) => {
                    self.tell(&applied, &culprits, &mut told);
                    applied.failure
                }
                Err(failure) => Some(failure),
            };
            // What was not looked at to the end is still owed, whatever is heard next.
            let owed = table && failure.is_some();
            if let Some(failure) = failure {
                refused = true;
                self.counters.repair_failed();
                self.handle.kernel_failed(Some(format!("{failure:#}"))).await;
                (rest, period) = (PAUSE, PAUSE);
            } else {
                self.counters.read_again();
                if std::mem::take(&mut refused) {
                    self.handle.kernel_failed(None).await;
                }
            }
            table = ears.listen(rest, period).await? || owed;
        }
    }

    /// Reads everything once and puts it right; whether all leases are known to have a link or none.
    async fn look(&self, table: bool) -> anyhow::Result<Option<(anyhow::Result<Applied>, bool)>> {
        let Some(view) = self.handle.view().await else { return Ok(None) };
        let settled = view.leases.values().all(|lease| lease.wired || lease.is_being_wired());
        let wired = view.leases.iter().filter(|(_, lease)| lease.wired && !lease.is_being_wired());
        let pods = kernel::pod_nets(wired);
        let kernel = self.kernel.clone();
        let repaired = tokio::task::spawn_blocking(move || kernel.repair(&pods, table)).await;
        Ok(Some((repaired.context("the repair ended without an answer").flatten(), settled)))
    }

    fn tell(&self, applied: &Applied, culprits: &Culprits, told: &mut BTreeMap<Kind, Instant>) {
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
            let by = culprits.get(&kind).map(|by| by.iter().map(By::to_string).collect::<Vec<_>>().join(", "));
            let by = by.unwrap_or_else(|| By::Unknown.to_string());
            let (first, number, kind_name) = (of_kind[0], of_kind.len(), kind.name());
            if told.get(&kind).is_some_and(|at| at.elapsed() < QUIET) {
                debug!(kind = kind_name, number, by, "repaired: {first}");
            } else {
                warn!(kind = kind_name, number, by, "repaired: {first}");
                told.insert(kind, Instant::now());
            }
        }
        self.shadows.send_if_modified(|known| {
            for new in applied.shadows.iter().filter(|shadow| !known.contains(shadow)) {
                warn!("in the way of pods, and left alone: {new}");
            }
            let changed = *known != applied.shadows;
            known.clone_from(&applied.shadows);
            changed
        });
    }
}

/// What hears of changes, and what was heard since the last reading.
struct Ears {
    notices: mpsc::UnboundedReceiver<Vec<Notice>>,
    hooks: Arc<Notify>,
    counters: Arc<Counters>,
    culprits: Culprits,
    urgency: Option<Urgency>,
    of_table: bool,
}

impl Ears {
    /// The waiting has a thread of its own: who made a change can often be told only in the first moment.
    fn open(hooks: Arc<Notify>, counters: Arc<Counters>, v6: bool) -> anyhow::Result<Self> {
        let mut watch = Watch::open(v6)?;
        let (sender, notices) = mpsc::unbounded_channel();
        let listen = move || {
            loop {
                match watch.wait() {
                    Ok(notices) => {
                        if sender.send(notices).is_err() {
                            return; // the daemon ends
                        }
                    }
                    Err(failure) => return warn!("the kernel's changes cannot be heard: {failure}"),
                }
            }
        };
        let thread = std::thread::Builder::new().name("enid-watch".to_owned()).spawn(listen);
        thread.context("cannot start a thread")?;
        Ok(Ears { notices, hooks, counters, culprits: Culprits::new(), urgency: None, of_table: false })
    }

    /// Waits for something to look at, though not before a rest, or for the period's end; whether the table may have
    /// been changed.
    async fn listen(&mut self, rest: Duration, period: Duration) -> anyhow::Result<bool> {
        let rested = Instant::now() + rest;
        let mut due = rested.max(Instant::now() + period);
        let mut at_period = true;
        loop {
            if let Some(urgency) = self.urgency.take() {
                let wait = if urgency == Urgency::Soon { SOON } else { LATER };
                due = due.min(rested.max(Instant::now() + wait));
                at_period = false;
            }
            match timeout_at(due, self.hear()).await {
                Ok(heard) => heard?,
                Err(_) => return Ok(std::mem::take(&mut self.of_table) || at_period),
            }
        }
    }

    async fn hear(&mut self) -> anyhow::Result<()> {
        let notices = self.notices.recv().await.context("the kernel's changes are not heard any more")?;
        for notice in notices {
            match notice {
                Notice::Changed(kind, urgency, by) => {
                    self.urgency = self.urgency.max(Some(urgency));
                    self.of_table |= kind == Kind::Table;
                    if by != By::Unknown {
                        self.culprits.entry(kind).or_default().insert(by);
                    }
                }
                Notice::Hooks => self.hooks.notify_one(),
                Notice::Overrun => {
                    self.counters.overrun();
                    self.hooks.notify_one();
                    debug!("more was changed than could be told: everything is read again");
                    self.urgency = Some(Urgency::Soon);
                    self.of_table = true;
                }
            }
        }
        Ok(())
    }

    /// Who was heard of since the last call.
    fn take(&mut self) -> Culprits {
        std::mem::take(&mut self.culprits)
    }
}
