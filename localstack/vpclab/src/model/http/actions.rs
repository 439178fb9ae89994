//! From a form to a call and from its outcome to a body.

use super::{
    super::{Answer, ApiError, Model, Outcome, Request},
    params::Params,
    set_up, xml,
};
use crate::http::HttpRequest;

/// A request with this header is answered with the actual state: it is not counted, not limited and not subject to
/// faults. The lab's network follows EC2 by it, since on EC2 the network does not ask the API.
pub const TRUTH_HEADER: &str = "x-vpclab-truth";

/// How a call ends. No body: the answer is lost.
pub(super) struct CallResult {
    pub takes_ms: u64,
    pub request_id: String,
    pub body: Option<Result<String, ApiError>>,
}

/// Carries out one call of the Query protocol.
pub(super) fn call(model: &mut Model, now: u64, http: &HttpRequest) -> CallResult {
    let mut params = Params::read(&http.body);
    let action = params.text("Action").unwrap_or_default();
    let request_id = model.request_id();
    let immediate = |request_id: String, body| CallResult { takes_ms: 0, request_id, body: Some(body) };
    if let Some(done) = set_up::carry_out(model, now, &action, &mut params) {
        let body = done.map(|body| xml::answer(&action, &request_id, &body));
        return immediate(request_id, body);
    }
    let request = match request(&action, &mut params).and_then(|request| params.finish().map(|()| request)) {
        Ok(request) => request,
        Err(error) => return immediate(request_id, Err(error)),
    };
    if http.header(TRUTH_HEADER).is_some() && action == "DescribeNetworkInterfaces" {
        let truth = Answer::Interfaces { list: model.enis(now), next_token: None };
        let body = xml::answer(&action, &request_id, &xml::body(&request, &truth));
        return immediate(request_id, Ok(body));
    }
    let reply = model.call(now, caller(http), &request);
    let body = match reply.outcome {
        Outcome::Answer(answer) => Some(Ok(xml::answer(&action, &reply.request_id, &xml::body(&request, &answer)))),
        Outcome::Error(error) => Some(Err(error)),
        Outcome::Lost => None,
    };
    CallResult { takes_ms: reply.takes_ms, request_id: reply.request_id, body }
}

fn request(action: &str, params: &mut Params) -> Result<Request, ApiError> {
    Ok(match action {
        "CreateNetworkInterface" => Request::CreateNetworkInterface {
            subnet: params.required("SubnetId")?,
            interface_type: params.parsed("InterfaceType")?.unwrap_or_default(),
            description: params.text("Description").unwrap_or_default(),
            groups: params.list("SecurityGroupId"),
            secondary_count: params.parsed("SecondaryPrivateIpAddressCount")?,
            prefix_count: params.parsed("Ipv4PrefixCount")?,
            ipv6_prefix_count: params.parsed("Ipv6PrefixCount")?,
            client_token: params.text("ClientToken"),
            tags: params.tag_specification("network-interface")?,
        },
        "AttachNetworkInterface" => Request::AttachNetworkInterface {
            eni: params.required("NetworkInterfaceId")?,
            instance: params.required("InstanceId")?,
            device_index: parsed_required(params, "DeviceIndex")?,
            card: params.parsed("NetworkCardIndex")?,
        },
        "ModifyNetworkInterfaceAttribute" => {
            let groups = params.list("SecurityGroupId");
            Request::ModifyNetworkInterfaceAttribute {
                eni: params.required("NetworkInterfaceId")?,
                attachment: params.text("Attachment.AttachmentId"),
                delete_on_termination: params.parsed("Attachment.DeleteOnTermination")?,
                groups: Some(groups).filter(|groups| !groups.is_empty()),
            }
        }
        "DetachNetworkInterface" => Request::DetachNetworkInterface {
            attachment: params.required("AttachmentId")?,
            force: params.parsed("Force")?.unwrap_or(false),
        },
        "DeleteNetworkInterface" => Request::DeleteNetworkInterface { eni: params.required("NetworkInterfaceId")? },
        "AssignPrivateIpAddresses" => Request::AssignPrivateIpAddresses {
            eni: params.required("NetworkInterfaceId")?,
            count: params.parsed("SecondaryPrivateIpAddressCount")?,
            prefix_count: params.parsed("Ipv4PrefixCount")?,
            addresses: params.parsed_list("PrivateIpAddress")?,
        },
        "UnassignPrivateIpAddresses" => Request::UnassignPrivateIpAddresses {
            eni: params.required("NetworkInterfaceId")?,
            addresses: params.parsed_list("PrivateIpAddress")?,
            prefixes: params.parsed_list("Ipv4Prefix")?,
        },
        "AssignIpv6Addresses" => Request::AssignIpv6Addresses {
            eni: params.required("NetworkInterfaceId")?,
            count: params.parsed("Ipv6AddressCount")?,
            prefix_count: params.parsed("Ipv6PrefixCount")?,
        },
        "UnassignIpv6Addresses" => Request::UnassignIpv6Addresses {
            eni: params.required("NetworkInterfaceId")?,
            addresses: params.parsed_list("Ipv6Addresses")?,
            prefixes: params.parsed_list("Ipv6Prefix")?,
        },
        "DescribeNetworkInterfaces" => Request::DescribeNetworkInterfaces {
            ids: params.list("NetworkInterfaceId"),
            filters: params.filters(),
            max_results: params.parsed("MaxResults")?,
            next_token: params.text("NextToken"),
        },
        "DescribeSubnets" => Request::DescribeSubnets { ids: params.list("SubnetId"), filters: params.filters() },
        "DescribeInstances" => Request::DescribeInstances { ids: params.list("InstanceId") },
        "DescribeInstanceTypes" => Request::DescribeInstanceTypes { types: params.list("InstanceType") },
        "CreateTags" => Request::CreateTags { resources: params.list("ResourceId"), tags: params.tags("") },
        _ => {
            let message = format!("The action {action} is not valid for this web service.");
            return Err(ApiError::new("InvalidAction", message));
        }
    })
}

fn parsed_required<T: std::str::FromStr>(params: &mut Params, name: &str) -> Result<T, ApiError> {
    let missing = ApiError::new("MissingParameter", format!("The request must contain the parameter {name}"));
    params.parsed(name)?.ok_or(missing)
}

/// The access key of the signature.
fn caller(http: &HttpRequest) -> &str {
    let credential = http.header("authorization").and_then(|text| text.split("Credential=").nth(1));
    credential.and_then(|text| text.split('/').next()).unwrap_or("operator")
}
