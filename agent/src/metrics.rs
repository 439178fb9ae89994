//! `/metrics`: the peer's names and meanings. Gauges are read from the core's state when asked; only
//! what happens is counted here.

use std::{
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use axum::{Router, http::StatusCode, routing::get};
use enid_datapath::watch::Kind;
use enid_ipamd::{CallError, Cause, View};
use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use tokio::sync::watch;

use crate::{handle::Handle, readiness::Readiness};

/// What is counted.
pub struct Counters {
    registry: Registry,
    add_requests: IntCounter,
    del_requests: IntCounterVec,
    no_address: IntCounter,
    ec2_requests: IntCounterVec,
    ec2_errors: IntCounterVec,
    api_errors: IntCounterVec,
    add_seconds: HistogramVec,
    repairs: IntCounterVec,
    repair_failures: IntCounter,
    readings: IntCounter,
    overruns: IntCounter,
}

impl Counters {
    /// All at zero.
    pub fn new() -> anyhow::Result<Self> {
        let registry = Registry::new();
        let counters = Counters {
            add_requests: IntCounter::new("awscni_add_ip_req_count", "ADD requests")?,
            del_requests: vec(&["reason"], "awscni_del_ip_req_count", "DEL requests by reason")?,
            no_address: IntCounter::new("awscni_no_available_ip_addresses", "ADD requests that found no address")?,
            ec2_requests: vec(&["fn"], "awscni_ec2api_req_count", "EC2 calls by action")?,
            ec2_errors: vec(&["fn"], "awscni_ec2api_error_count", "EC2 calls that failed, by action")?,
            api_errors: vec(
                &["api", "error"],
                "awscni_aws_api_error_count",
                "EC2 calls that failed, by action and cause",
            )?,
            add_seconds: HistogramVec::new(
                HistogramOpts::new("enid_add_seconds", "From ADD's question to its answer, by outcome")
                    .buckets(vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0]),
                &["outcome"],
            )?,
            repairs: vec(&["kind"], "enid_repairs", "Things of ours in the kernel that were put right, by kind")?,
            repair_failures: IntCounter::new("enid_repair_failures", "Repairs that the kernel refused")?,
            readings: IntCounter::new("enid_readings", "Times that all of ours in the kernel was read again")?,
            overruns: IntCounter::new(
                "enid_watch_overruns",
                "Times that more was changed in the kernel than could be told",
            )?,
            registry,
        };
        let build: IntGaugeVec =
            IntGaugeVec::new(Opts::new("awscni_build_info", "Which build this is"), &["version", "goversion"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION"), ""]).set(1);
        let Counters { registry, add_requests, del_requests, no_address, .. } = &counters;
        registry.register(Box::new(build))?;
        registry.register(Box::new(add_requests.clone()))?;
        registry.register(Box::new(del_requests.clone()))?;
        registry.register(Box::new(no_address.clone()))?;
        registry.register(Box::new(counters.repair_failures.clone()))?;
        registry.register(Box::new(counters.readings.clone()))?;
        registry.register(Box::new(counters.overruns.clone()))?;
        for family in [&counters.ec2_requests, &counters.ec2_errors, &counters.api_errors, &counters.repairs] {
            registry.register(Box::new(family.clone()))?;
        }
        registry.register(Box::new(counters.add_seconds.clone()))?;
        Ok(counters)
    }

    /// An ADD was answered: with an address, or refused for a cause.
    pub fn add(&self, took: Duration, cause: Option<Cause>) {
        self.add_requests.inc();
        if cause.is_some_and(|cause| !matches!(cause, Cause::Superseded | Cause::Internal)) {
            self.no_address.inc();
        }
        self.add_seconds.with_label_values(&[cause.map_or("wired", Cause::name)]).observe(took.as_secs_f64());
    }

    /// A DEL came.
    pub fn del(&self) {
        self.del_requests.with_label_values(&["PodDeleted"]).inc();
    }

    /// All of ours in the kernel was read again.
    pub fn read_again(&self) {
        self.readings.inc();
    }

    /// Something of ours in the kernel was put right.
    pub fn repaired(&self, kind: Kind) {
        self.repairs.with_label_values(&[kind.name()]).inc();
    }

    /// More was changed than the kernel could tell.
    pub fn overrun(&self) {
        self.overruns.inc();
    }

    /// The kernel refused a repair.
    pub fn repair_failed(&self) {
        self.repair_failures.inc();
    }

    /// An EC2 call ended.
    pub fn ec2(&self, action: &str, failure: Option<&CallError>) {
        self.ec2_requests.with_label_values(&[action]).inc();
        if let Some(failure) = failure {
            self.ec2_errors.with_label_values(&[action]).inc();
            self.api_errors.with_label_values(&[action, failure.cause.name()]).inc();
        }
    }

    /// All of it as text.
    fn text(&self, view: &View, readiness: &Readiness) -> anyhow::Result<String> {
        let gauges = Registry::new();
        let gauge = |name: &str, help: &str, value: u64| -> anyhow::Result<()> {
            let gauge = IntGauge::new(name, help)?;
            gauge.set(i64::try_from(value)?);
            Ok(gauges.register(Box::new(gauge))?)
        };
        let length = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
        let counts = view.counts;
        gauge("awscni_eni_max", "ENIs this node may have", u64::from(view.eni_max))?;
        gauge("awscni_ip_max", "Addresses for pods this node could hold", view.address_max)?;
        gauge("awscni_eni_allocated", "ENIs of this node", length(view.enis.len()))?;
        gauge("awscni_total_ip_addresses", "Addresses held for pods", counts.total)?;
        gauge("awscni_assigned_ip_addresses", "Addresses in the hands of pods", counts.held)?;
        gauge("awscni_total_ipv4_prefixes", "IPv4 prefixes held", counts.prefixes)?;
        gauge("enid_resting_ip_addresses", "Addresses that rest after use", counts.resting)?;
        let ready =
            IntGaugeVec::new(Opts::new("enid_ready", "1 if STATUS says yes, by the cause if not"), &["cause", "risk"])?;
        let name = |cause: Option<Cause>| cause.map_or("", Cause::name);
        let (obstacle, risk) = readiness.causes();
        ready.with_label_values(&[name(obstacle), name(risk)]).set(i64::from(readiness.is_ready()));
        gauges.register(Box::new(ready))?;
        gauge("enid_waiting_adds", "ADD requests that wait for an address", counts.waiting)?;
        gauge(
            "enid_invariants_broken",
            "Steps refused because they would have broken an invariant",
            length(view.broken.len()),
        )?;
        let per_eni = IntGaugeVec::new(Opts::new("awscni_assigned_ip_per_eni", "Addresses given, by ENI"), &["eni"])?;
        for (id, eni) in &view.enis {
            per_eni.with_label_values(&[id.0.as_str()]).set(i64::try_from(eni.sums.held)?);
        }
        gauges.register(Box::new(per_eni))?;
        let mut text = Vec::new();
        TextEncoder::new().encode(&gauges.gather(), &mut text)?;
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(String::from_utf8(text)?)
    }
}

fn vec(labels: &[&str], name: &str, help: &str) -> prometheus::Result<IntCounterVec> {
    IntCounterVec::new(Opts::new(name, help), labels)
}

/// Takes the address.
pub fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bind = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok::<_, std::io::Error>(listener)
    };
    bind().with_context(|| format!("cannot serve metrics on {address} (ENID_METRICS_ADDRESS)"))
}

/// Serves until the task is dropped.
pub async fn serve(
    listener: TcpListener,
    handle: Handle,
    readiness: watch::Receiver<Readiness>,
    counters: Arc<Counters>,
) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener).context("cannot serve metrics")?;
    let answer = move || {
        let (handle, readiness, counters) = (handle.clone(), readiness.clone(), counters.clone());
        async move {
            let view = handle.view().await.ok_or(StatusCode::SERVICE_UNAVAILABLE)?;
            let readiness = readiness.borrow().clone();
            counters.text(&view, &readiness).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
        }
    };
    axum::serve(listener, Router::new().route("/metrics", get(answer))).await.context("the metrics server ended")
}
