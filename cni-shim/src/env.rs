//! What the runtime says in the environment (CNI spec 1.1.0, section 2, "Parameters").

use std::{ffi::OsString, path::PathBuf};

use crate::error::Error;

/// Reads one variable; tests pass their own.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The attachment that a call is about.
#[derive(Debug)]
pub struct Env {
    /// CNI_CONTAINERID.
    pub container: String,
    /// CNI_IFNAME.
    pub ifname: String,
    /// CNI_NETNS; may be absent on DEL.
    pub netns: Option<PathBuf>,
    /// K8S_POD_NAMESPACE and K8S_POD_NAME, where both are given.
    pub pod: Option<(String, String)>,
    /// K8S_POD_UID.
    pub pod_uid: String,
    /// TRACEPARENT, if it is one of version 00 (W3C Trace Context, "traceparent Header Field Values"); otherwise empty.
    pub traceparent: String,
    /// CNI_NETNS_OVERRIDE: the namespace may be the plugin's own.
    pub own_netns_allowed: bool,
}

impl Env {
    /// For ADD and CHECK: all three variables are needed.
    pub fn for_add(var: Lookup<'_>) -> Result<Self, Error> {
        Self::read(var, &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"], parse_args)
    }

    /// For DEL: the namespace may be gone already.
    pub fn for_del(var: Lookup<'_>) -> Result<Self, Error> {
        // The attachment says all that is needed; arguments that cannot be read must not keep it alive.
        Self::read(var, &["CNI_CONTAINERID", "CNI_IFNAME"], |args| Ok(parse_args(args).unwrap_or_default()))
    }

    fn read(
        var: Lookup<'_>,
        needed: &[&str],
        args: impl Fn(&str) -> Result<Vec<(String, String)>, Error>,
    ) -> Result<Self, Error> {
        let set = |name: &str| var(name).filter(|value| !value.is_empty());
        let missing: Vec<&str> = needed.iter().copied().filter(|name| set(name).is_none()).collect();
        if !missing.is_empty() {
            return Err(Error::environment(format!("not set: {}", missing.join(", "))));
        }
        let text = |name: &str| set(name).unwrap_or_default().to_string_lossy().into_owned();
        let (container, ifname) = (text("CNI_CONTAINERID"), text("CNI_IFNAME"));
        valid_container(&container)?;
        valid_ifname(&ifname)?;
        let args = args(&text("CNI_ARGS"))?;
        let arg = |wanted: &str| args.iter().find(|(key, _)| key == wanted).map(|(_, value)| value.clone());
        Ok(Env {
            container,
            ifname,
            netns: set("CNI_NETNS").map(PathBuf::from),
            pod: arg("K8S_POD_NAMESPACE")
                .zip(arg("K8S_POD_NAME"))
                .filter(|(ns, name)| !ns.is_empty() && !name.is_empty()),
            pod_uid: arg("K8S_POD_UID").unwrap_or_default(),
            traceparent: Some(text("TRACEPARENT")).filter(|text| is_traceparent(text)).unwrap_or_default(),
            own_netns_allowed: matches!(text("CNI_NETNS_OVERRIDE").as_str(), "1" | "true"),
        })
    }
}

fn is_traceparent(text: &str) -> bool {
    let digits =
        |part: &str, length| part.len() == length && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let parts: Vec<&str> = text.split('-').collect();
    matches!(&*parts, ["00", trace, span, flags] if digits(trace, 32) && digits(span, 16) && digits(flags, 2))
}

fn valid_container(id: &str) -> Result<(), Error> {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let valid = id.starts_with(|c: char| c.is_ascii_alphanumeric()) && id.chars().all(inner) && id.len() <= 512;
    if valid {
        return Ok(());
    }
    Err(Error::environment(format!(
        "CNI_CONTAINERID is {:?}; it starts with a letter or digit and goes on with those, '_', '.' and '-', 512 at most",
        id.chars().take(64).collect::<String>()
    )))
}

fn valid_ifname(name: &str) -> Result<(), Error> {
    // '%' makes the kernel number a name; "all" and "default" are not links but folders of sysctls.
    let bad = |c: char| matches!(c, '/' | ':' | '%') || c.is_whitespace() || c.is_control();
    let reserved = [".", "..", "all", "default"].contains(&name);
    if name.len() <= enid_datapath::identity::IFNAME_MAX && !reserved && !name.contains(bad) {
        return Ok(());
    }
    Err(Error::environment(format!(
        "CNI_IFNAME is {:?}; it has 15 bytes at most, no '/', ':', '%' or white space, and is not \"all\" or \"default\"",
        name.chars().take(64).collect::<String>()
    )))
}

/// `K=V;K=V`. Keys that are not ours are the business of others.
fn parse_args(args: &str) -> Result<Vec<(String, String)>, Error> {
    args.split(';')
        .filter(|pair| !pair.is_empty())
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(Error::environment(format!("CNI_ARGS holds {pair:?}; pairs of the form KEY=VALUE are allowed"))),
        })
        .collect()
}
