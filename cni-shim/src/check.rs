//! CHECK: kernel and daemon must agree with what ADD answered. It changes nothing.

use enid_datapath::{Netlink, faults, identity, pod::PodLink};

use crate::{
    add::{attachment, enter, namespaces},
    config::Config,
    daemon::Daemon,
    env::Env,
    error::Error,
    result,
};

/// Names the first thing that is not as ADD left it.
pub fn check(env: &Env, config: &Config) -> Result<(), Error> {
    let previous = config.prev_result.as_ref().ok_or_else(|| Error::config("CHECK needs a \"prevResult\""))?;
    let address = result::address_in(previous, &env.ifname).ok_or_else(|| {
        Error::config(format!("\"prevResult\" names no IPv4 address on {} of the container", env.ifname))
    })?;
    let (host_ns, pod_ns) =
        namespaces(env.netns.as_deref().unwrap_or(std::path::Path::new("")), env.own_netns_allowed)?;
    let held = Daemon::connect(&config.socket)?.lookup(attachment(env, config))?;
    if held.address != address.to_string() {
        let daemon = if held.address.is_empty() { "no address".to_owned() } else { held.address };
        return Err(Error::check(format!("the result says {address}; the daemon holds {daemon} for the attachment")));
    }
    let (network, container, ifname) = (&config.name, &env.container, &env.ifname);
    let wanted = PodLink {
        host_ifname: identity::ifname_for_attachment("eni", network, container, ifname),
        host_mac: identity::host_mac(network, container, ifname),
        pod_ifname: ifname.clone(),
        pod_mac: identity::pod_mac(network, container, ifname),
        address,
        mtu: 0,
        group: held.device_group,
    };
    let doing = "look at the pod's link";
    let mut host = Netlink::open().map_err(|error| Error::kernel(doing, error))?;
    let mut inside = enter(&pod_ns, &host_ns)?;
    let mut faults = faults::faults(&wanted, &mut host, &mut inside).map_err(|error| Error::kernel(doing, error))?;
    faults.extend(held.host_faults);
    if faults.is_empty() { Ok(()) } else { Err(Error::check(faults.join("; "))) }
}
