//! ENIs appear in a node when EC2 says "attached" and vanish when it does not any more.
//!
//! The fabric is changed first and metadata told afterwards, so metadata never shows an address that the
//! VPC does not carry.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ipnet::{Ipv4AddrRange, Ipv4Net};

use crate::{
    ec2::{self, Eni},
    fabric,
    imds::{EniView, Metadata, NodeView},
    space, wait,
};

/// How often EC2 is asked.
const PERIOD: Duration = Duration::from_millis(150);

/// One ENI's port in the VPC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Link on the VPC's side.
    pub name: String,
    /// The ENI's MAC.
    pub mac: String,
    /// Device index in the node.
    pub device_index: u32,
    /// What EC2 assigned, the primary address first, prefixes address by address.
    pub addresses: Vec<String>,
}

/// A node, as the loop needs it.
#[derive(Clone, Debug)]
pub struct Plugged {
    /// Holder of the node's namespaces.
    pub pid: u32,
    /// What metadata says about it, but for its ENIs.
    pub view: NodeView,
    /// Its public address.
    pub public_address: String,
}

/// The loop's state: what the fabric carries now.
pub struct Hotplug {
    vpc_pid: u32,
    nodes: BTreeMap<String, Plugged>,
    /// Subnet id to its place in [`fabric::SUBNETS`].
    subnets: BTreeMap<String, usize>,
    ports: BTreeMap<String, (String, Port)>,
    metadata: Metadata,
    /// The last views that metadata was told.
    told: Vec<NodeView>,
    macs: Macs,
}

/// Whose MACs the links have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Macs {
    /// EC2's.
    Ec2,
    /// The lab's own, since LocalStack's are malformed.
    Lab,
}

impl Hotplug {
    /// A fabric without ports.
    pub fn new(
        vpc_pid: u32,
        nodes: BTreeMap<String, Plugged>,
        subnets: BTreeMap<String, usize>,
        metadata: Metadata,
        macs: Macs,
    ) -> Self {
        Hotplug { vpc_pid, nodes, subnets, ports: BTreeMap::new(), metadata, told: Vec::new(), macs }
    }

    /// Asks EC2 again and again until told to stop. A call that fails changes nothing.
    pub fn run(mut self, stop: &Arc<AtomicBool>) {
        while !stop.load(Ordering::Relaxed) {
            if let Err(error) = self.follow() {
                eprintln!("vpclab: {error:#}");
                wait::pause(PERIOD * 5);
            }
            wait::pause(PERIOD);
        }
    }

    /// One round.
    pub fn follow(&mut self) -> anyhow::Result<()> {
        let Ok(mut enis) = space::within(self.vpc_pid, ec2::enis)? else { return Ok(()) };
        if self.macs == Macs::Lab {
            enis.iter_mut().for_each(|eni| eni.mac = mac(&eni.id));
        }
        let wanted: BTreeMap<String, (String, Port)> = enis
            .iter()
            .filter_map(|eni| {
                let (instance, device_index) = eni.attachment.clone()?;
                self.nodes.contains_key(&instance).then(|| (eni.id.clone(), (instance, port(eni, device_index))))
            })
            .collect();
        if wanted != self.ports {
            self.apply(&wanted)?;
            self.ports = wanted;
        }
        let views = self.views(&enis);
        if views != self.told {
            self.metadata.publish(views.clone());
            self.told = views;
        }
        Ok(())
    }

    fn apply(&self, wanted: &BTreeMap<String, (String, Port)>) -> anyhow::Result<()> {
        for (id, (_, port)) in &self.ports {
            if !wanted.contains_key(id) {
                space::feed(self.vpc_pid, &["ip", "-batch", "-"], &format!("link del {}\n", port.name))?;
            }
        }
        for (id, (instance, port)) in wanted {
            let before = self.ports.get(id).map(|(_, port)| port);
            if before == Some(port) {
                continue;
            }
            let node = &self.nodes[instance];
            if before.is_none() {
                space::feed(self.vpc_pid, &["ip", "-batch", "-"], &fabric::plug(port, node.pid))?;
                fabric::port_sysctls(self.vpc_pid, &port.name)?;
            }
            let held = before.map(|port| port.addresses.clone()).unwrap_or_default();
            let gone: Vec<String> = held.into_iter().filter(|ip| !port.addresses.contains(ip)).collect();
            space::feed(self.vpc_pid, &["ip", "-batch", "-"], &fabric::addresses(port, &gone))?;
            if before.is_none() && port.device_index == 0 {
                let (cidr, gateway, _) = fabric::SUBNETS[node.view.subnet];
                let prefix_len = cidr.rsplit('/').next().unwrap_or("24");
                fabric::dhcp(node.pid, port, gateway, prefix_len)?;
            }
        }
        let ports: Vec<Port> = wanted.values().map(|(_, port)| port.clone()).collect();
        let public: Vec<(String, String)> = wanted
            .values()
            .filter(|(_, port)| port.device_index == 0)
            .filter_map(|(instance, port)| {
                Some((port.addresses.first()?.clone(), self.nodes[instance].public_address.clone()))
            })
            .collect();
        space::feed(self.vpc_pid, &["nft", "-f", "-"], &fabric::sets(&ports, &public))
    }

    fn views(&self, enis: &[Eni]) -> Vec<NodeView> {
        let of = |instance: &str| {
            let attached =
                enis.iter().filter(|eni| eni.attachment.as_ref().is_some_and(|(owner, _)| owner == instance));
            attached
                .map(|eni| {
                    let subnet = self.subnets.get(&eni.subnet_id).copied().unwrap_or(0);
                    EniView {
                        id: eni.id.clone(),
                        mac: eni.mac.clone(),
                        device_index: eni.attachment.as_ref().map_or(0, |(_, index)| *index),
                        subnet_id: eni.subnet_id.clone(),
                        subnet,
                        addresses: eni.addresses.clone(),
                        prefixes: eni.prefixes.clone(),
                        groups: eni.groups.clone(),
                    }
                })
                .collect()
        };
        self.nodes.values().map(|node| NodeView { enis: of(&node.view.instance_id), ..node.view.clone() }).collect()
    }
}

fn port(eni: &Eni, device_index: u32) -> Port {
    // Names have 15 bytes at most, and ids differ in their last digits too.
    let id = eni.id.trim_start_matches("eni-");
    let name = format!("p-{}", &id[id.len().saturating_sub(12)..]);
    let mut addresses = eni.addresses.clone();
    for prefix in eni.prefixes.iter().filter_map(|prefix| prefix.parse::<Ipv4Net>().ok()) {
        addresses.extend(Ipv4AddrRange::new(prefix.network(), prefix.broadcast()).map(|address| address.to_string()));
    }
    Port { name, mac: eni.mac.clone(), device_index, addresses }
}

/// A locally administered unicast MAC out of the ENI's id (FNV-1a).
fn mac(id: &str) -> String {
    let hash = id
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let [a, b, c, d, e, ..] = hash.to_be_bytes();
    format!("02:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_have_names_that_linux_takes() {
        let eni = Eni {
            id: "eni-0123456789abcdef0".to_owned(),
            subnet_id: String::new(),
            groups: vec![],
            addresses: vec!["10.0.1.9".to_owned()],
            prefixes: vec!["10.0.1.16/28".to_owned()],
            mac: String::new(),
            attachment: None,
        };
        let port = port(&eni, 1);
        assert_eq!((port.name.as_str(), port.addresses.len()), ("p-56789abcdef0", 17));
        assert_eq!((port.addresses[0].as_str(), port.addresses[16].as_str()), ("10.0.1.9", "10.0.1.31"));
        assert!(mac(&eni.id).starts_with("02:") && mac(&eni.id).len() == 17);
        assert_ne!(mac("eni-1"), mac("eni-2"));
    }
}
