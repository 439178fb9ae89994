//! Rules of iptables, which other systems have on a host: through nf_tables or through the older modules, which are two worlds
//! that do not see each other. Read and written by iptables' own programs: what they keep of a rule (its comment among it)
//! no other program shows.

use std::{fs, io, time::Duration};

use anyhow::{Context, ensure};
use enid_datapath::Family;

use crate::host::program;

/// How long one of the programs may take: others may hold the lock that all of them share.
const TIMEOUT: Duration = Duration::from_secs(30);
/// So long, in seconds, it waits for that lock itself.
const LOCK: &str = "20";

/// Through what the kernel is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// nf_tables.
    Nft,
    /// ip_tables, the modules of old.
    Legacy,
}

/// Chains by which the kubelet tells which one it uses.
const KUBELETS: [&str; 2] = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"];

/// Both.
pub const BACKENDS: [Backend; 2] = [Backend::Nft, Backend::Legacy];

/// Each of both with each family: all that a host can have.
pub const EACH: [(Backend, Family); 4] = [
    (Backend::Nft, Family::V4),
    (Backend::Nft, Family::V6),
    (Backend::Legacy, Family::V4),
    (Backend::Legacy, Family::V6),
];

impl Backend {
    fn program(self) -> &'static str {
        match self {
            Backend::Nft => "xtables-nft-multi",
            Backend::Legacy => "xtables-legacy-multi",
        }
    }
}

/// All rules of a family, as `iptables-save` prints them. A kernel that has none of this kind has no rules.
pub async fn save(backend: Backend, family: Family) -> anyhow::Result<String> {
    if backend == Backend::Legacy && !has_legacy(family)? {
        return Ok(String::new());
    }
    let name = if family == Family::V4 { "iptables-save" } else { "ip6tables-save" };
    let saved = String::from_utf8_lossy(&run(backend, &[name], "").await?).into_owned();
    // It leaves out a table in which somebody has rules that only nft knows.
    let left_out = saved.lines().find(|line| line.starts_with("# Table `") && line.contains("is incompatible"));
    ensure!(left_out.is_none(), "{} {name} says {:?}", backend.program(), left_out.unwrap_or_default());
    Ok(saved)
}

/// The backend that this host uses, decided as the wrapper of iptables does that images of Kubernetes carry, Amazon's VPC CNI's
/// among them: the one in which the kubelet has left its chains, or else the one that has more rules.
pub async fn of_host() -> anyhow::Result<Backend> {
    let (mut nft, mut legacy) = (String::new(), String::new());
    for (backend, family) in EACH {
        let of_backend = if backend == Backend::Nft { &mut nft } else { &mut legacy };
        of_backend.push_str(&save(backend, family).await?);
    }
    Ok(used(&nft, &legacy))
}

fn used(nft: &str, legacy: &str) -> Backend {
    let is_kubelets = |line: &str| KUBELETS.iter().any(|chain| line.starts_with(&format!(":{chain} ")));
    let rules = |saved: &str| saved.lines().filter(|line| line.starts_with('-')).count();
    match (nft.lines().any(is_kubelets), legacy.lines().any(is_kubelets)) {
        (true, _) => Backend::Nft,
        (false, true) => Backend::Legacy,
        _ if rules(legacy) > rules(nft) => Backend::Legacy,
        _ => Backend::Nft,
    }
}

/// Changes rules, all or none of a table: lines as `iptables-restore` reads them; what they do not name stays.
pub async fn change(backend: Backend, family: Family, lines: &str) -> anyhow::Result<()> {
    let name = if family == Family::V4 { "iptables-restore" } else { "ip6tables-restore" };
    run(backend, &[name, "--noflush", "-w", LOCK], lines).await.map(drop)
}

/// Whether the modules of old have tables; asking them for one would make it, and takes rights of its own (a raw socket).
fn has_legacy(family: Family) -> anyhow::Result<bool> {
    let path = match family {
        Family::V4 => "/proc/net/ip_tables_names",
        Family::V6 => "/proc/net/ip6_tables_names",
    };
    match fs::read_to_string(path) {
        Ok(names) => Ok(!names.trim().is_empty()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot read {path}")),
    }
}

async fn run(backend: Backend, args: &[&str], input: &str) -> anyhow::Result<Vec<u8>> {
    let program = backend.program();
    let output = program::run((program, "iptables"), args, input, TIMEOUT).await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {} refuses: {}", args.join(" "), said.trim());
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubelets_chains_count_more_than_the_number_of_rules() {
        let (hint, rules) = (":KUBE-IPTABLES-HINT - [0:0]\n", "-A INPUT -j DROP\n-A INPUT -j DROP\n");
        assert_eq!(used(hint, rules), Backend::Nft);
        assert_eq!(used(rules, ":KUBE-KUBELET-CANARY - [0:0]\n"), Backend::Legacy);
        assert_eq!(used("", rules), Backend::Legacy);
        assert_eq!((used(rules, rules), used("", "")), (Backend::Nft, Backend::Nft));
    }
}
