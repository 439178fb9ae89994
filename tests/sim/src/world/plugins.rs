//! Plugins and the pods that they make.

use std::net::IpAddr;

use enid_ipamd::{AttachmentKey, Awaited, Event, Lease, PodRef, Ticket};

use super::{
    World,
    pods::{Link, Plugin, Pod, Step},
};

/// How long a plugin waits for an address.
const TIMEOUT_MS: u64 = 60_000;

impl World {
    /// The plugin undoes what it made and ends with an error.
    pub(super) fn give_up(&mut self, at: u64) {
        let Some(plugin) = self.plugins.remove(&at) else { return };
        if !self.pods.contains_key(&plugin.key) {
            self.links.remove(&plugin.key);
        }
        if plugin.connected {
            self.tell(Event::Closed { ticket: plugin.ticket });
        }
        // The runtime sends DEL after a failed ADD.
        self.delete(&plugin.key);
    }

    pub(super) fn ask(&mut self, key: AttachmentKey) {
        self.tickets += 1;
        let ticket = Ticket(self.tickets + self.runs * 1_000_000);
        let plugin = Plugin { ticket, key: key.clone(), step: Step::Waits, lease: None, at: self.now, connected: true };
        self.plugins.insert(self.tickets, plugin);
        let pod = PodRef { namespace: "default".into(), name: key.container.clone() };
        self.tell(Event::Ask { ticket, key, pod: Some(pod), timeout_ms: TIMEOUT_MS, card: None });
    }

    pub(super) fn delete(&mut self, key: &AttachmentKey) {
        self.links.remove(key);
        self.release(key);
        self.tickets += 1;
        let ticket = Ticket(self.tickets + self.runs * 1_000_000);
        self.tell(Event::Release { ticket, key: key.clone() });
    }

    /// A pod is not there any more: its address is cooling from now on, if any record says that it had one.
    pub(super) fn release(&mut self, key: &AttachmentKey) {
        let Some(pod) = self.pods.remove(key) else { return };
        let recorded = pod.addresses.into_iter().filter(|address| !self.unrecorded.contains(address));
        self.released.extend(recorded.map(|address| (address, self.now)));
    }

    /// Every plugin that may goes on by one step.
    pub(super) fn run_plugins(&mut self) {
        let due: Vec<u64> =
            self.plugins.iter().filter(|(_, plugin)| plugin.at <= self.now).map(|(at, _)| *at).collect();
        for at in due {
            let Some(plugin) = self.plugins.get_mut(&at) else { continue };
            let (key, lease) = (plugin.key.clone(), plugin.lease.clone());
            if !plugin.connected && plugin.step != Step::Creates && plugin.step != Step::Prints {
                self.give_up(at); // the daemon has closed the stream
                continue;
            }
            match (plugin.step, lease) {
                (Step::Creates, Some(lease)) => {
                    plugin.step = Step::Tells;
                    plugin.at = self.now + 1;
                    // What an earlier try of the same attachment left behind is replaced.
                    if self.links.get(&key).is_some_and(|link| !lease.addresses().eq(link.addresses.iter().copied())) {
                        self.links.remove(&key);
                        self.release(&key);
                    }
                    self.links.entry(key).or_insert(Link { addresses: lease.addresses().collect(), routed: false });
                }
                (Step::Tells, Some(_)) => {
                    plugin.step = Step::Awaits;
                    let ticket = plugin.ticket;
                    let seen = self.links.contains_key(&key);
                    self.tell(Event::Wired { ticket, key, seen });
                }
                (Step::Prints, Some(lease)) => self.print(at, key, &lease),
                _ => {}
            }
        }
    }

    pub(super) fn print(&mut self, at: u64, key: AttachmentKey, lease: &Lease) {
        let addresses: Vec<IpAddr> = lease.addresses().collect();
        let shared = |others: &[IpAddr]| others.iter().find(|address| addresses.contains(address)).copied();
        let taken =
            self.links.iter().any(|(other, link)| *other != key && link.routed && shared(&link.addresses).is_some());
        if taken || !self.links.contains_key(&key) {
            // The host routes the address over another link: the plugin leaves it there.
            return self.give_up(at);
        }
        if let Some(link) = self.links.get_mut(&key) {
            link.routed = true;
            link.addresses.clone_from(&addresses);
        }
        let Some(plugin) = self.plugins.remove(&at) else { return };
        self.tally.added += 1;
        let others = self.pods.iter().filter(|(other, _)| **other != key);
        let twice = others.filter_map(|(other, pod)| Some((shared(&pod.addresses)?, other.container.clone()))).next();
        if let Some((address, other)) = twice {
            self.wrong(format!("{address} has two owners: {} and {other}", key.container));
        }
        self.pods.insert(key, Pod { addresses, eni: lease.eni.clone() });
        if plugin.connected {
            self.tell(Event::Closed { ticket: plugin.ticket });
        }
    }

    /// A pod that no lease explains appears just before the pool gives its address up: a container that was restored from
    /// a checkpoint, for one. Only a listing of the kernel after the decision can tell.
    pub(super) fn orphan(&mut self) {
        let Some((_, until)) = self.surplus_address() else { return };
        self.pass((until + self.boot).saturating_sub(self.now + 1));
        let Some((address, _)) = self.surplus_address() else { return };
        if self.pods.values().any(|pod| pod.addresses.contains(&address)) {
            return;
        }
        let eni = self.core.view(self.clock()).blocks.values().find(|block| block.net().contains(&address)).cloned();
        let Some(eni) = eni.map(|block| block.eni().clone()) else { return };
        self.fault("orphaned link");
        self.names += 1;
        let container = format!("orphan{}", self.names);
        let key = AttachmentKey { network: "enid".into(), container, ifname: "eth0".into() };
        self.links.insert(key.clone(), Link { addresses: vec![address], routed: true });
        self.pods.insert(key.clone(), Pod { addresses: vec![address], eni });
        self.unrecorded.insert(address);
        self.orphans.insert(key);
    }

    /// An address that the plan is about to give up, and when, on the core's clock.
    fn surplus_address(&self) -> Option<(IpAddr, u64)> {
        let view = self.core.view(self.clock());
        view.plan.waits.iter().find_map(|wait| {
            let net = match &wait.awaited {
                Awaited::SurplusBlocks { blocks } => *blocks.first()?,
                Awaited::SurplusEni { eni } => *view.enis.get(eni)?.blocks.iter().next()?,
                _ => return None,
            };
            Some((net.network(), wait.until?.0))
        })
    }
}
