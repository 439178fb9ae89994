//! EC2 by hand: the Query protocol, as far as the lab needs it. Callers are inside the VPC's namespace.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, bail};
use roxmltree::{Document, Node};

use crate::model::{Counted, http::TRUTH_HEADER};

/// Where EC2 listens: an address of the VPC, outside its subnets.
pub const ADDRESS: &str = "10.0.0.5";
/// Its port.
pub const PORT: u16 = 4566;
const VERSION: &str = "2016-11-15";
/// LocalStack checks no signature; it reads region and service from this header.
const AUTHORIZATION: &str =
    "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/ec2/aws4_request, SignedHeaders=host, Signature=0";

/// EC2's URL.
pub fn endpoint() -> String {
    format!("http://{ADDRESS}:{PORT}")
}

/// One call; the answer's XML.
pub fn call(action: &str, parameters: &[(&str, &str)]) -> anyhow::Result<String> {
    ask(&endpoint(), action, parameters, &[])
}

fn ask(endpoint: &str, action: &str, parameters: &[(&str, &str)], headers: &[(&str, &str)]) -> anyhow::Result<String> {
    let form = [("Action", action), ("Version", VERSION)].into_iter().chain(parameters.iter().copied());
    let request = agent().post(endpoint).header("Authorization", AUTHORIZATION);
    let mut answer = headers
        .iter()
        .fold(request, |request, (name, value)| request.header(*name, *value))
        .send_form(form)
        .with_context(|| format!("EC2 does not answer {action}"))?;
    let text = answer.body_mut().read_to_string().with_context(|| format!("EC2's answer to {action} breaks off"))?;
    if !answer.status().is_success() {
        bail!("EC2 refuses {action} {parameters:?}: {text}");
    }
    Ok(text)
}

/// Whether it is ready; LocalStack's path, which the model has too.
pub fn healthy() -> bool {
    let url = format!("{}/_localstack/health", endpoint());
    agent().get(url).call().is_ok_and(|answer| answer.status().is_success())
}

/// Posts JSON to one of the model's own paths. LocalStack has none of them.
pub fn control(path: &str, body: &str) -> anyhow::Result<()> {
    let mut answer = agent()
        .post(format!("{}{path}", endpoint()))
        .content_type("application/json")
        .send(body)
        .with_context(|| format!("the model of EC2 does not answer at {path}"))?;
    if !answer.status().is_success() {
        let text = answer.body_mut().read_to_string().unwrap_or_default();
        bail!("{path} is refused with {}: {text}; only the model of EC2 has such paths", answer.status());
    }
    Ok(())
}

/// The model's count of calls. LocalStack has none.
pub fn counts() -> anyhow::Result<BTreeMap<String, Counted>> {
    let url = format!("{}/counts", endpoint());
    let mut answer = agent().get(url).call().context("the model of EC2 does not answer at /counts")?;
    let text = answer.body_mut().read_to_string().context("the model's counts break off")?;
    let counts: BTreeMap<String, [u64; 4]> =
        serde_json::from_str(&text).with_context(|| format!("these are no counts: {text}"))?;
    let counted = |[calls, throttled, failed, lost]: [u64; 4]| Counted { calls, throttled, failed, lost };
    Ok(counts.into_iter().map(|(action, numbers)| (action, counted(numbers))).collect())
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(20)))
        .http_status_as_error(false)
        .proxy(None)
        .build()
        .into()
}

/// The first element of this name, anywhere in the answer.
pub fn first(xml: &str, name: &str) -> anyhow::Result<String> {
    let document = Document::parse(xml).context("EC2's answer is not XML")?;
    let found = document.descendants().find(|node| node.has_tag_name_anywhere(name)).and_then(|node| node.text());
    found.map(str::to_owned).with_context(|| format!("EC2's answer has no {name}: {xml}"))
}

/// What ties an ENI to an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The instance.
    pub instance_id: String,
    /// Network card.
    pub card: u32,
    /// On its card.
    pub device_index: u32,
}

impl Attachment {
    /// Whether it is the instance's first ENI. Device indices repeat from card to card.
    pub fn is_primary(&self) -> bool {
        (self.card, self.device_index) == (0, 0)
    }
}

/// One ENI as EC2 describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Eni {
    /// Its id.
    pub id: String,
    /// Its subnet's id.
    pub subnet_id: String,
    /// Its security groups.
    pub groups: Vec<String>,
    /// Its addresses, the primary one first; an EFA-only ENI has none.
    pub addresses: Vec<String>,
    /// Its /28 prefixes.
    pub prefixes: Vec<String>,
    /// Its IPv6 addresses outside of prefixes.
    pub ipv6_addresses: Vec<String>,
    /// Its /80 prefixes.
    pub ipv6_prefixes: Vec<String>,
    /// Its MAC as EC2 has it.
    pub mac: String,
    /// Where it is, from the end of "attaching" to the end of "detaching".
    pub attachment: Option<Attachment>,
}

/// All ENIs, as they are: the model answers the lab's network with the actual state, without lag or faults.
pub fn enis() -> anyhow::Result<Vec<Eni>> {
    let all = [("MaxResults", "1000")];
    let xml = ask(&endpoint(), "DescribeNetworkInterfaces", &all, &[(TRUTH_HEADER, "1")])?;
    let document = Document::parse(&xml).context("EC2's answer is not XML")?;
    let set = document.descendants().find(|node| node.has_tag_name_anywhere("networkInterfaceSet"));
    Ok(set.into_iter().flat_map(|set| items(set)).filter_map(eni).collect())
}

fn eni(item: Node<'_, '_>) -> Option<Eni> {
    let mut addresses: Vec<(bool, String)> = list(item, "privateIpAddressesSet")
        .filter_map(|address| Some((text(address, "primary")? != "true", text(address, "privateIpAddress")?)))
        .collect();
    addresses.sort_by_key(|(secondary, _)| *secondary);
    let attachment = child(item, "attachment")
        .filter(|attachment| text(*attachment, "status").as_deref() != Some("attaching"))
        .and_then(|attachment| {
            Some(Attachment {
                instance_id: text(attachment, "instanceId")?,
                // LocalStack has no cards.
                card: text(attachment, "networkCardIndex").and_then(|card| card.parse().ok()).unwrap_or(0),
                device_index: text(attachment, "deviceIndex")?.parse().ok()?,
            })
        });
    Some(Eni {
        id: text(item, "networkInterfaceId")?,
        subnet_id: text(item, "subnetId")?,
        groups: list(item, "groupSet").filter_map(|group| text(group, "groupId")).collect(),
        addresses: addresses.into_iter().map(|(_, address)| address).collect(),
        prefixes: list(item, "ipv4PrefixSet").filter_map(|prefix| text(prefix, "ipv4Prefix")).collect(),
        ipv6_addresses: list(item, "ipv6AddressesSet").filter_map(|address| text(address, "ipv6Address")).collect(),
        ipv6_prefixes: list(item, "ipv6PrefixSet").filter_map(|prefix| text(prefix, "ipv6Prefix")).collect(),
        mac: text(item, "macAddress").unwrap_or_default(),
        attachment,
    })
}

fn items<'a, 'i>(set: Node<'a, 'i>) -> impl Iterator<Item = Node<'a, 'i>> {
    set.children().filter(|node| node.has_tag_name_anywhere("item"))
}

fn list<'a, 'i>(node: Node<'a, 'i>, name: &str) -> impl Iterator<Item = Node<'a, 'i>> {
    child(node, name).into_iter().flat_map(|set| items(set))
}

fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|child| child.has_tag_name_anywhere(name))
}

fn text(node: Node<'_, '_>, name: &str) -> Option<String> {
    child(node, name)?.text().map(str::to_owned).filter(|text| !text.trim().is_empty())
}

/// EC2 puts everything into a namespace that changes with the version.
trait LocalName {
    fn has_tag_name_anywhere(&self, name: &str) -> bool;
}

impl LocalName for Node<'_, '_> {
    fn has_tag_name_anywhere(&self, name: &str) -> bool {
        self.tag_name().name() == name
    }
}
