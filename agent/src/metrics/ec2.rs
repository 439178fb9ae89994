//! EC2 calls.

use std::time::Duration;

use enid_ipamd::{CallError, Cause, Class};
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Registry};

use super::family::{seconds, vec};

/// What is counted of them.
pub(super) struct Ec2Calls {
    requests: IntCounterVec,
    errors: IntCounterVec,
    by_cause: IntCounterVec,
    unknown: IntCounterVec,
    latency: HistogramVec,
    seconds: HistogramVec,
}

impl Ec2Calls {
    pub(super) fn new() -> anyhow::Result<Self> {
        let calls = Ec2Calls {
            requests: vec(&["fn"], "awscni_ec2api_req_count", "EC2 calls by action")?,
            errors: vec(&["fn"], "awscni_ec2api_error_count", "EC2 calls that failed, by action")?,
            by_cause: vec(
                &["api", "error"],
                "awscni_aws_api_error_count",
                "EC2 calls that failed, by action and cause",
            )?,
            unknown: vec(
                &["fn", "error"],
                "awscni_aws_utils_error_count",
                "EC2 calls that failed for a reason that Enid does not know, by action",
            )?,
            // The peer's is a summary without quantiles: count and sum have the same names.
            latency: HistogramVec::new(
                HistogramOpts::new("awscni_aws_api_latency_ms", "How long EC2 calls took, milliseconds")
                    .buckets(vec![50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10000.0]),
                &["api", "error", "status"],
            )?,
            seconds: seconds(
                "enid_ec2_call_seconds",
                "EC2 calls by action, by who waits for them (pod_waits, pool_short, background) and by result: done or a cause",
                &["action", "class", "result"],
            )?,
        };
        // A series that exists before its first fault can be watched.
        for action in ["AssignPrivateIpAddresses", "CreateNetworkInterface", "AttachNetworkInterface"] {
            calls.requests.with_label_values(&[action]);
            calls.seconds.with_label_values(&[action, Class::PodWaits.name(), "done"]);
            calls.latency.with_label_values(&[action, "false", "200"]);
            calls.errors.with_label_values(&[action]);
            calls.by_cause.with_label_values(&[action, Cause::Ec2Error.name()]);
            calls.unknown.with_label_values(&[action, Cause::Ec2Error.name()]);
        }
        Ok(calls)
    }

    pub(super) fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        for family in [&self.requests, &self.errors, &self.by_cause, &self.unknown] {
            registry.register(Box::new(family.clone()))?;
        }
        registry.register(Box::new(self.seconds.clone()))?;
        registry.register(Box::new(self.latency.clone()))
    }

    pub(super) fn ended(&self, action: &str, class: &str, took: Duration, failure: Option<&CallError>) {
        let result = failure.map_or("done", |failure| failure.cause.name());
        self.seconds.with_label_values(&[action, class, result]).observe(took.as_secs_f64());
        self.requests.with_label_values(&[action]).inc();
        let (error, status) = failure.map_or(("false", "200"), |failure| ("true", failure.cause.name()));
        self.latency.with_label_values(&[action, error, status]).observe(took.as_secs_f64() * 1000.0);
        let Some(failure) = failure else { return };
        self.errors.with_label_values(&[action]).inc();
        self.by_cause.with_label_values(&[action, failure.cause.name()]).inc();
        if failure.cause == Cause::Ec2Error {
            self.unknown.with_label_values(&[action, failure.cause.name()]).inc();
        }
    }
}
