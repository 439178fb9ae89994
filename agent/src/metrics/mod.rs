//! What happens is counted here, under the peer's names where it has them; `/metrics` shows it.

mod ec2;
mod family;
mod operations;

use std::time::Duration;

use enid_api::v1::Operation;
use enid_datapath::kind::Kind;
use enid_ipamd::CallError;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry,
    process_collector::ProcessCollector, proto::MetricFamily,
};

use self::{ec2::Ec2Calls, family::vec, operations::Operations};

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
    operations: Operations,
    ec2: Ec2Calls,
    errors: IntCounterVec,
    readings_of_enis: IntCounterVec,
    repairs: IntCounterVec,
    repair_failures: IntCounter,
    readings: IntCounter,
    overruns: IntCounter,
    starts: HistogramVec,
    node_starts: HistogramVec,
    connmark: IntCounterVec,
}

impl Counters {
    /// All at zero.
    pub fn new() -> anyhow::Result<Self> {
        let registry = Registry::new();
        let counters = Counters {
            operations: Operations::new()?,
            ec2: Ec2Calls::new()?,
            readings_of_enis: vec(
                &["fn"],
                "awscni_reconcile_count",
                "ENIs and blocks that metadata showed for the first time, not any more, or again",
            )?,
            errors: vec(&["fn"], "awscni_ipamd_error_count", "What the daemon could not do, by what it was")?,
            repairs: vec(
                &["kind"],
                "enid_repairs_total",
                "Drift in the kernel, and of files on the host, that was repaired, by kind",
            )?,
            repair_failures: IntCounter::new("enid_repair_failures_total", "Repairs that failed")?,
            readings: IntCounter::new("enid_readings_total", "Times that all of ours in the kernel was read again")?,
            overruns: IntCounter::new(
                "enid_watch_overruns_total",
                "Times that more was changed in the kernel than was notified of",
            )?,
            starts: HistogramVec::new(
                HistogramOpts::new("awscni_ipamd_startup_duration_seconds", "From the process's start until it serves"),
                &["success", "with_api_server", "failure_reason"],
            )?,
            node_starts: HistogramVec::new(
                HistogramOpts::new(
                    "awscni_ipamd_node_initialization_duration_seconds",
                    "Reading metadata, store and kernel",
                ),
                &["success"],
            )?,
            connmark: vec(
                &["result"],
                "awscni_connmark_reconcile_total",
                "Times that the table which marks connections was compared and, if need be, put right",
            )?,
            registry,
        };
        let build: IntGaugeVec =
            IntGaugeVec::new(Opts::new("awscni_build_info", "Which build this is"), &["version", "goversion"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION"), ""]).set(1);
        let registry = &counters.registry;
        counters.operations.register(registry)?;
        registry.register(Box::new(build))?;
        let version = IntGaugeVec::new(Opts::new("enid_build_info", "Which build this is"), &["version"])?;
        version.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        registry.register(Box::new(version))?;
        let backend = Opts::new("awscni_connmark_backend", "What connections are marked with: always nftables");
        let backend = IntGaugeVec::new(backend, &["backend"])?;
        backend.with_label_values(&["nftables"]).set(1);
        registry.register(Box::new(backend))?;
        registry.register(Box::new(ProcessCollector::for_self()))?;
        for family in [&counters.starts, &counters.node_starts] {
            registry.register(Box::new(family.clone()))?;
        }
        for result in ["success", "error"] {
            counters.connmark.with_label_values(&[result]);
        }
        registry.register(Box::new(counters.connmark.clone()))?;
        for (name, help) in NEVER {
            registry.register(Box::new(IntCounter::new(name, help)?))?;
        }
        let pod_enis =
            vec(&["fn"], "awscni_pod_eni_error_count", "Security groups for pods, which Enid does not offer")?;
        for work in ["nodeInit", "tryEnableSecurityGroupsForPods"] {
            pod_enis.with_label_values(&[work]);
        }
        registry.register(Box::new(pod_enis))?;
        registry.register(Box::new(counters.repair_failures.clone()))?;
        registry.register(Box::new(counters.readings.clone()))?;
        registry.register(Box::new(counters.overruns.clone()))?;
        // A series that exists before its first fault can be watched.
        for work in [METADATA, KERNEL, STORE, FILES] {
            counters.errors.with_label_values(&[work]);
        }
        for family in [&counters.errors, &counters.readings_of_enis, &counters.repairs] {
            registry.register(Box::new(family.clone()))?;
        }
        counters.ec2.register(registry)?;
        Ok(counters)
    }

    /// A DEL has come.
    pub fn del(&self) {
        self.operations.del();
    }

    /// An operation of CNI has ended.
    pub fn ended(&self, operation: &Operation) {
        self.operations.ended(operation);
    }

    /// All of ours in the kernel was read again.
    pub fn read_again(&self) {
        self.readings.inc();
        self.connmark.with_label_values(&["success"]).inc();
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
        self.connmark.with_label_values(&["error"]).inc();
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

    /// An EC2 call of a class (who waits for it) ended, after so long.
    pub fn ec2(&self, action: &str, class: &str, took: Duration, failure: Option<&CallError>) {
        self.ec2.ended(action, class, took, failure);
    }

    /// The node has been read, after so long.
    pub fn read_node(&self, took: Duration) {
        self.node_starts.with_label_values(&["true"]).observe(took.as_secs_f64());
    }

    /// The daemon serves, so long after its start. The API server is never waited for.
    pub fn serves(&self, took: Duration) {
        self.starts.with_label_values(&["true", "false", ""]).observe(took.as_secs_f64());
    }

    /// What has been counted, for `/metrics`.
    pub fn gather(&self) -> Vec<MetricFamily> {
        self.registry.gather()
    }
}
