//! `enid uninstall`: every trace of Enid taken from a node that goes on without it, and the node's ENIs given back if asked.
//!
//! Nothing is removed while a daemon runs or pods still have their links: both are told. Each step finds what is there, so
//! it can be repeated after a failure.

use std::{fs, io, path::Path, time::Duration};

use anyhow::{Context, bail, ensure};
use enid_datapath::{Family, node::uninstall, peer};
use enid_ipamd::{AuditedEni, Call, Cause, Ec2Answer, Fact, Scope, UnattachedEni};
use tokio::time::{Instant, sleep};

use crate::{
    aws::{ec2::Ec2, imds::Imds},
    core::restrictions,
    handback::mark,
    host::{file, kernel, netlink::Netlink, nft, pod_links, sockets},
    runtime::{conflist, install},
    settings::Settings,
    store, takeover,
};

/// EC2 detaches an ENI within some seconds.
const BOUND: Duration = Duration::from_secs(120);
/// How soon it is asked again.
const AGAIN: Duration = Duration::from_secs(2);

/// Removes everything, and prints what it removes. `enis`: the ENIs too.
pub fn run(settings: &Settings, enis: bool) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime")?;
    runtime.block_on(async {
        let claim = sockets::Claim::new(&settings.run_dir)?;
        let pods = pod_links::pod_ifnames().await?;
        if !pods.is_empty() {
            // Without the plugin the runtime could not remove them any more.
            let names: Vec<String> = pods.into_values().collect();
            bail!("pods have their network by Enid ({}); drain the node first", names.join(", "));
        }
        let theirs = peer::pod_links(
            &takeover::evidence::prefix(settings),
            &kernel::read(&mut Netlink::open()?, &Family::ALL).await?,
        );
        if let Some(link) = theirs.first() {
            bail!("pods have their network by Amazon's VPC CNI ({} and others); nothing is removed", link.ifname);
        }
        // Before anything is removed: without rights in EC2 the ENIs would stay, and nobody would know whose they were.
        let ec2 = match enis {
            true => Some(rights(settings).await?),
            false => None,
        };
        // Before the plugin goes: a runtime that finds the one without the other fails in a way that nobody understands.
        remove(&conflist::path(settings))?;
        remove(&conflist::earlier_path(settings))?;
        // What a take-over has left, which would keep Amazon's daemon from a node that has no pods any more.
        remove(&settings.conf_dir.join(conflist::AMAZONS_ASIDE))?;
        if takeover::file::is_stamped(&settings.backing_store) {
            remove(&settings.backing_store)?;
        }
        remove(&settings.bin_dir.join(install::PLUGIN))?;
        rules_and_tables().await?;
        if let Some(ec2) = ec2 {
            give_back(&ec2).await?;
        }
        clear(&settings.store_dir, |name| store::is_file_of_ours(name) || mark::is_one(name))?;
        claim.give_up();
        clear(&settings.run_dir, |name| ["cni.sock", "debug.sock", "table", restrictions::FILE].contains(&name))
    })
}

/// Rules, tables of routes, tables of nftables.
async fn rules_and_tables() -> anyhow::Result<()> {
    let mut netlink = Netlink::open()?;
    let found = kernel::read(&mut netlink, &Family::ALL).await?;
    for requests in uninstall::requests(&found, &|_| false) {
        requests.iter().for_each(|request| println!("{request}"));
        netlink.apply(&requests).await?;
    }
    for family in Family::ALL {
        if nft::remove_table(family, nft::OURS).await? {
            println!("remove the nftables table {} enid", family.word());
        }
    }
    Ok(())
}

/// EC2, once it has answered.
async fn rights(settings: &Settings) -> anyhow::Result<Ec2> {
    let instance = Imds::new().wait_for_instance(settings.start_wait).await?;
    let ec2 = Ec2::new(instance, settings).await;
    audit(&ec2).await.context("nothing is removed, since ENIs could not be given back")?;
    Ok(ec2)
}

/// The node's ENIs: secondary ones that Enid has created are detached and deleted, others that it has adopted are detached, and
/// the primary's addresses for pods are unassigned. EC2 shows for a while what was: it is asked until nothing is left.
async fn give_back(ec2: &Ec2) -> anyhow::Result<()> {
    let end = Instant::now() + BOUND;
    loop {
        let (attached, unattached) = audit(ec2).await?;
        let mut left = 0;
        for eni in attached.iter().filter(|eni| !eni.no_manage) {
            if eni.place.is_primary() {
                for is_v4 in [true, false] {
                    let of_family = eni.blocks.iter().filter(|net| net.addr().is_ipv4() == is_v4);
                    let blocks: Vec<_> = of_family.copied().collect();
                    if !blocks.is_empty() {
                        left += 1;
                        println!("unassign {} addresses and blocks from {}", blocks.len(), eni.id.0);
                        attempt(ec2, &Call::Unassign { eni: eni.id.clone(), blocks }).await?;
                    }
                }
            } else {
                left += 1;
                println!("detach {}", eni.id.0);
                attempt(ec2, &Call::Detach { eni: eni.id.clone(), attachment: eni.attachment.clone() }).await?;
            }
        }
        for UnattachedEni { id, token } in unattached {
            // One without was there before Enid: a launch template's, say.
            if token.is_some() {
                left += 1;
                println!("delete {}", id.0);
                attempt(ec2, &Call::Delete { eni: id }).await?;
            } else {
                println!("{} is detached and left, since Enid has not created it", id.0);
            }
        }
        if left == 0 {
            return Ok(());
        }
        ensure!(Instant::now() < end, "{left} things are left to do at EC2 after {} s; run it again", BOUND.as_secs());
        sleep(AGAIN).await;
    }
}

/// What EC2 knows of our ENIs: attached ones, and others.
async fn audit(ec2: &Ec2) -> anyhow::Result<(Vec<AuditedEni>, Vec<UnattachedEni>)> {
    match ec2.call(&Call::Audit { scope: Scope::Ours }).await {
        Ok(Ec2Answer::Audited { attached, unattached }) => Ok((attached, unattached)),
        Ok(_) => bail!("EC2 answers something else than it was asked"),
        Err(refused) => bail!("{}", refused.message),
    }
}

/// One call. What EC2 does not know any more is done; what it may do later is told, and tried again.
async fn attempt(ec2: &Ec2, call: &Call) -> anyhow::Result<()> {
    match ec2.call(call).await {
        Ok(_) => Ok(()),
        Err(refused) if refused.fact == Fact::NotFound => Ok(()),
        Err(refused) if matches!(refused.cause, Cause::Denied | Cause::NoCredentials) => bail!("{}", refused.message),
        Err(refused) => {
            println!("{}", refused.message);
            Ok(())
        }
    }
}

fn remove(path: &Path) -> anyhow::Result<()> {
    if file::remove(path)? {
        println!("remove {}", path.display());
    }
    Ok(())
}

/// Files of ours in a folder of ours; the folder goes if nothing else is in it and it is no mount.
fn clear(folder: &Path, is_ours: fn(&str) -> bool) -> anyhow::Result<()> {
    let doing = || format!("cannot read {}", folder.display());
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(doing)?,
    };
    for entry in entries {
        let entry = entry.with_context(doing)?;
        if is_ours(&entry.file_name().to_string_lossy()) {
            remove(&entry.path())?;
        }
    }
    let _ = fs::remove_dir(folder);
    Ok(())
}
