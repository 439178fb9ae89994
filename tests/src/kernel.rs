//! The kernel of a node: its state as pods need it, its notifications, and the daemon's counters of repairs.

use std::{
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context;
use vpclab::wait_until;

use crate::{node::Place, still::wait_until_still, traffic};

/// Within this time a change is repaired that the daemon was notified of. It is short against the 30 s after which
/// everything is read in any case: what the watch misses is not repaired in time.
pub const REPAIR_BOUND: Duration = Duration::from_secs(5);

/// For what depends on the kernel's notifications, or on the daemon.
const BOUND: Duration = Duration::from_secs(20);

/// A change is read at the latest so long after it was notified: notifications are gathered for 300 ms, and readings
/// are 400 ms apart at most.
const READ_WITHIN: Duration = Duration::from_millis(700);

/// The host of either family, as pods need it and as they leave it: what a repair has to restore exactly.
/// Counters and what the kernel does by itself for IPv6 are left out.
pub fn state(place: Place<'_>) -> anyhow::Result<String> {
    place.sh("ip -o link show | sed 's/^[0-9]*: //' | sort; ip rule | sort; ip -6 rule | sort; ip -4 route show table all | sort
        ip -6 route show table all | grep -v -e 'proto kernel' -e multicast -e anycast -e ^local | sort
        ip -4 -o addr; ip -6 -o addr show scope global; ip neigh show nud permanent | sort
        sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding
        for eni in $(ls /sys/class/net | grep ^eth); do
            sysctl net.ipv4.conf.$eni.rp_filter net.ipv4.conf.$eni.forwarding
        done
        nft list ruleset | sed 's/packets [0-9]* bytes [0-9]*//'")
}

/// Waits until the state is the expected one again: how long it took, or what differs.
pub fn wait_until_restored(place: Place<'_>, expected: &str, bound: Duration) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let mut seen = String::new();
    let restored = wait_until(bound, || {
        seen = state(place).unwrap_or_else(|failure| format!("{failure:#}"));
        seen == expected
    });
    restored.with_context(|| {
        let without = |text: &str, other: &str| -> Vec<String> {
            text.lines().filter(|line| !other.lines().any(|there| there == *line)).map(str::to_owned).collect()
        };
        format!("unexpected: {:#?}, missing: {:#?}", without(&seen, expected), without(expected, &seen))
    })?;
    Ok(started.elapsed())
}

/// One of the daemon's counters, over all of its labels; 0 if it has never counted.
pub fn counter(place: Place<'_>, name: &str) -> anyhow::Result<u64> {
    let text = place.metrics()?;
    let of_it = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
    let number = |line: &str| line.rsplit(' ').next()?.parse::<u64>().ok();
    let numbers: Option<Vec<u64>> = text.lines().filter(of_it).map(number).collect();
    Ok(numbers.with_context(|| format!("{name} is no counter in {text}"))?.iter().sum())
}

/// Waits until this run of the daemon has compared wanted and actual kernel state once, and repaired the drift.
pub fn wait_until_reconciled(place: Place<'_>) -> anyhow::Result<()> {
    wait_until(BOUND, || counter(place, "enid_readings_total").is_ok_and(|readings| readings > 0))
        .context("the daemon does not reconcile")
}

/// Waits until the daemon has read all that changed, and reads the kernel no more: the next change is found by its own
/// notification.
pub fn wait_until_idle(place: Place<'_>) -> anyhow::Result<()> {
    wait_until_still(BOUND, READ_WITHIN, || counter(place, "enid_readings_total"))
        .context("the daemon reads the kernel again and again")
        .map(drop)
}

/// The kernel's notifications, but those of neighbours that it learns itself.
pub struct Notifications<'a> {
    place: Place<'a>,
    monitors: Vec<Child>,
}

impl<'a> Notifications<'a> {
    /// Records from now on.
    pub fn record(place: Place<'a>) -> anyhow::Result<Self> {
        // New links still detect duplicates of their IPv6 addresses.
        let settled = || place.sh("ip -6 -o addr show tentative").is_ok_and(|list| list.is_empty());
        wait_until(BOUND, settled).context("IPv6 addresses stay tentative")?;
        place.sh(": > /run/notifications")?;
        let mut recorded = Notifications { place, monitors: Vec::new() };
        for line in [
            "exec ip -o monitor link address route rule netconf",
            "ip -o monitor neigh | grep --line-buffered PERMANENT",
            "exec nft monitor",
        ] {
            let line = format!("{line} >> /run/notifications");
            let monitor = place.command("sh")?.args(["-c", &line]).stdin(Stdio::null()).spawn();
            recorded.monitors.push(monitor.context("cannot start a monitor")?);
        }
        recorded.wait_for_marker(1)?;
        Ok(recorded)
    }

    /// Waits until every monitor has recorded a change that is made for this purpose.
    fn wait_for_marker(&self, number: u8) -> anyhow::Result<()> {
        let rule = format!("lookup {}", 7700 + u32::from(number));
        let (neighbour, table) = (format!("192.0.2.{number} "), format!("mark{number}"));
        let recorded = || {
            let change = format!(
                "ip rule add pref 9 {rule}; ip rule del pref 9 {rule}
                 ip neigh add {neighbour} dev eth0 lladdr 02:00:00:00:00:09 nud permanent
                 ip neigh del {neighbour} dev eth0; nft add table ip {table}; nft delete table ip {table}
                 cat /run/notifications"
            );
            let text = self.place.sh(&change).unwrap_or_default();
            [&rule, &neighbour, &table].into_iter().all(|marker| text.contains(marker))
        };
        wait_until(BOUND, recorded).context("a monitor records nothing")
    }

    /// All notifications, without those of the markers.
    pub fn end(self) -> anyhow::Result<String> {
        self.wait_for_marker(2)?;
        let text = self.place.sh("cat /run/notifications")?;
        let of_others = |line: &&str| {
            !["lookup 770", "192.0.2.", "table ip mark", "# new generation"].iter().any(|ours| line.contains(ours))
        };
        Ok(text.lines().filter(of_others).collect::<Vec<_>>().join("\n"))
    }
}

impl Drop for Notifications<'_> {
    fn drop(&mut self) {
        let _ = self.monitors.iter_mut().try_for_each(traffic::end);
    }
}
