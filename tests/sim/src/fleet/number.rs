//! Numbers.

/// A count to divide with; exact below 2^53.
#[expect(clippy::as_conversions, reason = "there is no other way from u64 to f64")]
pub fn float(count: u64) -> f64 {
    count as f64
}
