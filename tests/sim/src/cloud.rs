//! EC2 and instance metadata for one simulated node: the lab's model, spoken to in the core's words.

use std::{collections::BTreeMap, net::IpAddr};

use enid_ipamd::{
    AuditedEni, Call, CallError, Cause, Creation, Ec2Answer, EniFacts, EniId, Fact, Kind, Limits, Order, Place, Scope,
    SubnetFacts, SubnetId, UnattachedEni,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use vpclab::model::{
    Answer, ApiError, Counted, EniTruth, Faults, InterfaceType, Model, Options, Outcome, Request, SubnetTruth,
};

const TAG_INSTANCE: &str = "node.k8s.amazonaws.com/instance_id";
const TAG_TOKEN: &str = "enid/token";

/// The zone of the subnets.
const ZONE: &str = "use1-az1";

/// An account with one VPC and its subnets.
pub struct Cloud {
    model: Model,
    vpc: String,
    subnet: String,
    subnet_cidr: Ipv4Net,
    /// More subnets of the zone, from the number 1 on; the other one is number 0.
    further: Vec<(String, Ipv4Net)>,
}

/// How a call ends, and when.
pub struct Reply {
    /// Milliseconds until the answer is there.
    pub takes_ms: u64,
    /// The answer.
    pub answer: Result<Ec2Answer, CallError>,
}

impl Cloud {
    /// An empty account; `prefix_len` is the subnet's.
    pub fn new(options: Options, prefix_len: u8) -> Self {
        let mut model = Model::new(options);
        let v6 = |text: &str| text.parse::<Ipv6Net>().ok();
        let vpc = model.create_vpc(&["10.0.0.0/8".parse().unwrap_or_default()], v6("2001:db8:aa00::/56"));
        let subnet_cidr = Ipv4Net::new([10, 1, 0, 0].into(), prefix_len).unwrap_or_default().trunc();
        let subnet = model.create_subnet(&vpc, subnet_cidr, v6("2001:db8:aa00:1::/64"), ZONE);
        Cloud { model, vpc, subnet, subnet_cidr, further: Vec::new() }
    }

    /// The zone gets two more subnets, smaller ones.
    pub fn add_subnets(&mut self) {
        for number in [2, 3] {
            let cidr = Ipv4Net::new([10, number, 0, 0].into(), 25).unwrap_or_default();
            let v6 = format!("2001:db8:aa00:{number}::/64").parse().ok();
            self.further.push((self.model.create_subnet(&self.vpc, cidr, v6, ZONE), cidr));
        }
    }

    /// The id of a subnet.
    pub fn subnet(&self, number: u8) -> String {
        self.subnet_of(number).0
    }

    fn subnet_of(&self, number: u8) -> (String, Ipv4Net) {
        let further = usize::from(number).checked_sub(1).and_then(|at| self.further.get(at));
        further.cloned().unwrap_or_else(|| (self.subnet.clone(), self.subnet_cidr))
    }

    /// An operator tags a subnet; the tag `kubernetes.io/role/cni` with an empty value is none.
    /// EC2 always takes it: faults are for the daemon.
    pub fn tag_subnet(&mut self, now: u64, number: u8, role: &str) {
        let tags = BTreeMap::from([("kubernetes.io/role/cni".to_owned(), role.to_owned())]);
        let resources = vec![self.subnet(number)];
        let faults = std::mem::take(self.model.faults_mut());
        self.operator(now, &Request::CreateTags { resources, tags });
        *self.model.faults_mut() = faults;
    }

    /// A new instance, by its id.
    pub fn run(&mut self, now: u64, kind: &str) -> anyhow::Result<String> {
        Ok(self.model.run_instance(now, kind, &self.subnet)?)
    }

    /// What goes wrong.
    pub fn faults(&mut self) -> &mut Faults {
        self.model.faults_mut()
    }

    /// The truth.
    pub fn enis(&self, now: u64) -> Vec<EniTruth> {
        self.model.enis(now)
    }

    /// Takes single addresses of the subnet away from whoever asks, so that no /28 is free.
    pub fn fragment(&mut self) {
        let addresses: Vec<_> = self.subnet_cidr.hosts().step_by(8).skip(4).collect();
        self.model.occupy(&self.subnet, addresses);
    }

    /// Others take addresses of a subnet until so many are left, and give back what they have; all of it if none is named.
    pub fn fill(&mut self, number: u8, left: Option<u32>) {
        let (subnet, cidr) = self.subnet_of(number);
        let hosts: Vec<_> = cidr.hosts().collect();
        self.model.vacate(&subnet, hosts.clone());
        let Some(left) = left else { return };
        for address in hosts {
            if self.model.free(&subnet) <= left {
                break;
            }
            self.model.occupy(&subnet, [address]);
        }
    }

    /// Gives them back.
    pub fn defragment(&mut self) {
        let addresses: Vec<_> = self.subnet_cidr.hosts().step_by(8).skip(4).collect();
        self.model.vacate(&self.subnet, addresses);
    }

    /// Calls so far, by action.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        self.model.counts().iter().map(|(action, counted)| (action.clone(), counted.calls)).collect()
    }

    /// Calls so far and how they ended, by action.
    pub fn counted(&self) -> BTreeMap<String, Counted> {
        self.model.counts().clone()
    }

    /// What somebody else does to the account.
    pub fn operator(&mut self, now: u64, request: &Request) {
        // An operator who is refused has done nothing.
        let _ = self.model.call(now, "operator", request);
    }

    /// An operator gives the instance, which is its primary ENI, these security groups.
    pub fn set_groups(&mut self, now: u64, instance: &str, groups: &[&str]) {
        let is_primary = |eni: &&EniTruth| {
            let attachment = eni.attachment.as_ref().filter(|it| it.instance == instance);
            attachment.is_some_and(|it| (it.card, it.device_index) == (0, 0))
        };
        let Some(primary) = self.enis(now).iter().find(is_primary).map(|eni| eni.id.clone()) else { return };
        let groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
        self.model.set_groups(now, &primary, &groups);
    }

    /// Somebody creates an ENI and attaches it at the first place that is free, if one is.
    pub fn attach_foreign(&mut self, now: u64, instance: &str) {
        let create = Request::CreateNetworkInterface {
            subnet: self.subnet.clone(),
            interface_type: InterfaceType::Interface,
            description: "of somebody else".to_owned(),
            groups: Vec::new(),
            secondary_count: None,
            prefix_count: None,
            ipv6_prefix_count: None,
            client_token: None,
            tags: BTreeMap::new(),
        };
        let Outcome::Answer(Answer::Interface(eni)) = self.model.call(now, "operator", &create).outcome else { return };
        let attach = |device_index| Request::AttachNetworkInterface {
            eni: eni.id.clone(),
            instance: instance.to_owned(),
            device_index,
            card: Some(0),
        };
        let attached = (1..4).any(|index| {
            matches!(self.model.call(now, "operator", &attach(index)).outcome, Outcome::Answer(Answer::Attached { .. }))
        });
        if !attached {
            self.operator(now, &Request::DeleteNetworkInterface { eni: eni.id });
        }
    }

    /// What the type carries.
    pub fn limits(&mut self, now: u64, kind: &str) -> Option<Limits> {
        let request = Request::DescribeInstanceTypes { types: vec![kind.to_owned()] };
        let reply = self.model.call(now, "operator", &request).outcome;
        let Outcome::Answer(Answer::InstanceTypes(types)) = reply else { return None };
        let found = types.first()?;
        Some(Limits::of_one_card(found.cards[0], found.ipv4_per_eni, found.nitro))
    }

    /// What metadata shows to the instance.
    pub fn imds(&mut self, now: u64, instance: &str) -> Vec<EniFacts> {
        let shown = self.model.imds(now, instance).into_iter();
        shown
            .filter_map(|eni| {
                let primary = *eni.addresses.first()?;
                let singles = eni.addresses.iter().skip(1).map(|address| IpNet::from(IpAddr::V4(*address)));
                let prefixes = eni.prefixes.iter().map(|net| IpNet::V4(*net));
                let prefixes = prefixes.chain(eni.ipv6_prefixes.iter().map(|net| IpNet::V6(*net)));
                Some(EniFacts {
                    id: EniId(eni.id.into()),
                    mac: mac(&eni.mac),
                    place: Place { card: eni.card, device_index: eni.device_index },
                    own_v6: None,
                    primary: Ipv4Net::new(primary, eni.subnet_cidr.prefix_len()).ok()?,
                    subnet_id: SubnetId(eni.subnet.into()),
                    blocks: singles.chain(prefixes).collect(),
                    groups: eni.groups.into_iter().collect(),
                })
            })
            .collect()
    }

    /// Carries out one call of the core on behalf of an instance.
    pub fn call(&mut self, now: u64, instance: &str, call: &Call) -> Reply {
        let request = self.request(instance, call);
        let reply = self.model.call(now, instance, &request);
        let answer = match reply.outcome {
            Outcome::Answer(answer) => Ok(done(instance, call, answer)),
            Outcome::Error(error) => Err(classify(call, &error, reply.request_id)),
            Outcome::Lost => Err(CallError {
                cause: Cause::Ec2Unreachable,
                message: format!("{} got no answer", call.action()),
                request_id: None,
                fact: Fact::None,
            }),
        };
        Reply { takes_ms: reply.takes_ms.max(1), answer }
    }

    fn request(&self, instance: &str, call: &Call) -> Request {
        let describe = |filters: Vec<(&str, &str)>| Request::DescribeNetworkInterfaces {
            ids: Vec::new(),
            filters: filters.into_iter().map(|(name, value)| (name.to_owned(), vec![value.to_owned()])).collect(),
            max_results: Some(1000),
            next_token: None,
        };
        match call {
            Call::Audit { scope: Scope::Attached } => describe(vec![("attachment.instance-id", instance)]),
            Call::Audit { scope: Scope::Ours } => describe(vec![(&format!("tag:{TAG_INSTANCE}"), instance)]),
            Call::FindLeaked => describe(vec![("tag-key", TAG_INSTANCE), ("status", "available")]),
            Call::Tag { eni } => Request::CreateTags {
                resources: vec![eni.0.to_string()],
                tags: BTreeMap::from([(TAG_INSTANCE.to_owned(), instance.to_owned())]),
            },
            Call::Create { token, creation: Creation { order, with_v6, .. }, home } => {
                let tags = [(TAG_INSTANCE, instance), (TAG_TOKEN, token)];
                Request::CreateNetworkInterface {
                    subnet: home.subnet.as_ref().map_or_else(|| self.subnet.clone(), ToString::to_string),
                    interface_type: InterfaceType::Interface,
                    description: format!("aws-K8S-{instance}"),
                    groups: home.groups.iter().cloned().collect(),
                    secondary_count: (order.kind == Kind::Single).then_some(order.count),
                    prefix_count: (order.kind == Kind::Prefix).then_some(order.count),
                    ipv6_prefix_count: with_v6.then_some(1),
                    client_token: Some(token.clone()),
                    tags: tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
                }
            }
            Call::Attach { eni, place } => Request::AttachNetworkInterface {
                eni: eni.0.to_string(),
                instance: instance.to_owned(),
                device_index: place.device_index,
                card: Some(place.card),
            },
            Call::DeleteOnTermination { eni, attachment } => Request::ModifyNetworkInterfaceAttribute {
                eni: eni.0.to_string(),
                attachment: Some(attachment.clone()),
                delete_on_termination: Some(true),
                groups: None,
            },
            Call::Subnets { ids } => {
                let of_zone = [("vpc-id", self.vpc.as_str()), ("availability-zone", ZONE)];
                let of_zone = of_zone.map(|(name, value)| (name.to_owned(), vec![value.to_owned()]));
                Request::DescribeSubnets {
                    ids: ids.iter().map(ToString::to_string).collect(),
                    filters: if ids.is_empty() { of_zone.to_vec() } else { Vec::new() },
                }
            }
            Call::SetGroups { eni, groups } => Request::ModifyNetworkInterfaceAttribute {
                eni: eni.0.to_string(),
                attachment: None,
                delete_on_termination: None,
                groups: Some(groups.iter().cloned().collect()),
            },
            Call::Assign { eni, order: Order { kind: Kind::V6Prefix, count } } => {
                Request::AssignIpv6Addresses { eni: eni.0.to_string(), count: None, prefix_count: Some(*count) }
            }
            Call::Assign { eni, order: Order { kind, count } } => Request::AssignPrivateIpAddresses {
                eni: eni.0.to_string(),
                count: (*kind == Kind::Single).then_some(*count),
                prefix_count: (*kind == Kind::Prefix).then_some(*count),
                addresses: Vec::new(),
            },
            Call::Unassign { eni, blocks } => {
                let v4 = blocks.iter().filter_map(|net| if let IpNet::V4(net) = net { Some(*net) } else { None });
                let (singles, prefixes): (Vec<_>, Vec<_>) = v4.partition(|net| net.prefix_len() == 32);
                Request::UnassignPrivateIpAddresses {
                    eni: eni.0.to_string(),
                    addresses: singles.iter().map(Ipv4Net::addr).collect(),
                    prefixes,
                }
            }
            Call::Detach { attachment, .. } => {
                Request::DetachNetworkInterface { attachment: attachment.clone(), force: false }
            }
            Call::Delete { eni } => Request::DeleteNetworkInterface { eni: eni.0.to_string() },
        }
    }
}

fn done(instance: &str, call: &Call, answer: Answer) -> Ec2Answer {
    match (call, answer) {
        (Call::Audit { .. }, Answer::Interfaces { list, .. }) => {
            let (here, rest): (Vec<_>, Vec<_>) = list.into_iter().partition(|eni| eni.instance() == Some(instance));
            let loose = rest.into_iter().filter(|eni| eni.attachment.is_none());
            Ec2Answer::Audited {
                attached: here.iter().map(|eni| audited(instance, eni)).collect(),
                unattached: loose
                    .map(|eni| UnattachedEni { token: eni.tags.get(TAG_TOKEN).cloned(), id: EniId(eni.id.into()) })
                    .collect(),
            }
        }
        (Call::FindLeaked, Answer::Interfaces { list, .. }) => {
            Ec2Answer::Leaked { enis: list.into_iter().map(|eni| EniId(eni.id.into())).collect() }
        }
        (_, Answer::Subnets(list)) => {
            let facts = |subnet: SubnetTruth| {
                let tags = subnet.tags.iter().map(|(key, value)| (key.as_str(), value.as_str()));
                let facts = SubnetFacts::new(subnet.available.into(), subnet.ipv6.is_some(), tags);
                (SubnetId(subnet.id.into()), facts)
            };
            Ec2Answer::Subnets { list: list.into_iter().map(facts).collect() }
        }
        (_, Answer::Interface(eni)) => Ec2Answer::Created { blocks: blocks(&eni), eni: EniId(eni.id.into()) },
        (_, Answer::Attached { attachment }) => Ec2Answer::Attached { attachment },
        (_, Answer::Assigned { addresses, prefixes, ipv6_prefixes, .. }) => {
            let singles = addresses.into_iter().map(|address| IpNet::from(IpAddr::V4(address)));
            let prefixes = prefixes.into_iter().map(IpNet::V4).chain(ipv6_prefixes.into_iter().map(IpNet::V6));
            Ec2Answer::Assigned { blocks: singles.chain(prefixes).collect() }
        }
        _ => Ec2Answer::Done,
    }
}

fn audited(instance: &str, eni: &EniTruth) -> AuditedEni {
    AuditedEni {
        id: EniId(eni.id.as_str().into()),
        ours: is_ours(eni, instance),
        no_manage: false,
        delete_on_termination: eni.delete_on_termination(),
        attachment: eni.attachment.as_ref().map(|attachment| attachment.id.clone()).unwrap_or_default(),
        place: eni.attachment.as_ref().map_or(Place::default(), |attachment| Place {
            card: attachment.card,
            device_index: attachment.device_index,
        }),
        token: eni.tags.get(TAG_TOKEN).cloned(),
        blocks: blocks(eni).into_iter().collect(),
    }
}

/// Whether the ENI carries our tag for this instance.
pub fn is_ours(eni: &EniTruth, instance: &str) -> bool {
    eni.tags.get(TAG_INSTANCE).is_some_and(|owner| owner == instance)
}

/// The blocks on an ENI, its own address left out.
pub fn blocks(eni: &EniTruth) -> Vec<IpNet> {
    let singles = eni.addresses.iter().filter(|address| Some(**address) != eni.primary);
    let singles = singles.map(|address| IpNet::from(IpAddr::V4(*address)));
    let prefixes = eni.prefixes.iter().map(|net| IpNet::V4(*net));
    singles.chain(prefixes).chain(eni.ipv6_prefixes.iter().map(|net| IpNet::V6(*net))).collect()
}

fn mac(text: &str) -> [u8; 6] {
    let mut bytes = [0; 6];
    for (byte, part) in bytes.iter_mut().zip(text.split(':')) {
        *byte = u8::from_str_radix(part, 16).unwrap_or_default();
    }
    bytes
}

/// As the daemon's adapter does it.
fn classify(call: &Call, error: &ApiError, request_id: String) -> CallError {
    let cause = match error.code.as_str() {
        "InsufficientFreeAddressesInSubnet" => Cause::SubnetFull,
        "InsufficientCidrBlocks" => Cause::NoPrefix,
        "RequestLimitExceeded" => Cause::Throttled,
        "UnauthorizedOperation" => Cause::Denied,
        "InternalError" | "InternalFailure" | "Unavailable" | "ServiceUnavailable" => Cause::Ec2Unreachable,
        limit if limit.ends_with("LimitExceeded") => Cause::EniLimit,
        _ => Cause::Ec2Error,
    };
    let fact = match error.code.as_str() {
        "InvalidGroup.NotFound" => Fact::GroupGone,
        code if code.ends_with(".NotFound") => Fact::NotFound,
        "InvalidParameterValue" if error.message.contains("already has an interface attached") => Fact::PlaceTaken,
        _ => Fact::None,
    };
    let message = format!("{} was refused: {}: {}", call.action(), error.code, error.message);
    CallError { cause, message, request_id: Some(request_id), fact }
}
