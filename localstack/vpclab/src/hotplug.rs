//! A node has the link of an ENI while EC2 shows the ENI as attached to it.
//!
//! The fabric is changed first and metadata afterwards, so metadata never shows an address that the
//! VPC does not carry.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use nix::net::if_::if_nametoindex;

use crate::{
    ec2::{self, Eni},
    fabric, fabric6,
    imds::{EniView, Metadata, NodeView},
    nd::{DiscoveryPort, Responder},
    nsenter,
    port::{Port, mac, nets_v6},
    wait,
};

/// How often EC2 is asked.
const PERIOD: Duration = Duration::from_millis(150);

/// A node, as the loop needs it.
#[derive(Clone, Debug)]
pub struct FabricNode {
    /// Process 1 of the node's namespaces.
    pub pid: u32,
    /// What metadata shows of it, but for its ENIs.
    pub view: NodeView,
    /// Its public address.
    pub public_address: String,
}

/// The loop's state: what the fabric carries now.
pub struct Hotplug {
    vpc_pid: u32,
    nodes: BTreeMap<String, FabricNode>,
    /// Subnet id to its place in [`fabric::SUBNETS`].
    subnets: BTreeMap<String, usize>,
    ports: BTreeMap<String, (String, Port)>,
    /// The last change was carried out to its end.
    complete: bool,
    metadata: Metadata,
    /// The views that metadata has now.
    published: Vec<NodeView>,
    macs: Macs,
    /// In a lab with IPv6: who answers neighbour solicitations, and the number of each port's link.
    discovery: Option<(Responder, BTreeMap<String, usize>)>,
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
    /// A fabric without ports. `responder`: the lab has IPv6.
    pub fn new(
        vpc_pid: u32,
        nodes: BTreeMap<String, FabricNode>,
        subnets: BTreeMap<String, usize>,
        metadata: Metadata,
        macs: Macs,
        responder: Option<Responder>,
    ) -> Self {
        let discovery = responder.map(|responder| (responder, BTreeMap::new()));
        let (ports, published) = (BTreeMap::new(), Vec::new());
        Hotplug { vpc_pid, nodes, subnets, ports, complete: true, metadata, published, macs, discovery }
    }

    /// Asks EC2 again and again until it is to stop. A call that fails changes nothing.
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
        let Ok(mut enis) = nsenter::within(self.vpc_pid, ec2::enis)? else { return Ok(()) };
        if self.macs == Macs::Lab {
            enis.iter_mut().for_each(|eni| eni.mac = mac(&eni.id));
        }
        let wanted: BTreeMap<String, (String, Port)> = enis
            .iter()
            .filter_map(|eni| {
                let attachment = eni.attachment.as_ref()?;
                let instance = attachment.instance_id.clone();
                self.nodes.contains_key(&instance).then(|| (eni.id.clone(), (instance, Port::of(eni, attachment))))
            })
            .collect();
        if wanted != self.ports || !self.complete {
            self.complete = false;
            self.apply(&wanted)?;
            self.complete = true;
            self.number_links()?;
        }
        self.update_discovery(&enis);
        let views = self.views(&enis);
        if views != self.published {
            self.metadata.publish(views.clone());
            self.published = views;
        }
        Ok(())
    }

    /// What is done is recorded port by port, so that a round that fails can be made again.
    fn apply(&mut self, wanted: &BTreeMap<String, (String, Port)>) -> anyhow::Result<()> {
        // Removals come first: an address may have moved from one port to another.
        for (id, (instance, port)) in self.ports.clone() {
            match wanted.get(&id) {
                Some((where_to, now)) if *where_to == instance && now.link == port.link => {
                    let mut kept = port.clone();
                    kept.addresses.retain(|address| now.addresses.contains(address));
                    kept.nets_v6.retain(|net| now.nets_v6.contains(net));
                    self.ports.insert(id, (instance, kept.clone()));
                    self.unassign(&port, &kept)?;
                }
                _ => {
                    self.ports.remove(&id);
                    self.batch(&format!("link del {}\n", port.name))?;
                }
            }
        }
        for (id, (instance, port)) in wanted {
            let before = self.ports.get(id).map(|(_, port)| port);
            if before == Some(port) {
                continue;
            }
            let new = before.is_none();
            if let Err(failure) = self.assign(&self.nodes[instance], port, new) {
                if new {
                    // What was made of it would make the next round fail.
                    let _ = self.batch(&format!("link del {}\n", port.name));
                }
                return Err(failure);
            }
            self.ports.insert(id.clone(), (instance.clone(), port.clone()));
        }
        let ports: Vec<Port> = wanted.values().map(|(_, port)| port.clone()).collect();
        let public: Vec<(String, String)> = wanted
            .values()
            .filter(|(_, port)| port.primary)
            .filter_map(|(instance, port)| {
                Some((port.addresses.first()?.clone(), self.nodes[instance].public_address.clone()))
            })
            .collect();
        let mut sets = fabric::sets(&ports, &public);
        if self.discovery.is_some() {
            sets += &fabric6::sets(&ports);
        }
        nsenter::run_with_input(self.vpc_pid, &["nft", "-f", "-"], &sets)
    }

    fn batch(&self, text: &str) -> anyhow::Result<()> {
        nsenter::run_with_input(self.vpc_pid, &["ip", "-batch", "-"], text)
    }

    /// Removes from a port what its ENI has not any more.
    fn unassign(&self, before: &Port, kept: &Port) -> anyhow::Result<()> {
        let gone: Vec<String> = before.addresses.iter().filter(|ip| !kept.addresses.contains(ip)).cloned().collect();
        self.batch(&fabric::unassign(before, &gone))?;
        if self.discovery.is_some() {
            let gone: Vec<_> = before.nets_v6.iter().filter(|net| !kept.nets_v6.contains(net)).copied().collect();
            nsenter::run_with_input(self.vpc_pid, &fabric6::BATCH, &fabric6::unassign(before, &gone))?;
        }
        Ok(())
    }

    /// Adds to a port what its ENI has, and makes its link first if it is new.
    fn assign(&self, node: &FabricNode, port: &Port, new: bool) -> anyhow::Result<()> {
        let v6 = self.discovery.is_some();
        if new {
            self.batch(&fabric::plug(port, node.pid))?;
            if port.addresses.is_empty() {
                return fabric::port_without_ip(self.vpc_pid, &port.name);
            }
            fabric::port_sysctls(self.vpc_pid, &port.name)?;
            if v6 {
                fabric6::plug(self.vpc_pid, node.pid, port)?;
            }
        }
        self.batch(&fabric::assign(port))?;
        if new && port.primary {
            let (cidr, gateway, _) = fabric::SUBNETS[node.view.subnet];
            let prefix_len = cidr.rsplit('/').next().unwrap_or("24");
            fabric::dhcp(node.pid, port, gateway, prefix_len)?;
        }
        if v6 {
            nsenter::run_with_input(self.vpc_pid, &fabric6::BATCH, &fabric6::assign(port))?;
            if new && port.primary {
                let address = port.nets_v6.first().context("a primary ENI without an IPv6 address")?;
                let (cidr, _) = fabric::SUBNETS_V6[node.view.subnet];
                fabric6::dhcp(node.pid, address, cidr)?;
            }
        }
        Ok(())
    }

    /// Links keep their numbers, and new ones have new numbers.
    fn number_links(&mut self) -> anyhow::Result<()> {
        if let Some((_, numbers)) = &mut self.discovery {
            let names = self.ports.values().map(|(_, port)| port.name.clone());
            *numbers = nsenter::within(self.vpc_pid, || {
                let number = |name: &str| usize::try_from(if_nametoindex(name).ok()?).ok();
                names.filter_map(|name| Some((name.clone(), number(&name)?))).collect()
            })?;
        }
        Ok(())
    }

    /// Gives neighbour discovery what EC2 shows now.
    fn update_discovery(&self, enis: &[Eni]) {
        let Some((responder, numbers)) = &self.discovery else { return };
        let ports = self.ports.values().filter_map(|(_, port)| {
            Some((*numbers.get(&port.name)?, DiscoveryPort { mac: port.own_mac()?, own: port.nets_v6.clone() }))
        });
        responder.update(ports.collect(), enis.iter().flat_map(nets_v6).collect());
    }

    fn views(&self, enis: &[Eni]) -> Vec<NodeView> {
        let of = |instance: &str| {
            let attached = enis.iter().filter_map(|eni| {
                Some((eni, eni.attachment.as_ref().filter(|attachment| attachment.instance_id == instance)?))
            });
            attached
                .map(|(eni, attachment)| {
                    let subnet = self.subnets.get(&eni.subnet_id).copied().unwrap_or(0);
                    EniView {
                        id: eni.id.clone(),
                        mac: eni.mac.clone(),
                        card: attachment.card,
                        device_index: attachment.device_index,
                        subnet_id: eni.subnet_id.clone(),
                        subnet,
                        addresses: eni.addresses.clone(),
                        prefixes: eni.prefixes.clone(),
                        ipv6_addresses: eni.ipv6_addresses.clone(),
                        ipv6_prefixes: eni.ipv6_prefixes.clone(),
                        groups: eni.groups.clone(),
                    }
                })
                .collect()
        };
        self.nodes.values().map(|node| NodeView { enis: of(&node.view.instance_id), ..node.view.clone() }).collect()
    }
}
