//! The calls, and what is worth comparing of each answer. Ids and addresses differ from run to run, so a
//! value is a count, a word, or whether two things are the same.

use std::{collections::BTreeMap, time::Duration};

use roxmltree::{Document, Node};
use vpclab::{Lab, wait_until};

/// Attaching takes 3 s at most in the model.
const BOUND: Duration = Duration::from_secs(10);

/// Makes all calls of the story to one EC2; its answers, by name.
pub fn run(lab: &Lab) -> BTreeMap<String, String> {
    let mut story = Story { lab, answers: BTreeMap::new() };
    let vpc = lab.state().vpc_id.clone();
    let subnet = story.new_subnet(&vpc, "10.0.3.0/24");
    let instance = story.run(&subnet);
    story.creating(&subnet);
    story.tokens(&subnet);
    story.addresses(&subnet);
    story.attaching(&subnet, &instance);
    story.describing(&vpc, &instance);
    story.limits(&subnet, &instance);
    story.full_subnet(&vpc);
    story.ending(&subnet);
    story.answers
}

struct Story<'a> {
    lab: &'a Lab,
    answers: BTreeMap<String, String>,
}

impl Story<'_> {
    fn note(&mut self, name: &str, value: impl ToString) {
        let before = self.answers.insert(name.to_owned(), value.to_string());
        assert_eq!(before, None, "{name} is asked twice");
    }

    /// The answer, or EC2's code.
    fn ask(&self, action: &str, parameters: &[(&str, &str)]) -> Result<Answer, String> {
        self.lab.ec2(action, parameters).map(Answer).map_err(|error| {
            let text = format!("{error:#}");
            let code = text.split("<Code>").nth(1).and_then(|rest| rest.split("</Code>").next());
            code.map_or(text.clone(), str::to_owned)
        })
    }

    /// "done", or EC2's code.
    fn outcome(&self, action: &str, parameters: &[(&str, &str)]) -> String {
        self.ask(action, parameters).map_or_else(|code| code, |_| "done".to_owned())
    }

    fn new_subnet(&self, vpc: &str, cidr: &str) -> String {
        let zone = ("AvailabilityZone", "us-east-1a");
        self.ask("CreateSubnet", &[("VpcId", vpc), ("CidrBlock", cidr), zone]).unwrap().first("subnetId")
    }

    fn run(&self, subnet: &str) -> String {
        let counts = [("MinCount", "1"), ("MaxCount", "1"), ("ImageId", "ami-12c6146b")];
        let parameters: Vec<_> =
            counts.into_iter().chain([("InstanceType", "m5.large"), ("SubnetId", subnet)]).collect();
        self.ask("RunInstances", &parameters).unwrap().first("instanceId")
    }

    fn new_eni(&self, subnet: &str) -> String {
        self.ask("CreateNetworkInterface", &[("SubnetId", subnet)]).unwrap().first("networkInterfaceId")
    }

    fn eni(&self, id: &str) -> Result<Answer, String> {
        self.ask("DescribeNetworkInterfaces", &[("NetworkInterfaceId.1", id)])
    }

    fn attach(&self, eni: &str, instance: &str, index: &str) -> Result<String, String> {
        let parameters = [("NetworkInterfaceId", eni), ("InstanceId", instance), ("DeviceIndex", index)];
        let attachment = self.ask("AttachNetworkInterface", &parameters)?.first("attachmentId");
        let attached = || self.eni(eni).is_ok_and(|found| found.within("attachment", "status") == "attached");
        // What does not come shows in what is noted.
        let _ = wait_until(BOUND, attached);
        Ok(attachment)
    }

    fn creating(&mut self, subnet: &str) {
        let parameters = [
            ("SubnetId", subnet),
            ("Description", "a <plain> & \"simple\" one"),
            ("SecondaryPrivateIpAddressCount", "2"),
            ("TagSpecification.1.ResourceType", "network-interface"),
            ("TagSpecification.1.Tag.1.Key", "colour"),
            ("TagSpecification.1.Tag.1.Value", "blue"),
        ];
        let made = self.ask("CreateNetworkInterface", &parameters).unwrap();
        let id = made.first("networkInterfaceId");
        self.note("create: status", made.first("status"));
        self.note("create: tags", made.items("tagSet"));
        let found = self.eni(&id).unwrap();
        self.note("create: described", found.items("networkInterfaceSet"));
        self.note("create: description", found.first("description"));
        self.note("create: its subnet", found.first("subnetId") == subnet);
        self.note("create: addresses", found.items("privateIpAddressesSet"));
        self.note("create: primary addresses", found.texts("primary").iter().filter(|text| *text == "true").count());
        self.note("create: groups", found.items("groupSet"));
        self.note("create: tag", found.first("value"));
        self.note("create: has an attachment", found.has("attachmentId"));
        self.note("create: proper MAC", is_proper(&found.first("macAddress")));
        self.note(
            "create: unknown subnet",
            self.outcome("CreateNetworkInterface", &[("SubnetId", "subnet-0123456789abcdef0")]),
        );
        let prefixed = [("SubnetId", subnet), ("Ipv4PrefixCount", "1")];
        let prefixed = self.ask("CreateNetworkInterface", &prefixed).unwrap();
        self.note("create: prefixes", prefixed.items("ipv4PrefixSet"));
        let both = [("SubnetId", subnet), ("Ipv4PrefixCount", "1"), ("SecondaryPrivateIpAddressCount", "1")];
        self.note("create: prefixes and addresses", self.outcome("CreateNetworkInterface", &both));
    }

    fn tokens(&mut self, subnet: &str) {
        let create = |description: &str| {
            let parameters = [("SubnetId", subnet), ("ClientToken", "token-1"), ("Description", description)];
            self.ask("CreateNetworkInterface", &parameters)
        };
        let (one, two) = (create("one").unwrap(), create("one").unwrap());
        let other = create("other").map_or_else(|code| code, |_| "done".to_owned());
        self.note("token: same ENI", one.first("networkInterfaceId") == two.first("networkInterfaceId"));
        self.note("token: other parameters", other);
    }

    fn addresses(&mut self, subnet: &str) {
        let eni = self.new_eni(subnet);
        let assign = |name: &str, count: &str| {
            self.ask("AssignPrivateIpAddresses", &[("NetworkInterfaceId", &eni), (name, count)])
        };
        let unassign = |name: &str, value: &str| {
            self.outcome("UnassignPrivateIpAddresses", &[("NetworkInterfaceId", &eni), (name, value)])
        };
        let first = assign("SecondaryPrivateIpAddressCount", "2").unwrap();
        let second = assign("SecondaryPrivateIpAddressCount", "1").unwrap();
        let described = self.eni(&eni).unwrap();
        let prefixes = assign("Ipv4PrefixCount", "1");
        let addresses = described.texts_in("privateIpAddressesSet", "privateIpAddress");
        let gone = unassign("PrivateIpAddress.1", &addresses[1]);
        let left = self.eni(&eni).unwrap().items("privateIpAddressesSet");
        let again = unassign("PrivateIpAddress.1", &addresses[1]);
        let primary = unassign("PrivateIpAddress.1", &addresses[0]);
        let outside = assign("PrivateIpAddress.1", "10.99.0.1").map_or_else(|code| code, |_| "done".to_owned());
        let unknown = [("NetworkInterfaceId", "eni-0123456789abcdef0"), ("SecondaryPrivateIpAddressCount", "1")];
        let unknown = self.outcome("AssignPrivateIpAddresses", &unknown);
        self.note("assign: answered first", first.items("assignedPrivateIpAddressesSet"));
        self.note("assign: answered second", second.items("assignedPrivateIpAddressesSet"));
        self.note("assign: addresses", addresses.len());
        self.note(
            "assign: prefixes",
            prefixes.map_or_else(|code| code, |new| new.items("assignedIpv4PrefixSet").to_string()),
        );
        self.note("assign: address outside the subnet", outside);
        self.note("assign: unknown ENI", unknown);
        self.note("unassign", gone);
        self.note("unassign: left", left);
        self.note("unassign: what it has not", again);
        self.note("unassign: the primary address", primary);
    }

    fn attaching(&mut self, subnet: &str, instance: &str) {
        let (eni, other) = (self.new_eni(subnet), self.new_eni(subnet));
        let attachment = self.attach(&eni, instance, "1").unwrap();
        let found = self.eni(&eni).unwrap();
        self.note("attach: status", found.first_of("networkInterfaceSet", "status"));
        self.note("attach: index", found.within("attachment", "deviceIndex"));
        self.note("attach: instance", found.within("attachment", "instanceId") == instance);
        self.note("attach: same attachment", found.within("attachment", "attachmentId") == attachment);
        self.note("attach: deleteOnTermination", found.within("attachment", "deleteOnTermination"));
        let code = |outcome: Result<String, String>| outcome.map_or_else(|code| code, |_| "done".to_owned());
        self.note("attach: unknown ENI", code(self.attach("eni-0123456789abcdef0", instance, "2")));
        self.note("attach: unknown instance", code(self.attach(&other, "i-0123456789abcdef0", "2")));
        let modify = [
            ("NetworkInterfaceId", eni.as_str()),
            ("Attachment.AttachmentId", &attachment),
            ("Attachment.DeleteOnTermination", "true"),
        ];
        self.note("modify", self.outcome("ModifyNetworkInterfaceAttribute", &modify));
        let now = self.eni(&eni).unwrap().within("attachment", "deleteOnTermination");
        self.note("modify: deleteOnTermination", now);
        let groups = self.eni(&eni).unwrap().first("groupId");
        let modify = [("NetworkInterfaceId", eni.as_str()), ("SecurityGroupId.1", &groups)];
        self.note("modify: groups", self.outcome("ModifyNetworkInterfaceAttribute", &modify));
        self.note("modify: nothing", self.outcome("ModifyNetworkInterfaceAttribute", &modify[..1]));
        let detach = |id: &str| self.outcome("DetachNetworkInterface", &[("AttachmentId", id)]);
        let (known, unknown) = (detach(&attachment), detach("eni-attach-0123456789abcdef0"));
        self.note("detach", known);
        self.note("detach: unknown", unknown);
        let available =
            || self.eni(&eni).is_ok_and(|found| found.first_of("networkInterfaceSet", "status") == "available");
        let _ = wait_until(BOUND, available);
        self.note("detach: status", self.eni(&eni).unwrap().first_of("networkInterfaceSet", "status"));
        self.note("detach: has an attachment", self.eni(&eni).unwrap().has("attachmentId"));
        let delete = |eni: &str| self.outcome("DeleteNetworkInterface", &[("NetworkInterfaceId", eni)]);
        let (first, second) = (delete(&eni), delete(&eni));
        self.note("delete", first);
        self.note("delete: again", second);
        self.note("delete: described", self.eni(&eni).map_or_else(|code| code, |_| "found".to_owned()));
        self.note(
            "create tags",
            self.outcome("CreateTags", &[("ResourceId.1", &other), ("Tag.1.Key", "a"), ("Tag.1.Value", "b")]),
        );
        self.note("create tags: described", self.eni(&other).unwrap().first("value"));
        let unknown = [("ResourceId.1", "eni-0123456789abcdef0"), ("Tag.1.Key", "a"), ("Tag.1.Value", "b")];
        self.note("create tags: unknown", self.outcome("CreateTags", &unknown));
    }

    /// m5.large: three ENIs of ten addresses.
    fn limits(&mut self, subnet: &str, instance: &str) {
        let enis: Vec<String> = (0..4).map(|_| self.new_eni(subnet)).collect();
        let code = |outcome: Result<String, String>| outcome.map_or_else(|code| code, |_| "done".to_owned());
        self.attach(&enis[0], instance, "1").unwrap();
        self.note("limits: used index", code(self.attach(&enis[1], instance, "1")));
        self.note("limits: third ENI", code(self.attach(&enis[2], instance, "2")));
        self.note("limits: fourth ENI", code(self.attach(&enis[3], instance, "3")));
        let many = [("NetworkInterfaceId", enis[0].as_str()), ("SecondaryPrivateIpAddressCount", "10")];
        self.note("limits: eleventh address", self.outcome("AssignPrivateIpAddresses", &many));
        self.note("attach: an attached ENI", code(self.attach(&enis[0], instance, "4")));
        self.note("delete: attached", self.outcome("DeleteNetworkInterface", &[("NetworkInterfaceId", &enis[2])]));
    }

    fn describing(&mut self, vpc: &str, instance: &str) {
        let filtered = |name: &str, value: &str| {
            let parameters = [("Filter.1.Name", name), ("Filter.1.Value.1", value)];
            self.ask("DescribeNetworkInterfaces", &parameters).map(|found| found.items("networkInterfaceSet"))
        };
        let count = |found: Result<usize, String>| found.map_or_else(|code| code, |count| count.to_string());
        let tagged = count(filtered("tag:colour", "blue"));
        let wild = count(filtered("tag:colour", "b*"));
        let key = count(filtered("tag-key", "colour"));
        let description = count(filtered("description", "a <plain>*"));
        let of_instance = count(filtered("attachment.instance-id", instance));
        let unknown = count(filtered("colour", "blue"));
        let nothing = count(filtered("subnet-id", "subnet-0123456789abcdef0"));
        for (name, value) in [
            ("filter: tag", tagged),
            ("filter: wildcard", wild),
            ("filter: tag key", key),
            ("filter: description", description),
            ("filter: instance", of_instance),
            ("filter: unknown", unknown),
            ("filter: no match", nothing),
        ] {
            self.note(name, value);
        }
        let page = |most: &str| self.ask("DescribeNetworkInterfaces", &[("MaxResults", most)]);
        let small = page("4").map_or_else(|code| code, |_| "done".to_owned());
        let five = page("5").map(|found| (found.items("networkInterfaceSet"), found.has("nextToken"))).unwrap();
        let ids = [("MaxResults", "5"), ("NetworkInterfaceId.1", "eni-0123456789abcdef0")];
        let ids = self.outcome("DescribeNetworkInterfaces", &ids);
        self.note("pages: of four", small);
        self.note("pages: of five", format!("{five:?}"));
        self.note("pages: with ids", ids);
        self.note(
            "describe: unknown ENI",
            self.eni("eni-0123456789abcdef0").map_or_else(|code| code, |_| "found".to_owned()),
        );
        let types = self.ask("DescribeInstanceTypes", &[("InstanceType.1", "m5.large")]).unwrap();
        self.note("types: ENIs", types.first_of("networkInfo", "maximumNetworkInterfaces"));
        self.note("types: IPv4", types.first("ipv4AddressesPerInterface"));
        self.note("types: IPv6", types.first("ipv6AddressesPerInterface"));
        self.note("types: cards", types.first("maximumNetworkCards"));
        self.note("types: hypervisor", types.first("hypervisor"));
        self.note("types: unknown", self.outcome("DescribeInstanceTypes", &[("InstanceType.1", "x0.none")]));
        let subnets = self.ask("DescribeSubnets", &[("Filter.1.Name", "vpc-id"), ("Filter.1.Value.1", vpc)]).unwrap();
        self.note("subnets: of the VPC", subnets.items("subnetSet"));
        self.note("subnets: unknown", self.outcome("DescribeSubnets", &[("SubnetId.1", "subnet-0123456789abcdef0")]));
        self.note("instances: unknown", self.outcome("DescribeInstances", &[("InstanceId.1", "i-0123456789abcdef0")]));
        let found = self.ask("DescribeInstances", &[("InstanceId.1", instance)]).unwrap();
        self.note("instances: primary address", found.has("privateIpAddress"));
        self.note("instances: type", found.first("instanceType"));
        self.note("instances: state", found.within("instanceState", "name"));
        self.note("action: unknown", self.outcome("DescribeWeather", &[]));
    }

    /// A /27 has 27 addresses to give, and no block of sixteen without one that EC2 keeps.
    fn full_subnet(&mut self, vpc: &str) {
        let subnet = self.new_subnet(vpc, "10.0.4.0/27");
        let free = |story: &Self| {
            story.ask("DescribeSubnets", &[("SubnetId.1", &subnet)]).unwrap().first("availableIpAddressCount")
        };
        self.note("full: free at first", free(self));
        let block = [("SubnetId", subnet.as_str()), ("Ipv4PrefixCount", "1")];
        self.note("full: a prefix", self.outcome("CreateNetworkInterface", &block));
        let enis: Vec<String> =
            (0..27).map(|_| self.outcome("CreateNetworkInterface", &[("SubnetId", &subnet)])).collect();
        self.note("full: created", enis.iter().filter(|outcome| *outcome == "done").count());
        self.note("full: free at last", free(self));
        self.note("full: one more", self.outcome("CreateNetworkInterface", &[("SubnetId", &subnet)]));
    }

    fn ending(&mut self, subnet: &str) {
        let instance = self.run(subnet);
        let found = self.ask("DescribeInstances", &[("InstanceId.1", &instance)]).unwrap();
        let primary = found.first("networkInterfaceId");
        let described = self.eni(&primary).unwrap();
        self.note("primary: deleteOnTermination", described.within("attachment", "deleteOnTermination"));
        self.note("primary: status", described.first_of("networkInterfaceSet", "status"));
        let (kept, gone) = (self.new_eni(subnet), self.new_eni(subnet));
        self.attach(&kept, &instance, "1").unwrap();
        let attachment = self.attach(&gone, &instance, "2").unwrap();
        let modify = [
            ("NetworkInterfaceId", gone.as_str()),
            ("Attachment.AttachmentId", &attachment),
            ("Attachment.DeleteOnTermination", "true"),
        ];
        self.ask("ModifyNetworkInterfaceAttribute", &modify).unwrap();
        self.note("terminate", self.outcome("TerminateInstances", &[("InstanceId.1", &instance)]));
        let terminated = || {
            let found = self.ask("DescribeInstances", &[("InstanceId.1", &instance)]);
            found.is_ok_and(|found| found.within("instanceState", "name") == "terminated")
        };
        let _ = wait_until(BOUND, terminated);
        let status =
            |id: &str| self.eni(id).map_or_else(|code| code, |found| found.first_of("networkInterfaceSet", "status"));
        let (primary, kept, gone) = (status(&primary), status(&kept), status(&gone));
        self.note("terminate: primary ENI", primary);
        self.note("terminate: ENI without deleteOnTermination", kept);
        self.note("terminate: ENI with deleteOnTermination", gone);
        let instance = self.run(subnet);
        let found = self.ask("DescribeInstances", &[("InstanceId.1", &instance)]).unwrap();
        let attachment = self.eni(&found.first("networkInterfaceId")).unwrap().within("attachment", "attachmentId");
        self.note("detach: the primary ENI", self.outcome("DetachNetworkInterface", &[("AttachmentId", &attachment)]));
    }
}

/// Six bytes that a network card could have.
fn is_proper(mac: &str) -> bool {
    let bytes: Vec<Option<u8>> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    mac.len() == 17
        && bytes.len() == 6
        && bytes.iter().all(Option::is_some)
        && bytes[0].is_some_and(|byte| byte % 2 == 0)
}

/// An answer's XML.
struct Answer(String);

impl Answer {
    fn read<T>(&self, read: impl FnOnce(&Document<'_>) -> T) -> T {
        read(&Document::parse(&self.0).expect("EC2 answers in XML"))
    }

    /// The first element of this name; empty if there is none.
    fn first(&self, name: &str) -> String {
        self.texts(name).into_iter().next().unwrap_or_default()
    }

    fn has(&self, name: &str) -> bool {
        !self.first(name).is_empty()
    }

    fn texts(&self, name: &str) -> Vec<String> {
        self.read(|document| named(document.root(), name).map(text).collect())
    }

    /// All elements of this name below the first one of that name.
    fn texts_in(&self, set: &str, name: &str) -> Vec<String> {
        self.read(|document| {
            named(document.root(), set).next().into_iter().flat_map(|set| named(set, name)).map(text).collect()
        })
    }

    fn within(&self, parent: &str, name: &str) -> String {
        self.texts_in(parent, name).into_iter().next().unwrap_or_default()
    }

    /// A child of a set's first item, as against the same name further down.
    fn first_of(&self, set: &str, name: &str) -> String {
        self.read(|document| {
            let set = named(document.root(), set).next();
            let parent = set.and_then(|set| named(set, "item").next()).or(set);
            parent
                .and_then(|parent| parent.children().find(|node| node.tag_name().name() == name))
                .map(text)
                .unwrap_or_default()
        })
    }

    /// How many items the first set of this name has.
    fn items(&self, set: &str) -> usize {
        self.read(|document| {
            let set = named(document.root(), set).next();
            set.map_or(0, |set| set.children().filter(|node| node.tag_name().name() == "item").count())
        })
    }
}

fn named<'a, 'i: 'a>(node: Node<'a, 'i>, name: &str) -> impl Iterator<Item = Node<'a, 'i>> {
    node.descendants().filter(move |node| node.tag_name().name() == name)
}

fn text(node: Node<'_, '_>) -> String {
    node.text().unwrap_or_default().trim().to_owned()
}
