//! Waiting for what changes no more.

use std::time::{Duration, Instant};

use anyhow::Context;
use vpclab::wait_until;

/// Waits until what is looked at has been the same for `period`: that. A look that fails says nothing.
pub fn wait_until_still<T: PartialEq>(
    bound: Duration,
    period: Duration,
    mut look: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let (mut last, mut since) = (None, Instant::now());
    let is_still = || {
        let now = look().ok();
        if now.is_none() || now != last {
            (last, since) = (now, Instant::now());
        }
        since.elapsed() > period
    };
    wait_until(bound, is_still)?;
    last.context("it cannot be looked at")
}
