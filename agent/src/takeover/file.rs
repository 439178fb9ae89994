//! The state file of Amazon's VPC CNI: which pods have which addresses, as its daemon has promised them.

use std::{fs, io, net::IpAddr, path::Path};

use anyhow::{Context, bail};
use enid_datapath::peer::NETWORK;
use enid_ipamd::{AttachmentKey, PodRef};
use serde::{Deserialize, Serialize};

use crate::{clock, host::file::put};

/// The stamp of its format, unchanged since its release 1.7.0.
const VERSION: &str = "vpc-cni-ipam/1";
/// What a take-over that has come to its end leaves in its place: Amazon's daemon refuses a file of another version, so that
/// it does not serve a node again that was not handed back.
const TAKEN_OVER: &str = "enid-takeover/1";
/// What a daemon before that one noted for pods that it found at the runtime: the network, and the interface.
const MIGRATED: (&str, &str) = ("_migrated-from-cri", "unknown");
/// The interface that it gives to every pod.
const IFNAME: &str = "eth0";

/// In the place of a container's id: an address that a pod uses of which nobody knows more.
const WITHHELD: &str = "enid-withheld-";

/// What stands in the place of a container's id for such an address.
pub fn withheld(address: IpAddr) -> String {
    format!("{WITHHELD}{address}")
}

/// What it says of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Whose it is, as the runtime names it in its DEL.
    pub key: AttachmentKey,
    /// The address.
    pub address: IpAddr,
    /// The pod; entries of old releases do not name it.
    pub pod: Option<PodRef>,
}

#[derive(Deserialize, Serialize)]
struct Document {
    version: String,
    #[serde(default)]
    allocations: Option<Vec<Allocation>>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Allocation {
    network_name: String,
    #[serde(rename = "containerID")]
    container_id: String,
    if_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv4: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv6: Option<IpAddr>,
    /// Nanoseconds since 1970.
    #[serde(default)]
    allocation_timestamp: u64,
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    #[serde(skip_serializing_if = "Option::is_none")]
    k8s_pod_namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    k8s_pod_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interfaces_count: Option<u32>,
}

/// What it says.
///
/// # Errors
///
/// It is not there, cannot be read, is no JSON, or is of another format.
pub fn read(path: &Path) -> anyhow::Result<Vec<Entry>> {
    let named = || format!("the state file {} of Amazon's VPC CNI", path.display());
    match fs::read(path) {
        Ok(text) => entries(&text).with_context(named),
        Err(error) if error.kind() == io::ErrorKind::NotFound => bail!("{} is not there", named()),
        Err(error) => Err(error).with_context(|| format!("{} cannot be read", named())),
    }
}

/// Whether there is one that still says what its daemon reads.
pub fn is_theirs(path: &Path) -> bool {
    fs::read(path).is_ok_and(|text| version(&text).is_none_or(|version| version != TAKEN_OVER))
}

fn version(text: &[u8]) -> Option<String> {
    let document: Document = serde_json::from_slice(text).ok()?;
    Some(document.version)
}

/// Whether there is one with our stamp.
pub fn is_stamped(path: &Path) -> bool {
    fs::read(path).is_ok_and(|text| version(&text).is_some_and(|version| version == TAKEN_OVER))
}

/// Puts our stamp in the place of what it says.
///
/// # Errors
///
/// The file cannot be written.
pub fn stamp(path: &Path) -> anyhow::Result<()> {
    put(path, format!("{{\"version\":\"{TAKEN_OVER}\"}}\n").as_bytes(), 0o600)
}

/// Writes it as its daemon reads it: these pods', and these addresses, which nobody knows whose they are, and which it
/// must not give to others.
///
/// # Errors
///
/// The file cannot be written.
pub fn write(path: &Path, entries: &[Entry], withheld: &[IpAddr]) -> anyhow::Result<()> {
    put(path, &text(entries, withheld)?, 0o600)
}

fn text(entries: &[Entry], withheld: &[IpAddr]) -> anyhow::Result<Vec<u8>> {
    let allocation = |container_id: String, if_name: String, address: IpAddr, metadata: Metadata| Allocation {
        // Whatever it was called here: its plugin asks by the name in its own configuration.
        network_name: NETWORK.to_owned(),
        container_id,
        if_name,
        ipv4: Some(address).filter(IpAddr::is_ipv4),
        ipv6: Some(address).filter(IpAddr::is_ipv6),
        allocation_timestamp: clock::wall_ms().saturating_mul(1_000_000),
        metadata,
    };
    let of_pods = entries.iter().map(|Entry { key, address, pod }| {
        let (namespace, name) = pod.clone().map(|PodRef { namespace, name }| (namespace, name)).unzip();
        let metadata = Metadata { k8s_pod_namespace: namespace, k8s_pod_name: name, interfaces_count: Some(1) };
        allocation(key.container.clone(), key.ifname.clone(), *address, metadata)
    });
    let of_nobody =
        withheld.iter().map(|it| allocation(self::withheld(*it), IFNAME.to_owned(), *it, Metadata::default()));
    let allocations = Some(of_pods.chain(of_nobody).collect());
    let document = Document { version: VERSION.to_owned(), allocations };
    let mut text = serde_json::to_vec(&document).context("cannot write JSON")?;
    text.push(b'\n');
    Ok(text)
}

/// What a file of this text says.
pub fn entries(text: &[u8]) -> anyhow::Result<Vec<Entry>> {
    let Document { version, allocations } = serde_json::from_slice(text).context("is none that can be read")?;
    if version == TAKEN_OVER {
        return Ok(Vec::new());
    }
    if version != VERSION {
        bail!("has the version {version:?}; {VERSION:?} is known");
    }
    let allocations = allocations.unwrap_or_default().into_iter();
    allocations.filter(|it| !it.container_id.starts_with(WITHHELD)).map(entry).collect()
}

fn entry(allocation: Allocation) -> anyhow::Result<Entry> {
    let Allocation { network_name, container_id, if_name, ipv4, ipv6, metadata, .. } = allocation;
    let address = ipv4.or(ipv6).with_context(|| format!("names no address of the container {container_id}"))?;
    let (network, ifname) = match (network_name.as_str(), if_name.as_str()) {
        MIGRATED => (NETWORK.to_owned(), IFNAME.to_owned()),
        _ => (network_name, if_name),
    };
    let pod = metadata.k8s_pod_namespace.zip(metadata.k8s_pod_name).map(|(namespace, name)| PodRef { namespace, name });
    Ok(Entry { key: AttachmentKey { network, container: container_id, ifname }, address, pod })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(allocation: &str) -> String {
        format!(r#"{{"version":"vpc-cni-ipam/1","allocations":[{allocation}]}}"#)
    }

    #[test]
    fn entries_of_all_releases_are_read() {
        let now = file(
            r#"{"networkName":"aws-cni","containerID":"0123abcd","ifName":"eth0","ipv4":"10.0.3.17",
                "allocationTimestamp":1767225600000000000,
                "metadata":{"k8sPodNamespace":"default","k8sPodName":"web-0","interfacesCount":1}}"#,
        );
        let key = AttachmentKey { network: "aws-cni".into(), container: "0123abcd".into(), ifname: "eth0".into() };
        let pod = Some(PodRef { namespace: "default".into(), name: "web-0".into() });
        let of_now = Entry { key: key.clone(), address: "10.0.3.17".parse().unwrap(), pod };
        assert_eq!(entries(now.as_bytes()).unwrap(), [of_now]);
        let v6 =
            file(r#"{"networkName":"aws-cni","containerID":"c","ifName":"eth0","ipv6":"2001:db8::f","metadata":{}}"#);
        let v6 = entries(v6.as_bytes()).unwrap().remove(0);
        assert_eq!((v6.address, v6.pod), ("2001:db8::f".parse().unwrap(), None));
        let migrated = file(
            r#"{"networkName":"_migrated-from-cri","containerID":"0123abcd","ifName":"unknown","ipv4":"10.0.3.17"}"#,
        );
        assert_eq!(entries(migrated.as_bytes()).unwrap()[0].key, key);
        assert!(entries(br#"{"version":"vpc-cni-ipam/1","allocations":null}"#).unwrap().is_empty());
        assert!(entries(file("{}").replace(VERSION, TAKEN_OVER).replace("{}", "").as_bytes()).unwrap().is_empty());
    }

    #[test]
    fn what_is_put_back_is_read_as_it_was() {
        let key = AttachmentKey { network: "enid".into(), container: "0123abcd".into(), ifname: "eth0".into() };
        let pod = Some(PodRef { namespace: "default".into(), name: "web-0".into() });
        let entry = Entry { key, address: "10.0.3.17".parse().unwrap(), pod };
        let text = text(std::slice::from_ref(&entry), &["10.0.3.18".parse().unwrap()]).unwrap();
        let key = AttachmentKey { network: NETWORK.to_owned(), ..entry.key.clone() };
        assert_eq!(entries(&text).unwrap(), [Entry { key, ..entry }], "the other one is nobody's");
        let said: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let [pod, nobody] = said["allocations"].as_array().unwrap().as_slice() else { panic!("{said}") };
        let fields = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        let of_pod = ["allocationTimestamp", "containerID", "ifName", "ipv4", "metadata", "networkName"];
        assert_eq!((fields(pod), fields(nobody)), (of_pod.map(str::to_owned).into(), of_pod.map(str::to_owned).into()));
        assert_eq!(fields(&pod["metadata"]), ["interfacesCount", "k8sPodName", "k8sPodNamespace"]);
        assert_eq!((&nobody["ipv4"], fields(&nobody["metadata"]).len()), (&"10.0.3.18".into(), 0));
        assert!(text.ends_with(b"}\n"));
    }

    #[test]
    fn what_is_no_such_file_is_told() {
        let said = |text: &str| format!("{:#}", entries(text.as_bytes()).unwrap_err());
        assert!(said("{").contains("none that can be read"));
        assert!(said(r#"{"version":"vpc-cni-ipam/2","allocations":[]}"#).contains("\"vpc-cni-ipam/2\""));
        let without = file(r#"{"networkName":"aws-cni","containerID":"c9","ifName":"eth0"}"#);
        assert!(said(&without).contains("no address of the container c9"));
    }
}
