//! The runtime's network configuration: the other system's comes back, and ours goes.

use std::{fs, io};

use anyhow::Context;
use enid_datapath::{Family, peer::NETWORK};
use enid_ipamd::{LOCAL_V4, LOCAL_V6};
use serde_json::{Value, json};

use super::{Say, chains::Egress};
use crate::{host::file, runtime::conflist, settings::Settings};

/// Puts the other system's beside ours, which runtimes load first: the one that was there, or one of its kind, which its daemon
/// replaces; with what others have chained into ours since.
pub fn restore(settings: &Settings, egress: Option<&Egress>, say: Say<'_>) -> anyhow::Result<()> {
    let (aside, path) = (settings.conf_dir.join(conflist::AMAZONS_ASIDE), settings.conf_dir.join(conflist::AMAZONS));
    match fs::rename(&aside, &path) {
        Ok(()) => say(&format!("{} is renamed to {}", aside.display(), path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot rename {}", aside.display())),
    }
    let there = conflist::read(&path)?;
    let others = conflist::others(conflist::read(&conflist::path(settings))?.as_ref()).unwrap_or_default();
    let list = with(there.clone().unwrap_or_else(|| of_its_kind(settings, egress)), others);
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

fn of_its_kind(settings: &Settings, egress: Option<&Egress>) -> Value {
    let is_v6 = !settings.steering.policy.of_vpc.contains(&Family::V4);
    let (word, range, to, folder) = match is_v6 {
        true => ("v4", LOCAL_V4, Family::V4.default_net(), "v6pd/egress-v4-ipam"),
        false => ("v6", LOCAL_V6, Family::V6.default_net(), "v4pd/egress-v6-ipam"),
    };
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
            {
                "name": "egress-cni",
                "type": "egress-cni",
                "mtu": settings.pod_mtu.to_string(),
                "enabled": egress.is_some().to_string(),
                "randomizeSNAT": "prng",
                "nodeIP": egress.map(|egress| egress.own.to_string()).unwrap_or_default(),
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{ "subnet": range.to_string() }]],
                    "routes": [{ "dst": to }],
                    "dataDir": format!("{}/{folder}", conflist::EGRESS_ADDRESSES),
                },
                "pluginLogFile": format!("/var/log/aws-routed-eni/egress-{word}-plugin.log"),
                "pluginLogLevel": "DEBUG",
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
        restore(&settings, None, &|_| {}).unwrap();
        assert_eq!(types(&path), ["aws-cni", "egress-cni", "portmap", "mesh-cni"]);
        let folder = conflist::egress_addresses(&settings).unwrap();
        assert_eq!(folder, Some("/run/cni/v4pd/egress-v6-ipam/aws-cni".into()));
        fs::remove_file(&path).unwrap();
        let theirs = json!({"name": "aws-cni", "plugins": [{"type": "aws-cni"}, {"type": "egress-cni"}]});
        fs::write(&aside, theirs.to_string()).unwrap();
        for _ in 0..2 {
            restore(&settings, None, &|_| {}).unwrap();
            assert_eq!(types(&path), ["aws-cni", "egress-cni", "mesh-cni"]);
        }
        assert!(!aside.exists());
        remove_ours(&settings, &|_| {}).unwrap();
        assert_eq!(fs::read_dir(&settings.conf_dir).unwrap().count(), 1);
        fs::remove_dir_all(&settings.conf_dir).unwrap();
    }
}
