//! The clock of the core: milliseconds since the machine started, sleep included.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_smithy_types::date_time::{DateTime, Format};
use enid_ipamd::Millis;
use nix::time::{ClockId, clock_gettime};

/// Now, on CLOCK_BOOTTIME: it survives a restart of the process and ends with the boot.
pub fn now() -> Millis {
    // Every Linux has this clock; 0 would only make cooldowns look long.
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).map(std::time::Duration::from).unwrap_or_default();
    Millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// What the wall clock shows, in milliseconds since 1970.
pub fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The next full minute of the wall clock after so many milliseconds, as RFC 3339 writes it. For texts that others compare
/// and count: they stay the same for a while.
pub fn minute_after(ms: u64) -> String {
    let minutes = wall_ms().saturating_add(ms).div_ceil(60_000);
    let seconds = i64::try_from(minutes.saturating_mul(60)).unwrap_or(i64::MAX);
    DateTime::from_secs(seconds).fmt(Format::DateTime).unwrap_or_default()
}
