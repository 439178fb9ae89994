//! What a lab needs before the daemon comes: VPC, subnets, instances. Neither limited nor subject to faults.

use std::net::Ipv4Addr;

use ipnet::{Ipv4Net, Ipv6Net};

use super::{
    super::{Answer, ApiError, Model, Request},
    params::Params,
    xml::{self, Xml},
};

/// The body of the answer; `None` if the action is not one of setting up.
pub(super) fn carry_out(
    model: &mut Model,
    now: u64,
    action: &str,
    params: &mut Params,
) -> Option<Result<Xml, ApiError>> {
    Some(match action {
        "CreateVpc" => create_vpc(model, params),
        "DescribeVpcs" => describe_vpcs(model, params),
        "CreateSubnet" => create_subnet(model, now, params),
        "RunInstances" => run_instances(model, now, params),
        "TerminateInstances" => terminate_instances(model, now, params),
        _ => return None,
    })
}

fn create_vpc(model: &mut Model, params: &mut Params) -> Result<Xml, ApiError> {
    let cidr: Ipv4Net = parsed(params, "CidrBlock")?;
    let ipv6 = params.parsed("Ipv6CidrBlock")?;
    params.finish()?;
    let id = model.create_vpc(&[cidr], ipv6);
    Ok(Xml::new().nest("vpc", |xml| vpc(xml, &id, &[cidr], ipv6)))
}

fn describe_vpcs(model: &Model, params: &mut Params) -> Result<Xml, ApiError> {
    let wanted = params.list("VpcId");
    params.finish()?;
    let vpcs = model.vpcs().filter(|id| wanted.is_empty() || wanted.iter().any(|wanted| wanted == id));
    Ok(Xml::new().list("vpcSet", vpcs, |xml, id| match model.vpc_ranges(id) {
        Some((cidrs, ipv6)) => vpc(xml, id, cidrs, ipv6),
        None => xml,
    }))
}

fn vpc(xml: Xml, id: &str, cidrs: &[Ipv4Net], ipv6: Option<Ipv6Net>) -> Xml {
    let first = cidrs.first().map(ToString::to_string).unwrap_or_default();
    xml.text("vpcId", id)
        .text("state", "available")
        .text("cidrBlock", first)
        .list("cidrBlockAssociationSet", cidrs, |xml, cidr| xml.text("cidrBlock", cidr))
        .list("ipv6CidrBlockAssociationSet", ipv6, |xml, cidr| xml.text("ipv6CidrBlock", cidr))
}

fn create_subnet(model: &mut Model, now: u64, params: &mut Params) -> Result<Xml, ApiError> {
    let vpc = params.required("VpcId")?;
    let zone = params.text("AvailabilityZone").unwrap_or_else(|| "us-east-1a".to_owned());
    let cidr: Ipv4Net = parsed(params, "CidrBlock")?;
    let ipv6 = params.parsed("Ipv6CidrBlock")?;
    params.finish()?;
    let Some((ranges, _)) = model.vpc_ranges(&vpc) else {
        return Err(ApiError::new("InvalidVpcID.NotFound", format!("The vpc ID '{vpc}' does not exist")));
    };
    if !ranges.iter().any(|range| range.contains(&cidr)) {
        return Err(ApiError::new("InvalidSubnet.Range", format!("The CIDR '{cidr}' is invalid.")));
    }
    let id = model.create_subnet(&vpc, cidr, ipv6, &zone);
    let Ok(Answer::Subnets(list)) = operator(model, now, &Request::DescribeSubnets { ids: vec![id], filters: vec![] })
    else {
        return Err(ApiError::new("InternalError", "the new subnet is not described"));
    };
    Ok(list.iter().fold(Xml::new(), |xml, found| xml.nest("subnet", |xml| xml::subnet(xml, found))))
}

fn run_instances(model: &mut Model, now: u64, params: &mut Params) -> Result<Xml, ApiError> {
    let kind = params.text("InstanceType").unwrap_or_else(|| "m5.large".to_owned());
    let subnet = params.required("SubnetId")?;
    let address: Option<Ipv4Addr> = params.parsed("PrivateIpAddress")?;
    let ipv6_count = params.parsed("Ipv6AddressCount")?.unwrap_or(0);
    let (least, most): (Option<u32>, Option<u32>) = (params.parsed("MinCount")?, params.parsed("MaxCount")?);
    if (least, most) != (Some(1), Some(1)) {
        return Err(ApiError::new("InvalidParameterValue", "The model starts one instance per call."));
    }
    // Any image will do, and no call is a repeated one.
    let _ = (params.text("ImageId"), params.text("ClientToken"));
    let tags = params.tag_specification("instance")?;
    params.finish()?;
    let id = model.run_instance_at(now, &kind, &subnet, address, ipv6_count)?;
    if !tags.is_empty() {
        operator(model, now, &Request::CreateTags { resources: vec![id.clone()], tags })?;
    }
    let Answer::Instances(list) = operator(model, now, &Request::DescribeInstances { ids: vec![id] })? else {
        return Err(ApiError::new("InternalError", "the new instance is not described"));
    };
    Ok(xml::reservation(Xml::new(), &list))
}

fn terminate_instances(model: &mut Model, now: u64, params: &mut Params) -> Result<Xml, ApiError> {
    let ids = params.list("InstanceId");
    params.finish()?;
    for id in &ids {
        model.terminate_instance(now, id);
    }
    Ok(Xml::new().list("instancesSet", &ids, |xml, id| {
        xml.text("instanceId", id).nest("currentState", |xml| xml.text("code", 32).text("name", "shutting-down"))
    }))
}

/// Carries a call out without faults, limits or counting.
fn operator(model: &mut Model, now: u64, request: &Request) -> Result<Answer, ApiError> {
    model.advance(now);
    model.carry_out(request)
}

fn parsed<T: std::str::FromStr>(params: &mut Params, name: &str) -> Result<T, ApiError> {
    let missing = ApiError::new("MissingParameter", format!("The request must contain the parameter {name}"));
    params.parsed(name)?.ok_or(missing)
}
