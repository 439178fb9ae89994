//! What a lab asks of EC2 before it is complete: VPC, subnets, instances, EFA-only ENIs. Callers are inside the
//! VPC's namespace.

use std::time::Duration;

use anyhow::Context;
use ipnet::Ipv4Net;

use crate::{config::LabConfig, ec2, fabric, fabric6, imds::NodeView, state::Node, wait::wait_until};

/// Attaching takes 3 s at most in the model.
const BOUND: Duration = Duration::from_secs(30);

/// The VPC and its subnets; their ids.
pub fn create_vpc(ipv6: bool) -> anyhow::Result<(String, Vec<String>)> {
    let mut parameters = vec![("CidrBlock", fabric::VPC_CIDR)];
    parameters.extend(ipv6.then_some(("Ipv6CidrBlock", fabric6::VPC_CIDR_V6)));
    let vpc_id = ec2::first(&ec2::call("CreateVpc", &parameters)?, "vpcId")?;
    let mut subnets = Vec::new();
    for ((cidr, _, zone), (cidr_v6, _)) in fabric::SUBNETS.into_iter().zip(fabric::SUBNETS_V6) {
        let mut parameters = vec![("VpcId", vpc_id.as_str()), ("CidrBlock", cidr), ("AvailabilityZone", zone)];
        parameters.extend(ipv6.then_some(("Ipv6CidrBlock", cidr_v6)));
        subnets.push(ec2::first(&ec2::call("CreateSubnet", &parameters)?, "subnetId")?);
    }
    Ok((vpc_id, subnets))
}

/// A node's instance; what is known of it, but for its namespaces.
pub fn run_instance(config: &LabConfig, index: usize, subnet_id: &str) -> anyhow::Result<(Node, NodeView)> {
    let (cidr, ..) = fabric::SUBNETS[fabric::subnet_of(index, config.large_subnets)];
    let subnet: Ipv4Net = cidr.parse().context("a subnet of the lab")?;
    let address = subnet.hosts().nth(9 + index).context("a node for which the subnet has no address")?.to_string();
    let mut parameters = vec![
        ("ImageId", "ami-12c6146b"),
        ("InstanceType", config.instance_type.as_str()),
        ("SubnetId", subnet_id),
        ("PrivateIpAddress", address.as_str()),
        ("MinCount", "1"),
        ("MaxCount", "1"),
    ];
    parameters.extend(config.ipv6.then_some(("Ipv6AddressCount", "1")));
    let answer = ec2::call("RunInstances", &parameters)?;
    let instance_id = ec2::first(&answer, "instanceId")?;
    let address_v6 = config.ipv6.then(|| ec2::first(&answer, "ipv6Address")).transpose()?;
    let public_address = fabric::public_address(index);
    let node = Node {
        name: String::new(),
        pid: 0,
        instance_id: instance_id.clone(),
        address,
        public_address: public_address.clone(),
        subnet_id: subnet_id.to_owned(),
        address_v6,
    };
    let (instance_type, ipv6) = (config.instance_type.clone(), config.ipv6);
    Ok((node, NodeView { instance_id, instance_type, public_address, ipv6, ..NodeView::default() }))
}

/// An EFA-only ENI on each card that should have one, as a launch template of EKS has them, and the wait until
/// all are attached. They carry no tags: to whoever manages ENIs they are unmanaged.
pub fn attach_efas(config: &LabConfig, nodes: &[Node]) -> anyhow::Result<()> {
    if config.efa_only_cards.is_empty() {
        return Ok(());
    }
    for node in nodes {
        for card in &config.efa_only_cards {
            let parameters = [("SubnetId", node.subnet_id.as_str()), ("InterfaceType", "efa-only")];
            let eni = ec2::first(&ec2::call("CreateNetworkInterface", &parameters)?, "networkInterfaceId")?;
            let (instance, card) = (node.instance_id.as_str(), card.to_string());
            let parameters = [("NetworkInterfaceId", eni.as_str()), ("InstanceId", instance), ("DeviceIndex", "1")];
            ec2::call("AttachNetworkInterface", &[&parameters[..], &[("NetworkCardIndex", &card)]].concat())?;
        }
    }
    let attached = || ec2::enis().is_ok_and(|enis| enis.iter().all(|eni| eni.attachment.is_some()));
    wait_until(BOUND, attached).context("the EFA-only ENIs do not get attached")
}
