//! What the daemon puts on the node for the runtime: the plugin and the network configuration.
//!
//! Both appear by rename, complete and with their mode. The configuration appears when an address can
//! really be given, and stays when the daemon stops; one that an earlier boot left is taken away at start,
//! because it would advertise a network that is not there yet.

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde_json::json;

use crate::{settings::Settings, sockets, store};

const PLUGIN: &str = "enid-cni";
/// Sorted before the peer's 10-aws.conflist, which a runtime would load otherwise.
const CONFLIST: &str = "05-enid.conflist";

/// `enid init`: puts the plugin beside us, or from the image, into the runtime's folder.
pub fn plugin(settings: &Settings) -> anyhow::Result<()> {
    let source = find_plugin()?;
    let target = settings.bin_dir.join(PLUGIN);
    let content = fs::read(&source).with_context(|| format!("cannot read the plugin {}", source.display()))?;
    if fs::read(&target).is_ok_and(|there| there == content) {
        println!("{} is up to date", target.display());
        return Ok(());
    }
    put(&target, &content, 0o755)?;
    println!("installed {}", target.display());
    Ok(())
}

fn find_plugin() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot tell where enid is installed")?;
    let folder = own.parent().unwrap_or(Path::new("/"));
    let places = [folder.join(PLUGIN), folder.join("../libexec/enid").join(PLUGIN)];
    let found = places.iter().find(|path| path.is_file());
    found.cloned().with_context(|| format!("the plugin is neither {} nor {}", places[0].display(), places[1].display()))
}

/// Whether the configuration can be written when its time comes.
pub fn check_folder(settings: &Settings) -> anyhow::Result<()> {
    let probe = settings.conf_dir.join(".enid-probe");
    let can_write = || {
        fs::create_dir_all(&settings.conf_dir)?;
        fs::write(&probe, "")?;
        fs::remove_file(&probe)
    };
    can_write().with_context(|| format!("cannot write to {} (HOST_CNI_CONFDIR_PATH)", settings.conf_dir.display()))
}

/// Takes away a configuration that another boot left.
pub fn drop_stale_conflist(settings: &Settings) -> anyhow::Result<()> {
    let path = settings.conf_dir.join(CONFLIST);
    let Ok(text) = fs::read_to_string(&path) else { return Ok(()) };
    if boot_of(&text).is_some_and(|boot| store::boot_id().is_ok_and(|now| now == boot)) {
        return Ok(());
    }
    fs::remove_file(&path).with_context(|| format!("cannot remove {}, which an earlier boot left", path.display()))
}

/// Writes the configuration, unless it is there unchanged.
pub fn conflist(settings: &Settings) -> anyhow::Result<()> {
    let path = settings.conf_dir.join(CONFLIST);
    let text = conflist_text(settings, &store::boot_id()?);
    if fs::read_to_string(&path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    put(&path, text.as_bytes(), 0o644)
}

fn conflist_text(settings: &Settings, boot_id: &str) -> String {
    let list = json!({
        "cniVersion": "1.0.0",
        "name": "enid",
        "plugins": [{
            "type": PLUGIN,
            "socket": sockets::cni(&settings.run_dir),
            // Below the runtime's own limit, so that the answer with its cause still reaches somebody.
            "addWaitSeconds": settings.add_wait.as_secs(),
            "bootId": boot_id,
        }],
    });
    format!("{list:#}\n")
}

fn boot_of(text: &str) -> Option<String> {
    let list: serde_json::Value = serde_json::from_str(text).ok()?;
    Some(list["plugins"][0]["bootId"].as_str()?.to_owned())
}

fn put(target: &Path, content: &[u8], mode: u32) -> anyhow::Result<()> {
    let doing = || format!("cannot write {}", target.display());
    let folder = target.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).with_context(doing)?;
    let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // Runtimes load *.conf, *.conflist and *.json; this name is none of them.
    let beside = folder.join(format!(".{name}.{}.new", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&beside)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&beside, target)?;
        fs::File::open(folder)?.sync_all()
    };
    write().inspect_err(|_| drop(fs::remove_file(&beside))).with_context(doing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conflist_of_another_boot_is_taken_away_and_ours_stays() {
        let dir = std::env::temp_dir().join(format!("enid-conflist-{}", std::process::id()));
        let mut settings = Settings::read(&|_| None).unwrap();
        settings.conf_dir = dir.clone();
        let path = dir.join(CONFLIST);
        conflist(&settings).unwrap();
        drop_stale_conflist(&settings).unwrap();
        assert!(path.exists());
        fs::write(&path, conflist_text(&settings, "another boot")).unwrap();
        drop_stale_conflist(&settings).unwrap();
        assert!(!path.exists());
        fs::remove_dir_all(dir).unwrap();
    }
}
