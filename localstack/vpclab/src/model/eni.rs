//! Creating, deleting and tagging ENIs.

use std::collections::BTreeMap;

use super::{Answer, ApiError, Due, EniStatus, EniTruth, InterfaceType, Model, Request, types::MOST_SLOTS};

/// How long a new ENI is "pending", in milliseconds. A guess: EC2 does not document it.
const PENDING_MS: u64 = 500;
/// "Tag restrictions" in the Amazon EC2 User Guide.
const MOST_TAGS: usize = 50;

/// Why an EFA-only ENI is given none. The text is a guess.
pub(super) const NO_ADDRESSES: &str = "An EFA-only network interface cannot have IP addresses or prefixes.";

/// A refusal for what the caller asked.
pub(super) fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new("InvalidParameterValue", message)
}

/// Parameters that do not go together.
pub(super) fn combination(message: &str) -> ApiError {
    ApiError::new("InvalidParameterCombination", message)
}

/// The subnet has too few free addresses, wherever they lie.
pub(super) fn full() -> ApiError {
    let message = "The specified subnet does not have enough free addresses to satisfy the request.";
    ApiError::new("InsufficientFreeAddressesInSubnet", message)
}

/// The subnet has too few free blocks, even if it has addresses. Code and text: "Amazon EKS best practices",
/// prefix mode.
pub(super) fn fragmented() -> ApiError {
    let message = "The specified subnet does not have enough free cidr blocks to satisfy the request.";
    ApiError::new("InsufficientCidrBlocks", message)
}

/// There is no such ENI, or EC2 does not know it yet.
pub(super) fn no_eni(id: &str) -> ApiError {
    ApiError::new("InvalidNetworkInterfaceID.NotFound", format!("The networkInterface ID '{id}' does not exist"))
}

/// More addresses than the instance type carries.
pub(super) fn too_many() -> ApiError {
    ApiError::new("PrivateIpAddressLimitExceeded", "Number of private addresses will exceed limit.")
}

impl Model {
    /// An ENI that a call names: it exists, and EC2 shows it.
    pub(super) fn known_eni(&self, id: &str) -> Result<&EniTruth, ApiError> {
        let seen = self.shown_eni(id).is_some();
        self.enis.get(id).filter(|_| seen).ok_or_else(|| no_eni(id))
    }

    pub(super) fn create_eni(&mut self, request: &Request) -> Result<Answer, ApiError> {
        let Request::CreateNetworkInterface { client_token, .. } = request else {
            return Err(ApiError::new("InternalError", "not a create"));
        };
        if let Some((first, answered)) = client_token.as_ref().and_then(|token| self.created.get(token)) {
            if first != request {
                let message = "The client token was used with other parameters before.";
                return Err(ApiError::new("IdempotentParameterMismatch", message));
            }
            // An ENI that has been deleted since is answered as it was created.
            let eni = self.enis.get(&answered.id).unwrap_or(answered);
            return Ok(Answer::Interface(eni.clone()));
        }
        let eni = self.new_eni(request)?;
        if let Some(token) = client_token {
            self.created.insert(token.clone(), (request.clone(), eni.clone()));
        }
        self.plan(self.now + PENDING_MS, Due::Available(eni.id.clone()));
        self.show(&eni.id);
        Ok(Answer::Interface(eni))
    }

    fn new_eni(&mut self, request: &Request) -> Result<EniTruth, ApiError> {
        let Request::CreateNetworkInterface {
            subnet,
            interface_type,
            description,
            groups,
            secondary_count,
            prefix_count,
            ipv6_prefix_count,
            tags,
            ..
        } = request
        else {
            return Err(ApiError::new("InternalError", "not a create"));
        };
        if secondary_count.is_some() && prefix_count.is_some() {
            return Err(combination("A count of addresses and a count of prefixes do not go together."));
        }
        let bare = *interface_type == InterfaceType::EfaOnly;
        if bare && [secondary_count, prefix_count, ipv6_prefix_count].into_iter().any(Option::is_some) {
            return Err(combination(NO_ADDRESSES));
        }
        check_tags(tags)?;
        let (secondaries, blocks) = (secondary_count.unwrap_or(0), prefix_count.unwrap_or(0));
        let blocks6 = ipv6_prefix_count.unwrap_or(0);
        if secondaries + blocks >= MOST_SLOTS || blocks6 > MOST_SLOTS {
            return Err(too_many());
        }
        let (addresses, prefixes, ipv6_prefixes) = {
            let space = &self.subnets.get(subnet).ok_or_else(|| no_subnet(subnet))?.space;
            let prefixes = space.pick_blocks(&mut self.rng, size(blocks)).ok_or_else(fragmented)?;
            let addresses =
                space.pick(&mut self.rng, size(secondaries + u32::from(!bare)), &prefixes).ok_or_else(full)?;
            let ipv6_prefixes = match blocks6 {
                0 => Vec::new(),
                _ if space.ipv6.is_none() => return Err(no_ipv6(subnet)),
                _ => space.pick_blocks6(&mut self.rng, size(blocks6)).ok_or_else(fragmented)?,
            };
            (addresses, prefixes, ipv6_prefixes)
        };
        if self.enis.len() >= self.options.eni_quota {
            let message = format!("The maximum number of network interfaces, {}, is reached.", self.options.eni_quota);
            return Err(ApiError::new("NetworkInterfaceLimitExceeded", message));
        }
        let mut eni = self.bare_eni(subnet, addresses, groups)?;
        eni.interface_type = *interface_type;
        eni.description = description.clone();
        eni.tags = tags.clone();
        eni.prefixes = prefixes;
        eni.ipv6_prefixes = ipv6_prefixes;
        self.insert(eni.clone());
        Ok(eni)
    }

    /// An ordinary ENI with these addresses, the primary one first; it takes nothing from the subnet yet.
    pub(super) fn bare_eni(
        &mut self,
        subnet_id: &str,
        addresses: Vec<std::net::Ipv4Addr>,
        groups: &[String],
    ) -> Result<EniTruth, ApiError> {
        let id = self.new_id("eni");
        let mac = self.new_mac();
        let subnet = self.subnets.get(subnet_id).ok_or_else(|| no_subnet(subnet_id))?;
        let default = self.vpcs.get(&subnet.vpc).map(|vpc| vpc.default_group.clone());
        Ok(EniTruth {
            id,
            interface_type: InterfaceType::Interface,
            status: EniStatus::Pending,
            subnet: subnet_id.to_owned(),
            vpc: subnet.vpc.clone(),
            zone: subnet.zone.clone(),
            description: String::new(),
            groups: if groups.is_empty() { default.into_iter().collect() } else { groups.to_vec() },
            mac,
            primary: addresses.first().copied(),
            addresses,
            prefixes: Vec::new(),
            ipv6_addresses: Vec::new(),
            ipv6_prefixes: Vec::new(),
            attachment: None,
            tags: BTreeMap::new(),
        })
    }

    /// Adds an ENI, which takes its addresses from its subnet.
    pub(super) fn insert(&mut self, eni: EniTruth) {
        if let Some(subnet) = self.subnets.get_mut(&eni.subnet) {
            subnet.space.take(&eni.addresses, &eni.prefixes);
            subnet.space.take6(&eni.ipv6_addresses, &eni.ipv6_prefixes);
        }
        self.enis.insert(eni.id.clone(), eni);
    }

    /// Ends an ENI, which gives its addresses back.
    pub(super) fn remove(&mut self, id: &str) {
        if let Some(eni) = self.enis.remove(id) {
            if let Some(subnet) = self.subnets.get_mut(&eni.subnet) {
                subnet.space.give_back(&eni.addresses, &eni.prefixes);
                subnet.space.give_back6(&eni.ipv6_addresses, &eni.ipv6_prefixes);
            }
            self.show(id);
        }
    }

    pub(super) fn delete_eni(&mut self, id: &str) -> Result<Answer, ApiError> {
        if self.known_eni(id)?.attachment.is_some() {
            // This code and this text: gruntwork-io/cloud-nuke issue 431 and pull request 1132.
            return Err(invalid(format!("Network interface '{id}' is currently in use.")));
        }
        self.remove(id);
        Ok(Answer::Done)
    }

    /// A new ENI is no longer pending.
    pub(super) fn settle(&mut self, id: &str) {
        if let Some(eni) = self.enis.get_mut(id).filter(|eni| eni.status == EniStatus::Pending) {
            eni.status = EniStatus::Available;
            self.show(id);
        }
    }

    pub(super) fn create_tags(
        &mut self,
        resources: &[String],
        tags: &BTreeMap<String, String>,
    ) -> Result<Answer, ApiError> {
        check_tags(tags)?;
        for id in resources {
            let present = self.tags_of(id)?;
            if present.keys().chain(tags.keys()).collect::<std::collections::BTreeSet<_>>().len() > MOST_TAGS {
                return Err(ApiError::new("TagLimitExceeded", format!("'{id}' would have more than {MOST_TAGS} tags")));
            }
        }
        for id in resources {
            if let Ok(present) = self.tags_of(id) {
                present.extend(tags.clone());
            }
            if self.enis.contains_key(id) {
                self.show(id);
            }
        }
        Ok(Answer::Done)
    }

    fn tags_of(&mut self, id: &str) -> Result<&mut BTreeMap<String, String>, ApiError> {
        if id.starts_with("eni-") {
            self.known_eni(id)?;
        }
        let enis = self.enis.get_mut(id).map(|eni| &mut eni.tags);
        enis.or_else(|| self.subnets.get_mut(id).map(|subnet| &mut subnet.tags))
            .or_else(|| self.instances.get_mut(id).map(|instance| &mut instance.tags))
            .or_else(|| self.vpcs.get_mut(id).map(|vpc| &mut vpc.tags))
            .ok_or_else(|| ApiError::new("InvalidID", format!("The ID '{id}' is not valid")))
    }

    /// A locally administered unicast MAC that no ENI has.
    fn new_mac(&mut self) -> String {
        loop {
            let [a, b, c, d, e, ..] = self.rng.u64(..).to_be_bytes();
            let mac = format!("02:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}");
            if self.enis.values().all(|eni| eni.mac != mac) {
                return mac;
            }
        }
    }
}

fn check_tags(tags: &BTreeMap<String, String>) -> Result<(), ApiError> {
    if let Some(key) = tags.keys().find(|key| key.starts_with("aws:")) {
        return Err(invalid(format!("Tag keys starting with 'aws:' are reserved: {key}")));
    }
    if tags.len() > MOST_TAGS {
        return Err(ApiError::new("TagLimitExceeded", format!("more than {MOST_TAGS} tags")));
    }
    Ok(())
}

/// There is no such subnet.
pub(super) fn no_subnet(id: &str) -> ApiError {
    ApiError::new("InvalidSubnetID.NotFound", format!("The subnet ID '{id}' does not exist"))
}

/// The subnet has no IPv6 range. The code is a guess.
pub(super) fn no_ipv6(subnet: &str) -> ApiError {
    invalid(format!("The subnet '{subnet}' has no IPv6 CIDR block"))
}

/// A count as an index.
pub(super) fn size(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}
