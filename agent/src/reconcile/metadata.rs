//! Instance metadata, read for the core: it is node-local, and the one thing that is polled.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use enid_ipamd::{EniId, Event};
use ipnet::IpNet;
use tokio::{sync::watch, time::timeout};
use tracing::warn;

use crate::{
    aws::imds::Imds,
    clock,
    core::handle::Handle,
    metrics::{self, Counters},
};

/// How often metadata is read when nothing is expected of it.
const PERIOD: Duration = Duration::from_secs(30);
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

/// Reads metadata until the daemon ends; `awaited` is set while the core expects something of it.
pub async fn run(imds: Imds, handle: Handle, counters: Arc<Counters>, mut awaited: watch::Receiver<bool>) {
    let (mut pause, mut shown) = (SOON, Shown::new());
    loop {
        match imds.enis().await {
            Ok((enis, addressless)) => {
                let now: Shown = enis.iter().map(|eni| (eni.id.clone(), eni.blocks.clone())).collect();
                differences(&shown, &now).into_iter().for_each(|(what, number)| counters.shown(what, number));
                shown = now;
                handle.tell(Event::Wall { ms: clock::wall_ms() }).await;
                handle.tell(Event::Imds { enis, addressless }).await;
            }
            Err(failure) => {
                let message = format!("{failure:#}");
                warn!("instance metadata: {message}");
                counters.failed(metrics::METADATA);
                handle.tell(Event::ImdsFailed { message }).await;
            }
        }
        match imds.vpc_cidrs().await {
            Ok(cidrs) => handle.vpc(cidrs).await,
            Err(failure) => warn!("instance metadata: {failure:#}"),
        }
        let wait = if *awaited.borrow_and_update() { pause } else { PERIOD };
        match timeout(wait, awaited.changed()).await {
            Ok(Ok(())) => pause = SOON,
            Ok(Err(_)) => return, // the core's task has ended
            Err(_) => pause = (pause * 2).min(LATER),
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
