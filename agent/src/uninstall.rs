//! `enid uninstall`: every trace of Enid taken from a node that goes on without it, and the node's ENIs given back if asked.
//!
//! Nothing is removed while a daemon runs or pods still have their links: both are told. Each step finds what is there, so
//! it can be repeated after a failure.

use std::{fs, io, path::Path, time::Duration};

use anyhow::{Context, bail, ensure};
use enid_datapath::{
    Family,
    node::{found::Found, uninstall},
};
use enid_ipamd::{AuditedEni, Call, Ec2Answer, Scope};
use tokio::time::{Instant, sleep};

use crate::{
    aws::{ec2::Ec2, imds::Imds},
    host::{netlink::Netlink, nft, pod_links, sockets},
    runtime::{conflist, install},
    settings::Settings,
};

/// EC2 detaches an ENI within some seconds.
const BOUND: Duration = Duration::from_secs(120);
/// How soon it is asked again.
const AGAIN: Duration = Duration::from_secs(2);

/// What is asked for.
#[derive(Clone, Copy)]
pub struct Asked {
    /// The ENIs too.
    pub enis: bool,
    /// Though pods have links: they lose their network.
    pub force: bool,
}

/// Removes everything, and prints what it removes.
pub fn run(settings: &Settings, asked: Asked) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime")?;
    runtime.block_on(async {
        let claim = sockets::Claim::new(&settings.run_dir)?;
        let pods = pod_links::pod_ifnames().await?;
        if !pods.is_empty() && !asked.force {
            let names: Vec<String> = pods.into_values().collect();
            bail!("pods have their network by Enid ({}); drain the node first, or use --force", names.join(", "));
        }
        // Before the plugin goes: a runtime that finds the one without the other fails in a way that nobody understands.
        remove(&conflist::path(settings))?;
        remove(&conflist::earlier_path(settings))?;
        remove(&settings.bin_dir.join(install::PLUGIN))?;
        kernel().await?;
        if asked.enis {
            give_back(settings).await?;
        }
        clear(&settings.store_dir)?;
        claim.give_up();
        clear(&settings.run_dir)
    })
}

/// Rules, tables of routes, tables of nftables.
async fn kernel() -> anyhow::Result<()> {
    let mut netlink = Netlink::open()?;
    let (links, addresses) = (netlink.list(&[Family::V4]).await?, netlink.list(&[Family::V4]).await?);
    let found = Found::new(links, addresses, netlink.list(&Family::ALL).await?, netlink.list(&Family::ALL).await?);
    let found = found.with_proxies(netlink.list(&[Family::V4]).await?);
    let requests = uninstall::requests(&found);
    requests.iter().for_each(|request| println!("{request}"));
    netlink.apply(&requests).await?;
    for family in Family::ALL {
        if nft::is_there(family).await? {
            println!("remove the nftables table {} enid", family.word());
            nft::delete(family).await?;
        }
    }
    Ok(())
}

/// The node's ENIs: secondary ones that are ours are detached and deleted, and the primary's addresses for pods unassigned.
async fn give_back(settings: &Settings) -> anyhow::Result<()> {
    let instance = Imds::new().wait_for_instance(settings.start_wait).await?;
    let ec2 = Ec2::new(instance, settings).await;
    let end = Instant::now() + BOUND;
    loop {
        let Ec2Answer::Audited { attached, unattached } = call(&ec2, &Call::Audit { scope: Scope::Attached }).await?
        else {
            bail!("EC2 answers something else than it was asked");
        };
        drop(unattached);
        let ours = attached.into_iter().filter(|eni| eni.ours && !eni.no_manage);
        let (primary, secondary): (Vec<AuditedEni>, Vec<AuditedEni>) =
            ours.partition(|eni| eni.place.card == 0 && eni.place.device_index == 0);
        for eni in primary.into_iter().filter(|eni| !eni.blocks.is_empty()) {
            println!("unassign {} addresses and blocks from {}", eni.blocks.len(), eni.id.0);
            for family in [true, false] {
                let blocks =
                    eni.blocks.iter().filter(|net| net.addr().is_ipv4() == family).copied().collect::<Vec<_>>();
                if !blocks.is_empty() {
                    call(&ec2, &Call::Unassign { eni: eni.id.clone(), blocks }).await?;
                }
            }
        }
        for eni in &secondary {
            println!("detach {}", eni.id.0);
            // One that is on its way is told again.
            let detach = Call::Detach { eni: eni.id.clone(), attachment: eni.attachment.clone() };
            if let Err(refused) = call(&ec2, &detach).await {
                println!("{refused:#}");
            }
        }
        let Ec2Answer::Audited { attached, unattached } = call(&ec2, &Call::Audit { scope: Scope::Ours }).await? else {
            bail!("EC2 answers something else than it was asked");
        };
        for eni in &unattached {
            println!("delete {}", eni.id.0);
            call(&ec2, &Call::Delete { eni: eni.id.clone() }).await?;
        }
        let left = attached.iter().filter(|eni| !eni.no_manage && eni.place.device_index != 0).count();
        if left == 0 && secondary.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < end, "{left} ENIs are still attached after {} s", BOUND.as_secs());
        sleep(AGAIN).await;
    }
}

async fn call(ec2: &Ec2, call: &Call) -> anyhow::Result<Ec2Answer> {
    ec2.call(call).await.map_err(|refused| anyhow::anyhow!("{}", refused.message))
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => println!("remove {}", path.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot remove {}", path.display())),
    }
    Ok(())
}

/// What a folder of ours holds; the folder itself may be a mount.
fn clear(folder: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        remove(&entry.path())?;
    }
    let _ = fs::remove_dir(folder);
    Ok(())
}
