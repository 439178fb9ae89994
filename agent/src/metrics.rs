//! What happens is counted here, under the peer's names where it has them; `/metrics` shows it.

use std::time::Duration;

use enid_api::v1::Operation;
use enid_datapath::kind::Kind;
use enid_ipamd::{CallError, Cause};
use prometheus::{
    CounterVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry,
    proto::MetricFamily,
};

/// What may fail: instance metadata, the kernel, the store.
pub const METADATA: &str = "metadata";
/// The same.
pub const KERNEL: &str = "kernel";
/// The same.
pub const STORE: &str = "store";
/// The same: files on the host.
pub const FILES: &str = "files";

/// What the peer counts and Enid never does: dashboards have them, and they stay at zero.
const NEVER: [(&str, &str); 2] = [
    ("awscni_force_removed_enis", "ENIs that were removed while pods used them; Enid removes none"),
    ("awscni_force_removed_ips", "Addresses that were removed while pods used them; Enid removes none"),
];

/// The kind of drift that is no kernel's.
const FILE: &str = "file";

/// What is counted.
pub struct Counters {
    registry: Registry,
    add_requests: IntCounter,
    del_requests: IntCounterVec,
    no_address: IntCounter,
    ec2: Ec2Calls,
    errors: IntCounterVec,
    readings_of_enis: IntCounterVec,
    add_seconds: HistogramVec,
    del_seconds: HistogramVec,
    phase_seconds: HistogramVec,
    add_waited: CounterVec,
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
            ec2: Ec2Calls::new()?,
            readings_of_enis: vec(
                &["fn"],
                "awscni_reconcile_count",
                "ENIs and blocks that metadata showed for the first time, not any more, or again",
            )?,
            errors: vec(&["fn"], "awscni_ipamd_error_count", "What the daemon could not do, by what it was")?,
            add_seconds: seconds(
                "enid_add_seconds",
                "From ADD's question to its answer, by outcome or cause",
                &["outcome"],
            )?,
            del_seconds: seconds("enid_del_seconds", "From DEL's question to its answer, by outcome", &["outcome"])?,
            phase_seconds: seconds(
                "enid_phase_seconds",
                "Phases of ADD (address, wiring, verdict) and DEL (link, lease), by the operation's outcome",
                &["operation", "phase", "outcome"],
            )?,
            add_waited: CounterVec::new(
                Opts::new("enid_add_waited_seconds_total", "Seconds that refused ADDs waited for an address, by cause"),
                &["cause"],
            )?,
            repairs: vec(
                &["kind"],
                "enid_repairs",
                "Drift in the kernel, and of files on the host, that was repaired, by kind",
            )?,
            repair_failures: IntCounter::new("enid_repair_failures", "Repairs that failed")?,
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
        for (name, help) in NEVER {
            registry.register(Box::new(IntCounter::new(name, help)?))?;
        }
        let pod_enis =
            vec(&["fn"], "awscni_pod_eni_error_count", "Security groups for pods, which Enid does not offer")?;
        for work in ["nodeInit", "tryEnableSecurityGroupsForPods"] {
            pod_enis.with_label_values(&[work]);
        }
        registry.register(Box::new(pod_enis))?;
        registry.register(Box::new(add_requests.clone()))?;
        registry.register(Box::new(del_requests.clone()))?;
        registry.register(Box::new(no_address.clone()))?;
        registry.register(Box::new(counters.repair_failures.clone()))?;
        registry.register(Box::new(counters.readings.clone()))?;
        registry.register(Box::new(counters.overruns.clone()))?;
        for reason in ["PodDeleted", "SetupNSFailed"] {
            counters.del_requests.with_label_values(&[reason]);
        }
        // A series that exists before its first fault can be watched.
        for work in [METADATA, KERNEL, STORE, FILES] {
            counters.errors.with_label_values(&[work]);
        }
        for family in [&counters.errors, &counters.readings_of_enis, &counters.repairs] {
            registry.register(Box::new(family.clone()))?;
        }
        counters.ec2.register(registry)?;
        for family in [&counters.add_seconds, &counters.del_seconds, &counters.phase_seconds] {
            registry.register(Box::new(family.clone()))?;
        }
        registry.register(Box::new(counters.add_waited.clone()))?;
        Ok(counters)
    }

    /// An operation of CNI has ended.
    pub fn ended(&self, operation: &Operation) {
        let Operation { kind, outcome, cause, took_us, phases, .. } = operation;
        // Done is what the histogram has always called wired.
        let ended = match (&**outcome, &**cause) {
            ("done", _) => "wired",
            (outcome, "") => outcome,
            (_, cause) => cause,
        };
        match &**kind {
            "ADD" => {
                self.add_requests.inc();
                if outcome == "refused"
                    && ![Cause::Internal, Cause::StoreFailed].iter().any(|of_us| of_us.name() == cause)
                {
                    self.no_address.inc();
                    let waited = phases.first().map_or(*took_us, |phase| phase.took_us);
                    self.add_waited.with_label_values(&[cause]).inc_by(as_seconds(waited));
                }
                self.add_seconds.with_label_values(&[ended]).observe(as_seconds(*took_us));
            }
            "DEL" => {
                self.del_requests.with_label_values(&["PodDeleted"]).inc();
                self.del_seconds.with_label_values(&[outcome]).observe(as_seconds(*took_us));
            }
            _ => return,
        }
        for phase in phases {
            self.phase_seconds.with_label_values(&[kind, &phase.name, outcome]).observe(as_seconds(phase.took_us));
        }
    }

    /// All of ours in the kernel was read again.
    pub fn read_again(&self) {
        self.readings.inc();
    }

    /// Something of ours in the kernel was repaired.
    pub fn repaired(&self, kind: Kind) {
        self.repairs.with_label_values(&[kind.name()]).inc();
    }

    /// A file of ours on the host was put back.
    pub fn put_back(&self) {
        self.repairs.with_label_values(&[FILE]).inc();
    }

    /// A file of ours on the host could not be put back.
    pub fn not_put_back(&self) {
        self.repair_failures.inc();
        self.failed(FILES);
    }

    /// More was changed than the kernel notified of.
    pub fn overrun(&self) {
        self.overruns.inc();
    }

    /// The kernel refused a repair.
    pub fn repair_failed(&self) {
        self.repair_failures.inc();
        self.failed(KERNEL);
    }

    /// Metadata showed so many of these.
    pub fn shown(&self, what: &str, number: u64) {
        self.readings_of_enis.with_label_values(&[what]).inc_by(number);
    }

    /// Something of this kind could not be done.
    pub fn failed(&self, work: &str) {
        self.errors.with_label_values(&[work]).inc();
    }

    /// An EC2 call ended, after so long.
    pub fn ec2(&self, action: &str, took: Duration, failure: Option<&CallError>) {
        self.ec2.ended(action, took, failure);
    }

    /// What has been counted, for `/metrics`.
    pub fn gather(&self) -> Vec<MetricFamily> {
        self.registry.gather()
    }
}

/// EC2's part of it.
struct Ec2Calls {
    requests: IntCounterVec,
    errors: IntCounterVec,
    by_cause: IntCounterVec,
    unknown: IntCounterVec,
    latency: HistogramVec,
}

impl Ec2Calls {
    fn new() -> anyhow::Result<Self> {
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
        };
        // A series that exists before its first fault can be watched.
        for action in ["AssignPrivateIpAddresses", "CreateNetworkInterface", "AttachNetworkInterface"] {
            calls.requests.with_label_values(&[action]);
            calls.latency.with_label_values(&[action, "false", "200"]);
            calls.errors.with_label_values(&[action]);
            calls.by_cause.with_label_values(&[action, Cause::Ec2Error.name()]);
            calls.unknown.with_label_values(&[action, Cause::Ec2Error.name()]);
        }
        Ok(calls)
    }

    fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        for family in [&self.requests, &self.errors, &self.by_cause, &self.unknown] {
            registry.register(Box::new(family.clone()))?;
        }
        registry.register(Box::new(self.latency.clone()))
    }

    fn ended(&self, action: &str, took: Duration, failure: Option<&CallError>) {
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

/// A histogram of what takes from a millisecond to a minute.
fn seconds(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<HistogramVec> {
    let buckets = vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0];
    HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), labels)
}

fn as_seconds(micros: u64) -> f64 {
    Duration::from_micros(micros).as_secs_f64()
}

fn vec(labels: &[&str], name: &str, help: &str) -> prometheus::Result<IntCounterVec> {
    IntCounterVec::new(Opts::new(name, help), labels)
}
