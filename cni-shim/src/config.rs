//! The network configuration on stdin (CNI spec 1.1.0, section 1).

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{error::Error, version};

/// Longest configuration we read; the largest in use are some kilobytes.
pub const STDIN_MAX: u64 = 1 << 20;
/// Longest wait for an address that the configuration may ask for: runtimes give up after some minutes.
const WAIT_MAX_SECONDS: u64 = 600;
const WAIT_DEFAULT_SECONDS: u64 = 60;
const SOCKET_DEFAULT: &str = "/run/enid/cni.sock";

/// Our part of a configuration. Keys that are not ours are tolerated.
#[derive(Debug)]
pub struct Config {
    /// One of ours.
    pub cni_version: &'static str,
    /// Name of the network.
    pub name: String,
    /// The daemon's socket.
    pub socket: PathBuf,
    /// How long an ADD waits for an address, seconds.
    pub add_wait_seconds: u64,
    /// What plugins before us in the chain made.
    pub prev_result: Option<Map<String, Value>>,
    /// Passed on into the result.
    pub dns: Option<Value>,
    /// The pod wants an interface on every network card.
    pub each_card: bool,
    /// The boot in which the daemon wrote this, once an address could be given.
    pub boot_id: Option<String>,
    /// What is remarkable about it, one sentence each.
    pub remarks: Vec<String>,
    valid: [Option<Value>; 2],
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "cniVersion")]
    cni_version: Option<String>,
    name: Option<String>,
    socket: Option<Value>,
    #[serde(rename = "addWaitSeconds")]
    add_wait_seconds: Option<Value>,
    #[serde(rename = "bootId")]
    boot_id: Option<Value>,
    #[serde(rename = "prevResult")]
    prev_result: Option<Value>,
    dns: Option<Value>,
    #[serde(rename = "runtimeConfig")]
    runtime_config: Option<Value>,
    ipam: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid: Option<Value>,
    /// The key's name before 1.1.0; libcni sends both.
    #[serde(rename = "cni.dev/attachments")]
    attachments: Option<Value>,
}

/// How much of a configuration matters to a verb.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    All,
    /// DEL must not fail for what it does not need.
    WithoutResult,
}

impl Config {
    /// Reads and checks it; every refusal names the key and the value.
    pub fn parse(input: &[u8]) -> Result<Self, Error> {
        Self::read(input, Reading::All)
    }

    /// For DEL: whatever "prevResult" holds, the attachment goes.
    pub fn for_del(input: &[u8]) -> Result<Self, Error> {
        Self::read(input, Reading::WithoutResult)
    }

    fn read(input: &[u8], reading: Reading) -> Result<Self, Error> {
        if u64::try_from(input.len()).unwrap_or(u64::MAX) > STDIN_MAX {
            return Err(Error::config(format!("the configuration has more than {STDIN_MAX} bytes")));
        }
        if input.iter().all(u8::is_ascii_whitespace) {
            return Err(Error::decode("the configuration on stdin is empty; a JSON object is expected"));
        }
        let raw: Raw = serde_json::from_slice(input)
            .map_err(|error| Error::decode(format!("the configuration on stdin is not the JSON expected: {error}")))?;
        let cni_version = version::supported(raw.cni_version.as_deref())?;
        if reading == Reading::All {
            no_delegate(raw.ipam.as_ref())?;
        }
        let mut remarks = Vec::new();
        Ok(Config {
            cni_version,
            name: network_name(raw.name)?,
            socket: or_usual(reading, socket(raw.socket), PathBuf::from(SOCKET_DEFAULT))?,
            add_wait_seconds: or_usual(reading, wait(raw.add_wait_seconds), WAIT_DEFAULT_SECONDS)?,
            prev_result: or_usual(reading, previous(raw.prev_result), None)?,
            dns: raw.dns.filter(|value| !value.is_null()),
            each_card: each_card(raw.runtime_config.as_ref(), &mut remarks),
            boot_id: raw.boot_id.as_ref().and_then(Value::as_str).map(str::to_owned),
            remarks,
            valid: [raw.valid, raw.attachments],
        })
    }

    /// GC's list of (container, interface), the union where both keys are given. `None` if neither is: a list that is
    /// missing says nothing, an empty one says that no attachment is valid.
    pub fn valid_attachments(&self) -> Result<Option<Vec<(String, String)>>, Error> {
        let mut lists = self.valid.iter().flatten().filter(|value| !value.is_null()).peekable();
        if lists.peek().is_none() {
            return Ok(None);
        }
        let entry = |value: &Value| {
            let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
            text("containerID").zip(text("ifname")).ok_or_else(|| {
                Error::config(format!(
                    "\"cni.dev/valid-attachments\" holds {value}; objects with containerID and ifname are allowed"
                ))
            })
        };
        let mut valid = Vec::new();
        for list in lists {
            let entries = list
                .as_array()
                .ok_or_else(|| Error::config(format!("\"cni.dev/valid-attachments\" is {list}; a list is allowed")))?;
            for value in entries {
                valid.push(entry(value)?);
            }
        }
        Ok(Some(valid))
    }
}

/// The pod's annotation, by way of the runtime: the peer's name and its one value.
fn each_card(runtime: Option<&Value>, remarks: &mut Vec<String>) -> bool {
    const KEY: &str = "k8s.amazonaws.com/nicConfig";
    const VALUE: &str = "multi-nic-attachment";
    let found = runtime.and_then(|runtime| runtime.get("io.kubernetes.cri.pod-annotations")?.get(KEY));
    if let Some(other) = found.filter(|value| *value != VALUE) {
        let words = format!("the pod's annotation {KEY} is {other}, which says nothing to this plugin; {VALUE:?} does");
        note!("{words}");
        remarks.push(words);
    }
    found.is_some_and(|value| value == VALUE)
}

/// DEL goes on with the usual value where the key makes no sense.
fn or_usual<T>(reading: Reading, value: Result<T, Error>, usual: T) -> Result<T, Error> {
    if reading == Reading::All { value } else { Ok(value.unwrap_or(usual)) }
}

fn network_name(name: Option<String>) -> Result<String, Error> {
    let name = name.ok_or_else(|| Error::config("the configuration has no \"name\""))?;
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(inner) {
        return Ok(name);
    }
    Err(Error::config(format!(
        "\"name\" is {name:?}; it starts with a letter or digit and goes on with those, '_', '.' and '-'"
    )))
}

/// Addresses come from the daemon: another source of them cannot be honoured.
fn no_delegate(ipam: Option<&Value>) -> Result<(), Error> {
    match ipam.and_then(|ipam| ipam.get("type")) {
        None => Ok(()),
        Some(kind) => {
            Err(Error::unsupported(format!("\"ipam\" has type {kind}; the enid daemon alone gives the addresses")))
        }
    }
}

fn socket(value: Option<Value>) -> Result<PathBuf, Error> {
    match value {
        None => Ok(PathBuf::from(SOCKET_DEFAULT)),
        Some(Value::String(path)) if path.starts_with('/') => Ok(PathBuf::from(path)),
        Some(other) => Err(Error::config(format!("\"socket\" is {other}; an absolute path is allowed"))),
    }
}

/// An object whose lists are lists, or nothing.
fn previous(value: Option<Value>) -> Result<Option<Map<String, Value>>, Error> {
    let result = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(result)) => result,
        Some(other) => return Err(Error::config(format!("\"prevResult\" is {other}; an object is allowed"))),
    };
    for key in ["interfaces", "ips", "routes"] {
        if let Some(other) = result.get(key).filter(|value| !value.is_array() && !value.is_null()) {
            return Err(Error::config(format!("\"prevResult\" has {key} {other}; a list is allowed")));
        }
    }
    Ok(Some(result))
}

fn wait(value: Option<Value>) -> Result<u64, Error> {
    let Some(value) = value else { return Ok(WAIT_DEFAULT_SECONDS) };
    value.as_u64().filter(|seconds| (1..=WAIT_MAX_SECONDS).contains(seconds)).ok_or_else(|| {
        Error::config(format!("\"addWaitSeconds\" is {value}; whole seconds from 1 to {WAIT_MAX_SECONDS} are allowed"))
    })
}
