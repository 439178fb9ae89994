//! The kernel's side of a bundle.

use anyhow::Context;
use enid_datapath::{Family, explain::listed, node::found::Found};

use crate::host::{kernel, netlink::Netlink, nft};

/// Values that decide whether pods' packets pass.
const VALUES: [&str; 6] = [
    "ipv4/ip_forward",
    "ipv4/conf/all/rp_filter",
    "ipv4/conf/default/rp_filter",
    "ipv4/conf/all/forwarding",
    "ipv6/conf/all/forwarding",
    "ipv6/conf/all/disable_ipv6",
];

/// Files and what is in them.
pub async fn seen() -> Vec<(&'static str, anyhow::Result<String>)> {
    type Lines = fn(&Found) -> Vec<String>;
    let parts: [(&str, Lines); 4] = [
        ("rules.txt", listed::rules),
        ("routes.txt", listed::routes),
        ("links.txt", listed::links),
        ("addresses.txt", listed::addresses),
    ];
    let found = found().await;
    let of_part = |(name, lines): (&'static str, Lines)| match &found {
        Ok(found) => (name, Ok(lines(found).join("\n") + "\n")),
        Err(failure) => (name, Err(anyhow::anyhow!("{failure:#}"))),
    };
    let mut seen: Vec<_> = parts.into_iter().map(of_part).collect();
    seen.push(("nftables.txt", nft::everything().await));
    seen.push(("values.txt", Ok(values())));
    seen
}

async fn found() -> anyhow::Result<Found> {
    kernel::read(&mut Netlink::open()?, &Family::ALL).await.context("the kernel cannot be asked")
}

fn values() -> String {
    let line = |value: &str| {
        let read = std::fs::read_to_string(format!("/proc/sys/net/{value}"));
        format!("{value} {}\n", read.map_or_else(|error| error.to_string(), |read| read.trim().to_owned()))
    };
    VALUES.into_iter().map(line).collect()
}
