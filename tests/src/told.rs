//! A node's kernel as pods need it, what it tells of changes to it, and what the daemon counts of them.

use std::{
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context;
use vpclab::wait_until;

use crate::{node::Place, traffic};

/// Long for a repair, and short beside the 30 s after which everything is read unasked: what the watch does not hear of
/// is not put right in time.
pub const HEARD: Duration = Duration::from_secs(5);

/// A change that is made to be heard is heard within this time.
const BOUND: Duration = Duration::from_secs(20);

/// The host of either family, as pods need it and as they leave it: what a repair has to bring back, to the letter.
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

/// Waits until the state is that one again: how long it took, or what differs.
pub fn whole_again(place: Place<'_>, whole: &str, bound: Duration) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let mut seen = String::new();
    let is_whole = wait_until(bound, || {
        seen = state(place).unwrap_or_else(|failure| format!("{failure:#}"));
        seen == whole
    });
    is_whole.with_context(|| {
        let without = |text: &str, other: &str| -> Vec<String> {
            text.lines().filter(|line| !other.lines().any(|there| there == *line)).map(str::to_owned).collect()
        };
        format!("there is {:#?}, there is not {:#?}", without(&seen, whole), without(whole, &seen))
    })?;
    Ok(started.elapsed())
}

/// One of the daemon's counters, over all of its labels; 0 if it has never counted.
pub fn counted(place: Place<'_>, name: &str) -> anyhow::Result<u64> {
    let text = place.metrics()?;
    let of_it = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
    let number = |line: &str| line.rsplit(' ').next()?.parse::<u64>().ok();
    let numbers: Option<Vec<u64>> = text.lines().filter(of_it).map(number).collect();
    Ok(numbers.with_context(|| format!("{name} is no counter in {text}"))?.iter().sum())
}

/// Waits until this life of the daemon has read all of ours in the kernel, and put right what differed.
pub fn was_read(place: Place<'_>) -> anyhow::Result<()> {
    wait_until(BOUND, || counted(place, "enid_readings").is_ok_and(|readings| readings > 0)).context("no reading")
}

/// Waits until nothing is read any more: what changes next is found for its own sake.
pub fn rests(place: Place<'_>) -> anyhow::Result<()> {
    let mut before = None;
    let rest = || {
        let now = counted(place, "enid_readings").ok();
        now.is_some() && std::mem::replace(&mut before, now) == now
    };
    wait_until(BOUND, rest).context("it reads again and again")
}

/// What the kernel tells of changes: all but neighbours that come and go by themselves.
pub struct Told<'a> {
    place: Place<'a>,
    monitors: Vec<Child>,
}

impl<'a> Told<'a> {
    /// Listens from now on.
    pub fn of(place: Place<'a>) -> anyhow::Result<Self> {
        // Links that have just come are still looking whether anybody has their IPv6 address.
        let found = || place.sh("ip -6 -o addr show tentative").is_ok_and(|list| list.is_empty());
        wait_until(BOUND, found).context("IPv6 addresses stay tentative")?;
        place.sh(": > /run/told")?;
        let mut told = Told { place, monitors: Vec::new() };
        for line in [
            "exec ip -o monitor link address route rule netconf",
            "ip -o monitor neigh | grep --line-buffered PERMANENT",
            "exec nft monitor",
        ] {
            let line = format!("{line} >> /run/told");
            let monitor = place.command("sh")?.args(["-c", &line]).stdin(Stdio::null()).spawn();
            told.monitors.push(monitor.context("cannot start a monitor")?);
        }
        told.hears(1)?;
        Ok(told)
    }

    /// Waits until every monitor has told of a change that is made for it.
    fn hears(&self, number: u8) -> anyhow::Result<()> {
        let rule = format!("lookup {}", 7700 + u32::from(number));
        let (neighbour, table) = (format!("192.0.2.{number} "), format!("mark{number}"));
        let heard = || {
            let change = format!(
                "ip rule add pref 9 {rule}; ip rule del pref 9 {rule}
                 ip neigh add {neighbour} dev eth0 lladdr 02:00:00:00:00:09 nud permanent
                 ip neigh del {neighbour} dev eth0; nft add table ip {table}; nft delete table ip {table}
                 cat /run/told"
            );
            let told = self.place.sh(&change).unwrap_or_default();
            [&rule, &neighbour, &table].into_iter().all(|mark| told.contains(mark))
        };
        wait_until(BOUND, heard).context("a monitor does not hear")
    }

    /// All that was told, without what was made to be heard.
    pub fn end(self) -> anyhow::Result<String> {
        self.hears(2)?;
        let told = self.place.sh("cat /run/told")?;
        let of_others = |line: &&str| {
            !["lookup 770", "192.0.2.", "table ip mark", "# new generation"].iter().any(|ours| line.contains(ours))
        };
        Ok(told.lines().filter(of_others).collect::<Vec<_>>().join("\n"))
    }
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        let _ = self.monitors.iter_mut().try_for_each(traffic::end);
    }
}
