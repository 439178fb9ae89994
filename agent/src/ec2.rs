//! EC2, through the SDK. The SDK's own retries are off: the core decides when something is tried again.
//!
//! The one place that knows AWS error codes. Every answer is about this instance's ENIs only.

use std::time::Duration;

use aws_config::{BehaviorVersion, Region, retry::RetryConfig, timeout::TimeoutConfig};
use aws_sdk_ec2::{
    Client,
    error::{DisplayErrorContext, ProvideErrorMetadata, SdkError},
    operation::RequestId,
    types::{Filter, NetworkInterface, NetworkInterfaceAttachmentChanges, ResourceType, Tag, TagSpecification},
};
use enid_ipamd::{AuditedEni, Call, CallError, Cause, Done, EniId, Limits};

use crate::{imds::Instance, settings::Settings};

/// Whose ENI it is: the peer's tag, so that its clean-up on other nodes understands ours.
const TAG_INSTANCE: &str = "node.k8s.amazonaws.com/instance_id";
const TAG_CLUSTER: &str = "cluster.k8s.amazonaws.com/name";
const TAG_NO_MANAGE: &str = "node.k8s.amazonaws.com/no_manage";

/// EC2 on behalf of one instance.
#[derive(Clone, Debug)]
pub struct Ec2 {
    client: Client,
    instance: Instance,
    tags: Vec<(String, String)>,
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
        Ec2 { client, instance, tags }
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
        let network = answer.instance_types().first().and_then(|found| found.network_info());
        let number = |value: Option<i32>| value.and_then(|value| u32::try_from(value).ok());
        let limits = network.and_then(|network| {
            Some(Limits {
                enis: number(network.maximum_network_interfaces())?,
                addresses_per_eni: number(network.ipv4_addresses_per_interface())?,
            })
        });
        limits.ok_or_else(|| odd(action, &format!("it does not know the instance type {}", self.instance.kind)))
    }

    /// Carries out one call of the core.
    pub async fn call(&self, call: &Call) -> Result<Done, CallError> {
        let action = call.action();
        match call {
            Call::Audit { unattached } => self.audit(*unattached).await,
            Call::Tag { eni } => {
                let tags = self.tags.iter().map(|(key, value)| tag(key, value)).collect();
                let sent = self.client.create_tags().resources(&eni.0).set_tags(Some(tags)).send().await;
                sent.map(|_| Done::Fine).map_err(|error| classify(action, error))
            }
            Call::Create { token, addresses } => self.create(token, *addresses).await,
            Call::Attach { eni, device_index } => {
                let request = self.client.attach_network_interface().network_interface_id(&eni.0);
                let request = request.instance_id(&self.instance.id).device_index(signed(*device_index));
                let answer = request.send().await.map_err(|error| classify(action, error))?;
                let attachment = answer.attachment_id().ok_or_else(|| odd(action, "it names no attachment"))?;
                Ok(Done::Attached { attachment: attachment.to_owned() })
            }
            Call::Protect { eni, attachment } => {
                let change =
                    NetworkInterfaceAttachmentChanges::builder().attachment_id(attachment).delete_on_termination(true);
                let request = self.client.modify_network_interface_attribute().network_interface_id(&eni.0);
                let sent = request.attachment(change.build()).send().await;
                sent.map(|_| Done::Fine).map_err(|error| classify(action, error))
            }
            Call::Assign { eni, addresses } => {
                let request = self.client.assign_private_ip_addresses().network_interface_id(&eni.0);
                let request = request.secondary_private_ip_address_count(signed(*addresses));
                let answer = request.send().await.map_err(|error| classify(action, error))?;
                let assigned = answer.assigned_private_ip_addresses();
                let addresses = assigned.iter().filter_map(|item| item.private_ip_address()?.parse().ok()).collect();
                Ok(Done::Assigned { addresses })
            }
            Call::Detach { attachment, .. } => {
                let sent = self.client.detach_network_interface().attachment_id(attachment).send().await;
                sent.map(|_| Done::Fine).map_err(|error| classify(action, error))
            }
            Call::Delete { eni } => {
                let sent = self.client.delete_network_interface().network_interface_id(&eni.0).send().await;
                sent.map(|_| Done::Fine).map_err(|error| classify(action, error))
            }
        }
    }

    async fn create(&self, token: &str, addresses: u32) -> Result<Done, CallError> {
        let action = "CreateNetworkInterface";
        let tags = self.tags.iter().map(|(key, value)| tag(key, value)).collect();
        let specification =
            TagSpecification::builder().resource_type(ResourceType::NetworkInterface).set_tags(Some(tags)).build();
        let answer = self
            .client
            .create_network_interface()
            .client_token(token)
            .description(format!("aws-K8S-{}", self.instance.id))
            .subnet_id(&self.instance.subnet_id)
            .set_groups(Some(self.instance.groups.clone()))
            .secondary_private_ip_address_count(signed(addresses))
            .tag_specifications(specification)
            .send()
            .await
            .map_err(|error| classify(action, error))?;
        let eni = answer.network_interface().and_then(|eni| eni.network_interface_id());
        let eni = eni.ok_or_else(|| odd(action, "it names no ENI"))?;
        Ok(Done::Created { eni: EniId(eni.to_owned()) })
    }

    async fn audit(&self, unattached: bool) -> Result<Done, CallError> {
        let attached = self.describe("attachment.instance-id", &[]).await?;
        let attached = attached.iter().filter_map(|eni| self.audited(eni)).collect();
        let mut left = Vec::new();
        if unattached {
            let found = self.describe(&format!("tag:{TAG_INSTANCE}"), &[("status", "available")]).await?;
            left = found.iter().filter_map(|eni| Some(EniId(eni.network_interface_id()?.to_owned()))).collect();
        }
        Ok(Done::Audited { attached, unattached: left })
    }

    /// Every ENI of which `filter` names this instance.
    async fn describe(&self, filter: &str, more: &[(&str, &str)]) -> Result<Vec<NetworkInterface>, CallError> {
        let mut request = self.client.describe_network_interfaces();
        for (name, value) in [(filter, self.instance.id.as_str())].iter().chain(more) {
            request = request.filters(Filter::builder().name(*name).values(*value).build());
        }
        let pages = request.into_paginator().items().send().collect::<Result<Vec<_>, _>>().await;
        pages.map_err(|error| classify("DescribeNetworkInterfaces", error))
    }

    fn audited(&self, eni: &NetworkInterface) -> Option<AuditedEni> {
        let value = |wanted: &str| eni.tag_set().iter().find(|tag| tag.key() == Some(wanted)).and_then(Tag::value);
        let attachment = eni.attachment();
        Some(AuditedEni {
            id: EniId(eni.network_interface_id()?.to_owned()),
            ours: value(TAG_INSTANCE) == Some(self.instance.id.as_str()),
            no_manage: value(TAG_NO_MANAGE) == Some("true"),
            delete_on_termination: attachment.and_then(|it| it.delete_on_termination()).unwrap_or(false),
            attachment: attachment.and_then(|it| it.attachment_id()).unwrap_or_default().to_owned(),
        })
    }
}

fn tag(key: &str, value: &str) -> Tag {
    Tag::builder().key(key).value(value).build()
}

/// EC2's counts and indices are below a hundred.
fn signed(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn odd(action: &str, what: &str) -> CallError {
    CallError {
        cause: Cause::Ec2Error,
        message: format!("{action} answered, but {what}"),
        request_id: None,
        not_found: false,
    }
}

fn classify<E>(action: &str, error: SdkError<E>) -> CallError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
    SdkError<E>: RequestId,
{
    let request_id = error.request_id().map(str::to_owned);
    let code = error.code().unwrap_or_default().to_owned();
    let words = match &error {
        SdkError::ServiceError(_) => format!("{code}: {}", error.message().unwrap_or("no further words")),
        other => DisplayErrorContext(other).to_string(),
    };
    let cause = match &error {
        SdkError::ServiceError(answer) if answer.raw().status().is_server_error() && code.is_empty() => {
            Cause::Ec2Unreachable
        }
        SdkError::ServiceError(_) => cause_of(&code),
        SdkError::TimeoutError(_) | SdkError::DispatchFailure(_) | SdkError::ResponseError(_) => Cause::Ec2Unreachable,
        _ => Cause::Ec2Error,
    };
    let not_found = code.ends_with(".NotFound");
    let verb = if cause == Cause::Ec2Unreachable { "got no answer" } else { "was refused" };
    CallError { cause, message: format!("{action} {verb}: {words}"), request_id, not_found }
}

/// EC2's codes (Amazon EC2 API Reference, "Error codes"), sorted by what can be done about them.
fn cause_of(code: &str) -> Cause {
    match code {
        "InsufficientFreeAddressesInSubnet" | "InsufficientCidrBlocks" => Cause::SubnetFull,
        "RequestLimitExceeded" | "Throttling" | "ThrottlingException" | "RequestThrottled" => Cause::Throttled,
        "UnauthorizedOperation" | "AuthFailure" | "AccessDenied" | "AccessDeniedException" | "OptInRequired" => {
            Cause::Denied
        }
        "InternalError" | "InternalFailure" | "ServiceUnavailable" | "Unavailable" => Cause::Ec2Unreachable,
        limit if limit.ends_with("LimitExceeded") => Cause::EniLimit,
        _ => Cause::Ec2Error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_sorted_once() {
        let rows = [
            ("InsufficientFreeAddressesInSubnet", Cause::SubnetFull),
            ("RequestLimitExceeded", Cause::Throttled),
            ("UnauthorizedOperation", Cause::Denied),
            ("PrivateIpAddressLimitExceeded", Cause::EniLimit),
            ("AttachmentLimitExceeded", Cause::EniLimit),
            ("InternalError", Cause::Ec2Unreachable),
            ("InvalidParameterValue", Cause::Ec2Error),
        ];
        for (code, cause) in rows {
            assert_eq!(cause_of(code), cause, "{code}");
        }
    }
}
