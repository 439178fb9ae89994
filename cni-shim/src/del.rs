//! DEL: the daemon deletes the link and ends the lease. A daemon that is away, or fails, is no obstacle: the plugin
//! deletes the link itself, and no link means no owner: the kernel is the queue.

use std::net::IpAddr;

use enid_datapath::{Mac, Netlink, identity, removal};

use crate::{add::attachment, config::Config, daemon::Daemon, env::Env, error::Error, result};

/// The prefix that the daemon uses by default; another one costs a listing of all links, no more.
const USUAL_PREFIX: &str = "eni";

/// Removes what this attachment has on the host. Repeats, and attachments never seen, succeed.
pub fn del(env: &Env, config: &Config) -> Result<(), Error> {
    let released = Daemon::at(&config.socket).release(attachment(env, config), &env.traceparent);
    if let Ok(true) = released {
        return Ok(());
    }
    delete_link(env, config)?;
    if let Err(error) = released {
        note!("the link is removed; the daemon will notice: {}", error.json(config.cni_version));
    }
    Ok(())
}

/// The first interface takes those on further network cards along.
fn delete_link(env: &Env, config: &Config) -> Result<(), Error> {
    let further = if env.ifname == identity::FIRST { identity::FURTHER_CARDS_MAX } else { 0 };
    let on_cards = (1..=further).map(|number| link(env, config, &identity::ifname_on_card(number), number));
    let links: Vec<(Mac, String)> = [link(env, config, &env.ifname, 0)].into_iter().chain(on_cards).collect();
    let of_result = config.prev_result.iter().flat_map(|result| result::addresses_in(result, &env.ifname));
    let of_result: Vec<IpAddr> = of_result.collect();
    let deleted = Netlink::open().and_then(|mut host| {
        removal::remove_together(&links, &mut host)?;
        links.first().map_or(Ok(()), |(_, name)| removal::remove_taken_over(name, &of_result, &mut host))
    });
    deleted.map_err(|error| Error::kernel("remove the pod's link", error))
}

/// The host end's MAC, and what it is probably called.
fn link(env: &Env, config: &Config, ifname: &str, number: u32) -> (Mac, String) {
    let (network, container) = (&config.name, &env.container);
    let likely_name = match &env.pod {
        Some((namespace, name)) => identity::ifname_for_pod(USUAL_PREFIX, namespace, name, number),
        None => identity::ifname_for_attachment(USUAL_PREFIX, network, container, ifname),
    };
    (identity::host_mac(network, container, ifname), likely_name)
}
