//! Whether EC2 and a node's daemon agree about ENIs and addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::{Context, ensure};
use ipnet::IpNet;
use vpclab::ec2::Eni;

use crate::node::Place;

type Enis = BTreeMap<String, BTreeSet<IpNet>>;

/// An error unless EC2 and the daemon have the same ENIs with the same blocks, every lease's address is on its
/// ENI and no two leases have the same, and every ENI of the account is attached. Both sides change: wait for it.
pub fn check(place: Place<'_>) -> anyhow::Result<()> {
    let (at_ec2, at_daemon) = (enis_at_ec2(place)?, enis_at_daemon(place)?);
    ensure!(at_ec2 == at_daemon, "{}: EC2 has {at_ec2:?}, the daemon {at_daemon:?}", place.name);
    let mut seen = BTreeSet::new();
    for lease in place.leases()? {
        let text = |key: &str| lease[key].as_str().unwrap_or_default().to_owned();
        let address: IpAddr = text("address").parse().with_context(|| format!("no address in {lease}"))?;
        let blocks = at_ec2.get(&text("eni")).with_context(|| format!("EC2 has no {} for {lease}", text("eni")))?;
        ensure!(blocks.iter().any(|net| net.contains(&address)), "EC2 has {blocks:?} on the ENI of {lease}");
        ensure!(seen.insert(address), "two leases have {address}");
    }
    Ok(())
}

/// What EC2 has put on the node's ENIs for pods.
fn enis_at_ec2(place: Place<'_>) -> anyhow::Result<Enis> {
    let node = place.lab.state().nodes.iter().find(|node| node.name == place.name).context("not a node")?;
    let mut enis = Enis::new();
    for eni in place.lab.enis()? {
        let attachment = eni.attachment.as_ref().with_context(|| format!("{} is unattached", eni.id))?;
        if attachment.instance_id == node.instance_id {
            let blocks = blocks(&eni).collect();
            enis.insert(eni.id, blocks);
        }
    }
    Ok(enis)
}

/// The addresses and blocks that EC2 has put on an ENI for pods.
pub fn blocks(eni: &Eni) -> impl Iterator<Item = IpNet> {
    let singles = eni.addresses.iter().skip(1).filter_map(|address| address.parse::<IpAddr>().ok());
    singles.map(IpNet::from).chain(eni.prefixes.iter().filter_map(|prefix| prefix.parse().ok()))
}

fn enis_at_daemon(place: Place<'_>) -> anyhow::Result<Enis> {
    let enis = place.enid("enis")?;
    let of = |eni: &serde_json::Value| {
        let nets = eni["blocks"].as_array().into_iter().flatten();
        let nets = nets.filter_map(|net| net.as_str()?.parse().ok()).collect();
        Some((eni["id"].as_str()?.to_owned(), nets))
    };
    Ok(enis.as_array().into_iter().flatten().filter_map(of).collect())
}
