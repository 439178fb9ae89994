//! The rules of the model, one test each, through its calls.

mod late;
mod policies;

use std::collections::BTreeMap;

use super::*;

/// A VPC with one subnet and one instance.
struct World {
    model: Model,
    subnet: String,
    instance: String,
}

fn world_of(options: Options, kind: &str, cidr: &str) -> World {
    let mut model = Model::new(options);
    let v6 = "2001:db8::/56".parse().unwrap();
    let vpc = model.create_vpc(&["10.0.0.0/16".parse().unwrap()], Some(v6));
    let v6 = "2001:db8:0:1::/64".parse().unwrap();
    let subnet = model.create_subnet(&vpc, cidr.parse().unwrap(), Some(v6), "us-east-1a");
    let instance = model.run_instance(0, kind, &subnet).unwrap();
    World { model, subnet, instance }
}

fn world() -> World {
    world_of(Options::default(), "m5.large", "10.0.1.0/24")
}

fn create(subnet: &str) -> Request {
    Request::CreateNetworkInterface {
        subnet: subnet.to_owned(),
        interface_type: InterfaceType::Interface,
        description: String::new(),
        groups: vec![],
        secondary_count: None,
        prefix_count: None,
        ipv6_prefix_count: None,
        client_token: None,
        tags: BTreeMap::new(),
    }
}

fn assign(eni: &str, count: Option<u32>, prefix_count: Option<u32>) -> Request {
    Request::AssignPrivateIpAddresses { eni: eni.to_owned(), count, prefix_count, addresses: vec![] }
}

fn describe(ids: &[&str], filters: &[(&str, &str)], max_results: Option<u32>, next_token: Option<String>) -> Request {
    Request::DescribeNetworkInterfaces {
        ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        filters: filters.iter().map(|(name, value)| ((*name).to_owned(), vec![(*value).to_owned()])).collect(),
        max_results,
        next_token,
    }
}

impl World {
    fn call(&mut self, now: u64, request: &Request) -> Result<Answer, ApiError> {
        self.model.call(now, "operator", request).answer()
    }

    fn code(&mut self, now: u64, request: &Request) -> String {
        self.call(now, request).map_or_else(|error| error.code, |answer| format!("{answer:?}"))
    }

    fn new_eni(&mut self, now: u64) -> EniTruth {
        match self.call(now, &create(&self.subnet.clone())) {
            Ok(Answer::Interface(eni)) => eni,
            other => panic!("{other:?}"),
        }
    }

    fn attach(&mut self, now: u64, eni: &str, device_index: u32, card: u32) -> Result<String, String> {
        let (eni, instance) = (eni.to_owned(), self.instance.clone());
        match self.call(now, &Request::AttachNetworkInterface { eni, instance, device_index, card: Some(card) }) {
            Ok(Answer::Attached { attachment }) => Ok(attachment),
            Err(error) => Err(error.code),
            other => panic!("{other:?}"),
        }
    }

    fn detach(&mut self, now: u64, attachment: &str) -> String {
        self.code(now, &Request::DetachNetworkInterface { attachment: attachment.to_owned(), force: false })
    }

    fn delete(&mut self, now: u64, eni: &str) -> String {
        self.code(now, &Request::DeleteNetworkInterface { eni: eni.to_owned() })
    }

    fn eni(&self, now: u64, id: &str) -> Option<EniTruth> {
        self.model.enis(now).into_iter().find(|eni| eni.id == id)
    }

    fn seen(&mut self, now: u64, request: &Request) -> (Vec<EniTruth>, Option<String>) {
        match self.call(now, request) {
            Ok(Answer::Interfaces { list, next_token }) => (list, next_token),
            other => panic!("{other:?}"),
        }
    }

    fn set_termination(&mut self, now: u64, eni: &str, attachment: &str) -> String {
        self.code(
            now,
            &Request::ModifyNetworkInterfaceAttribute {
                eni: eni.to_owned(),
                attachment: Some(attachment.to_owned()),
                delete_on_termination: Some(true),
                groups: None,
            },
        )
    }
}

#[test]
fn an_instance_can_start_with_ipv6_addresses() {
    let mut world = world();
    let subnet = world.subnet.clone();
    let instance = world.model.run_instance_at(0, "m5.large", &subnet, None, 2).unwrap();
    let enis = world.model.enis(0);
    let primary = enis.iter().find(|eni| eni.instance() == Some(&instance)).unwrap();
    assert_eq!((primary.ipv6_addresses.len(), primary.addresses.len()), (2, 1));
    let code = |kind: &str, count: u32| world.model.clone().run_instance_at(0, kind, &subnet, None, count);
    assert_eq!(code("m5.large", 11).unwrap_err().code, "PrivateIpAddressLimitExceeded");
    let bare = world.model.create_vpc(&["10.9.0.0/16".parse().unwrap()], None);
    let bare = world.model.create_subnet(&bare, "10.9.1.0/24".parse().unwrap(), None, "us-east-1a");
    let refused = world.model.run_instance_at(0, "m5.large", &bare, None, 1).unwrap_err();
    assert!(refused.message.contains("no IPv6"), "{refused}");
}

#[test]
fn an_eni_goes_through_its_states() {
    let mut world = world();
    let eni = world.new_eni(0);
    let status = |world: &World, now: u64| {
        let found = world.eni(now, &eni.id).unwrap();
        (found.status.as_str(), found.attachment.map(|attachment| attachment.status.as_str()))
    };
    assert_eq!(status(&world, 0), ("pending", None));
    assert_eq!(status(&world, 500), ("available", None));
    let attachment = world.attach(1000, &eni.id, 1, 0).unwrap();
    assert_eq!(status(&world, 1000), ("in-use", Some("attaching")));
    assert_eq!(status(&world, 4000), ("in-use", Some("attached")));
    assert!(!world.eni(4000, &eni.id).unwrap().delete_on_termination());
    assert_eq!(world.delete(4000, &eni.id), "InvalidParameterValue");
    assert_eq!(world.detach(5000, &attachment), "Done");
    assert_eq!(status(&world, 5000), ("in-use", Some("detaching")));
    assert_eq!(world.detach(5000, &attachment), "IncorrectState");
    assert_eq!(world.delete(5000, &eni.id), "InvalidParameterValue");
    assert_eq!(status(&world, 8000), ("available", None));
    assert_eq!(world.detach(8000, &attachment), "InvalidAttachmentID.NotFound");
    assert_eq!(world.delete(8000, &eni.id), "Done");
    assert_eq!(world.delete(8000, &eni.id), "InvalidNetworkInterfaceID.NotFound");
    assert_eq!(world.eni(8000, &eni.id), None);
}

#[test]
fn attaching_has_its_refusals() {
    let mut world = world();
    let enis: Vec<String> = (0..4).map(|_| world.new_eni(0).id).collect();
    world.attach(0, &enis[0], 1, 0).unwrap();
    for (eni, index, card, code) in [
        (&enis[0], 2, 0, "InvalidNetworkInterface.InUse"),
        (&enis[1], 1, 0, "InvalidParameterValue"),
        (&enis[1], 0, 0, "InvalidParameterValue"),
        (&enis[1], 2, 1, "InvalidParameterValue"),
        (&"eni-0".to_owned(), 2, 0, "InvalidNetworkInterfaceID.NotFound"),
    ] {
        assert_eq!(world.attach(0, eni, index, card).unwrap_err(), code, "{eni} {index} {card}");
    }
    world.attach(0, &enis[1], 2, 0).unwrap();
    assert_eq!(world.attach(0, &enis[2], 3, 0).unwrap_err(), "AttachmentLimitExceeded");
    let Some(primary) = world.model.enis(0).into_iter().find(|eni| eni.delete_on_termination()) else { panic!() };
    assert_eq!(world.detach(0, &primary.attachment.unwrap().id), "OperationNotPermitted");
    let vpc = primary.vpc;
    let far = world.model.create_subnet(&vpc, "10.0.2.0/24".parse().unwrap(), None, "us-east-1b");
    let Ok(Answer::Interface(eni)) = world.call(0, &create(&far)) else { panic!() };
    assert_eq!(world.attach(0, &eni.id, 3, 0).unwrap_err(), "InvalidParameterCombination");
    world.model.terminate_instance(0, &world.instance.clone());
    assert_eq!(world.attach(0, &enis[2], 3, 0).unwrap_err(), "IncorrectState");
}

#[test]
fn every_card_has_its_limit() {
    let mut world = world_of(Options::default(), "trn1.32xlarge", "10.0.0.0/20");
    let mut attached = 1; // the primary ENI
    for card in 0..8 {
        for index in 1..=5 {
            let eni = world.new_eni(0).id;
            match world.attach(0, &eni, index, card) {
                Ok(_) => attached += 1,
                Err(code) => assert_eq!((code.as_str(), card), ("AttachmentLimitExceeded", 0)),
            }
        }
    }
    assert_eq!(attached, 40);
    let eni = world.new_eni(0).id;
    assert_eq!(world.attach(0, &eni, 6, 7).unwrap_err(), "AttachmentLimitExceeded");
}

#[test]
fn addresses_and_prefixes_share_the_slots() {
    for (kind, count, prefixes, code) in [
        ("m5.large", Some(9), None, None),
        ("m5.large", Some(10), None, Some("PrivateIpAddressLimitExceeded")),
        ("m5.large", None, Some(9), None),
        ("m5.large", None, Some(10), Some("PrivateIpAddressLimitExceeded")),
        ("t3.nano", Some(2), None, Some("PrivateIpAddressLimitExceeded")),
        ("m4.large", Some(9), None, None),
        ("m4.large", None, Some(1), Some("UnsupportedOperation")),
        ("m5.large", Some(1), Some(1), Some("InvalidParameterCombination")),
        ("m5.large", None, None, Some("InvalidParameterCombination")),
        ("m5.large", Some(0), None, Some("InvalidParameterValue")),
    ] {
        let mut world = world_of(Options::default(), kind, "10.0.1.0/24");
        let primary = world.model.enis(0).remove(0);
        let answer = world.call(0, &assign(&primary.id, count, prefixes));
        let after = world.eni(0, &primary.id).unwrap();
        match (answer, code) {
            (Ok(Answer::Assigned { addresses, prefixes: new, .. }), None) => {
                // Only what is new; the primary address is not.
                assert_eq!(Some(addresses.len()).filter(|n| *n > 0), count.map(|n| usize::try_from(n).unwrap()));
                assert_eq!(Some(new.len()).filter(|n| *n > 0), prefixes.map(|n| usize::try_from(n).unwrap()));
                assert_eq!((&after.addresses[1..], &after.prefixes), (&addresses[..], &new));
                assert_eq!(after.primary, Some(after.addresses[0]));
                let full = assign(&primary.id, Some(1), None);
                assert_eq!(world.code(0, &full), "PrivateIpAddressLimitExceeded");
            }
            (Err(error), Some(code)) => assert_eq!((error.code.as_str(), after.ipv4_slots()), (code, 1), "{kind}"),
            other => panic!("{kind}: {other:?}"),
        }
    }
}

#[test]
fn subnets_run_full_and_fragment() {
    let mut world = world_of(Options::default(), "m5.metal", "10.0.1.0/26");
    let primary = world.model.enis(0).remove(0);
    let own = primary.primary.unwrap();
    let subnet = world.subnet.clone();
    let block: Vec<std::net::Ipv4Addr> = "10.0.1.16/28".parse::<Ipv4Net>().unwrap().hosts().collect();
    world.model.occupy(&subnet, ["10.0.1.17".parse().unwrap(), "10.0.1.33".parse().unwrap()]);
    assert_eq!(world.code(0, &assign(&primary.id, None, Some(1))), "InsufficientCidrBlocks");
    // 59 usable, two of others, one primary.
    assert_eq!(world.code(0, &assign(&primary.id, Some(49), None)).split(' ').next(), Some("Assigned"));
    let Ok(Answer::Subnets(list)) = world.call(0, &Request::DescribeSubnets { ids: vec![], filters: vec![] }) else {
        panic!()
    };
    assert_eq!(list[0].available, 7);
    let mut many = create(&subnet);
    if let Request::CreateNetworkInterface { secondary_count, .. } = &mut many {
        *secondary_count = Some(7);
    }
    assert_eq!(world.code(0, &many), "InsufficientFreeAddressesInSubnet");
    let addresses = world.eni(0, &primary.id).unwrap().addresses[1..].to_vec();
    let unassign =
        |addresses, prefixes| Request::UnassignPrivateIpAddresses { eni: primary.id.clone(), addresses, prefixes };
    assert_eq!(world.code(0, &unassign(addresses.clone(), vec![])), "Done");
    assert_eq!(world.code(0, &unassign(addresses, vec![])), "InvalidParameterValue");
    assert_eq!(world.code(0, &unassign(vec![own], vec![])), "InvalidParameterValue");
    assert_eq!(world.code(0, &unassign(vec![], vec![])), "InvalidParameterCombination");
    world.model.vacate(&subnet, block);
    // The primary address of this seed lies in another place.
    let Ok(Answer::Assigned { prefixes, .. }) = world.call(0, &assign(&primary.id, None, Some(1))) else { panic!() };
    assert_eq!(prefixes, ["10.0.1.16/28".parse::<Ipv4Net>().unwrap()]);
    assert_eq!(world.code(0, &unassign(vec![], prefixes)), "Done");
}

#[test]
fn addresses_can_be_named() {
    let mut world = world();
    let primary = world.model.enis(0).remove(0);
    let own = primary.primary.unwrap();
    let free: std::net::Ipv4Addr =
        "10.0.1.0/24".parse::<Ipv4Net>().unwrap().hosts().nth(99).filter(|a| *a != own).unwrap();
    for (addresses, code) in [
        (vec!["10.0.2.9".parse().unwrap()], "InvalidParameterValue"),
        (vec!["10.0.1.2".parse().unwrap()], "InvalidParameterValue"),
        (vec![own], "InvalidIPAddress.InUse"),
        (vec![free, free], "InvalidIPAddress.InUse"),
    ] {
        let eni = primary.id.clone();
        let request = Request::AssignPrivateIpAddresses { eni, count: None, prefix_count: None, addresses };
        assert_eq!(world.code(0, &request), code);
    }
    let request = Request::AssignPrivateIpAddresses {
        eni: primary.id.clone(),
        count: None,
        prefix_count: None,
        addresses: vec![free],
    };
    world.call(0, &request).unwrap();
    assert_eq!(world.eni(0, &primary.id).unwrap().addresses, [own, free]);
}

#[test]
fn an_efa_only_eni_has_no_address_and_gets_none() {
    let mut world = world_of(Options::default(), "c6in.32xlarge", "10.0.1.0/24");
    let subnet = world.subnet.clone();
    let efa = |secondaries: Option<u32>| {
        let mut request = create(&subnet);
        if let Request::CreateNetworkInterface { interface_type, secondary_count, .. } = &mut request {
            (*interface_type, *secondary_count) = (InterfaceType::EfaOnly, secondaries);
        }
        request
    };
    assert_eq!(world.code(0, &efa(Some(1))), "InvalidParameterCombination");
    let Ok(Answer::Interface(eni)) = world.call(0, &efa(None)) else { panic!() };
    assert_eq!((eni.primary, eni.ipv4_slots() + eni.ipv6_slots()), (None, 0));
    world.attach(0, &eni.id, 1, 1).unwrap();
    let v6 = |count, prefix_count| Request::AssignIpv6Addresses { eni: eni.id.clone(), count, prefix_count };
    for request in
        [assign(&eni.id, Some(1), None), assign(&eni.id, None, Some(1)), v6(Some(1), None), v6(None, Some(1))]
    {
        assert_eq!(world.code(0, &request), "InvalidParameterCombination");
    }
    let (list, _) = world.seen(5000, &describe(&[], &[("interface-type", "efa-only")], None, None));
    assert_eq!(list.iter().map(|eni| eni.id.as_str()).collect::<Vec<_>>(), [eni.id.as_str()]);
    let instance = world.instance.clone();
    let shown = world.model.imds(5000, &instance).into_iter().find(|shown| shown.id == eni.id).unwrap();
    assert_eq!((shown.card, shown.device_index, shown.addresses.len()), (1, 1, 0));
}

#[test]
fn ipv6_has_slots_of_its_own() {
    let mut world = world();
    let eni = world.model.enis(0).remove(0).id;
    let ask = |count, prefix_count| Request::AssignIpv6Addresses { eni: eni.clone(), count, prefix_count };
    let Ok(Answer::Assigned { ipv6_prefixes, .. }) = world.call(0, &ask(None, Some(1))) else { panic!() };
    assert_eq!((ipv6_prefixes.len(), ipv6_prefixes[0].prefix_len()), (1, 80));
    world.call(0, &ask(Some(9), None)).unwrap();
    assert_eq!(world.code(0, &ask(Some(1), None)), "PrivateIpAddressLimitExceeded");
    let back = Request::UnassignIpv6Addresses { eni: eni.clone(), addresses: vec![], prefixes: ipv6_prefixes };
    assert_eq!((world.code(0, &back), world.code(0, &back)), ("Done".to_owned(), "InvalidParameterValue".to_owned()));
    let mut model = Model::new(Options::default());
    let vpc = model.create_vpc(&["10.0.0.0/16".parse().unwrap()], None);
    let subnet = model.create_subnet(&vpc, "10.0.1.0/24".parse().unwrap(), None, "us-east-1a");
    model.run_instance(0, "m5.large", &subnet).unwrap();
    let eni = model.enis(0).remove(0).id;
    let refused = model.call(0, "operator", &Request::AssignIpv6Addresses { eni, count: Some(1), prefix_count: None });
    assert_eq!(refused.answer().unwrap_err().code, "InvalidParameterValue");
}

#[test]
fn a_client_token_creates_once() {
    let mut world = world();
    let with = |world: &World, text: &str, token: &str| {
        let mut request = create(&world.subnet);
        if let Request::CreateNetworkInterface { description, client_token, .. } = &mut request {
            (*description, *client_token) = (text.to_owned(), Some(token.to_owned()));
        }
        request
    };
    let request = with(&world, "one", "t1");
    let Ok(Answer::Interface(first)) = world.call(0, &request) else { panic!() };
    let Ok(Answer::Interface(again)) = world.call(5000, &request) else { panic!() };
    assert_eq!((&first.id, again.status), (&again.id, EniStatus::Available));
    assert_eq!(world.code(0, &with(&world, "two", "t1")), "IdempotentParameterMismatch");
    let Ok(Answer::Interface(other)) = world.call(0, &with(&world, "one", "t2")) else { panic!() };
    assert_ne!(first.id, other.id);
    // A create that failed leaves its token free.
    world.model.faults_mut().deny.insert("CreateNetworkInterface".to_owned());
    let request = with(&world, "three", "t3");
    assert_eq!(world.code(0, &request), "UnauthorizedOperation");
    world.model.faults_mut().deny.clear();
    assert!(world.call(0, &request).is_ok());
}

#[test]
fn the_region_has_a_quota() {
    let mut world = world_of(Options { eni_quota: 2, ..Options::default() }, "m5.large", "10.0.1.0/24");
    world.new_eni(0);
    assert_eq!(world.code(0, &create(&world.subnet.clone())), "NetworkInterfaceLimitExceeded");
    assert_eq!(world.code(0, &create("subnet-0")), "InvalidSubnetID.NotFound");
}

#[test]
fn termination_deletes_what_asked_for_it() {
    let mut world = world();
    let (kept, gone) = (world.new_eni(0).id, world.new_eni(0).id);
    world.attach(0, &kept, 1, 0).unwrap();
    let attachment = world.attach(0, &gone, 2, 0).unwrap();
    assert_eq!(world.set_termination(0, &kept, &attachment), "InvalidAttachmentID.NotFound");
    assert_eq!(world.set_termination(0, &gone, &attachment), "Done");
    world.model.terminate_instance(5000, &world.instance.clone());
    assert_eq!(world.model.enis(5000).len(), 3);
    let left = world.model.enis(8000);
    assert_eq!(left.iter().map(|eni| (&eni.id, eni.status)).collect::<Vec<_>>(), [(&kept, EniStatus::Available)]);
    assert_eq!(world.model.imds(8000, &world.instance.clone()), []);
}

#[test]
fn modify_takes_one_attribute() {
    let mut world = world();
    let eni = world.new_eni(0).id;
    let modify = |delete_on_termination, groups: Option<&[&str]>| Request::ModifyNetworkInterfaceAttribute {
        eni: eni.clone(),
        attachment: None,
        delete_on_termination,
        groups: groups.map(|groups| groups.iter().map(|group| (*group).to_owned()).collect()),
    };
    assert_eq!(world.code(0, &modify(None, None)), "InvalidParameterCombination");
    assert_eq!(world.code(0, &modify(Some(true), Some(&["sg-1"]))), "InvalidParameterCombination");
    assert_eq!(world.code(0, &modify(Some(true), None)), "MissingParameter");
    assert_eq!(world.code(0, &modify(None, Some(&[]))), "InvalidParameterValue");
    assert_eq!(world.code(0, &modify(None, Some(&["sg-1", "sg-2"]))), "Done");
    assert_eq!(world.eni(0, &eni).unwrap().groups, ["sg-1", "sg-2"]);
}

#[test]
fn describe_pages_and_filters() {
    let mut world = world();
    let subnet = world.subnet.clone();
    let tags = BTreeMap::from([("cluster".to_owned(), "blue".to_owned())]);
    let mut tagged = create(&subnet);
    if let Request::CreateNetworkInterface { tags: of, .. } = &mut tagged {
        *of = tags;
    }
    for _ in 0..6 {
        world.call(0, &tagged).unwrap();
        world.new_eni(0);
    }
    let mut pages = vec![];
    let mut token = None;
    loop {
        let (list, next) = world.seen(1000, &describe(&[], &[("tag:cluster", "b*")], Some(5), token));
        pages.push(list.len());
        token = next;
        if token.is_none() {
            break;
        }
    }
    assert_eq!(pages, [5, 1]);
    for (filters, found) in [
        (vec![("tag-key", "cluster"), ("status", "available")], 6),
        (vec![("tag-key", "cluster"), ("status", "in-use")], 0),
        (vec![("attachment.instance-id", world.instance.clone().as_str())], 1),
        (vec![("subnet-id", subnet.as_str())], 13),
    ] {
        assert_eq!(world.seen(1000, &describe(&[], &filters, None, None)).0.len(), found, "{filters:?}");
    }
    for (request, code) in [
        (describe(&[], &[("colour", "blue")], None, None), "InvalidParameterValue"),
        (describe(&[], &[], Some(4), None), "InvalidParameterValue"),
        (describe(&[], &[], Some(1001), None), "InvalidParameterValue"),
        (describe(&["eni-0"], &[], Some(5), None), "InvalidParameterCombination"),
        (describe(&["eni-0"], &[], None, None), "InvalidNetworkInterfaceID.NotFound"),
        (describe(&[], &[], None, Some("x".to_owned())), "InvalidNextToken"),
    ] {
        assert_eq!(world.code(1000, &request), code, "{request:?}");
    }
}

#[test]
fn tags_come_late_or_early() {
    let mut world = world();
    let eni = world.new_eni(0).id;
    let tag = |id: &str, key: &str| Request::CreateTags {
        resources: vec![id.to_owned()],
        tags: BTreeMap::from([(key.to_owned(), "1".to_owned())]),
    };
    assert_eq!(world.code(0, &tag(&eni, "a")), "Done");
    assert_eq!(world.code(0, &tag(&eni, "aws:a")), "InvalidParameterValue");
    assert_eq!(world.code(0, &tag("eni-0", "a")), "InvalidNetworkInterfaceID.NotFound");
    assert_eq!(world.code(0, &tag("what", "a")), "InvalidID");
    for key in 0..49 {
        world.call(0, &tag(&eni, &format!("k{key}"))).unwrap();
    }
    assert_eq!(world.code(0, &tag(&eni, "b")), "TagLimitExceeded");
    assert_eq!(world.eni(0, &eni).unwrap().tags.len(), 50);
}

#[test]
fn instances_and_types_are_described() {
    let mut world = world();
    let Ok(Answer::Instances(list)) = world.call(0, &Request::DescribeInstances { ids: vec![] }) else { panic!() };
    assert_eq!((list.len(), list[0].enis.len(), list[0].kind.as_str()), (1, 1, "m5.large"));
    assert_eq!(
        world.code(0, &Request::DescribeInstances { ids: vec!["i-0".to_owned()] }),
        "InvalidInstanceID.NotFound"
    );
    let types = |kind: &str| Request::DescribeInstanceTypes { types: vec![kind.to_owned()] };
    let Ok(Answer::InstanceTypes(list)) = world.call(0, &types("p4d.24xlarge")) else { panic!() };
    assert_eq!(list[0].enis, 60);
    assert_eq!(world.code(0, &types("x0.none")), "InvalidInstanceType");
    let subnet = world.subnet.clone();
    assert_eq!(world.model.run_instance(0, "x0.none", &subnet).unwrap_err().code, "InvalidParameterValue");
}
