//! What the daemon says of itself, of the kernel and of its store.

use std::collections::BTreeMap;

use enid_api::v1::{
    Eni, Fault, GetPoolRequest, ListEnisRequest, ListFaultsRequest, ListOperationsRequest, Operation, Pool, Trouble,
};

use super::{
    super::{
        admin::in_words,
        connect::{answered, debug},
        status::concerns_nobody,
    },
    finding::Finding,
};
use crate::{clock, settings::Settings};

/// So many repairs of a kind within a minute: somebody makes the change again and again.
const OFTEN: usize = 3;
const MINUTE_MS: u64 = 60_000;

/// What it says.
#[derive(Debug, Default)]
pub struct OfDaemon {
    pub pool: Pool,
    pub enis: Vec<Eni>,
    pub faults: Vec<Fault>,
    pub repairs: Vec<Operation>,
}

impl OfDaemon {
    /// Whether something differs that may differ for a moment only.
    pub fn may_be_over(&self) -> bool {
        !self.faults.is_empty()
    }

    /// Whether it has nothing to do with EC2.
    pub fn is_idle(&self) -> bool {
        self.pool.calls.is_empty() && self.pool.plan.as_ref().is_none_or(|plan| plan.actions.is_empty())
    }
}

/// Asks it.
pub async fn look(settings: &Settings) -> anyhow::Result<OfDaemon> {
    let mut debug = debug(settings).await?;
    let pool = answered(debug.get_pool(GetPoolRequest {}).await)?;
    let enis = answered(debug.list_enis(ListEnisRequest {}).await)?.enis;
    let faults = answered(debug.list_faults(ListFaultsRequest {}).await)?.faults;
    let operations = answered(debug.list_operations(ListOperationsRequest {}).await)?.operations;
    let since = clock::wall_ms().saturating_sub(MINUTE_MS);
    let is_recent = |it: &Operation| it.kind == "REPAIR" && it.began_unix_ms >= since;
    let repairs = operations.into_iter().filter(is_recent).collect();
    Ok(OfDaemon { pool, enis, faults, repairs })
}

/// What is wrong by what it says now; `before`: a moment ago, where something differed.
pub fn findings(before: Option<&OfDaemon>, now: &anyhow::Result<OfDaemon>) -> Vec<Finding> {
    let now = match now {
        Ok(now) => now,
        Err(failure) => return vec![Finding::new("daemon_away", format!("{failure:#}"))],
    };
    let OfDaemon { pool, faults, repairs, .. } = now;
    let troubles = pool.troubles.iter().map(|trouble| {
        let Trouble { cause, message, .. } = trouble;
        if concerns_nobody(pool, trouble) {
            Finding::note(cause, message.clone())
        } else {
            Finding::new(cause, message.clone())
        }
    });
    let not_ready = "STATUS says no: no address could be given since this boot";
    let not_ready = (!pool.ready && pool.outage.is_empty()).then(|| Finding::new("not_ready", not_ready));
    let conflicts = pool.conflicts.iter().map(|words| Finding::new("conflict", words.clone()));
    let metrics = Some(&pool.metrics_fault).filter(|words| !words.is_empty());
    let metrics = metrics.map(|words| Finding::new("metrics_away", words.clone()));
    let api_server = pool.api_server.iter().map(|words| Finding::new("api_server", words.clone()));
    let max_pods = Some(&pool.max_pods_mismatch).filter(|words| !words.is_empty());
    let max_pods = max_pods.map(|words| Finding::new("max_pods", words.clone()));
    let lasts = |fault: &&Fault| before.is_some_and(|before| before.faults.contains(fault));
    let lasting = faults.iter().filter(lasts).map(|fault| Finding::new(&fault.name, fault.what.clone()));
    let mut by_kind: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    repairs.iter().for_each(|repair| by_kind.entry(&repair.subject).or_default().push(repair));
    let again = by_kind.values().filter(|repairs| repairs.len() >= OFTEN).filter_map(|repairs| {
        let last = repairs.last()?;
        Some(Finding::new("drift", format!("repaired {} times in a minute: {}", repairs.len(), last.message)))
    });
    let restricted = pool.restrictions.iter().flat_map(in_words).map(|words| Finding::note("restricted", words));
    let all = troubles.chain(restricted).chain(not_ready).chain(conflicts).chain(metrics).chain(api_server);
    all.chain(max_pods).chain(lasting).chain(again).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(before: Option<&OfDaemon>, now: OfDaemon) -> Vec<&'static str> {
        findings(before, &Ok(now)).into_iter().map(|finding| finding.name).collect()
    }

    #[test]
    fn what_differs_for_a_moment_only_is_no_finding() {
        let ready = Pool { ready: true, ..Pool::default() };
        let fault = Fault { name: "drift".into(), what: "the host needs: a rule".into() };
        let drifted = || OfDaemon { pool: ready.clone(), faults: vec![fault.clone()], ..OfDaemon::default() };
        assert!(names(None, drifted()).is_empty());
        assert_eq!(names(Some(&drifted()), drifted()), ["drift"]);
        assert!(names(Some(&drifted()), OfDaemon { pool: ready.clone(), ..OfDaemon::default() }).is_empty());
        let repair = |kind: &str| Operation { kind: "REPAIR".into(), subject: kind.into(), ..Operation::default() };
        let repaired = |repairs| OfDaemon { pool: ready.clone(), repairs, ..OfDaemon::default() };
        assert!(names(None, repaired(vec![repair("rule"), repair("rule"), repair("route")])).is_empty());
        assert_eq!(names(None, repaired(vec![repair("rule"); 3])), ["drift"]);
    }

    #[test]
    fn troubles_have_the_names_of_their_causes() {
        let trouble = Trouble { kind: "obstacle".into(), cause: "subnet_full".into(), ..Trouble::default() };
        let pool = Pool { troubles: vec![trouble], conflicts: vec!["a rule".into()], ..Pool::default() };
        assert_eq!(names(None, OfDaemon { pool, ..OfDaemon::default() }), ["subnet_full", "not_ready", "conflict"]);
        let away = findings(None, &Err(anyhow::anyhow!("nobody listens")));
        assert_eq!(away[0].name, "daemon_away");
    }
}
