//! An operator changes the instance's security groups: every ENI of ours follows, one of somebody else does not.
//!
//! The kind: facts of the instance that were read once.

use std::time::Duration;

use enid_tests::{Daemon, Place, wait_until};
use vpclab::ec2::{Eni, first};

use crate::{BOUND, add, lab};

/// A list is believed after two readings, 30 s apart, and followed within five minutes.
const FOLLOWED: Duration = Duration::from_secs(30 + 30 + 300 + 60);

#[test]
fn enis_follow_the_groups_of_the_primary() {
    let lab = lab("groups");
    let place = Place::node(&lab, 0);
    let instance = &lab.node(0).instance_id;
    let here = || -> Vec<Eni> {
        let enis = lab.enis().unwrap();
        enis.into_iter().filter(|eni| eni.attachment.as_ref().is_some_and(|it| it.instance_id == *instance)).collect()
    };
    let primary = || here().into_iter().find(|eni| eni.attachment.as_ref().is_some_and(|it| it.is_primary())).unwrap();
    let before = primary().groups;
    // An ENI of somebody else, at the last place; without its tag it would be one of ours (MANAGE_UNTAGGED_ENI).
    let subnet = primary().subnet_id;
    let created =
        lab.ec2("CreateNetworkInterface", &[("SubnetId", &subnet), ("SecurityGroupId.1", "sg-0fore1gn")]).unwrap();
    let foreign = first(&created, "networkInterfaceId").unwrap();
    let not_ours = [
        ("ResourceId.1", foreign.as_str()),
        ("Tag.1.Key", "node.k8s.amazonaws.com/no_manage"),
        ("Tag.1.Value", "true"),
    ];
    lab.ec2("CreateTags", &not_ours).unwrap();
    let attach = [("NetworkInterfaceId", foreign.as_str()), ("InstanceId", instance), ("DeviceIndex", "2")];
    lab.ec2("AttachNetworkInterface", &attach).unwrap();
    let daemon = Daemon::start(place, &[("MINIMUM_IP_TARGET", "12")]).unwrap();
    let _pods = add(place, 0, "pod", 10);
    wait_until(BOUND, || here().len() == 3).unwrap_or_else(|_| panic!("{}", daemon.log()));
    let ours = || {
        let found = here().into_iter().find(|eni| eni.id != foreign && eni.id != primary().id);
        found.unwrap_or_else(|| panic!("{:?} {}", here(), daemon.log()))
    };
    assert_eq!(ours().groups, before);

    let groups = ["sg-0aaaaaaaaaaaaaaa1", "sg-0aaaaaaaaaaaaaaa2"];
    let set = [("SecurityGroupId.1", groups[0]), ("SecurityGroupId.2", groups[1])];
    let id = primary().id;
    let set = [&[("NetworkInterfaceId", id.as_str())], &set[..]].concat();
    lab.ec2("ModifyNetworkInterfaceAttribute", &set).unwrap();
    wait_until(FOLLOWED, || ours().groups == groups).unwrap_or_else(|_| panic!("{:?}: {}", ours(), daemon.log()));
    let all = lab.enis().unwrap();
    let of_foreign = all.iter().find(|eni| eni.id == foreign);
    assert_eq!(of_foreign.map(|eni| &eni.groups[..]), Some(&["sg-0fore1gn".to_owned()][..]), "{all:?}");
    let told = lab.ec2_counts().unwrap()["ModifyNetworkInterfaceAttribute"].calls;
    // An ENI that is made from now on has them from the beginning.
    assert!(place.enid("status").unwrap()["ready"] == true && told <= 4, "{told} calls");
}
