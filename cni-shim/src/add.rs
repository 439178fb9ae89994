//! ADD: ask, wire, hear the verdict, print. A step that fails undoes the ones before it.

use std::{fmt, net::Ipv4Addr, path::Path, time::Duration};

use enid_datapath::{
    Mac, Netlink, identity,
    netns::Netns,
    pod::{self, Pair, PodLink, Routes, WireError},
};

use crate::{
    config::Config,
    daemon::{Ask, Attachment, Daemon, Pod, Session},
    env::Env,
    error::Error,
    result,
};

/// Wires the attachment and returns the result document.
pub fn add(env: &Env, config: &Config) -> Result<String, Error> {
    let netns_path = env.netns.as_deref().unwrap_or(Path::new(""));
    let (host_ns, pod_ns) = namespaces(netns_path, env.own_netns_allowed)?;
    let mut kernel =
        Kernel { host: Netlink::open().map_err(kernel_refused)?, inside: enter(&pod_ns, &host_ns)?, host_ns };
    // What is in the way is found before an address is taken for it.
    kernel.check_free(env, config)?;
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
    let (pair, routes) = kernel.confirm(&link, &mut session).inspect_err(|_| pod::undo(&link, &mut kernel.host))?;
    pod::configure_outside(&link, &pair, &mut kernel.host).map_err(kernel_refused).inspect_err(|_| {
        // The daemon has confirmed: it has to be told. If that fails it finds the link missing.
        let _ = daemon.release(attachment(env, config));
    })?;
    Ok(result::render(config, &link, routes, &netns_path.to_string_lossy()))
}

/// Both ends of the kernel.
struct Kernel {
    host: Netlink,
    inside: Netlink,
    host_ns: Netns,
}

impl Kernel {
    /// The container may have an interface of that name only if it is from an earlier try of this attachment.
    fn check_free(&mut self, env: &Env, config: &Config) -> Result<(), Error> {
        let own = identity::pod_mac(&config.name, &env.container, &env.ifname);
        match self.inside.link(&env.ifname).map_err(kernel_refused)? {
            Some(found) if pod::mac(&found) != Some(own) => {
                Err(kernel_refused(WireError::InterfaceExists(env.ifname.clone())))
            }
            _ => Ok(()),
        }
    }

    /// Makes the link up to the daemon's verdict. The daemon looks at it while the pod's end is configured.
    /// The host's end comes later: an address that is not ours any more is never made reachable.
    fn confirm(&mut self, link: &PodLink, session: &mut Session<'_>) -> Result<(Pair, Routes), Error> {
        let pair = pod::create(link, &mut self.host, &self.host_ns, &mut self.inside).map_err(kernel_refused)?;
        if let Some(aside) = &pair.moved_aside {
            note!("{} belonged to another attachment and is now {aside}", link.host_ifname);
        }
        session.say_wired(&link.host_ifname)?;
        let routes = pod::configure_inside(link, &pair, &mut self.host, &mut self.inside).map_err(kernel_refused)?;
        if session.verdict()? {
            return Ok((pair, routes));
        }
        Err(Error::later("the attachment was given up while it was wired", "cause=superseded"))
    }
}

fn kernel_refused(error: impl fmt::Display) -> Error {
    Error::kernel("wire the pod", error)
}

/// A socket in the container's namespace. What cannot be entered is no network namespace.
pub fn enter(pod: &Netns, own: &Netns) -> Result<Netlink, Error> {
    pod.netlink_and_back(own).map_err(|error| {
        Error::environment(format!("CNI_NETNS cannot be entered, so it is no network namespace: {error}"))
    })
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
