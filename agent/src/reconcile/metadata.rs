//! Instance metadata, read for the core: it is node-local, and the one thing that is polled.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use anyhow::bail;
use enid_ipamd::{EniFacts, EniId, Event, Place};
use ipnet::IpNet;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout_at},
};
use tracing::warn;

use crate::{
    aws::imds::{Enis, Imds, Reading},
    clock,
    core::{handle::Handle, published::Awaited},
    metrics::{self, Counters},
};

/// How often the list of ENIs, the VPC's CIDRs and the primary ENI's security groups are read. ENIs that are new, and
/// those of which metadata shows something else than EC2 is known to have done, are read then too, and one more in its turn.
const PERIOD: Duration = Duration::from_secs(30);
/// How often all is read, and besides whenever CIDRs or groups have changed.
const WHOLE_PERIOD: Duration = Duration::from_secs(600);
/// How soon it is read again while something is expected; twice as long each time, up to a second.
const SOON: Duration = Duration::from_millis(50);
const LATER: Duration = Duration::from_secs(1);

/// The blocks of each ENI, as metadata shows them.
type Shown = BTreeMap<EniId, BTreeSet<IpNet>>;

/// What is different between two readings, by the names of Amazon's daemon.
fn differences(before: &Shown, now: &Shown) -> [(&'static str, u64); 4] {
    let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    let new = now.keys().filter(|eni| !before.contains_key(*eni)).count();
    let gone = before.keys().filter(|eni| !now.contains_key(*eni)).count();
    let both = || before.iter().filter_map(|(eni, blocks)| Some((blocks, now.get(eni)?)));
    let lost: usize = both().map(|(before, now)| before.difference(now).count()).sum();
    let known: usize = both().map(|(before, now)| before.intersection(now).count()).sum();
    [
        ("eniReconcileAdd", number(new)),
        ("eniReconcileDel", number(gone)),
        ("eniIPPoolReconcileDel", number(lost)),
        ("eniDataStorePoolReconcileAdd", number(known)),
    ]
}

/// What the task is made of.
pub struct Metadata {
    /// The service.
    pub imds: Imds,
    /// To the core.
    pub handle: Handle,
    /// What `/metrics` counts.
    pub counters: Arc<Counters>,
    /// Notified when somebody wants all to be read now.
    pub asked: Arc<Notify>,
    /// ENABLE_V6_EGRESS is off here as long as the instance has no IPv6 address.
    pub lacks_v6: bool,
}

impl Metadata {
    /// Reads until the daemon ends; `awaited` says what the core expects.
    ///
    /// # Errors
    ///
    /// The instance has got what the daemon found missing at its start, and only a new start takes into account.
    pub async fn run(self, mut awaited: watch::Receiver<Awaited>) -> anyhow::Result<()> {
        let Metadata { imds, handle, counters, asked, lacks_v6 } = self;
        let (mut pause, mut shown, mut of_primary) = (SOON, Shown::new(), None);
        let (mut next, mut next_whole) = (Instant::now(), Instant::now());
        loop {
            let (started, expects) = (Instant::now(), awaited.borrow_and_update().clone());
            let (is_due, mut is_whole) = (started >= next, started >= next_whole);
            if is_due || expects.groups {
                match imds.of_primary().await {
                    Ok(read) => {
                        handle.vpc(read.cidrs.clone()).await;
                        handle.tell(Event::Groups { groups: read.groups.clone() }).await;
                        let before = of_primary.replace(read);
                        is_whole |= before.is_some() && before != of_primary;
                    }
                    Err(failure) => warn!("instance metadata: {failure:#}"),
                }
            }
            let mut enis = expects.enis;
            if is_due {
                next = started + PERIOD;
                let Some(view) = handle.view().await else { return Ok(()) }; // the core's task has ended
                enis.extend(view.unsettled_enis().map(|eni| (eni.clone(), BTreeSet::new())));
            }
            let reading = match (is_whole, is_due) {
                (true, _) => Reading::All,
                (_, true) => Reading::InTurn(&enis),
                _ => Reading::Of(&enis),
            };
            match imds.enis(reading).await {
                Ok(Enis { read, listed, addressless }) => {
                    if is_whole {
                        next_whole = started + WHOLE_PERIOD;
                    }
                    let has_v6 = |eni: &EniFacts| eni.place == Place::default() && eni.own_v6.is_some();
                    if lacks_v6 && read.iter().any(has_v6) {
                        bail!(
                            "this instance has an IPv6 address now, which ENABLE_V6_EGRESS was off for want of: the daemon \
                             ends, and the next one uses it; pods keep their links"
                        );
                    }
                    let mut now: Shown = shown.clone();
                    now.retain(|eni, _| listed.contains(eni));
                    now.extend(read.iter().map(|eni| (eni.id.clone(), eni.blocks.clone())));
                    differences(&shown, &now).into_iter().for_each(|(what, number)| counters.shown(what, number));
                    shown = now;
                    handle.tell(Event::Wall { ms: clock::wall_ms() }).await;
                    handle.tell(Event::Imds { enis: read, listed, addressless }).await;
                }
                Err(failure) => {
                    let message = format!("{failure:#}");
                    warn!("instance metadata: {message}");
                    counters.failed(metrics::METADATA);
                    handle.tell(Event::ImdsFailed { message }).await;
                }
            }
            let until = if expects.soon { next.min(Instant::now() + pause) } else { next };
            let changed = async {
                tokio::select! {
                    changed = awaited.changed() => changed.map(|()| false),
                    () = asked.notified() => Ok(true),
                }
            };
            match timeout_at(until, changed).await {
                Ok(Ok(false)) => pause = SOON,
                Ok(Ok(true)) => (next, next_whole) = (Instant::now(), Instant::now()),
                Ok(Err(_)) => return Ok(()), // the core's task has ended
                Err(_) => pause = (pause * 2).min(LATER),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_are_compared() {
        let eni = |name: &str, blocks: &[&str]| {
            (EniId(name.into()), blocks.iter().map(|net| net.parse().unwrap()).collect::<BTreeSet<IpNet>>())
        };
        let before = Shown::from([eni("a", &["10.0.1.4/32", "10.0.1.5/32"]), eni("b", &[])]);
        let now = Shown::from([eni("a", &["10.0.1.5/32"]), eni("c", &["10.0.1.9/32"])]);
        assert_eq!(differences(&before, &now).map(|(_, number)| number), [1, 1, 1, 1]);
    }
}
