//! ADD: ask, wire, hear the verdict, print. A step that fails undoes the ones before it.

use std::{
    fmt,
    net::IpAddr,
    path::Path,
    time::{Duration, Instant},
};

use enid_datapath::{
    Family, Mac, Netlink, identity, link,
    netns::{self, Netns},
    pod::{self, Pair, PodLink, Routes, WireError},
};

use crate::{
    config::Config,
    daemon::{Ask, Attachment, Daemon, Offer, Pod, Report, Session},
    env::Env,
    error::Error,
    result::{self, Wired},
};

/// Wires the attachment, and those on further network cards, and returns the result document.
pub fn add(env: &Env, config: &Config) -> Result<String, Error> {
    // One wait for all of its interfaces: the runtime has one.
    let (begun, wait) = (Instant::now(), Duration::from_secs(config.add_wait_seconds));
    let netns_path = env.netns.as_deref().unwrap_or(Path::new(""));
    let (host_ns, pod_ns) = namespaces(netns_path, env.own_netns_allowed)?;
    let host = Netlink::open().map_err(kernel_refused)?;
    let mut kernel = Kernel { host, inside: enter(&pod_ns, &host_ns)?, host_ns, pod_ns };
    // What is in the way is found before an address is taken for it.
    kernel.check_free(config, &env.container, &env.ifname)?;
    let daemon = Daemon::at(&config.socket);
    let each_card = config.each_card && env.ifname == identity::FIRST;
    let ask = |ifname: &str, card| Ask {
        attachment: Some(attachment_of(env, config, ifname)),
        pod: pod_of(env),
        timeout_ms: millis(wait.saturating_sub(begun.elapsed())),
        card,
        each_card: each_card && card.is_none(),
        traceparent: env.traceparent.clone(),
    };
    let remarks = &config.remarks;
    let (first, cards) = wire(&mut kernel, &daemon, ask(&env.ifname, None), remarks)?;
    let mut wired = vec![first];
    for (number, card) in (1..).zip(cards) {
        let ifname = identity::ifname_on_card(number);
        let further = kernel
            .check_free(config, &env.container, &ifname)
            .and_then(|()| wire(&mut kernel, &daemon, ask(&ifname, Some(card)), &[]));
        let (further, _) = further.inspect_err(|_| {
            // All or nothing. If the daemon does not hear it, it finds the links missing.
            wired.iter().for_each(|wired| pod::undo(&wired.link, &mut kernel.host));
            let _ = daemon.release(attachment(env, config), &env.traceparent);
        })?;
        wired.push(further);
    }
    Ok(result::render(config, &wired, &netns_path.to_string_lossy()))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// One attachment, from question to route; and the network cards that its pod wants more of.
fn wire(kernel: &mut Kernel, daemon: &Daemon, ask: Ask, remarks: &[String]) -> Result<(Wired, Vec<u32>), Error> {
    let attachment = ask.attachment.clone().unwrap_or_default();
    let (pod, traceparent) = (ask.pod.clone(), ask.traceparent.clone());
    let report = |message: &str, failed| Report {
        attachment: Some(attachment.clone()),
        pod: pod.clone(),
        verb: "ADD".to_owned(),
        message: message.to_owned(),
        failed,
    };
    let session = daemon.connect()?;
    let offer = session.ask(ask)?;
    let cards = offer.further_cards.clone();
    let link = link_for(offer, &attachment.ifname)?;
    let mut remarks = remarks.to_vec();
    let (pair, routes) = kernel.confirm(&link, &session, &mut remarks).map_err(|mut error| {
        pod::undo(&link, &mut kernel.host);
        error.is_told = error.is_told || session.give_up(report(&error.msg, true));
        error
    })?;
    if link.families().contains(&Family::V6) {
        // A hardened host switches it off for links to come.
        netns::allow_ipv6(Path::new(netns::SYS_NET), &link.host_ifname).map_err(kernel_refused).inspect_err(|_| {
            pod::undo(&link, &mut kernel.host);
            let _ = daemon.release(attachment.clone(), &traceparent);
        })?;
    }
    pod::configure_outside(&link, &pair, &mut kernel.host).map_err(kernel_refused).inspect_err(|_| {
        // The daemon has confirmed: it has to be notified. If that fails it finds the link missing.
        let _ = daemon.release(attachment.clone(), &traceparent);
    })?;
    // On connections of their own: an earlier daemon takes none of it, and this one is over.
    drop(session);
    remarks.iter().for_each(|remark| daemon.report(report(remark, false)));
    Ok((Wired { link, routes }, cards))
}

fn link_for(offer: Offer, ifname: &str) -> Result<PodLink, Error> {
    Ok(PodLink {
        host_mac: mac("host_mac", &offer.host_mac)?,
        pod_mac: mac("pod_mac", &offer.pod_mac)?,
        address: address(&offer.address)?,
        second: some_address(&offer.second_address)?,
        local: some_address(&offer.local_address)?,
        host_ifname: offer.host_ifname,
        pod_ifname: ifname.to_owned(),
        mtu: offer.mtu,
        group: offer.device_group,
    })
}

/// Both ends of the kernel.
struct Kernel {
    host: Netlink,
    inside: Netlink,
    host_ns: Netns,
    pod_ns: Netns,
}

impl Kernel {
    /// The container may have an interface of that name only if it is from an earlier try of this attachment.
    fn check_free(&mut self, config: &Config, container: &str, ifname: &str) -> Result<(), Error> {
        let own = identity::pod_mac(&config.name, container, ifname);
        match self.inside.link(ifname).map_err(kernel_refused)? {
            Some(found) if link::mac(&found) != Some(own) => {
                Err(kernel_refused(WireError::InterfaceExists(ifname.to_owned())))
            }
            _ => Ok(()),
        }
    }

    /// Makes the link up to the daemon's verdict. The daemon looks at it while the pod's end is configured.
    /// The host's end comes later: an address that is not ours any more is never made reachable.
    fn confirm(
        &mut self,
        link: &PodLink,
        session: &Session,
        remarks: &mut Vec<String>,
    ) -> Result<(Pair, Routes), Error> {
        let pair = pod::create(link, &mut self.host, &self.host_ns, &mut self.inside).map_err(kernel_refused)?;
        if let Some(aside) = &pair.moved_aside {
            let words = format!("{} belonged to another attachment and is now {aside}", link.host_ifname);
            note!("{words}");
            remarks.push(words);
        }
        session.say_wired(&link.host_ifname)?;
        if link.families().contains(&Family::V6) {
            self.pod_ns
                .allow_ipv6_and_back(Path::new(netns::SYS_NET), &link.pod_ifname, &self.host_ns)
                .map_err(kernel_refused)?;
        }
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
    attachment_of(env, config, &env.ifname)
}

/// What the runtime says of the pod.
pub fn pod_of(env: &Env) -> Option<Pod> {
    env.pod.clone().map(|(namespace, name)| Pod { namespace, name, uid: env.pod_uid.clone() })
}

/// The key of an interface of this call's container.
pub fn attachment_of(env: &Env, config: &Config, ifname: &str) -> Attachment {
    Attachment { network: config.name.clone(), container: env.container.clone(), ifname: ifname.to_owned() }
}

/// A MAC that the daemon names.
pub fn mac(field: &str, bytes: &[u8]) -> Result<Mac, Error> {
    Mac::try_from(bytes)
        .map_err(|_| Error::internal(format!("the daemon's answer has {field} {bytes:?}; six bytes are expected")))
}

fn address(text: &str) -> Result<IpAddr, Error> {
    text.parse()
        .map_err(|_| Error::internal(format!("the daemon's offer has the address {text:?}; an IP address is expected")))
}

/// An address that may be left out.
pub fn some_address(text: &str) -> Result<Option<IpAddr>, Error> {
    Some(text).filter(|text| !text.is_empty()).map(address).transpose()
}
