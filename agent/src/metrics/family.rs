//! Families of metrics, made as all of ours are.

use std::time::Duration;

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts};

/// A histogram of what takes from a millisecond to a minute.
pub(super) fn seconds(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<HistogramVec> {
    let buckets = vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0];
    HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), labels)
}

/// Microseconds in seconds.
pub(super) fn as_seconds(micros: u64) -> f64 {
    Duration::from_micros(micros).as_secs_f64()
}

/// Counters by label.
pub(super) fn vec(labels: &[&str], name: &str, help: &str) -> prometheus::Result<IntCounterVec> {
    IntCounterVec::new(Opts::new(name, help), labels)
}
