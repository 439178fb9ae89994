//! ADD and DEL.

use enid_api::v1::Operation;
use enid_ipamd::Cause;
use prometheus::{CounterVec, HistogramVec, IntCounter, IntCounterVec, Opts, Registry};

use super::family::{as_seconds, seconds, vec};

/// What is counted of them.
pub(super) struct Operations {
    add_requests: IntCounter,
    del_requests: IntCounterVec,
    no_address: IntCounter,
    add_seconds: HistogramVec,
    del_seconds: HistogramVec,
    phase_seconds: HistogramVec,
    add_waited: CounterVec,
}

impl Operations {
    pub(super) fn new() -> prometheus::Result<Self> {
        Ok(Operations {
            add_requests: IntCounter::new("awscni_add_ip_req_count", "ADD requests")?,
            del_requests: vec(&["reason"], "awscni_del_ip_req_count", "DEL requests by reason")?,
            no_address: IntCounter::new("awscni_no_available_ip_addresses", "ADD requests that found no address")?,
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
        })
    }

    pub(super) fn register(&self, registry: &Registry) -> prometheus::Result<()> {
        registry.register(Box::new(self.add_requests.clone()))?;
        registry.register(Box::new(self.del_requests.clone()))?;
        registry.register(Box::new(self.no_address.clone()))?;
        for reason in ["PodDeleted", "SetupNSFailed"] {
            self.del_requests.with_label_values(&[reason]);
        }
        for family in [&self.add_seconds, &self.del_seconds, &self.phase_seconds] {
            registry.register(Box::new(family.clone()))?;
        }
        registry.register(Box::new(self.add_waited.clone()))
    }

    /// A DEL has come.
    pub(super) fn del(&self) {
        self.del_requests.with_label_values(&["PodDeleted"]).inc();
    }

    /// An operation of CNI has ended.
    pub(super) fn ended(&self, operation: &Operation) {
        let Operation { kind, outcome, cause, awaited_cause, took_us, phases, .. } = operation;
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
                }
                // Who got its address in the end has waited, too.
                let awaited = if outcome == "refused" { cause } else { awaited_cause };
                if !awaited.is_empty() {
                    let waited = phases.first().map_or(*took_us, |phase| phase.took_us);
                    self.add_waited.with_label_values(&[awaited]).inc_by(as_seconds(waited));
                }
                self.add_seconds.with_label_values(&[ended]).observe(as_seconds(*took_us));
            }
            "DEL" => {
                self.del_seconds.with_label_values(&[outcome]).observe(as_seconds(*took_us));
            }
            _ => return,
        }
        for phase in phases {
            self.phase_seconds.with_label_values(&[kind, &phase.name, outcome]).observe(as_seconds(phase.took_us));
        }
    }
}
