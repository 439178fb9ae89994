//! A proxy in the environment, as clusters set it for everything that runs in them, is for EC2's endpoints. What is on the
//! instance's own link or inside the cluster is never asked for through it.

use std::{env, os::unix::process::CommandExt, process::Command};

use anyhow::Context;
use axum::http::Uri;

/// Instance metadata and the credentials' endpoints (Amazon EC2 User Guide, "Instance metadata"; Amazon ECS Developer Guide,
/// "Task IAM role"; Amazon EKS User Guide, "EKS Pod Identity").
const LINK_LOCAL: [&str; 5] = ["169.254.169.254", "169.254.170.2", "169.254.170.23", "fd00:ec2::254", "fd00:ec2::23"];
/// Who names a proxy.
const PROXIES: [&str; 3] = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
/// Who names other places that are asked directly: a host, and an endpoint.
const API_SERVER: &str = "KUBERNETES_SERVICE_HOST";
const METADATA: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT";
const EXCEPTIONS: &str = "NO_PROXY";

/// Adds those to NO_PROXY where a proxy is set, so that every client of this process knows them: it starts itself anew, as
/// the environment of a running process is not safe to change.
///
/// # Errors
///
/// The program cannot be started again.
pub fn keep_off() -> anyhow::Result<()> {
    let Some(exceptions) = exceptions(&|name| env::var(name).ok()) else { return Ok(()) };
    let program = env::current_exe().context("cannot tell which program this is")?;
    let mut again = Command::new(program);
    again.args(env::args_os().skip(1)).env(EXCEPTIONS, &exceptions).env(EXCEPTIONS.to_lowercase(), &exceptions);
    Err(again.exec()).context("cannot start again with NO_PROXY extended")
}

/// The exceptions as they should be, if a proxy is set and they are not.
fn exceptions(var: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let both =
        |name: &str| [var(name), var(&name.to_lowercase())].into_iter().flatten().filter(|text| !text.is_empty());
    PROXIES.into_iter().flat_map(both).next()?;
    let known: Vec<String> = both(EXCEPTIONS).collect();
    let mut list: Vec<&str> =
        known.iter().flat_map(|text| text.split(',')).map(str::trim).filter(|host| !host.is_empty()).collect();
    list.sort_unstable();
    list.dedup();
    let before = list.len();
    let metadata = var(METADATA).and_then(|endpoint| endpoint.parse::<Uri>().ok());
    let metadata = metadata.and_then(|uri| Some(uri.host()?.trim_matches(['[', ']']).to_owned()));
    let hosts: Vec<String> = var(API_SERVER).into_iter().chain(metadata).collect();
    for host in LINK_LOCAL.into_iter().chain(hosts.iter().map(String::as_str)) {
        if !list.contains(&host) {
            list.push(host);
        }
    }
    // Both names have to say it: which of them a client reads is its own affair.
    let is_known = list.len() == before && known.len() == 2 && known[0] == known[1];
    (!is_known).then(|| list.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(vars: &[(&str, &str)]) -> Option<String> {
        let var = |name: &str| vars.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        exceptions(&var)
    }

    /// The kind: a setting for everything that runs in a cluster reaches what it is not meant for.
    #[test]
    fn what_is_on_the_node_is_never_asked_for_through_a_proxy() {
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("HTTP_PROXY", ""), ("NO_PROXY", "a")]), None);
        let proxy = ("https_proxy", "http://10.0.0.1:3128");
        let list = of(&[
            proxy,
            ("NO_PROXY", "b, a"),
            ("KUBERNETES_SERVICE_HOST", "172.20.0.1"),
            (METADATA, "http://10.9.9.9:80/"),
        ])
        .unwrap();
        assert_eq!(
            list,
            "a,b,169.254.169.254,169.254.170.2,169.254.170.23,fd00:ec2::254,fd00:ec2::23,172.20.0.1,10.9.9.9"
        );
        assert_eq!(of(&[proxy, ("NO_PROXY", &list), ("no_proxy", &list)]), None, "it starts itself anew only once");
    }
}
