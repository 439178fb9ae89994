//! What happens to the node from outside.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use enid_ipamd::{AttachmentKey, EniId, Event, Intent, PodRef, Policy, Restrictions};
use vpclab::model::Request;

use super::{COOLDOWN_MS, World, settings};
use crate::story::Move;

impl World {
    pub(super) fn nth(&self, number: u32) -> Option<AttachmentKey> {
        let length = u32::try_from(self.pods.len()).ok().filter(|length| *length > 0)?;
        self.pods.keys().nth(usize::try_from(number % length).ok()?).cloned()
    }

    pub(super) fn nth_plugin(&self, number: u32) -> Option<u64> {
        let length = u32::try_from(self.plugins.len()).ok().filter(|length| *length > 0)?;
        self.plugins.keys().nth(usize::try_from(number % length).ok()?).copied()
    }

    /// Lets one thing happen.
    pub fn play(&mut self, step: &Move) {
        let part = |percent: u8| f64::from(percent) / 100.0;
        let actions = [
            "CreateNetworkInterface",
            "AttachNetworkInterface",
            "AssignPrivateIpAddresses",
            "ModifyNetworkInterfaceAttribute",
            "DetachNetworkInterface",
            "DeleteNetworkInterface",
            "UnassignPrivateIpAddresses",
            "DescribeNetworkInterfaces",
            "CreateTags",
        ];
        let all = |percent: u8| -> BTreeMap<String, f64> {
            actions.iter().filter(|_| percent > 0).map(|action| ((*action).to_owned(), part(percent))).collect()
        };
        match step {
            Move::Pass(millis) => self.pass(*millis),
            Move::Start(pods) => {
                for _ in 0..*pods {
                    self.names += 1;
                    let container = format!("c{}", self.names);
                    self.ask(AttachmentKey { network: "enid".into(), container, ifname: "eth0".into() });
                }
            }
            Move::Stop(number) => {
                if let Some(key) = self.nth(*number) {
                    self.delete(&key);
                    self.gone.push(key);
                }
            }
            Move::StopAgain(number) => {
                self.fault("DEL repeated");
                let number = usize::try_from(*number).unwrap_or(0);
                if let Some(key) = self.gone.get(number % self.gone.len().max(1)).cloned() {
                    self.delete(&key);
                }
            }
            Move::StartAgain(number) => {
                if let Some(key) = self.nth(*number) {
                    self.fault("ADD repeated");
                    self.ask(key);
                }
            }
            Move::Pause(number, millis) => {
                if let Some(at) = self.nth_plugin(*number) {
                    self.fault("plugin paused");
                    if let Some(plugin) = self.plugins.get_mut(&at) {
                        plugin.at = self.now + millis;
                    }
                }
            }
            Move::KillPlugin(number) => {
                if let Some(at) = self.nth_plugin(*number) {
                    self.fault("plugin killed");
                    let Some(plugin) = self.plugins.remove(&at) else { return };
                    if plugin.connected {
                        self.tell(Event::Closed { ticket: plugin.ticket });
                    }
                    self.delete(&plugin.key);
                }
            }
            Move::Crash(number) => {
                if let Some(key) = self.nth(*number) {
                    self.fault("link vanished");
                    self.links.remove(&key);
                    self.release(&key);
                }
            }
            Move::Kill(boundary) => self.kill = Some(*boundary),
            Move::Reboot => self.reboot(),
            Move::LoseStore => {
                self.fault("store lost");
                // A lost store and stale metadata together leave nothing that shows the ENIs. So the daemon is down for
                // longer than metadata and EC2 lag, and metadata is not stale.
                self.cloud.faults().imds_stale = false;
                self.now += 15_000;
                self.lost_store = true;
                self.restart();
            }
            Move::Collect(partial) => {
                let living = self.pods.keys().chain(self.plugins.values().map(|plugin| &plugin.key)).cloned();
                let alive: Vec<AttachmentKey> = if *partial { living.step_by(2).collect() } else { living.collect() };
                self.fault(if *partial { "GC with a partial list" } else { "GC" });
                self.tell(Event::Gc { network: "enid".into(), alive });
            }
            Move::LoseAnswers(percent) => {
                self.fault("answers lost");
                self.cloud.faults().lose_answer = all(*percent);
            }
            Move::LoseRequests(percent) => {
                self.fault("requests lost");
                self.cloud.faults().lose_request = all(*percent);
            }
            Move::Refuse(percent) => {
                self.fault("EC2 refuses");
                let codes = ["RequestLimitExceeded", "InternalError", "InsufficientFreeAddressesInSubnet"];
                let code = codes[usize::from(*percent) % codes.len()];
                self.cloud.faults().fail =
                    all(*percent).into_iter().map(|(action, chance)| (action, (chance, code.to_owned()))).collect();
            }
            Move::Down(down) => {
                self.fault("EC2 down");
                self.cloud.faults().down = *down;
            }
            Move::Deny(denied) => {
                self.fault("rights taken away");
                let some = actions.iter().step_by(2).map(|action| (*action).to_owned());
                self.cloud.faults().deny = if *denied { some.collect() } else { BTreeSet::new() };
            }
            Move::Partial(percent) => {
                self.fault("partial success");
                self.cloud.faults().partial_assign = part(*percent);
            }
            Move::Stale(stale) => {
                self.fault("metadata stale");
                // Where nothing is remembered, stale metadata and no EC2 leave nothing to start from: a known limit.
                let looks = self.disk.intents.values().any(|intent| *intent == Intent::Discover);
                self.cloud.faults().imds_stale = *stale && !looks && !self.disk.slots.is_empty();
            }
            Move::Torn(percent) => {
                self.fault("metadata partial");
                self.cloud.faults().imds_partial = part(*percent);
            }
            Move::Fragment(fragment) => {
                self.fault("subnet fragmented");
                if *fragment { self.cloud.fragment() } else { self.cloud.defragment() }
            }
            Move::Detach(number) => self.detach(*number),
            Move::Settings(number) => {
                self.fault("settings changed");
                // Families, and where ENIs are created, are chosen for the whole history.
                let (second, placement) = (self.policy.second, self.policy.placement.clone());
                self.policy = Policy { second, placement, ..settings(*number) };
                let policy = self.policy.clone();
                self.tell(Event::Settings { policy });
            }
            Move::Cordon(cordoned) => self.tell(Event::Cordoned { cordoned: *cordoned }),
            Move::Clock(seconds) => {
                self.fault("clock jumps");
                self.wall = self.wall.saturating_add_signed(i64::from(*seconds) * 1_000);
            }
            Move::Orphan => self.orphan(),
            Move::Bound(pods) => {
                let pod = |number| PodRef { namespace: "bound".into(), name: format!("{number}") };
                self.tell(Event::Bound { pods: (0..*pods).map(pod).collect() });
            }
            Move::Groups(number) => {
                self.fault("security groups changed");
                let list = [&["sg-1"][..], &["sg-1", "sg-2"], &["sg-3"], &["sg-2", "sg-3", "sg-4"]];
                self.cloud.set_groups(self.now, &self.instance, list[usize::from(*number) % list.len()]);
            }
            Move::Foreign => {
                self.fault("ENI attached by others");
                self.cloud.attach_foreign(self.now, &self.instance);
            }
            Move::Fill(left) => {
                self.fault("subnet filled");
                self.cloud.fill(0, *left);
            }
            Move::FillFurther(number, left) => {
                self.fault("one of several subnets filled");
                self.cloud.fill(*number, *left);
            }
            Move::Tag(number, role) => {
                self.fault("subnet tagged");
                self.places.tag(&mut self.cloud, self.now, *number, *role);
            }
            Move::EniConfig(number, groups) => {
                self.fault("ENIConfig edited");
                self.places.configure(&self.cloud, *number, *groups);
            }
            Move::NoEniConfig => {
                self.fault("ENIConfig gone");
                self.places.remove();
            }
            Move::ForeignStore => {
                self.fault("store of another instance");
                self.foreign_store();
            }
            Move::Restrict(bits) => {
                self.fault("operator restricts");
                let any = self.core.view(self.clock()).enis.keys().next_back().cloned();
                let excluded = any.filter(|_| bits & 4 != 0);
                self.restrictions = Restrictions {
                    releases_frozen: bits & 1 != 0,
                    writes_frozen: bits & 2 != 0,
                    excluded_enis: excluded.into_iter().collect(),
                };
                let restrictions = self.restrictions.clone();
                self.tell(Event::Restricted { restrictions });
            }
            Move::Order(releases) => {
                self.fault("operator orders");
                self.tell(if *releases { Event::ReleaseNow } else { Event::AuditNow });
            }
            Move::Unreadable(unreadable) => {
                self.fault("metadata refuses");
                self.unreadable = *unreadable;
            }
        }
    }

    /// What another instance's daemon remembered: slots of its ENIs, the primary's among them, and what it had begun. Its
    /// own record is lost with that, as when the file is.
    fn foreign_store(&mut self) {
        self.cloud.faults().imds_stale = false;
        self.now += 15_000;
        self.lost_store = true;
        self.restart();
        let foreign = |number: u32| (EniId(format!("eni-foreign{number}").into()), number);
        self.disk.slots.extend((0..3).map(foreign));
        self.disk.slots.insert(EniId("eni-foreign3".into()), 0);
        let gone = Intent::Delete(EniId("eni-foreign1".into()));
        self.disk.intents.insert("delete-eni-foreign1".into(), gone);
        self.restart();
    }

    pub(super) fn reboot(&mut self) {
        self.fault("reboot");
        self.plugins.clear();
        self.links.clear();
        let all: Vec<AttachmentKey> = self.pods.keys().cloned().collect();
        all.iter().for_each(|key| self.release(key));
        self.boot = self.now;
        self.restrictions = Restrictions::default();
        self.disk = std::mem::take(&mut self.disk).at_another_boot(COOLDOWN_MS);
        self.start();
    }

    /// An operator detaches a secondary ENI on which no pod lives.
    pub(super) fn detach(&mut self, number: u32) {
        let enis = self.cloud.enis(self.now);
        let idle: Vec<(EniId, String)> =
            enis.iter()
                .filter(|eni| eni.instance() == Some(&self.instance))
                .filter_map(|eni| {
                    eni.attachment.clone().filter(|attachment| attachment.device_index > 0).map(|it| (eni, it))
                })
                .filter(|(eni, _)| {
                    let nets = crate::cloud::blocks(eni);
                    let used = |address: &IpAddr| nets.iter().any(|net| net.contains(address));
                    !self.pods.values().any(|pod| pod.addresses.iter().any(used))
                        && !self.plugins.values().any(|plugin| {
                            plugin.lease.as_ref().is_some_and(|lease| lease.addresses().any(|it| used(&it)))
                        })
                })
                .map(|(eni, attachment)| (EniId(eni.id.as_str().into()), attachment.id))
                .collect();
        if let Some((eni, attachment)) = idle.get(usize::try_from(number).unwrap_or(0)).cloned() {
            self.fault("ENI detached by hand");
            self.by_hand.insert(eni);
            self.cloud.operator(self.now, &Request::DetachNetworkInterface { attachment, force: false });
        }
    }
}
