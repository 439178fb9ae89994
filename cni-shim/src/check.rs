//! CHECK: kernel and daemon must agree with what ADD answered. It changes nothing.

use enid_datapath::{Netlink, faults, identity, pod::PodLink};
use serde_json::{Map, Value};

use crate::{
    add::{attachment_of, enter, mac, namespaces, some_address},
    config::Config,
    daemon::Daemon,
    env::Env,
    error::Error,
    result,
};

/// Names the first interface of ours that is not as ADD left it, and all that is wrong with it.
pub fn check(env: &Env, config: &Config) -> Result<(), Error> {
    let previous = config.prev_result.as_ref().ok_or_else(|| Error::config("CHECK needs a \"prevResult\""))?;
    let netns = env.netns.as_deref().unwrap_or(std::path::Path::new(""));
    let (host_ns, pod_ns) = namespaces(netns, env.own_netns_allowed)?;
    let daemon = Daemon::at(&config.socket);
    let mut host = Netlink::open().map_err(|error| Error::kernel(DOING, error))?;
    let mut inside = enter(&pod_ns, &host_ns)?;
    let further =
        result::interfaces_in(previous).filter(|ifname| env.ifname == identity::FIRST && identity::is_on_card(ifname));
    for ifname in [env.ifname.as_str()].into_iter().chain(further) {
        check_one(env, config, ifname, previous, &daemon, (&mut host, &mut inside))?;
    }
    Ok(())
}

const DOING: &str = "look at the pod's link";

fn check_one(
    env: &Env,
    config: &Config,
    ifname: &str,
    previous: &Map<String, Value>,
    daemon: &Daemon,
    (host, inside): (&mut Netlink, &mut Netlink),
) -> Result<(), Error> {
    let reported = result::addresses_in(previous, ifname);
    let Some(address) = reported.first().copied() else {
        return Err(Error::config(format!("\"prevResult\" names no address on {ifname} of the container")));
    };
    let held = daemon.lookup(attachment_of(env, config, ifname))?;
    let second = some_address(&held.second_address)?;
    let of_daemon: Vec<String> =
        [held.address.clone(), held.second_address].into_iter().filter(|text| !text.is_empty()).collect();
    let of_result: Vec<String> = reported.iter().map(ToString::to_string).collect();
    // Plugins behind us may have added others.
    if of_daemon.first() != of_result.first() || !of_daemon.iter().all(|address| of_result.contains(address)) {
        let daemon = if of_daemon.is_empty() { "no address".to_owned() } else { of_daemon.join(" and ") };
        let result = of_result.join(" and ");
        return Err(Error::check(format!("the result says {result}; the daemon holds {daemon} for the attachment")));
    }
    let (network, container) = (&config.name, &env.container);
    let seen = |field: &str, bytes: &[u8]| Some(bytes).filter(|it| !it.is_empty()).map(|it| mac(field, it)).transpose();
    let (host_mac, pod_mac) = (seen("host_mac", &held.host_mac)?, seen("pod_mac", &held.pod_mac)?);
    let wanted = PodLink {
        host_ifname: identity::ifname_for_attachment("eni", network, container, ifname),
        host_mac: host_mac.unwrap_or_else(|| identity::host_mac(network, container, ifname)),
        pod_ifname: ifname.to_owned(),
        pod_mac: pod_mac.unwrap_or_else(|| identity::pod_mac(network, container, ifname)),
        address,
        second,
        local: some_address(&held.local_address)?,
        mtu: 0,
        group: held.device_group,
    };
    let mut faults = faults::faults(&wanted, host, inside).map_err(|error| Error::kernel(DOING, error))?;
    faults.extend(held.host_faults);
    if faults.is_empty() { Ok(()) } else { Err(Error::check(faults.join("; "))) }
}
