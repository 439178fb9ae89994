//! What happens is counted here, under the peer's names where it has them; `/metrics` shows it.

use std::time::Duration;

use enid_datapath::kind::Kind;
use enid_ipamd::{CallError, Cause};
use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry, proto::MetricFamily,
};

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
            repairs: vec(&["kind"], "enid_repairs", "Drift in the kernel that was repaired, by kind")?,
            repair_failures: IntCounter::new("enid_repair_failures", "Repairs that the kernel refused")?,
            readings: IntCounter::new("enid_readings", "Times that all of ours in the kernel was read again")?,
            overruns: IntCounter::new(
                "enid_watch_overruns",
                "Times that more was changed in the kernel than was notified of",
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

    /// Something of ours in the kernel was repaired.
    pub fn repaired(&self, kind: Kind) {
        self.repairs.with_label_values(&[kind.name()]).inc();
    }

    /// More was changed than the kernel notified of.
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

    /// What has been counted, for `/metrics`.
    pub fn gather(&self) -> Vec<MetricFamily> {
        self.registry.gather()
    }
}

fn vec(labels: &[&str], name: &str, help: &str) -> prometheus::Result<IntCounterVec> {
    IntCounterVec::new(Opts::new(name, help), labels)
}
