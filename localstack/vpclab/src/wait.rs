//! The one place that lets time pass: waiting for a condition, with a bound.

use std::time::{Duration, Instant};

use anyhow::bail;

/// The pause between two looks at a condition.
const SHORTEST: Duration = Duration::from_millis(5);
const LONGEST: Duration = Duration::from_millis(100);

/// Asks again and again until the condition holds or the bound is reached.
pub fn wait_until(bound: Duration, mut holds: impl FnMut() -> bool) -> anyhow::Result<()> {
    let end = Instant::now() + bound;
    loop {
        let began = Instant::now();
        if holds() {
            return Ok(());
        }
        if Instant::now() >= end {
            bail!("not within {} s", bound.as_secs_f32());
        }
        // As long as looking took: who waits leaves the processors to what is waited for.
        pause(began.elapsed().clamp(SHORTEST, LONGEST));
    }
}

/// The pause of a loop that has an end of its own. Whoever waits for something uses [`wait_until`].
#[expect(clippy::disallowed_methods, reason = "polling needs a pause; every caller has a bound or an end")]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}
