//! What a take-over goes by: the other system's file, the kernel, metadata, and what the store remembers.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use enid_datapath::{
    Family, Mac, identity, link,
    node::found::Found,
    peer::{self, PodLink},
};
use enid_ipamd::{LOCAL, Ledger, PodRef};
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::{
    enis::NO_ENI,
    file::{self, Entry},
    plan::{Becomes, Evidence, plan},
};
use crate::{
    aws::imds::{Imds, Reading},
    host::{kernel, netlink::Netlink},
    runtime::conflist,
    settings::Settings,
};

/// How long metadata may lag behind EC2, and how soon it is read again.
const LAG: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(500);

/// What its file says and what is in the kernel; and all that the kernel has.
pub async fn begin(settings: &Settings) -> anyhow::Result<(Evidence, Found)> {
    let mut netlink = Netlink::open()?;
    let found = kernel::read(&mut netlink, &Family::ALL).await?;
    let policy = &settings.steering.policy;
    let mut evidence = Evidence {
        egress: peer::egress_links(&LOCAL, &found),
        of_vpc: policy.of_vpc.clone(),
        of_node: policy.of_node.clone(),
        branches: peer::branch_links(&found),
        ways: peer::ways_out(&found),
        links: peer::macs(&found),
        connmarks: peer::foreign_connmarks(policy.marks.connmark(), &found),
        ..Evidence::default()
    };
    match file::read(&settings.backing_store) {
        Ok(entries) => evidence.entries = entries,
        Err(failure) => evidence.lack = Some(format!("{failure:#}")),
    }
    evidence.prefix = prefix(settings);
    let links = peer::pod_links(&evidence.prefix, &found);
    for link in known(&evidence.prefix, links, &evidence.entries, &peer::routed(&found)) {
        let mac = inside(&mut netlink, &link).await;
        evidence.pods.push((link, mac));
    }
    Ok((evidence, found))
}

/// These links, with the addresses that the file gives to the pods that they are called after and that are `routed` nowhere:
/// somebody has removed the route. One that carries no address of anybody is nobody's.
fn known(prefix: &str, links: Vec<PodLink>, entries: &[Entry], routed: &BTreeSet<IpAddr>) -> Vec<PodLink> {
    let is_its = |link: &PodLink, entry: &Entry| {
        let is_called_after =
            |PodRef { namespace, name }: &PodRef| identity::ifname_for_pod(prefix, namespace, name, 0) == link.ifname;
        entry.pod.as_ref().is_some_and(is_called_after) && !routed.contains(&entry.address)
    };
    let with_address = |mut link: PodLink| {
        let more: Vec<IpAddr> =
            entries.iter().filter(|entry| is_its(&link, entry)).map(|entry| entry.address).collect();
        link.addresses.extend(more);
        link
    };
    links.into_iter().map(with_address).filter(|link| !link.addresses.is_empty()).collect()
}

/// The rest: what metadata shows of the ENIs, and what the store remembers. Metadata may lag behind EC2: it is read again for
/// a while as long as it shows no ENI that has a pod's address.
pub async fn complete(evidence: Evidence, imds: &Imds, ledger: Ledger) -> anyhow::Result<Evidence> {
    let mut evidence = Evidence { ledger, ..evidence };
    let end = Instant::now() + LAG;
    loop {
        evidence.enis = imds.enis(Reading::All).await?.read;
        let missing = plan(&evidence).pods.iter().any(|pod| pod.becomes == Becomes::Withheld(NO_ENI.to_owned()));
        if !missing || Instant::now() >= end {
            return Ok(evidence);
        }
        sleep(AGAIN).await;
    }
}

/// First letters of pods' links, as the other system's network configuration says; else those of ours.
pub fn prefix(settings: &Settings) -> String {
    let list = conflist::amazons(settings).ok().flatten().unwrap_or_default();
    let plugins = list["plugins"].as_array().into_iter().flatten();
    let prefix = plugins.filter_map(|plugin| plugin["vethPrefix"].as_str()).next();
    prefix.unwrap_or(&settings.veth_prefix).to_owned()
}

/// The MAC of the pod's end.
async fn inside(netlink: &mut Netlink, link: &PodLink) -> Option<Mac> {
    let (netns, index) = link.inside?;
    match netlink.link_in(netns, index).await {
        Ok(found) => found.as_ref().and_then(link::mac),
        Err(failure) => {
            warn!(link = link.ifname, "the pod's end cannot be looked at: {failure}");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use enid_ipamd::AttachmentKey;

    use super::*;

    #[test]
    fn a_pod_that_no_route_leads_to_keeps_its_address() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let (namespace, name) = ("default".to_owned(), "web-0".to_owned());
        let ifname = identity::ifname_for_pod("eni", &namespace, &name, 0);
        let link = PodLink { ifname, index: 7, mac: Mac([0xd2; 6]), inside: Some((3, 2)), addresses: Vec::new() };
        let key = AttachmentKey { network: "aws-cni".into(), container: "c".into(), ifname: "eth0".into() };
        let pod = Some(PodRef { namespace, name });
        let entries = [Entry { key, address: ip("10.0.78.4"), pod }];
        let known = |link: &PodLink, entries: &[Entry], routed: &[IpAddr]| {
            known("eni", vec![link.clone()], entries, &routed.iter().copied().collect())
        };
        assert_eq!(known(&link, &entries, &[])[0].addresses, [ip("10.0.78.4")]);
        assert!(known(&link, &entries, &[ip("10.0.78.4")]).is_empty(), "another link carries it");
        assert!(known(&link, &[], &[]).is_empty(), "nobody knows whose it is");
        // Only the one by which it leaves in the other family is routed.
        let of_enid = PodLink { addresses: vec![ip("fd00::ac:2")], ..link.clone() };
        assert_eq!(known(&of_enid, &entries, &[ip("fd00::ac:2")])[0].addresses, [ip("fd00::ac:2"), ip("10.0.78.4")]);
    }
}
