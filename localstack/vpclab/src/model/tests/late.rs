//! What comes late, goes wrong or is left to chance.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

#[test]
fn ec2_shows_changes_late() {
    let lag = Options { ec2_lag_ms: (2000, 2000), ..Options::default() };
    let mut world = world_of(lag, "m5.large", "10.0.1.0/24");
    let eni = world.new_eni(0).id;
    assert_eq!(world.code(1999, &describe(&[&eni], &[], None, None)), "InvalidNetworkInterfaceID.NotFound");
    assert_eq!(world.attach(1999, &eni, 1, 0).unwrap_err(), "InvalidNetworkInterfaceID.NotFound");
    world.attach(2000, &eni, 1, 0).unwrap();
    world.call(2000, &assign(&eni, Some(3), None)).unwrap();
    let seen = |world: &mut World, now| world.seen(now, &describe(&[&eni], &[], None, None)).0.remove(0);
    assert_eq!(seen(&mut world, 3999).addresses.len(), 1);
    assert_eq!((seen(&mut world, 4000).addresses.len(), seen(&mut world, 4000).status.as_str()), (4, "in-use"));
    let attachment = seen(&mut world, 8000).attachment.unwrap();
    assert_eq!(attachment.status, AttachmentStatus::Attached);
    world.detach(8000, &attachment.id);
    assert_eq!(world.delete(11000, &eni), "Done");
    // It has gone, and is still shown; what EC2 does about it goes by the truth.
    assert_eq!(seen(&mut world, 12999).id, eni);
    assert_eq!(world.delete(12999, &eni), "InvalidNetworkInterfaceID.NotFound");
    assert_eq!(world.code(13000, &describe(&[&eni], &[], None, None)), "InvalidNetworkInterfaceID.NotFound");
}

#[test]
fn what_has_gone_leaves_nothing_behind() {
    let lag = Options { ec2_lag_ms: (0, 5000), imds_lag_ms: (0, 5000), ..Options::default() };
    let mut world = world_of(lag, "m5.large", "10.0.1.0/24");
    let mut now = 0;
    for _ in 0..20 {
        let eni = world.new_eni(now).id;
        let attachment = world.attach(now + 5000, &eni, 1, 0).unwrap();
        assert_eq!(world.detach(now + 10_000, &attachment), "Done");
        assert_eq!(world.delete(now + 15_000, &eni), "Done");
        now += 20_000;
    }
    world.model.advance(now + 5000);
    let left =
        (world.model.ec2.len(), world.model.metadata.len(), world.model.metadata_instance.len(), world.model.due.len());
    assert_eq!(left, (1, 1, 1, 0));
}

#[test]
fn metadata_follows_late() {
    let lag = Options { imds_lag_ms: (1000, 1000), attach_ms: (2000, 2000), ..Options::default() };
    let mut world = world_of(lag, "m5.large", "10.0.1.0/24");
    let instance = world.instance.clone();
    assert_eq!(world.model.imds(0, &instance).len(), 1);
    let eni = world.new_eni(0).id;
    let attachment = world.attach(0, &eni, 1, 0).unwrap();
    assert_eq!(world.model.imds(2999, &instance).len(), 1);
    assert_eq!(world.model.imds(3000, &instance).len(), 2);
    world.call(3000, &assign(&eni, None, Some(2))).unwrap();
    let prefixes = |world: &mut World, now| -> usize {
        world.model.imds(now, &instance).iter().map(|eni| eni.prefixes.len()).sum()
    };
    assert_eq!((prefixes(&mut world, 3999), prefixes(&mut world, 4000)), (0, 2));
    world.detach(4000, &attachment);
    assert_eq!(world.model.imds(6999, &instance).len(), 2);
    world.model.faults_mut().imds_stale = true;
    assert_eq!(world.model.imds(9000, &instance).len(), 2);
    world.model.faults_mut().imds_stale = false;
    assert_eq!(world.model.imds(9000, &instance).len(), 1);
}

#[test]
fn partial_metadata_lacks_something_but_never_a_primary() {
    let mut world = world();
    let instance = world.instance.clone();
    let eni = world.new_eni(0).id;
    world.attach(0, &eni, 1, 0).unwrap();
    world.call(0, &assign(&eni, Some(3), None)).unwrap();
    world.call(0, &assign(&eni, None, Some(1))).unwrap();
    let complete = world.model.imds(5000, &instance);
    world.model.faults_mut().imds_partial = 1.0;
    let size = |list: &[ImdsEni]| list.iter().map(|eni| eni.addresses.len() + eni.prefixes.len()).sum::<usize>();
    for _ in 0..50 {
        let list = world.model.imds(5000, &instance);
        assert!(size(&list) < size(&complete));
        assert!(list.iter().any(|eni| eni.device_index == 0));
        let same_primary = |eni: &ImdsEni| complete.iter().any(|old| old.addresses[0] == eni.addresses[0]);
        assert!(list.iter().all(same_primary));
    }
}

#[test]
fn faults_hit_the_calls_they_name() {
    let mut world = world();
    let subnet = world.subnet.clone();
    let action = "CreateNetworkInterface".to_owned();
    let count = |world: &World| world.model.enis(0).len();
    world.model.faults_mut().lose_answer.insert(action.clone(), 1.0);
    assert_eq!((world.code(0, &create(&subnet)), count(&world)), ("Lost".to_owned(), 2));
    *world.model.faults_mut() = Faults { lose_request: BTreeMap::from([(action.clone(), 1.0)]), ..Faults::default() };
    assert_eq!((world.code(0, &create(&subnet)), count(&world)), ("Lost".to_owned(), 2));
    *world.model.faults_mut() = Faults { down: true, ..Faults::default() };
    assert_eq!((world.code(0, &create(&subnet)), count(&world)), ("Lost".to_owned(), 2));
    *world.model.faults_mut() =
        Faults { fail: BTreeMap::from([(action.clone(), (1.0, "Unavailable".to_owned()))]), ..Faults::default() };
    let error = world.call(0, &create(&subnet)).unwrap_err();
    assert_eq!((error.code.as_str(), error.status, count(&world)), ("Unavailable", 503, 2));
    *world.model.faults_mut() = Faults { deny_untagged_create: true, ..Faults::default() };
    assert_eq!(world.code(0, &create(&subnet)), "UnauthorizedOperation");
    *world.model.faults_mut() = Faults { deny: BTreeSet::from([action.clone()]), ..Faults::default() };
    assert_eq!(world.code(0, &create(&subnet)), "UnauthorizedOperation");
    *world.model.faults_mut() = Faults { partial_assign: 1.0, ..Faults::default() };
    let eni = world.new_eni(0).id;
    let Ok(Answer::Assigned { addresses, .. }) = world.call(0, &assign(&eni, Some(5), None)) else { panic!() };
    assert!((1..5).contains(&addresses.len()));
    let counted = &world.model.counts()[&action];
    assert_eq!((counted.calls, counted.failed, counted.lost, counted.throttled), (7, 3, 3, 0));
}

#[test]
fn calls_are_throttled_and_counted() {
    let mut world = world_of(Options { throttling: true, ..Options::default() }, "m5.large", "10.0.1.0/24");
    let answers: Vec<String> = (0..60).map(|_| world.code(0, &describe(&[], &[], None, None))).collect();
    assert_eq!(answers.iter().filter(|code| *code == "RequestLimitExceeded").count(), 10);
    let counted = &world.model.counts()["DescribeNetworkInterfaces"];
    assert_eq!((counted.calls, counted.throttled, counted.failed), (60, 10, 0));
}

#[test]
fn same_seed_same_story() {
    let story = |seed: u64| {
        let options = Options { seed, ec2_lag_ms: (0, 3000), imds_lag_ms: (0, 3000), ..Options::default() };
        let mut world = world_of(options, "m5.large", "10.0.1.0/24");
        let mut answers = String::new();
        for step in 0..50 {
            let eni = world.new_eni(step * 100).id;
            answers += &format!("{:?}", world.attach(step * 100 + 3000, &eni, 1, 0));
            answers += &format!("{:?}", world.model.imds(step * 100, &world.instance.clone()));
        }
        answers + &format!("{:?}", world.model.enis(10_000))
    };
    assert_eq!(story(1), story(1));
    assert_ne!(story(1), story(2));
}
