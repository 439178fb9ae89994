//! The runtime's network configuration: the other system's comes back, and ours goes.

use std::{fs, io};

use anyhow::Context;
use serde_json::{Value, json};

use super::Say;
use crate::{host::file, runtime::conflist, settings::Settings, takeover::file::NETWORK};

/// Puts the other system's beside ours, which runtimes load first: the one that was there, or one of its kind, which its daemon
/// replaces; with what others have chained into ours since.
pub fn put_back(settings: &Settings, say: Say<'_>) -> anyhow::Result<()> {
    let (aside, path) = (settings.conf_dir.join(conflist::AMAZONS_ASIDE), settings.conf_dir.join(conflist::AMAZONS));
    match fs::rename(&aside, &path) {
        Ok(()) => say(&format!("{} is renamed to {}", aside.display(), path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot rename {}", aside.display())),
    }
    let there = conflist::read(&path)?;
    let others = conflist::others(conflist::read(&conflist::path(settings))?.as_ref()).unwrap_or_default();
    let list = with(there.clone().unwrap_or_else(|| of_its_kind(settings)), others);
    if there.as_ref() != Some(&list) {
        file::put(&path, format!("{list:#}\n").as_bytes(), 0o644)?;
        say(&format!("write {}", path.display()));
    }
    Ok(())
}

/// Takes ours away.
pub fn remove_ours(settings: &Settings, say: Say<'_>) -> anyhow::Result<()> {
    for path in [conflist::path(settings), conflist::earlier_path(settings)] {
        if file::remove(&path)? {
            say(&format!("remove {}", path.display()));
        }
    }
    Ok(())
}

fn with(mut list: Value, others: Vec<Value>) -> Value {
    if let Some(plugins) = list["plugins"].as_array_mut() {
        for entry in others {
            if !plugins.iter().any(|there| there["type"] == entry["type"]) {
                plugins.push(entry);
            }
        }
    }
    list
}

fn of_its_kind(settings: &Settings) -> Value {
    json!({
        "cniVersion": "0.4.0",
        "name": NETWORK,
        "disableCheck": true,
        "plugins": [
            {
                "name": NETWORK,
                "type": "aws-cni",
                "vethPrefix": settings.veth_prefix,
                "mtu": settings.pod_mtu.to_string(),
                "podSGEnforcingMode": "strict",
                "pluginLogFile": "/var/log/aws-routed-eni/plugin.log",
                "pluginLogLevel": "DEBUG",
                "capabilities": { "io.kubernetes.cri.pod-annotations": true },
            },
            { "type": "portmap", "capabilities": { "portMappings": true }, "snat": true },
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn types(path: &std::path::Path) -> Vec<String> {
        let list = conflist::read(path).unwrap().unwrap();
        let plugins = list["plugins"].as_array().unwrap();
        plugins.iter().map(|entry| entry["type"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn what_was_there_comes_back_with_what_others_have_chained_since() {
        let mut settings = Settings::read(&|_| None).unwrap();
        settings.conf_dir = std::env::temp_dir().join(format!("enid-handback-{}", std::process::id()));
        fs::create_dir_all(&settings.conf_dir).unwrap();
        let (aside, path) =
            (settings.conf_dir.join(conflist::AMAZONS_ASIDE), settings.conf_dir.join(conflist::AMAZONS));
        let ours =
            json!({"plugins": [{"type": "enid-cni"}, {"type": "portmap"}, {"type": "mesh-cni", "log": "debug"}]});
        fs::write(conflist::path(&settings), ours.to_string()).unwrap();
        // A node that was always ours.
        put_back(&settings, &|_| {}).unwrap();
        assert_eq!(types(&path), ["aws-cni", "portmap", "mesh-cni"]);
        fs::remove_file(&path).unwrap();
        let theirs = json!({"name": "aws-cni", "plugins": [{"type": "aws-cni"}, {"type": "egress-cni"}]});
        fs::write(&aside, theirs.to_string()).unwrap();
        for _ in 0..2 {
            put_back(&settings, &|_| {}).unwrap();
            assert_eq!(types(&path), ["aws-cni", "egress-cni", "mesh-cni"]);
        }
        assert!(!aside.exists());
        remove_ours(&settings, &|_| {}).unwrap();
        assert_eq!(fs::read_dir(&settings.conf_dir).unwrap().count(), 1);
        fs::remove_dir_all(&settings.conf_dir).unwrap();
    }
}
