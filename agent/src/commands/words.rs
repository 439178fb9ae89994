//! Moments, durations and the like as people read them.

use aws_smithy_types::date_time::{DateTime, Format};

/// A moment, to the second, as RFC 3339 writes it.
pub fn moment(unix_ms: u64) -> String {
    let seconds = i64::try_from(unix_ms / 1_000).unwrap_or(i64::MAX);
    DateTime::from_secs(seconds).fmt(Format::DateTime).unwrap_or_default()
}

/// So many microseconds: `850 µs`, `12.3 ms`, `4.2 s`, `3 min 5 s`.
pub fn took(us: u64) -> String {
    let tenths = |value: u64, unit: u64| format!("{}.{}", value / unit, value % unit * 10 / unit);
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{} ms", tenths(us, 1_000)),
        1_000_000..60_000_000 => format!("{} s", tenths(us, 1_000_000)),
        _ => {
            let seconds = us / 1_000_000;
            format!("{} min {} s", seconds / 60, seconds % 60)
        }
    }
}

/// The EC2 request behind something, to be added to a sentence; empty if there is none.
pub fn request(id: &str) -> String {
    if id.is_empty() { String::new() } else { format!(" (EC2 request {id})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit_that_fits() {
        for (us, words) in
            [(0, "0 µs"), (999, "999 µs"), (12_340, "12.3 ms"), (4_250_000, "4.2 s"), (185_000_000, "3 min 5 s")]
        {
            assert_eq!(took(us), words);
        }
        assert_eq!(moment(1_700_000_000_999), "2023-11-14T22:13:20Z");
    }
}
