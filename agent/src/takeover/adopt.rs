//! Pods of Amazon's VPC CNI become ours, before anything else of ours stands in the kernel.

use anyhow::{Context, bail, ensure};
use enid_datapath::peer;
use enid_ipamd::{Ledger, Millis, Write};
use tracing::{info, warn};

use super::{
    evidence,
    plan::{Becomes, Plan, Pod, plan},
    wait,
};
use crate::{
    aws::imds::Imds,
    clock,
    host::{netlink::Netlink, xtables},
    settings::Settings,
    store::Store,
};

/// So many pods are named that cannot be taken over.
const NAMED: usize = 5;

/// The ledger with the pods that are taken over; it and the kernel have them when this returns.
pub async fn adopt(settings: &Settings, imds: &Imds, store: &Store, ledger: Ledger) -> anyhow::Result<Ledger> {
    let (evidence, _) = evidence::begin(settings).await?;
    if evidence.is_empty() {
        return Ok(ledger);
    }
    let evidence = evidence::complete(evidence, imds, ledger).await?;
    let plan = plan(&evidence);
    let is_new = |pod: &Pod| pod.becomes != Becomes::Egress && !evidence.holds(pod);
    if !settings.take_over && plan.pods.iter().any(is_new) {
        let pods: Vec<&str> =
            plan.pods.iter().filter(|pod| pod.becomes != Becomes::Egress).map(|pod| &*pod.link.ifname).collect();
        bail!(
            "{} pods of Amazon's VPC CNI run here ({}{}), and would be cut off; set ENID_TAKE_OVER to true to take them over, or \
             drain the node first (docs/takeover.md)",
            pods.len(),
            pods[..pods.len().min(NAMED)].join(", "),
            if pods.len() > NAMED { " and others" } else { "" }
        );
    }
    if !plan.refusals.is_empty() {
        let named: Vec<&str> = plan.refusals.iter().take(NAMED).map(String::as_str).collect();
        bail!(
            "pods of Amazon's VPC CNI run here, and cannot be taken over ({}{}); drain the node first \
             (docs/takeover.md)",
            named.join("; "),
            if plan.refusals.len() > NAMED { "; and others" } else { "" }
        );
    }
    if !plan.pods.is_empty() {
        // What cannot be read cannot be removed later.
        for (backend, family) in xtables::EACH {
            xtables::save(backend, family).await.context("nothing is taken over")?;
        }
    }
    tell(&plan);
    let cools = Millis(clock::now().0 + settings.policy.cooldown_ms);
    let writes = writes(&plan, &evidence.ledger, cools);
    ensure!(!wait::answers(settings), "the daemon of Amazon's VPC CNI is back");
    if plan.pods.is_empty() {
        store.write(&writes)?;
    } else {
        store.take_over(&writes, peer::NETWORK)?;
        // The runtime has a network already, however full this node is.
        store.keep_served()?;
    }
    let requests: Vec<_> = plan.pods.iter().flat_map(|pod| peer::adoption(&pod.link, pod.slot, pod.mac)).collect();
    requests.iter().for_each(|request| info!("{request}"));
    Netlink::open()?.apply(&requests).await?;
    Ok(with(evidence.ledger, writes))
}

fn tell(plan: &Plan) {
    for pod in &plan.pods {
        let (addresses, link, eni) = (&pod.link.addresses, &pod.link.ifname, &pod.eni);
        match &pod.becomes {
            Becomes::Lease(key, of) => {
                let of = of.as_ref().map(|pod| format!("{}/{}", pod.namespace, pod.name)).unwrap_or_default();
                info!(pod = of, container = key.container, ?addresses, %eni, link, "taken over");
            }
            Becomes::Withheld(why) => warn!(?addresses, %eni, link, "in use, and given to nobody: {why}"),
            Becomes::Egress => {
                info!(?addresses, link, "a pod's way out in another family: it stays as long as the pod")
            }
        }
    }
    plan.cooling.iter().for_each(|(address, key)| {
        info!(container = key.container, %address, "the file names it, and no link carries it: it cools");
    });
    plan.left.iter().for_each(|left| warn!("left as it is: {left}"));
}

/// All of it in one step: an address without its ENI's slot, or with two owners, is in no file.
fn writes(plan: &Plan, ledger: &Ledger, cools: Millis) -> Vec<Write> {
    let leased: Vec<_> = plan.pods.iter().filter_map(super::plan::Pod::lease).collect();
    let is_leased = |address| leased.iter().any(|(_, lease)| lease.addresses().any(|leased| leased == address));
    let ended = plan.ended.iter().filter_map(|key| ledger.leases.get(key)).flat_map(enid_ipamd::Lease::addresses);
    let cooling = ended.chain(plan.cooling.keys().copied()).filter(|address| !is_leased(*address));
    let cooling = cooling.map(|address| Write::Cooldown(address, Some(cools)));
    let ended = plan.ended.iter().map(|key| Write::Lease(key.clone(), None));
    let slots = plan.slots.iter().map(|(eni, slot)| Write::Slot(eni.clone(), Some(*slot)));
    let warm = leased.iter().flat_map(|(_, lease)| lease.addresses()).map(|address| Write::Cooldown(address, None));
    let mut writes: Vec<Write> = ended.chain(cooling).chain(slots).chain(warm).collect();
    writes.extend(leased.iter().map(|(key, lease)| Write::Lease(key.clone(), Some(lease.clone()))));
    writes
}

/// The ledger as the store has it then.
fn with(mut ledger: Ledger, writes: Vec<Write>) -> Ledger {
    for write in writes {
        match write {
            Write::Lease(key, Some(lease)) => drop(ledger.leases.insert(key, lease)),
            Write::Lease(key, None) => drop(ledger.leases.remove(&key)),
            Write::Cooldown(address, Some(until)) => drop(ledger.cooling.insert(address, until)),
            Write::Cooldown(address, None) => drop(ledger.cooling.remove(&address)),
            Write::Slot(eni, Some(slot)) => drop(ledger.slots.insert(eni, slot)),
            Write::Slot(eni, None) => drop(ledger.slots.remove(&eni)),
            Write::Intent(..) => {}
        }
    }
    ledger
}
