//! What must never be, seen from outside the core.

use std::{collections::BTreeSet, net::IpAddr};

use enid_ipamd::{
    AttachmentKey, Call, Effect, EniId, Event, Intent, Lease, Placement, Plan, Restrictions, Second, Ticket,
};

use super::{
    COOLDOWN_MS, World,
    pods::{Pod, Step},
};
use crate::cloud::is_ours;
use vpclab::model::EniTruth;

impl World {
    /// With the actions of a plan in flight and no answer yet, planning again yields no action and the same waits.
    pub(super) fn check_plan(&mut self, plan: &Plan, effects: &[Effect]) {
        let again = self.core.plan(self.clock());
        if let Some(action) = again.actions.first() {
            self.wrong(format!("planned twice: {}", action.step));
        }
        // Who is refused waits no more.
        let refused = effects.iter().any(|effect| matches!(effect, Effect::Refuse { .. }));
        if !refused && again.waits != plan.waits {
            self.wrong(format!("the waits changed: {:?}, then {:?}", plan.waits, again.waits));
        }
    }

    /// A call that must not be made: it would take something away that is in use, or change what is not ours.
    pub(super) fn check_call(&mut self, call: &Call) {
        let enis = self.cloud.enis(self.now);
        let uses = |pod: &Pod, net: &ipnet::IpNet| pod.addresses.iter().any(|address| net.contains(address));
        let used = |net: &ipnet::IpNet| self.pods.values().any(|pod| uses(pod, net));
        let is_release = matches!(call, Call::Unassign { .. } | Call::Detach { .. } | Call::Delete { .. });
        let is_read = matches!(call, Call::Audit { .. } | Call::Subnets { .. } | Call::FindLeaked);
        let frozen = self.restrictions.writes_frozen && !is_read || self.restrictions.releases_frozen && is_release;
        let wrong = match call {
            _ if frozen => Some(format!("{} is sent, and an operator has frozen it", call.action())),
            Call::Create { token, .. } if !self.disk.intents.contains_key(token) => {
                Some(format!("a creation without a record: {token}"))
            }
            Call::Unassign { blocks, .. } => {
                blocks.iter().find(|net| used(net)).map(|net| format!("{net} is unassigned, and a live pod uses it"))
            }
            Call::Detach { eni, .. } | Call::Delete { eni }
                if !self.by_hand.contains(eni) && self.pods.values().any(|pod| pod.eni == *eni) =>
            {
                Some(format!("{eni} is detached or deleted, and a live pod uses it"))
            }
            Call::Assign { eni, .. } => {
                let ours =
                    enis.iter().find(|found| *found.id == *eni.0).is_none_or(|found| is_ours(found, &self.instance));
                (!ours).then(|| format!("{eni} is changed before it is ours"))
            }
            _ => None,
        };
        if let Some(wrong) = wrong {
            self.wrong(wrong);
        }
    }

    /// A creation is written down, for the place that it will be in; asked for again it has to be the same.
    pub(super) fn check_intent(&mut self, token: &str, intent: &Intent) {
        let Intent::Create(recorded) = intent else { return };
        let is_new = !self.disk.intents.contains_key(token);
        let forbidden = is_new.then(|| self.places.forbids(self.now, &self.policy.placement, &recorded.home));
        if let Some(wrong) = forbidden.flatten() {
            self.wrong(wrong);
        }
    }

    pub(super) fn offered(&mut self, ticket: Ticket, key: &AttachmentKey, lease: Lease) {
        for address in lease.addresses() {
            self.address_offered(key, address, &lease);
        }
        if self.policy.second == Second::V6OfEni && lease.second.is_none() && !self.links.contains_key(key) {
            self.wrong(format!("{} is offered one family of two", key.container));
        }
        if let Some(plugin) = self.plugins.values_mut().find(|plugin| plugin.ticket == ticket && plugin.connected) {
            plugin.step = Step::Creates;
            plugin.lease = Some(lease);
            plugin.at = plugin.at.max(self.now + 1);
        }
    }

    fn address_offered(&mut self, key: &AttachmentKey, address: IpAddr, lease: &Lease) {
        let protected = |eni: &vpclab::model::EniTruth| eni.delete_on_termination();
        let eni = self.cloud.enis(self.now).into_iter().find(|eni| *eni.id == *lease.eni.0);
        match &eni {
            Some(eni) if !protected(eni) && eni.attachment.is_some() => {
                self.wrong(format!("{} serves {address} and is not deleted with its instance", eni.id));
            }
            _ => {}
        }
        let is_of_primary = |eni: &EniTruth| eni.attachment.as_ref().is_some_and(|at| at.device_index == 0);
        let is_new = !self.links.contains_key(key) && !self.pods.contains_key(key);
        if is_new && self.policy.placement == Placement::EniConfig && eni.as_ref().is_some_and(is_of_primary) {
            self.wrong(format!("{} is offered {address} of the primary ENI under an ENIConfig", key.container));
        }
        let lives = |pod: &Pod| pod.addresses.contains(&address);
        // No listing could show it yet: it never comes up.
        let unseen = self.orphans.iter().find(|key| self.pods.get(*key).is_some_and(lives)).cloned();
        if let Some(key) = unseen {
            self.orphans.remove(&key);
            self.links.remove(&key);
            self.pods.remove(&key);
        }
        if let Some((other, _)) = self.pods.iter().find(|(other, pod)| lives(pod) && *other != key) {
            let other = other.container.clone();
            self.wrong(format!("{address} is offered to {}, and {other} lives with it", key.container));
        }
        let cooled = self.released.get(&address).is_none_or(|at| self.now - at >= COOLDOWN_MS);
        let held = self.pods.get(key).is_some_and(|pod| pod.addresses.contains(&address));
        if !cooled && !held && !self.links.contains_key(key) {
            self.wrong(format!("{address} is offered during its cooldown"));
        }
    }

    /// What a live pod lives on is there, and it is its own.
    pub(super) fn check_pods(&mut self) {
        let enis = self.cloud.enis(self.now);
        let on_eni = |id: &EniId, address: IpAddr| {
            enis.iter().any(|eni| {
                *eni.id == *id.0
                    && eni.instance() == Some(&self.instance)
                    && crate::cloud::blocks(eni).iter().any(|net| net.contains(&address))
            })
        };
        // A pod may get an address of an ENI that was detached by hand before metadata shows that.
        let here = self.pods.iter().filter(|(_, pod)| !self.by_hand.contains(&pod.eni));
        let mut lost = here
            .filter_map(|(key, pod)| Some((key, pod.addresses.iter().find(|address| !on_eni(&pod.eni, **address))?)));
        if let Some((key, address)) = lost.next() {
            let what = format!("{} lives with {address}, which EC2 has taken away", key.container);
            self.wrong(what);
        }
    }

    /// What the host had configured before metadata was read it still has, where live pods use it.
    pub(super) fn check_configured(&mut self, before: &[EniId]) {
        let now: BTreeSet<EniId> = self.core.host_enis().map(|(eni, _)| eni.facts.id.clone()).collect();
        let enis = self.cloud.enis(self.now);
        let attached = |id: &EniId| enis.iter().any(|eni| *eni.id == *id.0 && eni.instance() == Some(&self.instance));
        let used = |id: &EniId| self.pods.values().any(|pod| pod.eni == *id);
        let lost = before.iter().find(|id| !now.contains(*id) && attached(id) && used(id));
        if let Some(id) = lost {
            self.wrong(format!("metadata left {id} out, the host gives it up, and a live pod uses it"));
        }
    }

    /// All faults end and time passes: no ADD may wait for ever, and nothing may be left behind.
    pub fn settle(&mut self) {
        *self.cloud.faults() = vpclab::model::Faults::default();
        self.cloud.defragment();
        (0..3).for_each(|number| self.cloud.fill(number, None));
        self.kill = None;
        self.restrictions = Restrictions::default();
        self.tell(Event::Restricted { restrictions: Restrictions::default() });
        self.tell(Event::Cordoned { cordoned: false });
        self.tell(Event::Bound { pods: BTreeSet::new() });
        self.unreadable = false;
        self.pass(600_000);
        if self.broken.is_some() {
            return;
        }
        if let Some(plugin) = self.plugins.values().next() {
            let what = format!("{} still waits ({:?})", plugin.key.container, plugin.step);
            return self.wrong(what);
        }
        let held: BTreeSet<_> = self.core.leases().map(|(key, _)| key.clone()).collect();
        let living: BTreeSet<_> = self.pods.keys().cloned().collect();
        if let Some(key) = held.difference(&living).next() {
            return self.wrong(format!("{} holds a lease and is gone", key.container));
        }
        self.check_enis();
        self.pass(600_000);
        self.check_groups();
        self.check_places();
    }

    /// No ENI of a kind that the ENIConfig does not ask for stays without pods.
    fn check_places(&mut self) {
        let enis = self.cloud.enis(self.now);
        let is_used = |eni: &EniTruth| self.pods.values().any(|pod| *pod.eni.0 == *eni.id);
        let secondary = |eni: &EniTruth| eni.attachment.as_ref().is_some_and(|at| at.device_index > 0);
        let ours = enis.iter().filter(|eni| secondary(eni) && is_ours(eni, &self.instance) && !is_used(eni));
        if let Some(eni) = ours.into_iter().find(|eni| self.places.is_of_old_kind(eni)) {
            let what = format!("{} in {} stays, and the ENIConfig asks for another kind", eni.id, eni.subnet);
            self.wrong(what);
        }
    }

    /// ENIs of ours have the security groups of the primary.
    fn check_groups(&mut self) {
        let enis = self.cloud.enis(self.now);
        let here = || enis.iter().filter(|eni| eni.instance() == Some(&self.instance));
        let at_first = |eni: &&EniTruth| eni.attachment.as_ref().is_some_and(|it| (it.card, it.device_index) == (0, 0));
        let sorted = |eni: &EniTruth| eni.groups.iter().cloned().collect::<BTreeSet<String>>();
        let Some(wanted) = here().find(at_first).map(sorted) else { return };
        let follows = |eni: &&EniTruth| is_ours(eni, &self.instance) && self.places.follow_primary(&eni.subnet);
        if let Some(eni) = here().filter(follows).find(|eni| sorted(eni) != wanted) {
            let what = format!("{} has the security groups {:?}, and the primary {wanted:?}", eni.id, eni.groups);
            self.wrong(what);
        }
    }

    /// No ENI of ours is unattached, no intent is open.
    pub(super) fn check_enis(&mut self) {
        let enis = self.cloud.enis(self.now);
        // What somebody detached under a pod that lives on it is kept for that pod's sake.
        let kept = |eni: &&vpclab::model::EniTruth| self.pods.values().any(|pod| *pod.eni.0 == *eni.id);
        let mut loose = enis.iter().filter(|eni| is_ours(eni, &self.instance) && eni.attachment.is_none());
        let loose = loose.find(|eni| !kept(eni));
        if let Some(eni) = loose {
            let what = format!("{} is ours and attached to nothing", eni.id);
            return self.wrong(what);
        }
        let unfinished = |intent: &Intent| matches!(intent, Intent::Create(_) | Intent::Delete(_));
        let open = self.disk.intents.iter().find(|(_, intent)| unfinished(intent));
        if let Some((token, intent)) = open {
            let what = format!("the intent {token} stays open: {intent:?}");
            self.wrong(what);
        }
    }
}
