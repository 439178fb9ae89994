//! ADD: ask, wire, hear the verdict, print. A step that fails undoes the ones before it.

use std::{net::Ipv4Addr, path::Path, time::Duration};

use enid_datapath::{
    Mac, Netlink,
    netns::Netns,
    pod::{self, PodLink},
};

use crate::{
    config::Config,
    daemon::{Ask, Attachment, Daemon, Pod},
    env::Env,
    error::Error,
    result,
};

/// Wires the attachment and returns the result document.
pub fn add(env: &Env, config: &Config) -> Result<String, Error> {
    let netns_path = env.netns.as_deref().unwrap_or(Path::new(""));
    let (host_ns, pod_ns) = namespaces(netns_path, env.own_netns_allowed)?;
    let daemon = Daemon::connect(&config.socket)?;
    let patience = Duration::from_secs(config.add_wait_seconds);
    let ask = Ask {
        attachment: Some(attachment(env, config)),
        pod: env.pod.clone().map(|(namespace, name)| Pod { namespace, name, uid: env.pod_uid.clone() }),
        patience_ms: config.add_wait_seconds * 1000,
    };
    let (mut session, offer) = daemon.attach(ask, patience)?;
    let link = PodLink {
        host_ifname: offer.host_ifname,
        host_mac: mac("host_mac", &offer.host_mac)?,
        pod_ifname: env.ifname.clone(),
        pod_mac: mac("pod_mac", &offer.pod_mac)?,
        address: address(&offer.address)?,
        mtu: offer.mtu,
        group: offer.device_group,
    };
    let refused = |error: &dyn std::fmt::Display| Error::kernel("wire the pod", error);
    let mut host = Netlink::open().map_err(|error| refused(&error))?;
    let mut inside = pod_ns.netlink_and_back(&host_ns).map_err(|error| refused(&error))?;
    let pair = pod::create(&link, &mut host, &host_ns, &mut inside).map_err(|error| refused(&error))?;
    if let Some(aside) = &pair.moved_aside {
        eprintln!("enid-cni: {} belonged to another attachment and is now {aside}", link.host_ifname);
    }
    // The daemon looks at the link while the pod's end is configured. The host's end comes after the
    // verdict: an address that is not ours any more is never made reachable.
    let confirmed = session.say_wired(&link.host_ifname).and_then(|()| {
        pod::configure_inside(&link, &pair, &mut host, &mut inside).map_err(|error| refused(&error))?;
        session.verdict()
    });
    match confirmed {
        Ok(true) => {}
        Ok(false) => {
            pod::undo(&link, &mut host);
            return Err(Error::later("the attachment was given up while it was wired", "cause=superseded"));
        }
        Err(error) => {
            pod::undo(&link, &mut host);
            return Err(error);
        }
    }
    pod::configure_outside(&link, &pair, &mut host).map_err(|error| refused(&error))?;
    result::render(config, &link, &netns_path.to_string_lossy()).inspect_err(|_| pod::undo(&link, &mut host))
}

/// Our own namespace and the container's; a container that shares ours is refused before anything is done.
pub fn namespaces(path: &Path, own_allowed: bool) -> Result<(Netns, Netns), Error> {
    let own = Netns::own().map_err(|source| Error::io(format!("cannot open the plugin's own namespace: {source}")))?;
    let unusable = |source| Error::environment(format!("CNI_NETNS is {path:?}, which cannot be used: {source}"));
    let pod = Netns::open(path).map_err(unusable)?;
    if own.is(&pod).map_err(unusable)? && !own_allowed {
        return Err(Error::namespace(format!("CNI_NETNS is {path:?}, which is the plugin's own namespace")));
    }
    Ok((own, pod))
}

/// The key of this call.
pub fn attachment(env: &Env, config: &Config) -> Attachment {
    Attachment { network: config.name.clone(), container: env.container.clone(), ifname: env.ifname.clone() }
}

fn mac(field: &str, bytes: &[u8]) -> Result<Mac, Error> {
    Mac::try_from(bytes)
        .map_err(|_| Error::internal(format!("the daemon's offer has {field} {bytes:?}; six bytes are expected")))
}

fn address(text: &str) -> Result<Ipv4Addr, Error> {
    text.parse()
        .map_err(|_| Error::internal(format!("the daemon's offer has the address {text:?}; an IPv4 one is expected")))
}
