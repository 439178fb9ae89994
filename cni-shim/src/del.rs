//! DEL: the daemon deletes the link and ends the lease. A daemon that is away, or fails, is no obstacle: the plugin
//! deletes the link itself, and no link means no owner: the kernel is the queue.

use enid_datapath::{Netlink, identity, pod};

use crate::{add::attachment, config::Config, daemon::Daemon, env::Env, error::Error};

/// The prefix that the daemon uses by default; another one costs a listing of all links, no more.
const USUAL_PREFIX: &str = "eni";

/// Removes what this attachment has on the host. Repeats, and attachments never seen, succeed.
pub fn del(env: &Env, config: &Config) -> Result<(), Error> {
    let released = Daemon::connect(&config.socket).and_then(|daemon| daemon.release(attachment(env, config)));
    if let Ok(true) = released {
        return Ok(());
    }
    delete_link(env, config)?;
    if let Err(error) = released {
        note!("the link is removed; the daemon will notice: {}", error.json(config.cni_version));
    }
    Ok(())
}

fn delete_link(env: &Env, config: &Config) -> Result<(), Error> {
    let mac = identity::host_mac(&config.name, &env.container, &env.ifname);
    let likely_name = match &env.pod {
        Some((namespace, name)) => identity::ifname_for_pod(USUAL_PREFIX, namespace, name, 0),
        None => identity::ifname_for_attachment(USUAL_PREFIX, &config.name, &env.container, &env.ifname),
    };
    let deleted = Netlink::open().and_then(|mut host| pod::remove_by_mac(mac, &likely_name, &mut host));
    deleted.map(drop).map_err(|error| Error::kernel("remove the pod's link", error))
}
