//! The network configuration that the runtime loads: our plugin, and the standard ones chained behind it.
//!
//! It appears by rename, when an address can really be given, and stays when the daemon stops; one that an earlier
//! boot left is taken away at start, because it would advertise a network that is not there yet. What others have
//! chained into it (meshes do) is kept, over a boot too.

use std::{
    fs,
    path::{Component, Path, PathBuf},
    sync::Once,
};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use tracing::warn;

use crate::{
    host::{file::put, sockets},
    runtime::{
        install::PLUGIN,
        versions::{NEWEST, VERSION, Versions},
    },
    settings::Settings,
    store,
};

/// Sorted before the peer's 10-aws.conflist, which a runtime would load otherwise.
const CONFLIST: &str = "05-enid.conflist";
/// What an earlier boot left, under a name that no runtime loads.
const EARLIER: &str = ".05-enid.earlier";
/// That of Amazon's VPC CNI.
pub const AMAZONS: &str = "10-aws.conflist";
/// Where that lies while the node is ours, under a name that no runtime loads.
pub const AMAZONS_ASIDE: &str = ".10-aws.earlier";
/// Below it its plugin for the other family notes addresses.
pub const EGRESS_ADDRESSES: &str = "/run/cni";
/// The standard plugin for host ports.
const PORTMAP: &str = "portmap";
/// Types that we chain ourselves, and those of Amazon's VPC CNI; entries of any other type belong to others.
const CHAINED: [&str; 5] = [PORTMAP, "bandwidth", "tuning", "aws-cni", "egress-cni"];

/// Whether the configuration can be written when its time comes: the template makes sense, the switched-on plugins
/// are there, the folder takes a file.
pub fn check(settings: &Settings) -> anyhow::Result<()> {
    template(settings)?;
    for (switch, kind, on) in switches(settings) {
        let path = settings.bin_dir.join(kind);
        ensure!(
            !on || path.is_file(),
            "{switch} is on, and {} is not there; `enid init` installs the standard plugins of the image",
            path.display()
        );
    }
    let probe = settings.conf_dir.join(".enid-probe");
    let can_write = || {
        fs::create_dir_all(&settings.conf_dir)?;
        fs::write(&probe, "")?;
        fs::remove_file(&probe)
    };
    can_write().with_context(|| format!("cannot write to {} (HOST_CNI_CONFDIR_PATH)", settings.conf_dir.display()))
}

/// Takes a configuration of another boot out of the runtime's sight; what others chained into it is remembered. Whether
/// there is one of this boot: an address could be given then.
pub fn hide_stale(settings: &Settings) -> anyhow::Result<bool> {
    let path = settings.conf_dir.join(CONFLIST);
    let Some(list) = read(&path)? else { return Ok(false) };
    let boot = ours(&list).and_then(|plugin| plugin["bootId"].as_str());
    if boot == Some(store::boot_id()?.as_str()) {
        return Ok(true);
    }
    let hidden = earlier_path(settings);
    fs::rename(&path, hidden).with_context(|| format!("cannot move {}, which an earlier boot left", path.display()))?;
    Ok(false)
}

/// Where that of an earlier boot is.
pub fn earlier_path(settings: &Settings) -> PathBuf {
    settings.conf_dir.join(EARLIER)
}

/// Where the configuration is.
pub fn path(settings: &Settings) -> PathBuf {
    settings.conf_dir.join(CONFLIST)
}

/// The plugins of the configuration that are ours or chained by us: what pods need of the runtime's folder. The one for
/// host ports is optional ([`portmap`]).
pub fn needed(settings: &Settings) -> Vec<PathBuf> {
    let switched = switches(settings).into_iter().filter(|(.., on)| *on).map(|(_, kind, _)| kind);
    [PLUGIN].into_iter().chain(switched).map(|kind| settings.bin_dir.join(kind)).collect()
}

/// Where the plugin for host ports is, if it is installed.
pub fn portmap(settings: &Settings) -> PathBuf {
    settings.bin_dir.join(PORTMAP)
}

/// Writes the configuration, unless it is there unchanged: what it says, and whether it had to be written.
///
/// `network`: the name that pods of this boot have begun with; the runtime and the plugins behind ours know them by it.
pub async fn write(
    settings: &Settings,
    network: Option<String>,
    known: &mut Versions,
) -> anyhow::Result<(Value, bool)> {
    let path = path(settings);
    let there = read(&path)?;
    let earlier = settings.conf_dir.join(EARLIER);
    // Host ports are taken away by the options with which they were made, and what is chained there stays chained.
    let amazons = if network.is_some() { amazons(settings)? } else { None };
    let chained = others(there.as_ref()).or(others(read(&earlier)?.as_ref())).or(others(amazons.as_ref()));
    let mut list = wanted(settings, &store::boot_id()?, chained.unwrap_or_default())?;
    let of_portmap = |list: &Value| entries(list).iter().find(|entry| entry["type"] == PORTMAP).cloned();
    if let Some((ours, theirs)) = entry_of(&mut list, PORTMAP).zip(amazons.as_ref().and_then(of_portmap)) {
        *ours = theirs;
    }
    if let Some(network) = network {
        list["name"] = json!(network);
    }
    // Who does not answer serves what it served before.
    let before = there.as_ref().is_some_and(|there| !there["cniVersions"].is_null());
    if serves_newest(settings, &list, before, known).await {
        list["cniVersions"] = json!([VERSION, NEWEST]);
    }
    let differs = there.as_ref() != Some(&list);
    if differs {
        put(&path, format!("{list:#}\n").as_bytes(), 0o644)?;
    }
    match fs::remove_file(&earlier) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", earlier.display()))
        }
        _ => Ok((list, differs)),
    }
}

/// A configuration on disk; one that is no JSON is as good as none.
pub fn read(path: &Path) -> anyhow::Result<Option<Value>> {
    match fs::read(path) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text).unwrap_or(Value::Null))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// That of Amazon's VPC CNI, wherever it lies.
pub fn amazons(settings: &Settings) -> anyhow::Result<Option<Value>> {
    Ok(read(&settings.conf_dir.join(AMAZONS))?.or(read(&settings.conf_dir.join(AMAZONS_ASIDE))?))
}

/// The folder in which host-local keeps the addresses of its egress-cni, if that is chained: where the host's /run/cni is
/// mounted.
pub fn egress_addresses(settings: &Settings) -> anyhow::Result<Option<PathBuf>> {
    let list = amazons(settings)?.unwrap_or_default();
    let egress = entries(&list).iter().find(|entry| entry["type"] == "egress-cni");
    let folder =
        egress.and_then(|entry| Some(Path::new(entry["ipam"]["dataDir"].as_str()?).join(list["name"].as_str()?)));
    // Nothing else is touched, whatever the file says.
    let below = |folder: PathBuf| {
        let below = folder.strip_prefix(EGRESS_ADDRESSES).ok()?;
        let is_plain = below.components().all(|part| matches!(part, Component::Normal(_)));
        (is_plain && below.components().count() > 1).then(|| settings.host_local_dir.join(below))
    };
    Ok(folder.and_then(below))
}

fn entry_of<'a>(list: &'a mut Value, kind: &str) -> Option<&'a mut Value> {
    list["plugins"].as_array_mut()?.iter_mut().find(|entry| entry["type"] == kind)
}

fn entries(list: &Value) -> &[Value] {
    list["plugins"].as_array().map_or(&[], Vec::as_slice)
}

fn ours(list: &Value) -> Option<&Value> {
    entries(list).iter().find(|entry| entry["type"] == PLUGIN)
}

/// Entries of types that we do not chain.
pub fn others(list: Option<&Value>) -> Option<Vec<Value>> {
    let foreign =
        |entry: &&Value| entry["type"].as_str().is_some_and(|kind| kind != PLUGIN && !CHAINED.contains(&kind));
    list.map(|list| entries(list).iter().filter(foreign).cloned().collect())
}

/// The whole list, but for the versions.
fn wanted(settings: &Settings, boot_id: &str, others: Vec<Value>) -> anyhow::Result<Value> {
    let mut list = template(settings)?;
    let Some(plugins) = list["plugins"].as_array_mut() else { bail!("the template has no plugins") };
    for entry in plugins.iter_mut().filter(|entry| entry["type"] == PLUGIN) {
        entry["socket"] = json!(sockets::cni(&settings.run_dir));
        // Below the runtime's own limit, so that the answer with its cause still reaches somebody.
        entry["addWaitSeconds"] = json!(settings.add_wait.as_secs());
        entry["bootId"] = json!(boot_id);
        if settings.policy.multi_card {
            if !(entry["capabilities"].is_object() || entry["capabilities"].is_null()) {
                bail!("the template's capabilities of {PLUGIN} are {}, and should be an object", entry["capabilities"]);
            }
            // By way of which a pod's annotation reaches the plugin.
            entry["capabilities"]["io.kubernetes.cri.pod-annotations"] = json!(true);
        }
    }
    let has = |plugins: &[Value], kind: &Value| plugins.iter().any(|entry| entry["type"] == *kind);
    for entry in chained(settings).into_iter().chain(others) {
        if !has(plugins, &entry["type"]) {
            plugins.push(entry);
        }
    }
    Ok(list)
}

/// The peer's switches, the plugins they chain, and whether they are on.
fn switches(settings: &Settings) -> [(&'static str, &'static str, bool); 2] {
    [
        ("ENABLE_BANDWIDTH_PLUGIN", "bandwidth", settings.chain_bandwidth),
        ("DISABLE_POD_V6", "tuning", settings.disable_pod_v6),
    ]
}

/// The standard plugins behind ours. Host ports are always offered where the plugin is there: a chain with a binary
/// that is not would fail every pod.
fn chained(settings: &Settings) -> Vec<Value> {
    let mut chained = Vec::new();
    if portmap(settings).is_file() {
        chained.push(json!({ "type": PORTMAP, "capabilities": { "portMappings": true }, "snat": true }));
    } else {
        // It is looked for again and again, and may come.
        static SAID: Once = Once::new();
        let folder = settings.bin_dir.display();
        SAID.call_once(|| warn!(%folder, "the portmap plugin is not installed: pods get no host ports"));
    }
    if settings.chain_bandwidth {
        chained.push(json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } }));
    }
    if settings.disable_pod_v6 {
        let off = |which: &str| (format!("net.ipv6.conf.{which}.disable_ipv6"), json!("1"));
        let sysctl: serde_json::Map<String, Value> = ["all", "default", "lo"].map(off).into_iter().collect();
        chained.push(json!({ "type": "tuning", "sysctl": sysctl }));
    }
    chained
}

/// ENID_CONFLIST_TEMPLATE, or our own.
fn template(settings: &Settings) -> anyhow::Result<Value> {
    let Some(path) = &settings.conflist_template else {
        return Ok(json!({ "cniVersion": VERSION, "name": "enid", "plugins": [{ "type": PLUGIN }] }));
    };
    let named = || format!("ENID_CONFLIST_TEMPLATE is {}", path.display());
    let text = fs::read(path).with_context(|| format!("{}, which cannot be read", named()))?;
    checked(&text).with_context(named)
}

/// A template is a list with one entry of ours; where and how it is reached is filled in.
pub fn checked(text: &[u8]) -> anyhow::Result<Value> {
    let list: Value = serde_json::from_slice(text).context("it is no JSON")?;
    let name = list["name"].as_str().context("it has no \"name\"; the network's name is needed")?;
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let valid = name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(inner);
    ensure!(valid, "its \"name\" is {name:?}; letters, digits, '_', '.' and '-' are allowed");
    let version = &list["cniVersion"];
    let known = ["0.3.0", "0.3.1", "0.4.0", VERSION];
    let fits = known.iter().any(|known| version == known);
    ensure!(
        fits,
        "its \"cniVersion\" is {version}; {} are allowed, and {NEWEST} is offered where the chain serves it",
        known.join(", ")
    );
    let plugins = list["plugins"].as_array().context("it has no \"plugins\"; a list is needed")?;
    let typed = plugins.iter().all(|entry| entry["type"].is_string());
    ensure!(typed, "one of its \"plugins\" has no \"type\"");
    let ours = plugins.iter().filter(|entry| entry["type"] == PLUGIN).count();
    ensure!(ours == 1, "it has {ours} plugins of type {PLUGIN}; exactly one is needed");
    Ok(list)
}

/// Whether every binary of the chain says that it serves the newest version.
async fn serves_newest(settings: &Settings, list: &Value, before: bool, known: &mut Versions) -> bool {
    for kind in entries(list).iter().filter_map(|entry| entry["type"].as_str()) {
        let path = settings.bin_dir.join(kind);
        match known.of(&path).await {
            Ok(versions) if versions.iter().any(|version| version == NEWEST) => {}
            Ok(_) => return false,
            Err(failure) => {
                warn!("{failure}: the network is offered as {}", if before { NEWEST } else { VERSION });
                return before;
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Settings with folders of their own, and plugins that answer VERSION with these lists.
    fn settings(name: &str, plugins: &[(&str, &str)]) -> Settings {
        let folder = std::env::temp_dir().join(format!("enid-{name}-{}", std::process::id()));
        let mut settings = Settings::read(&|_| None).unwrap();
        (settings.bin_dir, settings.conf_dir) = (folder.join("bin"), folder.join("net.d"));
        fs::create_dir_all(&settings.bin_dir).unwrap();
        fs::create_dir_all(&settings.conf_dir).unwrap();
        fs::write(settings.bin_dir.join(PLUGIN), "").unwrap();
        for (kind, versions) in plugins {
            let path = settings.bin_dir.join(kind);
            fs::write(&path, format!("#!/bin/sh\ncat >/dev/null\necho '{{\"supportedVersions\":[{versions}]}}'\n"))
                .unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        settings
    }

    fn written(settings: &Settings) -> Value {
        read(&settings.conf_dir.join(CONFLIST)).unwrap().unwrap()
    }

    fn types(list: &Value) -> Vec<&str> {
        entries(list).iter().map(|entry| entry["type"].as_str().unwrap()).collect()
    }

    const OLD: &str = r#""0.4.0","1.0.0""#;
    const NEW: &str = r#""1.0.0","1.1.0""#;

    // D34
    #[tokio::test]
    async fn the_newest_version_is_offered_if_the_whole_chain_serves_it() {
        let modern = settings("modern", &[("enid-cni", NEW), ("portmap", NEW)]);
        write(&modern, None, &mut Versions::default()).await.unwrap();
        let list = written(&modern);
        assert_eq!((&list["cniVersion"], &list["cniVersions"]), (&json!("1.0.0"), &json!(["1.0.0", "1.1.0"])));
        assert_eq!(types(&list), ["enid-cni", "portmap"]);
        for (name, plugins) in [("old", vec![("enid-cni", NEW), ("portmap", OLD)]), ("mute", vec![("portmap", NEW)])] {
            let settings = settings(name, &plugins);
            write(&settings, None, &mut Versions::default()).await.unwrap();
            assert_eq!(written(&settings).get("cniVersions"), None, "{name}");
            fs::remove_dir_all(settings.bin_dir.parent().unwrap()).unwrap();
        }
        fs::remove_dir_all(modern.bin_dir.parent().unwrap()).unwrap();
    }

    #[tokio::test]
    async fn switches_chain_and_what_others_chained_stays() {
        let mut settings = settings("chain", &[("enid-cni", NEW)]);
        settings.chain_bandwidth = true;
        let refusal = check(&settings).unwrap_err().to_string();
        assert!(refusal.contains("ENABLE_BANDWIDTH_PLUGIN") && refusal.contains("bin/bandwidth"), "{refusal}");
        settings.disable_pod_v6 = true;
        ["bandwidth", "tuning"].iter().for_each(|kind| fs::write(settings.bin_dir.join(kind), "").unwrap());
        check(&settings).unwrap();
        write(&settings, None, &mut Versions::default()).await.unwrap();
        let mut list = written(&settings);
        assert_eq!(types(&list), ["enid-cni", "bandwidth", "tuning"], "no portmap is installed");
        assert_eq!(list["plugins"][2]["sysctl"]["net.ipv6.conf.lo.disable_ipv6"], "1");
        let path = settings.conf_dir.join(CONFLIST);
        // A mesh chains itself, the daemon goes on.
        list["plugins"].as_array_mut().unwrap().push(json!({"type": "mesh-cni", "log": "debug"}));
        fs::write(&path, list.to_string()).unwrap();
        let before = fs::read(&path).unwrap();
        write(&settings, None, &mut Versions::default()).await.unwrap();
        assert_eq!(fs::read(&path).unwrap(), before, "unchanged, so not written");
        settings.chain_bandwidth = false;
        write(&settings, None, &mut Versions::default()).await.unwrap();
        assert_eq!(types(&written(&settings)), ["enid-cni", "tuning", "mesh-cni"]);
        // Another boot: out of sight, and back with everything.
        let mut other = written(&settings);
        other["plugins"][0]["bootId"] = json!("another boot");
        fs::write(&path, other.to_string()).unwrap();
        hide_stale(&settings).unwrap();
        assert!(!path.exists());
        write(&settings, None, &mut Versions::default()).await.unwrap();
        assert_eq!(types(&written(&settings)), ["enid-cni", "tuning", "mesh-cni"]);
        write(&settings, Some("aws-cni".to_owned()), &mut Versions::default()).await.unwrap();
        assert_eq!(written(&settings)["name"], "aws-cni", "pods of this boot have begun so");
        // What was chained into the configuration of a node that is taken over.
        fs::remove_file(&path).unwrap();
        let theirs = settings.conf_dir.join(AMAZONS);
        let portmap = json!({"type": "portmap", "backend": "nftables"});
        let plugins = json!([{"type": "aws-cni"}, {"type": "egress-cni"}, portmap, {"type": "mesh-cni"}]);
        fs::write(&theirs, json!({ "plugins": plugins }).to_string()).unwrap();
        fs::write(settings.bin_dir.join(PORTMAP), "").unwrap();
        write(&settings, Some("aws-cni".to_owned()), &mut Versions::default()).await.unwrap();
        assert_eq!(types(&written(&settings)), ["enid-cni", "portmap", "tuning", "mesh-cni"]);
        assert_eq!(written(&settings)["plugins"][1], portmap);
        fs::rename(theirs, settings.conf_dir.join(AMAZONS_ASIDE)).unwrap();
        write(&settings, Some("aws-cni".to_owned()), &mut Versions::default()).await.unwrap();
        assert_eq!(written(&settings)["plugins"][1], portmap, "as long as it is of that boot");
        fs::remove_file(settings.conf_dir.join(AMAZONS_ASIDE)).unwrap();
        hide_stale(&settings).unwrap();
        assert!(path.exists(), "it is of this boot");
        assert_eq!(fs::read_dir(&settings.conf_dir).unwrap().count(), 1);
        fs::remove_dir_all(settings.bin_dir.parent().unwrap()).unwrap();
    }

    #[test]
    fn only_what_the_egress_plugin_has_noted_is_removed() {
        let mut settings = settings("egress", &[]);
        let found = |settings: &Settings, folder: &str, name: &str| {
            let egress = json!({"type": "egress-cni", "ipam": {"dataDir": folder}});
            let list = json!({"name": name, "plugins": [{"type": "aws-cni"}, egress]});
            fs::write(settings.conf_dir.join(AMAZONS), list.to_string()).unwrap();
            egress_addresses(settings).unwrap()
        };
        let of_recorded = found(&settings, "/run/cni/v6pd/egress-v4-ipam", "aws-cni").unwrap();
        assert_eq!(of_recorded, Path::new("/run/cni/v6pd/egress-v4-ipam/aws-cni"));
        let others =
            [("/var/lib/cni", "aws-cni"), ("/run/cni", "/etc"), ("/run/cni/..", "aws-cni"), ("/run/cni/x", "..")];
        assert!(others.iter().all(|(folder, name)| found(&settings, folder, name).is_none()));
        settings.host_local_dir = "/host/run/cni".into();
        let mounted = found(&settings, "/run/cni/v6pd/egress-v4-ipam", "aws-cni").unwrap();
        assert_eq!(mounted, Path::new("/host/run/cni/v6pd/egress-v4-ipam/aws-cni"));
        fs::remove_dir_all(settings.bin_dir.parent().unwrap()).unwrap();
    }

    #[tokio::test]
    async fn a_template_is_checked_before_it_is_used() {
        let bad = [
            ("{", "no JSON"),
            (r#"{"cniVersion":"1.0.0","plugins":[]}"#, "no \"name\""),
            (r#"{"cniVersion":"1.0.0","name":"a/b","plugins":[]}"#, "a/b"),
            (r#"{"cniVersion":"9","name":"a","plugins":[]}"#, "\"9\""),
            (r#"{"cniVersion":"1.0.0","name":"a"}"#, "no \"plugins\""),
            (r#"{"cniVersion":"1.0.0","name":"a","plugins":[{}]}"#, "no \"type\""),
            (r#"{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"bridge"}]}"#, "0 plugins of type enid-cni"),
        ];
        for (text, word) in bad {
            let refusal = format!("{:#}", checked(text.as_bytes()).unwrap_err());
            assert!(refusal.contains(word), "{text}: {refusal}");
        }
        let mut settings = settings("template", &[]);
        let path = settings.conf_dir.join("template");
        let text = r#"{"cniVersion":"0.4.0","name":"pods","plugins":[{"type":"enid-cni","x":1},{"type":"sbr"}]}"#;
        fs::write(&path, text).unwrap();
        settings.conflist_template = Some(path);
        write(&settings, None, &mut Versions::default()).await.unwrap();
        let list = written(&settings);
        assert_eq!((&list["name"], &list["plugins"][0]["x"]), (&json!("pods"), &json!(1)));
        assert_eq!(list["plugins"][0]["socket"], "/run/enid/cni.sock");
        settings.conflist_template = Some("/none/such".into());
        assert!(check(&settings).unwrap_err().to_string().contains("/none/such"));
        fs::remove_dir_all(settings.bin_dir.parent().unwrap()).unwrap();
    }
}
