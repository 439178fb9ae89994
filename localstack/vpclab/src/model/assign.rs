//! Addresses and prefixes of ENIs, coming and going. A call does all that it asks for, or nothing.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use super::{
    Answer, ApiError, EniTruth, InterfaceType, Model,
    attach::no_prefixes,
    eni::{NO_ADDRESSES, combination, fragmented, full, invalid, no_ipv6, no_subnet, size, too_many},
    space::Space,
    types::{MOST_SLOTS, TypeLimits},
};

impl Model {
    /// What an ENI may carry: its instance type says so once it is attached.
    fn limits_of(&self, eni: &EniTruth) -> Option<&TypeLimits> {
        let instance = &eni.attachment.as_ref()?.instance;
        self.instances.get(instance).map(|instance| &instance.limits)
    }

    /// An ENI that can be given addresses.
    fn addressed_eni(&self, id: &str) -> Result<&EniTruth, ApiError> {
        let eni = self.known_eni(id)?;
        match eni.interface_type {
            InterfaceType::Interface => Ok(eni),
            InterfaceType::EfaOnly => Err(combination(NO_ADDRESSES)),
        }
    }

    fn space_of(&self, eni: &EniTruth) -> Result<&Space, ApiError> {
        self.subnets.get(&eni.subnet).map(|subnet| &subnet.space).ok_or_else(|| no_subnet(&eni.subnet))
    }

    pub(super) fn assign4(
        &mut self,
        id: &str,
        count: Option<u32>,
        prefix_count: Option<u32>,
        wanted: &[Ipv4Addr],
    ) -> Result<Answer, ApiError> {
        let eni = self.addressed_eni(id)?;
        let ways = [count.is_some(), prefix_count.is_some(), !wanted.is_empty()];
        match ways.iter().filter(|given| **given).count() {
            0 => return Err(combination("A count, a count of prefixes or addresses must be given.")),
            1 if count == Some(0) || prefix_count == Some(0) => return Err(invalid("The count must be 1 at least.")),
            1 => {}
            _ => return Err(combination("Give one of: a count, a count of prefixes, addresses.")),
        }
        let asked = size(count.or(prefix_count).unwrap_or(0)) + wanted.len();
        let limits = self.limits_of(eni);
        let slots = size(limits.map_or(MOST_SLOTS, |limits| limits.ipv4_per_eni));
        if eni.ipv4_slots() + asked > slots {
            return Err(too_many());
        }
        if let Some(limits) = limits.filter(|limits| prefix_count.is_some() && !limits.nitro) {
            return Err(no_prefixes(&limits.name));
        }
        let given = if wanted.is_empty() && asked > 1 && self.chance(self.faults.partial_assign) {
            self.rng.usize(1..asked)
        } else {
            asked
        };
        let mut rng = self.rng.clone();
        let space = self.space_of(&self.enis[id])?;
        let (addresses, prefixes) = if prefix_count.is_some() {
            (Vec::new(), space.pick_blocks(&mut rng, given).ok_or_else(fragmented)?)
        } else if wanted.is_empty() {
            (space.pick(&mut rng, given, &[]).ok_or_else(full)?, Vec::new())
        } else {
            check_wanted(space, wanted)?;
            (wanted.to_vec(), Vec::new())
        };
        self.rng = rng;
        let eni = self.enis.get_mut(id).ok_or_else(full)?;
        if let Some(subnet) = self.subnets.get_mut(&eni.subnet) {
            subnet.space.take(&addresses, &prefixes);
        }
        eni.addresses.extend(&addresses);
        eni.prefixes.extend(&prefixes);
        self.show(id);
        Ok(Answer::Assigned { addresses, prefixes, ipv6_addresses: Vec::new(), ipv6_prefixes: Vec::new() })
    }

    pub(super) fn unassign4(
        &mut self,
        id: &str,
        addresses: &[Ipv4Addr],
        prefixes: &[Ipv4Net],
    ) -> Result<Answer, ApiError> {
        let eni = self.known_eni(id)?;
        if addresses.is_empty() && prefixes.is_empty() {
            return Err(combination("Addresses or prefixes must be given."));
        }
        if let Some(primary) = eni.primary.filter(|primary| addresses.contains(primary)) {
            return Err(invalid(format!("The primary address {primary} of '{id}' cannot be unassigned.")));
        }
        if !all_in(addresses, &eni.addresses) || !all_in(prefixes, &eni.prefixes) {
            return Err(not_assigned(id));
        }
        if let Some(eni) = self.enis.get_mut(id) {
            eni.addresses.retain(|address| !addresses.contains(address));
            eni.prefixes.retain(|prefix| !prefixes.contains(prefix));
            if let Some(subnet) = self.subnets.get_mut(&eni.subnet) {
                subnet.space.give_back(addresses, prefixes);
            }
        }
        self.show(id);
        Ok(Answer::Done)
    }

    pub(super) fn assign6(
        &mut self,
        id: &str,
        count: Option<u32>,
        prefix_count: Option<u32>,
    ) -> Result<Answer, ApiError> {
        let eni = self.addressed_eni(id)?;
        let (asked, blocks) = match (count, prefix_count) {
            (Some(0), None) | (None, Some(0)) => return Err(invalid("The count must be 1 at least.")),
            (Some(count), None) => (count, false),
            (None, Some(count)) => (count, true),
            _ => return Err(combination("Give either a count or a count of prefixes.")),
        };
        let limits = self.limits_of(eni);
        if eni.ipv6_slots() + size(asked) > size(limits.map_or(MOST_SLOTS, |limits| limits.ipv6_per_eni)) {
            return Err(too_many());
        }
        if let Some(limits) = limits.filter(|limits| blocks && !limits.nitro) {
            return Err(no_prefixes(&limits.name));
        }
        let subnet = eni.subnet.clone();
        let mut rng = self.rng.clone();
        let space = self.space_of(eni)?;
        if space.ipv6.is_none() {
            return Err(no_ipv6(&subnet));
        }
        let (addresses, prefixes) = if blocks {
            (Vec::new(), space.pick_blocks6(&mut rng, size(asked)).ok_or_else(fragmented)?)
        } else {
            (space.pick6(&mut rng, size(asked)).ok_or_else(full)?, Vec::new())
        };
        self.rng = rng;
        if let Some(subnet) = self.subnets.get_mut(&subnet) {
            subnet.space.take6(&addresses, &prefixes);
        }
        if let Some(eni) = self.enis.get_mut(id) {
            eni.ipv6_addresses.extend(&addresses);
            eni.ipv6_prefixes.extend(&prefixes);
        }
        self.show(id);
        Ok(Answer::Assigned {
            addresses: Vec::new(),
            prefixes: Vec::new(),
            ipv6_addresses: addresses,
            ipv6_prefixes: prefixes,
        })
    }

    pub(super) fn unassign6(
        &mut self,
        id: &str,
        addresses: &[Ipv6Addr],
        prefixes: &[Ipv6Net],
    ) -> Result<Answer, ApiError> {
        let eni = self.known_eni(id)?;
        if addresses.is_empty() && prefixes.is_empty() {
            return Err(combination("Addresses or prefixes must be given."));
        }
        if !all_in(addresses, &eni.ipv6_addresses) || !all_in(prefixes, &eni.ipv6_prefixes) {
            return Err(not_assigned(id));
        }
        if let Some(eni) = self.enis.get_mut(id) {
            eni.ipv6_addresses.retain(|address| !addresses.contains(address));
            eni.ipv6_prefixes.retain(|prefix| !prefixes.contains(prefix));
            if let Some(subnet) = self.subnets.get_mut(&eni.subnet) {
                subnet.space.give_back6(addresses, prefixes);
            }
        }
        self.show(id);
        Ok(Answer::Done)
    }
}

fn check_wanted(space: &Space, wanted: &[Ipv4Addr]) -> Result<(), ApiError> {
    for (index, address) in wanted.iter().enumerate() {
        if !space.contains(*address) {
            return Err(invalid(format!("Address {address} does not fall within the subnet's address range")));
        }
        if !space.is_free(*address) || wanted[..index].contains(address) {
            return Err(ApiError::new("InvalidIPAddress.InUse", format!("Address {address} is in use.")));
        }
    }
    Ok(())
}

fn all_in<T: PartialEq>(some: &[T], all: &[T]) -> bool {
    some.iter().all(|one| all.contains(one))
}

/// This code and this text: what CNI plugins for AWS look for take for "gone already".
fn not_assigned(id: &str) -> ApiError {
    invalid(format!("Some of the specified addresses are not assigned to interface {id}"))
}
