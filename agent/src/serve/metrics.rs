//! `/metrics`: the peer's names and meanings. Gauges are read from the core's state when asked.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context;
use axum::{Router, http::StatusCode, routing::get};
use enid_ipamd::{Restrictions, View};
use prometheus::{Encoder, GaugeVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};
use tokio::sync::watch;

use crate::{
    core::{handle::Handle, readiness::Readiness},
    metrics::Counters,
    serve::listen::Listen,
};

/// Serves until the task is dropped; for ever idle without an address. `fault` hears why the address cannot be had (the
/// peer's daemon has the same one).
pub async fn serve(
    address: Option<SocketAddr>,
    handle: Handle,
    readiness: watch::Receiver<Readiness>,
    counters: Arc<Counters>,
    fault: watch::Sender<Option<String>>,
) -> anyhow::Result<()> {
    let Some(address) = address else { return std::future::pending().await };
    let listen = Listen { what: "metrics", setting: "ENID_METRICS_ADDRESS", address };
    let listener = listen.bind(|words| drop(fault.send_replace(words))).await;
    let answer = move || {
        let (handle, readiness, counters) = (handle.clone(), readiness.clone(), counters.clone());
        async move {
            let view = handle.view().await.ok_or(StatusCode::SERVICE_UNAVAILABLE)?;
            let readiness = readiness.borrow().clone();
            text(&counters, &view, &readiness).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
        }
    };
    axum::serve(listener, Router::new().route("/metrics", get(answer))).await.context("the metrics server ended")
}

/// EC2 calls of the daemon, by what Amazon's calls the work.
const WORK: [(&str, &[&str]); 4] = [
    ("nodeInit", &["DescribeInstanceTypes", "CreateTags"]),
    (
        "increaseDatastorePool",
        &[
            "AssignPrivateIpAddresses",
            "AssignIpv6Addresses",
            "CreateNetworkInterface",
            "AttachNetworkInterface",
            "ModifyNetworkInterfaceAttribute",
        ],
    ),
    (
        "decreaseDatastorePool",
        &["UnassignPrivateIpAddresses", "UnassignIpv6Addresses", "DetachNetworkInterface", "DeleteNetworkInterface"],
    ),
    ("nodeIPPoolReconcile", &["DescribeNetworkInterfaces"]),
];

/// Rate buckets, and what subnets have left.
fn of_ec2(gauges: &Registry, view: &View) -> anyhow::Result<()> {
    let help = "EC2 calls that may be made at once, as part of a full bucket, by action and by who waits for them";
    let buckets = GaugeVec::new(Opts::new("enid_ec2_bucket_ratio", help), &["action", "class"])?;
    for (action, class, now, full) in view.buckets() {
        buckets.with_label_values(&[action, class.name()]).set(f64::from(now) / f64::from(full.max(1)));
    }
    gauges.register(Box::new(buckets))?;
    let help = "Free addresses of a subnet, as EC2 has said last";
    let free = IntGaugeVec::new(Opts::new("enid_subnet_free_addresses", help), &["subnet"])?;
    let help = "How long ago EC2 said so";
    let age = IntGaugeVec::new(Opts::new("enid_subnet_free_addresses_age_seconds", help), &["subnet"])?;
    for (subnet, (number, since)) in &view.capacity.free {
        free.with_label_values(&[&*subnet.0]).set(i64::try_from(*number)?);
        age.with_label_values(&[&*subnet.0]).set(i64::try_from(view.now.since(*since) / 1_000)?);
    }
    gauges.register(Box::new(free))?;
    Ok(gauges.register(Box::new(age))?)
}

/// All of it as text.
fn text(counters: &Counters, view: &View, readiness: &Readiness) -> anyhow::Result<String> {
    let gauges = Registry::new();
    let gauge = |name: &str, help: &str, value: u64| -> anyhow::Result<()> {
        let gauge = IntGauge::new(name, help)?;
        gauge.set(i64::try_from(value)?);
        Ok(gauges.register(Box::new(gauge))?)
    };
    let length = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
    let counts = view.counts;
    gauge("awscni_eni_max", "ENIs this node may have, 0 if that is not known", u64::from(view.capacity.enis))?;
    gauge("awscni_ip_max", "Addresses for pods this node could hold", view.capacity.addresses)?;
    gauge("awscni_eni_allocated", "ENIs of this node", length(view.enis.len()))?;
    gauge("awscni_total_ip_addresses", "Addresses on the node for pods", counts.total)?;
    gauge("awscni_assigned_ip_addresses", "Addresses assigned to pods", counts.assigned)?;
    gauge("awscni_total_ipv4_prefixes", "IPv4 prefixes on the node", counts.prefixes)?;
    let by_state = IntGaugeVec::new(Opts::new("enid_addresses", "Addresses for pods, by state"), &["state"])?;
    let withheld = counts.total.saturating_sub(counts.assigned + counts.cooling + counts.available);
    let states = [
        ("assigned", counts.assigned),
        ("cooling", counts.cooling),
        ("available", counts.available),
        ("withheld", withheld),
    ];
    for (state, number) in states {
        by_state.with_label_values(&[state]).set(i64::try_from(number)?);
    }
    gauges.register(Box::new(by_state))?;
    of_ec2(&gauges, view)?;
    gauge(
        "enid_orphaned_addresses",
        "Addresses that pods' links use and no lease explains",
        length(view.orphans.len()),
    )?;
    gauge("enid_cooling_ip_addresses", "Addresses in their cooldown after use", counts.cooling)?;
    gauge("enid_ready", "1 if STATUS says yes", u64::from(readiness.is_ready()))?;
    let help = "1 for what is wrong: obstacle: new pods get no address; risk: pods may have no network; source: \
                metadata cannot be read; host: the host's own way out is wrong; outage: pods are \
                cut off; rights: EC2 refuses something for want of a right";
    let causes = IntGaugeVec::new(Opts::new("enid_cause", help), &["kind", "cause"])?;
    readiness.causes().for_each(|(kind, refusal)| causes.with_label_values(&[kind, refusal.cause.name()]).set(1));
    gauges.register(Box::new(causes))?;
    let help = "1 for releases or writes that an operator has frozen, and how many ENIs an operator has excluded";
    let restricted = IntGaugeVec::new(Opts::new("enid_restricted", help), &["what"])?;
    let Restrictions { releases_frozen, writes_frozen, excluded_enis } = &view.pacing.restrictions;
    let excluded = i64::try_from(excluded_enis.len())?;
    for (what, value) in
        [("releases", (*releases_frozen).into()), ("writes", (*writes_frozen).into()), ("enis", excluded)]
    {
        restricted.with_label_values(&[what]).set(value);
    }
    gauges.register(Box::new(restricted))?;
    gauge("enid_waiting_adds", "ADD requests that wait for an address", counts.waiting)?;
    gauge(
        "enid_invariants_broken",
        "Steps refused because they would have broken an invariant",
        length(view.broken.len()),
    )?;
    let per_eni = IntGaugeVec::new(Opts::new("awscni_assigned_ip_per_eni", "Addresses assigned, by ENI"), &["eni"])?;
    for (id, eni) in &view.enis {
        per_eni.with_label_values(&[&*id.0]).set(i64::try_from(eni.sums.assigned)?);
    }
    gauges.register(Box::new(per_eni))?;
    let per_cidr =
        IntGaugeVec::new(Opts::new("awscni_assigned_ip_per_cidr", "Addresses assigned, by block"), &["cidr"])?;
    for (net, block) in &view.blocks {
        per_cidr.with_label_values(&[&net.to_string()]).set(i64::try_from(block.assigned())?);
    }
    gauges.register(Box::new(per_cidr))?;
    let help = "What the daemon is doing, by the names of Amazon's";
    let doing = IntGaugeVec::new(Opts::new("awscni_ipamd_action_inprogress", help), &["fn"])?;
    for (work, actions) in WORK {
        let running = view.in_flight.iter().filter(|call| actions.contains(&call.action)).count();
        doing.with_label_values(&[work]).set(i64::try_from(running)?);
    }
    gauges.register(Box::new(doing))?;
    let mut text = Vec::new();
    TextEncoder::new().encode(&gauges.gather(), &mut text)?;
    TextEncoder::new().encode(&counters.gather(), &mut text)?;
    Ok(String::from_utf8(text)?)
}
