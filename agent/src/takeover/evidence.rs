//! What a take-over goes by: the other system's file, the kernel, metadata, and what the store remembers.

use std::time::Duration;

use enid_datapath::{Family, Mac, link, node::found::Found, peer};
use enid_ipamd::{LOCAL, Ledger};
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::{
    enis::NO_ENI,
    file,
    plan::{Becomes, Evidence, cut_off, plan},
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
    let mut links = peer::pod_links(&evidence.prefix, &found);
    let carried = links.iter().flat_map(|link| link.addresses.iter().copied()).collect();
    let without = peer::links_without_a_route(&evidence.prefix, &found);
    links.extend(cut_off(&evidence.prefix, without, &evidence.entries, &carried));
    for link in links {
        let mac = inside(&mut netlink, &link).await;
        evidence.pods.push((link, mac));
    }
    Ok((evidence, found))
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
async fn inside(netlink: &mut Netlink, link: &peer::PodLink) -> Option<Mac> {
    let (netns, index) = link.inside?;
    match netlink.link_in(netns, index).await {
        Ok(found) => found.as_ref().and_then(link::mac),
        Err(failure) => {
            warn!(link = link.ifname, "the pod's end cannot be looked at: {failure}");
            None
        }
    }
}
