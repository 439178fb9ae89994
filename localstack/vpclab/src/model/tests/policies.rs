//! The policies of charts/iam against all that a daemon asks of EC2: each right is needed, and there is none besides.

use super::*;

const CLUSTER: &str = "one";

fn policy(name: &str) -> Policy {
    let path = format!("{}/../../charts/iam/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap().replace("CLUSTER_NAME", CLUSTER)).unwrap()
}

fn tag(key: &str, value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(key.to_owned(), value.to_owned())])
}

/// One call of each kind, about an ENI of the cluster on an instance of it.
fn calls(world: &mut World, of: &str) -> Vec<Request> {
    let tags = tag("cluster.k8s.amazonaws.com/name", of);
    let owned = tag(&format!("kubernetes.io/cluster/{of}"), "owned");
    let (subnet, instance) = (world.subnet.clone(), world.instance.clone());
    world.call(0, &Request::CreateTags { resources: vec![instance.clone()], tags: owned }).unwrap();
    let mut made = create(&subnet);
    if let Request::CreateNetworkInterface { tags: given, groups, .. } = &mut made {
        given.clone_from(&tags);
        groups.push("sg-1".to_owned());
    }
    let Answer::Interface(EniTruth { id: eni, .. }) = world.call(0, &made).unwrap() else { panic!("no ENI") };
    let attach = Request::AttachNetworkInterface { eni: eni.clone(), instance, device_index: 1, card: None };
    let Answer::Attached { attachment, .. } = world.call(5000, &attach).unwrap() else { panic!("not attached") };
    let modify = |attachment: Option<&String>, groups: Option<Vec<String>>| Request::ModifyNetworkInterfaceAttribute {
        eni: eni.clone(),
        attachment: attachment.cloned(),
        delete_on_termination: attachment.map(|_| true),
        groups,
    };
    vec![
        made,
        attach,
        modify(Some(&attachment), None),
        modify(None, Some(vec!["sg-1".to_owned()])),
        assign(&eni, Some(1), None),
        Request::UnassignPrivateIpAddresses { eni: eni.clone(), addresses: vec![], prefixes: vec![] },
        Request::AssignIpv6Addresses { eni: eni.clone(), count: None, prefix_count: Some(1) },
        Request::UnassignIpv6Addresses { eni: eni.clone(), addresses: vec![], prefixes: vec![] },
        Request::DetachNetworkInterface { attachment, force: false },
        Request::DeleteNetworkInterface { eni: eni.clone() },
        Request::CreateTags { resources: vec![eni.clone()], tags },
        describe(&[], &[], None, None),
        Request::DescribeSubnets { ids: vec![], filters: vec![] },
        Request::DescribeInstanceTypes { types: vec!["m5.large".to_owned()] },
    ]
}

/// Which of the calls a policy refuses.
fn refused<'a>(world: &World, policy: &Policy, calls: &'a [Request]) -> Vec<&'a str> {
    let is_refused = |call: &&Request| world.model.accesses(call).iter().any(|access| !policy.allows(access));
    calls.iter().filter(is_refused).map(Request::action).collect()
}

#[test]
fn each_right_of_each_policy_is_needed_and_no_other() {
    for name in ["full", "cluster"] {
        let mut world = world();
        let (policy, calls) = (policy(name), calls(&mut world, CLUSTER));
        assert_eq!(refused(&world, &policy, &calls), Vec::<&str>::new(), "{name}");
        for (at, statement) in policy.statements.iter().enumerate() {
            for action in &statement.action.0 {
                let mut less = policy.clone();
                less.statements[at].action.0.retain(|kept| kept != action);
                assert!(
                    !refused(&world, &less, &calls).is_empty(),
                    "{name}: nobody needs {action} of {}",
                    statement.sid
                );
            }
            for resource in &statement.resource.0 {
                let mut less = policy.clone();
                less.statements[at].resource.0.retain(|kept| kept != resource);
                assert!(
                    !refused(&world, &less, &calls).is_empty(),
                    "{name}: nobody needs {resource} of {}",
                    statement.sid
                );
            }
        }
    }
}

#[test]
fn the_policy_of_a_cluster_lets_nobody_touch_another_ones() {
    let mut world = world();
    let calls = calls(&mut world, "another");
    let refused = refused(&world, &policy("cluster"), &calls);
    let reads = ["DescribeNetworkInterfaces", "DescribeSubnets", "DescribeInstanceTypes"];
    let changes: Vec<&str> = calls.iter().map(Request::action).filter(|action| !reads.contains(action)).collect();
    assert_eq!(refused, changes);
}
