//! Base chains of others at the forward hook that may drop pods' packets. Chains alone are listed, never rules: there may
//! be many of those.
//!
//! Numbers: linux/netfilter.h and linux/netfilter/nf_tables.h.

use std::{fs, io};

use netlink_packet_core::NlasIterator;

use crate::{
    family::Family,
    netfilter::socket::{NFTABLES, Netfilter},
    netlink::{error::Error, listing::LISTINGS},
};

const NFT_GETCHAIN: u16 = 4;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_HOOK_HOOKNUM: u16 = 1;
/// NF_INET_FORWARD.
const FORWARD: u32 = 2;
/// NF_DROP.
const DROP: u32 = 0;
/// The table of a firewall that accepts by policy and rejects by its last rule (firewalld's nftables backend). Of all
/// others only the policy is looked at, since their rules may be many.
const FIREWALLD: &str = "firewalld";
/// NFPROTO_INET, NFPROTO_IPV4 and NFPROTO_IPV6.
const FAMILIES: [(u8, &str); 3] = [(1, "inet"), (2, "ip"), (10, "ip6")];

/// Chains that may drop packets of this family which they do not know at the forward hook, as `family table chain`. The
/// tables of the older iptables do not tell their policy: they are named if there is a filter among them.
pub fn suspects(of: Family) -> Result<Vec<String>, Error> {
    let mut suspects = list(of)?;
    let (names, program) = match of {
        Family::V4 => ("/proc/net/ip_tables_names", "iptables"),
        Family::V6 => ("/proc/net/ip6_tables_names", "ip6tables"),
    };
    let legacy = fs::read_to_string(names).unwrap_or_default();
    if legacy.lines().any(|name| name == "filter") {
        suspects.push(format!("the older {program}' filter FORWARD"));
    }
    Ok(suspects)
}

fn suspect(of: Family, family: u8, attributes: &[u8]) -> Option<String> {
    let (_, family) = FAMILIES.into_iter().find(|(number, _)| *number == family)?;
    if family != "inet" && family != of.word() {
        return None;
    }
    let (mut table, mut name, mut policy, mut hook) = (None, None, None, None);
    for attribute in NlasIterator::new(attributes).flatten() {
        let value = attribute.value();
        match attribute.kind() {
            NFTA_CHAIN_TABLE => table = text(value),
            NFTA_CHAIN_NAME => name = text(value),
            NFTA_CHAIN_POLICY => policy = number(value),
            NFTA_CHAIN_HOOK => {
                let mut parts = NlasIterator::new(value).flatten();
                hook = parts.find(|part| part.kind() == NFTA_HOOK_HOOKNUM).and_then(|part| number(part.value()));
            }
            _ => {}
        }
    }
    let table = table.unwrap_or_default();
    (hook == Some(FORWARD) && (policy == Some(DROP) || table == FIREWALLD))
        .then(|| format!("{family} {table} {}", name.unwrap_or_default()))
}

fn text(value: &[u8]) -> Option<String> {
    value.split(|byte| *byte == 0).next().map(|text| String::from_utf8_lossy(text).into_owned())
}

fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

/// The suspects among the chains of nftables.
fn list(of: Family) -> Result<Vec<String>, Error> {
    let what = "list the chains of nftables";
    let mut netfilter = Netfilter::open()?;
    for _ in 0..LISTINGS {
        let mut suspects = Vec::new();
        let see = |family: u8, attributes: &[u8]| suspects.extend(suspect(of, family, attributes));
        if netfilter.list(what, NFTABLES | NFT_GETCHAIN, 0, see)? {
            return Ok(suspects);
        }
    }
    Err(Error::new(what, io::Error::other(format!("they changed during each of {LISTINGS} listings"))))
}
