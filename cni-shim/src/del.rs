//! DEL: the link goes, then the daemon is told. No link means no owner, so a daemon that is away finds
//! out by itself: the kernel is the queue.

use enid_datapath::{Netlink, identity, pod};

use crate::{add::attachment, config::Config, daemon::Daemon, env::Env, error::Error};

/// The prefix that the daemon uses by default; another one costs a listing of all links, no more.
const USUAL_PREFIX: &str = "eni";

/// Removes what this attachment has on the host. Repeats, and attachments never seen, succeed.
pub fn del(env: &Env, config: &Config) -> Result<(), Error> {
    let mac = identity::host_mac(&config.name, &env.container, &env.ifname);
    let likely_name = match &env.pod {
        Some((namespace, name)) => identity::ifname_for_pod(USUAL_PREFIX, namespace, name, 0),
        None => identity::ifname_for_attachment(USUAL_PREFIX, &config.name, &env.container, &env.ifname),
    };
    let refused = |error| Error::kernel("remove the pod's link", error);
    let mut host = Netlink::open().map_err(refused)?;
    pod::remove_by_mac(mac, &likely_name, &mut host).map_err(refused)?;
    let told = Daemon::connect(&config.socket).and_then(|daemon| daemon.release(attachment(env, config)));
    if let Err(error) = told {
        note!("the link is removed; the daemon will notice: {}", error.json(config.cni_version));
    }
    // An ADD of the same attachment may have made its link after the first look, and before its lease ended.
    pod::remove_named(mac, &likely_name, &mut host).map_err(refused)?;
    Ok(())
}
