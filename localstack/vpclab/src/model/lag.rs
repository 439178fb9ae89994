//! When EC2 and instance metadata show what has changed: at once, or late.

use super::{AttachmentStatus, Due, EniTruth, ImdsEni, Model};

impl Model {
    /// An ENI has changed now; EC2 and metadata show it in their own time.
    pub(super) fn show(&mut self, eni: &str) {
        let ec2_at = self.now + self.draw(self.options.ec2_lag_ms);
        let imds_at = self.now + self.draw(self.options.imds_lag_ms);
        self.show_at(eni, ec2_at, imds_at);
    }

    /// An ENI has changed now, and everybody sees it.
    pub(super) fn show_now(&mut self, eni: &str) {
        self.show_at(eni, self.now, self.now);
    }

    fn show_at(&mut self, id: &str, ec2_at: u64, imds_at: u64) {
        let truth = self.enis.get(id).cloned();
        let metadata = truth.as_ref().and_then(|eni| self.metadata_of(eni));
        let gone = truth.is_none();
        let ec2 = self.ec2.entry(id.to_owned()).or_default();
        ec2.push(ec2_at, truth);
        if !ec2.prune(self.now) {
            self.ec2.remove(id);
        } else if gone {
            let at = ec2.latest();
            self.plan(at, Due::Forget(id.to_owned(), None));
        }
        let (instance, view) = metadata.unzip();
        if let Some(left) = self.metadata_instance.get(id).filter(|old| instance.as_ref() != Some(*old)).cloned() {
            self.metadata_instance.remove(id);
            self.show_in_metadata(left, id, imds_at, None);
        }
        if let Some(instance) = instance {
            self.metadata_instance.insert(id.to_owned(), instance.clone());
            self.show_in_metadata(instance, id, imds_at, view);
        }
    }

    fn show_in_metadata(&mut self, instance: String, eni: &str, at: u64, view: Option<ImdsEni>) {
        let gone = view.is_none();
        let key = (instance, eni.to_owned());
        let shown = self.metadata.entry(key.clone()).or_default();
        shown.push(at, view);
        if !shown.prune(self.now) {
            self.metadata.remove(&key);
        } else if gone {
            let at = shown.latest();
            self.plan(at, Due::Forget(key.1, Some(key.0)));
        }
    }

    /// An ENI that is gone is shown no more: by EC2, or by an instance's metadata.
    pub(super) fn forget(&mut self, eni: String, instance: Option<String>) {
        let now = self.now;
        match instance {
            None if self.ec2.get_mut(&eni).is_some_and(|shown| !shown.prune(now)) => {
                self.ec2.remove(&eni);
            }
            None => {}
            Some(instance) => {
                let key = (instance, eni);
                if self.metadata.get_mut(&key).is_some_and(|shown| !shown.prune(now)) {
                    self.metadata.remove(&key);
                }
            }
        }
    }

    /// Metadata has an ENI once it is attached and until it is detached.
    fn metadata_of(&self, eni: &EniTruth) -> Option<(String, ImdsEni)> {
        let attachment = eni.attachment.as_ref().filter(|found| found.status != AttachmentStatus::Attaching)?;
        let space = &self.subnets.get(&eni.subnet)?.space;
        let view = ImdsEni {
            id: eni.id.clone(),
            mac: eni.mac.clone(),
            device_index: attachment.device_index,
            card: attachment.card,
            subnet: eni.subnet.clone(),
            vpc: eni.vpc.clone(),
            subnet_cidr: space.cidr,
            subnet_ipv6: space.ipv6,
            addresses: eni.addresses.clone(),
            prefixes: eni.prefixes.clone(),
            ipv6_addresses: eni.ipv6_addresses.clone(),
            ipv6_prefixes: eni.ipv6_prefixes.clone(),
            groups: eni.groups.clone(),
        };
        Some((attachment.instance.clone(), view))
    }

    /// What instance metadata shows now, by MAC; nothing for an instance that has gone. Late, stale or incomplete,
    /// as options and faults have it.
    pub fn imds(&mut self, now: u64, instance: &str) -> Vec<ImdsEni> {
        self.advance(now);
        if self.faults.imds_stale
            && let Some(last) = self.last_metadata.get(instance)
        {
            return last.clone();
        }
        let from = (instance.to_owned(), String::new());
        let own = self.metadata.range(from..).take_while(|((owner, _), _)| owner == instance);
        let mut list: Vec<ImdsEni> = own.filter_map(|(_, shown)| shown.at(self.now)).cloned().collect();
        list.sort_by(|one, other| one.mac.cmp(&other.mac));
        if self.chance(self.faults.imds_partial) {
            self.drop_part(&mut list);
        }
        self.last_metadata.insert(instance.to_owned(), list.clone());
        list
    }

    /// Takes a secondary ENI out of the list, an address or prefix out of one of its ENIs, or security groups out of all.
    fn drop_part(&mut self, list: &mut Vec<ImdsEni>) {
        for eni in list.iter_mut() {
            let whole = eni.groups.len();
            eni.groups.truncate(whole.div_ceil(2));
        }
        let secondary: Vec<usize> =
            (0..list.len()).filter(|index| list[*index].device_index != 0 || list[*index].card != 0).collect();
        if !secondary.is_empty() && self.rng.bool() {
            let gone = secondary[self.rng.usize(..secondary.len())];
            list.remove(gone);
            return;
        }
        let larger: Vec<usize> = (0..list.len())
            .filter(|index| list[*index].addresses.len() > 1 || !list[*index].prefixes.is_empty())
            .collect();
        if larger.is_empty() {
            return;
        }
        let eni = &mut list[larger[self.rng.usize(..larger.len())]];
        let secondaries = eni.addresses.len() - 1;
        let gone = self.rng.usize(..secondaries + eni.prefixes.len());
        if gone < secondaries {
            eni.addresses.remove(gone + 1);
        } else {
            eni.prefixes.remove(gone - secondaries);
        }
    }
}
