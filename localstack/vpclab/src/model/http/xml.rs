//! EC2's XML, element names as in its service description.

use std::fmt::{Display, Write};

use super::super::{Answer, ApiError, EniTruth, InstanceTruth, Request, SubnetTruth, TypeLimits};

/// The account, as the lab's metadata has it.
const OWNER: &str = "000000000000";

/// Elements one after the other.
#[derive(Default)]
pub(super) struct Xml(String);

impl Xml {
    pub fn new() -> Self {
        Xml::default()
    }

    /// An element with a text.
    pub fn text(mut self, name: &str, value: impl Display) -> Self {
        let _ = write!(self.0, "<{name}>{}</{name}>", escape(&value.to_string()));
        self
    }

    /// An element with elements.
    pub fn nest(mut self, name: &str, inner: impl FnOnce(Xml) -> Xml) -> Self {
        let Xml(inner) = inner(Xml::new());
        let _ = write!(self.0, "<{name}>{inner}</{name}>");
        self
    }

    /// An element with one `item` for each thing.
    pub fn list<T>(self, name: &str, things: impl IntoIterator<Item = T>, each: impl Fn(Xml, T) -> Xml) -> Self {
        self.nest(name, |xml| things.into_iter().fold(xml, |xml, thing| xml.nest("item", |xml| each(xml, thing))))
    }

    /// More elements if there is something.
    fn maybe<T>(self, thing: Option<T>, then: impl FnOnce(Xml, T) -> Xml) -> Self {
        match thing {
            Some(thing) => then(self, thing),
            None => self,
        }
    }
}

/// Text may contain anything but characters that XML 1.0 does not have; those become U+FFFD.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\r' => escaped.push_str("&#13;"),
            '\t' | '\n' => escaped.push(char),
            '\0'..'\u{20}' | '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            _ => escaped.push(char),
        }
    }
    escaped
}

/// A complete answer.
pub(super) fn answer(action: &str, request_id: &str, Xml(body): &Xml) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<{action}Response xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\">\
         <requestId>{request_id}</requestId>{body}</{action}Response>"
    )
}

/// A complete refusal.
pub(super) fn error(error: &ApiError, request_id: &str) -> String {
    let Xml(body) = Xml::new().nest("Response", |xml| {
        xml.nest("Errors", |xml| xml.nest("Error", |xml| xml.text("Code", &error.code).text("Message", &error.message)))
            .text("RequestID", request_id)
    });
    format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{body}")
}

/// What a call brings.
pub(super) fn body(request: &Request, answer: &Answer) -> Xml {
    let xml = Xml::new();
    match answer {
        Answer::Interface(found) => xml.nest("networkInterface", |xml| eni(xml, found)),
        Answer::Interfaces { list, next_token } => xml
            .list("networkInterfaceSet", list, eni)
            .maybe(next_token.as_ref(), |xml, token| xml.text("nextToken", token)),
        Answer::Attached { attachment } => {
            let card = match request {
                Request::AttachNetworkInterface { card, .. } => card.unwrap_or(0),
                _ => 0,
            };
            xml.text("attachmentId", attachment).text("networkCardIndex", card)
        }
        Answer::Assigned { addresses, prefixes, ipv6_addresses, ipv6_prefixes } => match request {
            Request::AssignIpv6Addresses { eni, .. } => xml
                .text("networkInterfaceId", eni)
                .list("assignedIpv6Addresses", ipv6_addresses, plain)
                .list("assignedIpv6PrefixSet", ipv6_prefixes, plain),
            Request::AssignPrivateIpAddresses { eni, .. } => xml
                .text("networkInterfaceId", eni)
                .list("assignedPrivateIpAddressesSet", addresses, |xml, address| xml.text("privateIpAddress", address))
                .list("assignedIpv4PrefixSet", prefixes, |xml, prefix| xml.text("ipv4Prefix", prefix))
                .text("return", true),
            _ => xml,
        },
        Answer::Subnets(list) => xml.list("subnetSet", list, subnet),
        Answer::Instances(list) => {
            xml.list("reservationSet", list, |xml, instance| reservation(xml, std::slice::from_ref(instance)))
        }
        Answer::InstanceTypes(list) => xml.list("instanceTypeSet", list, instance_type),
        Answer::Done => match request {
            Request::UnassignIpv6Addresses { eni, addresses, prefixes } => xml
                .text("networkInterfaceId", eni)
                .list("unassignedIpv6Addresses", addresses, plain)
                .list("unassignedIpv6PrefixSet", prefixes, plain),
            _ => xml.text("return", true),
        },
    }
}

/// An item that is nothing but a text.
fn plain(Xml(mut text): Xml, value: impl Display) -> Xml {
    text.push_str(&escape(&value.to_string()));
    Xml(text)
}

fn tags(xml: Xml, tags: &std::collections::BTreeMap<String, String>) -> Xml {
    xml.list("tagSet", tags, |xml, (key, value)| xml.text("key", key).text("value", value))
}

fn eni(xml: Xml, eni: &EniTruth) -> Xml {
    let xml = xml
        .text("networkInterfaceId", &eni.id)
        .text("subnetId", &eni.subnet)
        .text("vpcId", &eni.vpc)
        .text("availabilityZone", &eni.zone)
        .text("description", &eni.description)
        .text("ownerId", OWNER)
        .text("requesterManaged", false)
        .text("status", eni.status.as_str())
        .text("macAddress", &eni.mac)
        .maybe(eni.primary, |xml, address| xml.text("privateIpAddress", address))
        .text("sourceDestCheck", true)
        .text("interfaceType", eni.interface_type.as_str())
        .list("groupSet", &eni.groups, |xml, group| xml.text("groupId", group).text("groupName", group))
        .maybe(eni.attachment.as_ref(), |xml, attachment| {
            xml.nest("attachment", |xml| {
                xml.text("attachmentId", &attachment.id)
                    .text("instanceId", &attachment.instance)
                    .text("instanceOwnerId", OWNER)
                    .text("deviceIndex", attachment.device_index)
                    .text("networkCardIndex", attachment.card)
                    .text("status", attachment.status.as_str())
                    .text("deleteOnTermination", attachment.delete_on_termination)
            })
        })
        .list("privateIpAddressesSet", &eni.addresses, |xml, address| {
            xml.text("privateIpAddress", address).text("primary", Some(*address) == eni.primary)
        })
        .list("ipv4PrefixSet", &eni.prefixes, |xml, prefix| xml.text("ipv4Prefix", prefix))
        .list("ipv6AddressesSet", &eni.ipv6_addresses, |xml, address| xml.text("ipv6Address", address))
        .list("ipv6PrefixSet", &eni.ipv6_prefixes, |xml, prefix| xml.text("ipv6Prefix", prefix));
    tags(xml, &eni.tags)
}

/// A subnet.
pub(super) fn subnet(xml: Xml, subnet: &SubnetTruth) -> Xml {
    let xml = xml
        .text("subnetId", &subnet.id)
        .text("state", "available")
        .text("vpcId", &subnet.vpc)
        .text("cidrBlock", subnet.cidr)
        .list("ipv6CidrBlockAssociationSet", subnet.ipv6, |xml, cidr| {
            xml.text("ipv6CidrBlock", cidr).nest("ipv6CidrBlockState", |xml| xml.text("state", "associated"))
        })
        .text("availableIpAddressCount", subnet.available)
        .text("availabilityZone", &subnet.zone)
        .text("ownerId", OWNER);
    tags(xml, &subnet.tags)
}

/// Instances with what surrounds them.
pub(super) fn reservation(xml: Xml, instances: &[InstanceTruth]) -> Xml {
    let id = instances.first().map(|instance| instance.id.replacen("i-", "r-", 1)).unwrap_or_default();
    xml.text("reservationId", id).text("ownerId", OWNER).list("groupSet", None::<()>, |xml, ()| xml).list(
        "instancesSet",
        instances,
        instance,
    )
}

fn instance(xml: Xml, instance: &InstanceTruth) -> Xml {
    let (code, state) = instance.state.code_and_name();
    let xml = xml
        .text("instanceId", &instance.id)
        .nest("instanceState", |xml| xml.text("code", code).text("name", state))
        .text("instanceType", &instance.kind)
        .nest("placement", |xml| xml.text("availabilityZone", &instance.zone))
        .text("subnetId", &instance.subnet)
        .text("vpcId", &instance.vpc)
        .text("privateIpAddress", instance.address)
        .list("networkInterfaceSet", &instance.enis, eni);
    tags(xml, &instance.tags)
}

fn instance_type(xml: Xml, limits: &TypeLimits) -> Xml {
    xml.text("instanceType", &limits.name)
        .maybe(hypervisor(limits), |xml, hypervisor| xml.text("hypervisor", hypervisor))
        .text("bareMetal", is_metal(limits))
        .nest("networkInfo", |xml| {
            xml.text("maximumNetworkInterfaces", limits.enis)
                .text("maximumNetworkCards", limits.cards.len())
                .text("defaultNetworkCardIndex", 0)
                .list("networkCards", limits.cards.iter().enumerate(), |xml, (card, most)| {
                    xml.text("networkCardIndex", card).text("maximumNetworkInterfaces", most)
                })
                .text("ipv4AddressesPerInterface", limits.ipv4_per_eni)
                .text("ipv6AddressesPerInterface", limits.ipv6_per_eni)
                .text("ipv6Supported", limits.ipv6_per_eni > 0)
        })
}

fn is_metal(limits: &TypeLimits) -> bool {
    limits.name.contains(".metal")
}

/// Bare metal has none.
fn hypervisor(limits: &TypeLimits) -> Option<&'static str> {
    let named = if limits.nitro { "nitro" } else { "xen" };
    (!is_metal(limits)).then_some(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_become_markup() {
        let Xml(text) = Xml::new().text("a", "<b> & \"c\" \u{0}\r");
        assert_eq!(text, "<a>&lt;b&gt; &amp; &quot;c&quot; \u{fffd}&#13;</a>");
        let document = format!("<x>{text}</x>");
        assert!(roxmltree::Document::parse(&document).is_ok());
    }
}
