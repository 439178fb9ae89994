//! What nftables says of one flow: a table of this command's own marks its packets for tracing, and `nft monitor trace` prints which
//! chains they pass. The table belongs to the process that made it (its flag `owner`), so that the kernel removes it when that ends,
//! however it ends.

use std::{net::SocketAddr, process::Stdio, time::Duration};

use anyhow::Context;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::host::program;

/// How long a packet's last lines may take.
const LAST: Duration = Duration::from_millis(300);
/// Lines that are read at most.
const MOST: usize = 200;
/// How long nft may take to put the table there.
const READY: Duration = Duration::from_secs(3);

/// What is followed.
pub struct Flow {
    /// UDP or TCP.
    pub protocol: &'static str,
    /// From where.
    pub from: SocketAddr,
    /// Where to.
    pub to: SocketAddr,
}

/// The table, and what is printed.
pub struct Trace {
    table: String,
    /// It holds the table, as long as its input is open.
    _owner: (Child, ChildStdin),
    _monitor: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Trace {
    /// Follows the flow from now on.
    ///
    /// # Errors
    ///
    /// nft cannot be run, or the kernel refuses the table.
    pub async fn start(flow: &Flow) -> anyhow::Result<Self> {
        let table = format!("enid-probe-{}", std::process::id());
        let nft = |args: &[&str]| {
            Command::new("nft")
                .args(args)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn()
                .context("cannot run nft, a program of the nftables package")
        };
        let mut monitor = nft(&["monitor", "trace"])?;
        let lines = BufReader::new(monitor.stdout.take().context("nft has no output")?).lines();
        let mut owner = nft(&["-i"])?;
        let mut input = owner.stdin.take().context("nft has no input")?;
        input.write_all(commands(&table, flow).as_bytes()).await.context("nft does not read")?;
        input.flush().await.context("nft does not read")?;
        let is_there = async {
            loop {
                let listed =
                    program::run(("nft", "nftables"), &["list", "table", family(flow), &table], "", READY).await?;
                let is_listening = monitor.id().is_some_and(is_listening);
                if is_listening && String::from_utf8_lossy(&listed.stdout).contains("nftrace") {
                    return anyhow::Ok(());
                }
                // Nothing notifies of either; the whole has a bound.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(READY, is_there).await.context("the kernel does not take a table that traces")??;
        Ok(Trace { table, _owner: (owner, input), _monitor: monitor, lines })
    }

    /// What became of the first packet.
    ///
    /// # Errors
    ///
    /// nft's output cannot be read.
    pub async fn seen(mut self) -> anyhow::Result<Vec<String>> {
        let mut lines = Vec::new();
        while let (Ok(line), true) = (timeout(LAST, self.lines.next_line()).await, lines.len() < MOST) {
            let Some(line) = line.context("cannot read what nft prints")? else { break };
            lines.push(line);
        }
        Ok(of_first(&lines, &self.table))
    }
}

/// Whether a process gets what nftables traces (proc(5), /proc/net/netlink; linux/netfilter/nfnetlink.h, NFNLGRP_NFTRACE): what is
/// traced before that is lost.
fn is_listening(pid: u32) -> bool {
    const NETFILTER: &str = "12";
    const TRACES: u32 = 1 << 8;
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let sockets: Vec<String> =
        files.filter_map(|file| Some(std::fs::read_link(file.path()).ok()?.to_string_lossy().into_owned())).collect();
    let all = std::fs::read_to_string("/proc/net/netlink").unwrap_or_default();
    all.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, NETFILTER, _, groups, .., inode] = fields.as_slice() else { return false };
        let traces = u32::from_str_radix(groups, 16).is_ok_and(|groups| groups & TRACES != 0);
        traces && sockets.contains(&format!("socket:[{inode}]"))
    })
}

fn family(flow: &Flow) -> &'static str {
    if flow.to.is_ipv4() { "ip" } else { "ip6" }
}

fn commands(table: &str, flow: &Flow) -> String {
    let Flow { protocol, from, to } = flow;
    let (family, protocol) = (family(flow), protocol.to_lowercase());
    let packet = format!(
        "{family} saddr {} {family} daddr {} {protocol} sport {} {protocol} dport {}",
        from.ip(),
        to.ip(),
        from.port(),
        to.port()
    );
    let chain = |hook: &str| {
        format!(
            "add chain {family} {table} {hook} {{ type filter hook {hook} priority -390; }}\n\
             add rule {family} {table} {hook} {packet} meta nftrace set 1\n"
        )
    };
    format!("add table {family} {table} {{ flags owner; }}\n{}{}", chain("prerouting"), chain("output"))
}

/// The lines of the first packet, without its number and without those of the table that follows it.
fn of_first(lines: &[String], table: &str) -> Vec<String> {
    let parts = |line: &str| -> Option<(String, String)> {
        let (id, rest) = line.strip_prefix("trace id ")?.split_once(' ')?;
        Some((id.to_owned(), rest.to_owned()))
    };
    let all = || lines.iter().filter_map(|line| parts(line));
    // Others may trace, too.
    let Some((first, _)) = all().find(|(_, rest)| rest.contains(table)) else { return Vec::new() };
    let of_first = all().filter(|(id, _)| *id == first).map(|(_, rest)| rest);
    of_first.filter(|rest| !rest.contains(table)).map(|rest| rest.trim_end().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_packets_lines_are_told_and_no_others() {
        let lines = [
            "trace id aa ip enid-probe-7 prerouting packet: iif \"eni1\" ip saddr 10.0.0.4",
            "trace id aa ip enid mark rule iifgroup 5 meta mark set 0x40 (verdict continue)",
            "trace id bb ip enid mark policy accept",
            "trace id aa ip enid mark policy accept ",
            "something else",
        ];
        let seen = of_first(&lines.map(str::to_owned), "enid-probe-7");
        assert_eq!(
            seen,
            ["ip enid mark rule iifgroup 5 meta mark set 0x40 (verdict continue)", "ip enid mark policy accept"]
        );
        let flow = Flow { protocol: "UDP", from: "[fd00::4]:5".parse().unwrap(), to: "[fd00::9]:53".parse().unwrap() };
        let said = commands("t", &flow);
        assert!(
            said.contains("ip6 saddr fd00::4 ip6 daddr fd00::9 udp sport 5 udp dport 53 meta nftrace set 1"),
            "{said}"
        );
    }
}
