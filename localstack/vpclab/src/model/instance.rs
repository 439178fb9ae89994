//! Instances, as far as ENIs need them: they run until they are terminated.

use std::{collections::BTreeMap, net::Ipv4Addr};

use super::{
    ApiError, AttachmentStatus, AttachmentTruth, Due, EniStatus, Instance, InstanceState, Model,
    eni::{full, invalid, no_ipv6, no_subnet, size, too_many},
    types::limits,
};

impl Model {
    /// Starts an instance with a primary ENI, which goes away with it; its id. It is there at once, for
    /// everybody, and no bucket limits it. Errors: an unknown type or subnet, a full subnet.
    pub fn run_instance(&mut self, now: u64, kind: &str, subnet: &str) -> Result<String, ApiError> {
        self.run_instance_at(now, kind, subnet, None, 0)
    }

    /// The same, with a primary address of the caller's choice and that many IPv6 addresses of its own. Errors
    /// besides: the address is not free, the subnet has no IPv6 range, more addresses than the type carries.
    pub fn run_instance_at(
        &mut self,
        now: u64,
        kind: &str,
        subnet_id: &str,
        address: Option<Ipv4Addr>,
        ipv6_count: u32,
    ) -> Result<String, ApiError> {
        self.advance(now);
        let limits = limits(kind).ok_or_else(|| invalid(format!("Invalid value '{kind}' for InstanceType.")))?;
        let subnet = self.subnets.get(subnet_id).ok_or_else(|| no_subnet(subnet_id))?;
        let address = match address {
            Some(address) if subnet.space.is_free(address) => address,
            Some(address) => {
                return Err(ApiError::new("InvalidIPAddress.InUse", format!("Address {address} is in use.")));
            }
            None => *subnet.space.pick(&mut self.rng, 1, &[]).ok_or_else(full)?.first().ok_or_else(full)?,
        };
        let ipv6_addresses = match ipv6_count {
            0 => Vec::new(),
            _ if subnet.space.ipv6.is_none() => return Err(no_ipv6(subnet_id)),
            count if count > limits.ipv6_per_eni => return Err(too_many()),
            count => subnet.space.pick6(&mut self.rng, size(count)).ok_or_else(full)?,
        };
        let (vpc, zone) = (subnet.vpc.clone(), subnet.zone.clone());
        let (id, attachment) = (self.new_id("i"), self.new_id("eni-attach"));
        let mut eni = self.bare_eni(subnet_id, vec![address], &[])?;
        eni.status = EniStatus::InUse;
        eni.ipv6_addresses = ipv6_addresses;
        eni.attachment = Some(AttachmentTruth {
            id: attachment,
            instance: id.clone(),
            device_index: 0,
            card: 0,
            status: AttachmentStatus::Attached,
            delete_on_termination: true,
        });
        let eni_id = eni.id.clone();
        self.insert(eni);
        self.show_now(&eni_id);
        let state = InstanceState::Running;
        let subnet = subnet_id.to_owned();
        let instance = Instance { limits, state, subnet, vpc, zone, address, tags: BTreeMap::new() };
        self.instances.insert(id.clone(), instance);
        Ok(id)
    }

    /// Terminates an instance. It shuts down for as long as an attachment takes; then its ENIs are deleted or,
    /// without DeleteOnTermination, become available. An unknown or terminated one is left as it is.
    pub fn terminate_instance(&mut self, now: u64, instance: &str) {
        self.advance(now);
        let running = self.instances.get_mut(instance).filter(|found| found.state == InstanceState::Running);
        if let Some(found) = running {
            found.state = InstanceState::ShuttingDown;
            let at = self.now + self.draw(self.options.attach_ms);
            self.plan(at, Due::Terminated(instance.to_owned()));
        }
    }

    /// Shutting down has ended.
    pub(super) fn terminated(&mut self, id: &str) {
        if let Some(instance) = self.instances.get_mut(id) {
            instance.state = InstanceState::Terminated;
        }
        let attached = self.enis.values().filter(|eni| eni.instance() == Some(id));
        for (eni, delete) in attached.map(|eni| (eni.id.clone(), eni.delete_on_termination())).collect::<Vec<_>>() {
            if delete {
                self.remove(&eni);
            } else if let Some(found) = self.enis.get_mut(&eni) {
                found.attachment = None;
                found.status = EniStatus::Available;
                self.show(&eni);
            }
        }
    }
}
