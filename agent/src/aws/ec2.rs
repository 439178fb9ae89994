//! EC2, through the SDK. The SDK's own retries are off: the core decides when something is tried again.
//!
//! Every answer is about this instance's ENIs only; what its errors mean is in [`super::errors`].

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, SystemTime},
};

use aws_config::{BehaviorVersion, Region, retry::RetryConfig, timeout::TimeoutConfig};
use aws_sdk_ec2::{
    Client,
    types::{Filter, NetworkInterface, NetworkInterfaceAttachmentChanges, ResourceType, Tag, TagSpecification},
};
use aws_smithy_types::{DateTime, date_time::Format};
use enid_ipamd::{
    AuditedEni, Call, CallError, Creation, Ec2Answer, EniId, Home, Kind, Limits, Order, Place, Scope, SubnetFacts,
    SubnetId, UnattachedEni,
};
use ipnet::IpNet;

use crate::{
    aws::{
        errors::{classify, odd},
        imds::Instance,
    },
    settings::Settings,
};

/// Whose ENI it is: the peer's tag, so that its clean-up on other nodes understands ours.
const TAG_INSTANCE: &str = "node.k8s.amazonaws.com/instance_id";
const TAG_CLUSTER: &str = "cluster.k8s.amazonaws.com/name";
const TAG_NO_MANAGE: &str = "node.k8s.amazonaws.com/no_manage";
const TAG_CREATED: &str = "node.k8s.amazonaws.com/createdAt";
/// What the description of every ENI that Enid or the peer creates begins with; the instance's id follows.
const DESCRIPTION: &str = "aws-K8S-";
/// Enid's own: the client token of the creation, by which a later run finds what an earlier one had begun.
const TAG_TOKEN: &str = "enid/token";
/// An ENI younger than this may be on its way to its node.
const LEAKED_AGE: Duration = Duration::from_secs(300);

/// EC2 on behalf of one instance.
#[derive(Clone, Debug)]
pub struct Ec2 {
    client: Client,
    instance: Instance,
    tags: Vec<(String, String)>,
    /// The instance type has several network cards.
    many_cards: bool,
}

impl Ec2 {
    /// A client for the instance's region, or for the endpoint that the settings name.
    pub async fn new(instance: Instance, settings: &Settings) -> Self {
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::new(instance.region.clone()))
            .retry_config(RetryConfig::disabled())
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(Duration::from_secs(3))
                    .operation_timeout(Duration::from_secs(10))
                    .build(),
            );
        if let Some(endpoint) = &settings.ec2_endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        let client = Client::new(&loader.load().await);
        let mut tags = vec![(TAG_INSTANCE.to_owned(), instance.id.clone())];
        if let Some(cluster) = &settings.cluster_name {
            tags.push((TAG_CLUSTER.to_owned(), cluster.clone()));
            tags.push(("eks:eni:owner".to_owned(), "amazon-vpc-cni".to_owned()));
        }
        tags.extend(settings.extra_tags.clone());
        Ec2 { client, instance, tags, many_cards: false }
    }

    /// The same for an instance with these limits.
    pub fn within(self, limits: &Limits) -> Self {
        Ec2 { many_cards: limits.further_cards > 0, ..self }
    }

    /// What the instance type can carry.
    pub async fn limits(&self) -> Result<Limits, CallError> {
        let action = "DescribeInstanceTypes";
        let answer = self
            .client
            .describe_instance_types()
            .instance_types(self.instance.kind.as_str().into())
            .send()
            .await
            .map_err(|error| classify(action, error))?;
        let found = answer.instance_types().first();
        let network = found.and_then(|found| found.network_info());
        // Prefixes need Nitro (Amazon EC2 User Guide, "Prefix delegation"); bare metal names no hypervisor.
        let nitro = found.is_some_and(|found| {
            found.bare_metal() == Some(true) || found.hypervisor().is_some_and(|kind| kind.as_str() == "nitro")
        });
        let number = |value: Option<i32>| value.and_then(|value| u32::try_from(value).ok());
        let limits = network.and_then(|network| {
            let cards = network.network_cards().iter().filter_map(|card| number(card.maximum_network_interfaces()));
            let cards: Vec<u32> = cards.collect();
            Some(Limits {
                // The figure for all is the sum over the cards.
                enis: cards.first().copied().or(number(network.maximum_network_interfaces()))?,
                further_cards: u32::try_from(cards.len().saturating_sub(1)).unwrap_or_default(),
                enis_per_further_card: cards.iter().skip(1).min().copied().unwrap_or_default(),
                addresses_per_eni: number(network.ipv4_addresses_per_interface())?,
                prefixes: nitro,
            })
        });
        limits.ok_or_else(|| odd(action, &format!("it does not know the instance type {}", self.instance.kind)))
    }

    /// Carries out one call of the core.
    pub async fn call(&self, call: &Call) -> Result<Ec2Answer, CallError> {
        let action = call.action();
        match call {
            Call::Audit { scope } => self.audit(*scope).await,
            Call::Tag { eni } => {
                let tags = self.tags.iter().map(|(key, value)| tag(key, value)).collect();
                let sent = self.client.create_tags().resources(&*eni.0).set_tags(Some(tags)).send().await;
                sent.map(|_| Ec2Answer::Done).map_err(|error| classify(action, error))
            }
            Call::Create { token, creation, home } => self.create(token, *creation, home).await,
            Call::Attach { eni, place } => {
                let request = self.client.attach_network_interface().network_interface_id(&*eni.0);
                let request = request.instance_id(&self.instance.id).device_index(signed(place.device_index));
                // Where there are several it is always named, the first as well: EC2 may take another one for granted.
                let card = Some(signed(place.card)).filter(|card| self.many_cards || *card > 0);
                let request = request.set_network_card_index(card);
                let answer = request.send().await.map_err(|error| classify(action, error))?;
                let attachment = answer.attachment_id().ok_or_else(|| odd(action, "it names no attachment"))?;
                Ok(Ec2Answer::Attached { attachment: attachment.to_owned() })
            }
            Call::DeleteOnTermination { eni, attachment } => {
                let change =
                    NetworkInterfaceAttachmentChanges::builder().attachment_id(attachment).delete_on_termination(true);
                let request = self.client.modify_network_interface_attribute().network_interface_id(&*eni.0);
                let sent = request.attachment(change.build()).send().await;
                sent.map(|_| Ec2Answer::Done).map_err(|error| classify(action, error))
            }
            Call::SetGroups { eni, groups } => {
                let request = self.client.modify_network_interface_attribute().network_interface_id(&*eni.0);
                let sent = request.set_groups(Some(groups.iter().cloned().collect())).send().await;
                sent.map(|_| Ec2Answer::Done).map_err(|error| classify(action, error))
            }
            Call::Assign { eni, order } => self.assign(eni, *order).await,
            Call::Unassign { eni, blocks } => self.unassign(eni, blocks).await,
            Call::Subnets { ids } => self.subnets(ids).await,
            Call::FindLeaked => self.find_leaked().await,
            Call::Detach { attachment, .. } => {
                let sent = self.client.detach_network_interface().attachment_id(attachment).send().await;
                sent.map(|_| Ec2Answer::Done).map_err(|error| classify(action, error))
            }
            Call::Delete { eni } => {
                let sent = self.client.delete_network_interface().network_interface_id(&*eni.0).send().await;
                sent.map(|_| Ec2Answer::Done).map_err(|error| classify(action, error))
            }
        }
    }

    async fn create(&self, token: &str, creation: Creation, home: &Home) -> Result<Ec2Answer, CallError> {
        let action = "CreateNetworkInterface";
        // No time of creation among the tags: a creation that is asked for again under its token has to be the same.
        let own = tag(TAG_TOKEN, token);
        let tags = self.tags.iter().map(|(key, value)| tag(key, value)).chain([own]).collect();
        let specification =
            TagSpecification::builder().resource_type(ResourceType::NetworkInterface).set_tags(Some(tags)).build();
        let subnet = home.subnet.as_ref().map_or(self.instance.subnet_id.as_str(), |subnet| &subnet.0);
        let groups = home.groups.iter().cloned().collect();
        let request = self
            .client
            .create_network_interface()
            .client_token(token)
            .description(format!("{DESCRIPTION}{}", self.instance.id))
            .subnet_id(subnet)
            .set_groups(Some(groups).filter(|groups: &Vec<String>| !groups.is_empty()))
            .tag_specifications(specification);
        let Order { kind, count } = creation.order;
        let request = match kind {
            Kind::Single => request.secondary_private_ip_address_count(signed(count)),
            Kind::Prefix => request.ipv4_prefix_count(signed(count)),
            Kind::V6Prefix => request.ipv6_prefix_count(signed(count)),
        };
        let request = if creation.with_v6 { request.ipv6_prefix_count(1) } else { request };
        let answer = request.send().await.map_err(|error| classify(action, error))?;
        let eni = answer.network_interface().ok_or_else(|| odd(action, "it describes no ENI"))?;
        let id = eni.network_interface_id().ok_or_else(|| odd(action, "it names no ENI"))?;
        Ok(Ec2Answer::Created { eni: EniId(id.into()), blocks: blocks(eni).collect() })
    }

    async fn assign(&self, eni: &EniId, order: Order) -> Result<Ec2Answer, CallError> {
        let count = signed(order.count);
        if order.kind == Kind::V6Prefix {
            let request = self.client.assign_ipv6_addresses().network_interface_id(&*eni.0).ipv6_prefix_count(count);
            let answer = request.send().await.map_err(|error| classify("AssignIpv6Addresses", error))?;
            let blocks = answer.assigned_ipv6_prefixes().iter().filter_map(|net| net.parse().ok()).collect();
            return Ok(Ec2Answer::Assigned { blocks });
        }
        let request = self.client.assign_private_ip_addresses().network_interface_id(&*eni.0);
        let request = match order.kind {
            Kind::Prefix => request.ipv4_prefix_count(count),
            _ => request.secondary_private_ip_address_count(count),
        };
        let answer = request.send().await.map_err(|error| classify("AssignPrivateIpAddresses", error))?;
        let singles =
            answer.assigned_private_ip_addresses().iter().filter_map(|item| single(item.private_ip_address()?));
        let prefixes = answer.assigned_ipv4_prefixes().iter().filter_map(|item| item.ipv4_prefix()?.parse().ok());
        Ok(Ec2Answer::Assigned { blocks: singles.chain(prefixes).collect() })
    }

    async fn unassign(&self, eni: &EniId, blocks: &[IpNet]) -> Result<Ec2Answer, CallError> {
        let v6: Vec<String> =
            blocks.iter().filter(|net| matches!(net, IpNet::V6(_))).map(ToString::to_string).collect();
        if !v6.is_empty() {
            let request = self.client.unassign_ipv6_addresses().network_interface_id(&*eni.0);
            let sent = request.set_ipv6_prefixes(Some(v6)).send().await;
            return sent.map(|_| Ec2Answer::Done).map_err(|error| classify("UnassignIpv6Addresses", error));
        }
        let (singles, prefixes): (Vec<&IpNet>, Vec<&IpNet>) = blocks.iter().partition(|net| net.prefix_len() == 32);
        let singles: Vec<String> = singles.iter().map(|net| net.addr().to_string()).collect();
        let prefixes: Vec<String> = prefixes.iter().map(ToString::to_string).collect();
        let request = self.client.unassign_private_ip_addresses().network_interface_id(&*eni.0);
        let request = request.set_private_ip_addresses(Some(singles).filter(|list| !list.is_empty()));
        let sent = request.set_ipv4_prefixes(Some(prefixes).filter(|list| !list.is_empty())).send().await;
        sent.map(|_| Ec2Answer::Done).map_err(|error| classify("UnassignPrivateIpAddresses", error))
    }

    /// These subnets, or without any all of the node's VPC and zone.
    async fn subnets(&self, ids: &BTreeSet<SubnetId>) -> Result<Ec2Answer, CallError> {
        let action = "DescribeSubnets";
        let of_zone = [("vpc-id", &self.instance.vpc_id), ("availability-zone", &self.instance.zone)];
        let of_zone = of_zone.map(|(name, value)| Filter::builder().name(name).values(value).build());
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        let request = self.client.describe_subnets();
        let request = if ids.is_empty() {
            request.set_filters(Some(of_zone.to_vec()))
        } else {
            request.set_subnet_ids(Some(ids))
        };
        let mut list = BTreeMap::new();
        let mut pages = request.into_paginator().send();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| classify(action, error))?;
            list.extend(page.subnets().iter().filter_map(|subnet| {
                let free = u64::try_from(subnet.available_ip_address_count()?).ok()?;
                let v6 = !subnet.ipv6_cidr_block_association_set().is_empty();
                let tags = subnet.tags().iter().filter_map(|tag| Some((tag.key()?, tag.value().unwrap_or_default())));
                Some((SubnetId(subnet.subnet_id()?.into()), SubnetFacts::new(free, v6, tags)))
            }));
        }
        Ok(Ec2Answer::Subnets { list })
    }

    async fn audit(&self, scope: Scope) -> Result<Ec2Answer, CallError> {
        let filter = match scope {
            Scope::Ours => format!("tag:{TAG_INSTANCE}"),
            Scope::Attached => "attachment.instance-id".to_owned(),
        };
        let found = self.describe(&[(&filter, &self.instance.id)]).await?;
        let here = |eni: &&NetworkInterface| {
            let attachment = eni.attachment();
            attachment.and_then(|it| it.instance_id()) == Some(self.instance.id.as_str())
        };
        let (attached, rest): (Vec<_>, Vec<_>) = found.iter().partition(here);
        let unattached = rest.into_iter().filter(|eni| eni.attachment().is_none_or(|it| it.attachment_id().is_none()));
        let unattached = unattached.filter_map(|eni| {
            Some(UnattachedEni {
                id: EniId(eni.network_interface_id()?.into()),
                token: tag_value(eni, TAG_TOKEN).map(str::to_owned),
            })
        });
        Ok(Ec2Answer::Audited {
            attached: attached.into_iter().filter_map(|eni| audited(eni, &self.instance.id)).collect(),
            unattached: unattached.collect(),
        })
    }

    /// Unattached ENIs with this cluster's tags that Enid or the peer created minutes ago.
    async fn find_leaked(&self) -> Result<Ec2Answer, CallError> {
        let Some((_, cluster)) = self.tags.iter().find(|(key, _)| key == TAG_CLUSTER) else {
            return Ok(Ec2Answer::Leaked { enis: Vec::new() });
        };
        let by_cluster = format!("tag:{TAG_CLUSTER}");
        let filters = [
            (by_cluster.as_str(), cluster.as_str()),
            ("tag-key", TAG_INSTANCE),
            ("status", "available"),
            ("vpc-id", self.instance.vpc_id.as_str()),
        ];
        let found = self.describe(&filters).await?;
        let old = |eni: &&NetworkInterface| {
            let created = tag_value(eni, TAG_CREATED).and_then(|text| DateTime::from_str(text, Format::DateTime).ok());
            let age = created.and_then(|at| SystemTime::now().duration_since(at.try_into().ok()?).ok());
            let described = eni.description().is_some_and(|text| text.starts_with(DESCRIPTION));
            // Enid tags no time of creation: such an ENI is leaked if two searches, minutes apart, find it.
            described && (created.is_none() || age.is_some_and(|age| age > LEAKED_AGE))
        };
        let enis = found.iter().filter(old).filter_map(|eni| Some(EniId(eni.network_interface_id()?.into())));
        Ok(Ec2Answer::Leaked { enis: enis.collect() })
    }

    async fn describe(&self, filters: &[(&str, &str)]) -> Result<Vec<NetworkInterface>, CallError> {
        let mut request = self.client.describe_network_interfaces().max_results(1000);
        for (name, value) in filters {
            request = request.filters(Filter::builder().name(*name).values(*value).build());
        }
        let pages = request.into_paginator().items().send().collect::<Result<Vec<_>, _>>().await;
        pages.map_err(|error| classify("DescribeNetworkInterfaces", error))
    }
}

/// What an answer says of one ENI; `None` if it has no id.
pub fn audited(eni: &NetworkInterface, instance_id: &str) -> Option<AuditedEni> {
    let attachment = eni.attachment();
    Some(AuditedEni {
        id: EniId(eni.network_interface_id()?.into()),
        ours: tag_value(eni, TAG_INSTANCE) == Some(instance_id),
        no_manage: tag_value(eni, TAG_NO_MANAGE) == Some("true"),
        delete_on_termination: attachment.and_then(|it| it.delete_on_termination()).unwrap_or(false),
        attachment: attachment.and_then(|it| it.attachment_id()).unwrap_or_default().to_owned(),
        place: Place {
            card: attachment.and_then(|it| u32::try_from(it.network_card_index()?).ok()).unwrap_or_default(),
            device_index: attachment.and_then(|it| u32::try_from(it.device_index()?).ok()).unwrap_or_default(),
        },
        token: tag_value(eni, TAG_TOKEN).map(str::to_owned),
        blocks: blocks(eni).collect(),
    })
}

fn tag_value<'a>(eni: &'a NetworkInterface, key: &str) -> Option<&'a str> {
    eni.tag_set().iter().find(|tag| tag.key() == Some(key)).and_then(Tag::value)
}

/// The blocks on an ENI, its own address left out.
fn blocks(eni: &NetworkInterface) -> impl Iterator<Item = IpNet> {
    let singles = eni.private_ip_addresses().iter().filter(|item| item.primary() != Some(true));
    let singles = singles.filter_map(|item| single(item.private_ip_address()?));
    let prefixes = eni.ipv4_prefixes().iter().filter_map(|item| item.ipv4_prefix()?.parse().ok());
    let v6 = eni.ipv6_prefixes().iter().filter_map(|item| item.ipv6_prefix()?.parse().ok());
    // EC2 User Guide, "Prefix delegation": /28 and /80, no other.
    let whole = |net: &IpNet| net.prefix_len() == if matches!(net, IpNet::V4(_)) { 28 } else { 80 };
    singles.chain(prefixes.chain(v6).filter(whole))
}

fn single(address: &str) -> Option<IpNet> {
    address.parse::<IpAddr>().ok().map(IpNet::from)
}

fn tag(key: &str, value: &str) -> Tag {
    Tag::builder().key(key).value(value).build()
}

/// EC2's counts and indices are below a hundred.
fn signed(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
