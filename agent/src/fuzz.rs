//! What the daemon reads from outside, fed with corrupted input: instance metadata, EC2's answers,
//! network configurations. What breaks is kept by proptest and tried first from then on.

use std::collections::BTreeMap;

use aws_sdk_ec2::types::{
    Ipv4PrefixSpecification, NetworkInterface, NetworkInterfaceAttachment, NetworkInterfacePrivateIpAddress, Tag,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{aws::ec2, aws::imds, runtime::conflist};

/// Texts that look right, nearly right, and not at all.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[0-9]{1,3}\\.[0-9]{1,3}\\.[0-9]{1,3}\\.[0-9]{1,3}(/[0-9]{1,3})?",
        "10\\.0\\.[0-9]{1,2}\\.[0-9]{1,2}(/(28|0|33))?",
        "(10\\.0\\.1\\.[0-9]{1,2}\n){0,4}",
        "[0-9]{0,12}",
        "eni-[0-9a-f]{0,20}",
        "([0-9a-f]{2}:){0,7}[0-9a-f]{0,2}",
        any::<String>(),
    ]
}

fn json_value() -> impl Strategy<Value = Value> {
    let word = prop_oneof![
        prop::sample::select(vec!["enid-cni", "type", "portmap", "1.0.0", "enid", "plugins"]).prop_map(str::to_owned),
        any::<String>(),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        word.prop_map(Value::from)
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        let key = prop::sample::select(vec!["name", "cniVersion", "plugins", "type", "x"]).prop_map(str::to_owned);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key, inner, 0..5).prop_map(|map| json!(map)),
        ]
    })
}

fn interface() -> impl Strategy<Value = NetworkInterface> {
    let address = (prop::option::of(text()), prop::option::of(any::<bool>())).prop_map(|(address, primary)| {
        NetworkInterfacePrivateIpAddress::builder().set_private_ip_address(address).set_primary(primary).build()
    });
    let prefix =
        prop::option::of(text()).prop_map(|net| Ipv4PrefixSpecification::builder().set_ipv4_prefix(net).build());
    let tag = (prop::option::of(text()), prop::option::of(text()))
        .prop_map(|(key, value)| Tag::builder().set_key(key).set_value(value).build());
    let attachment = (prop::option::of(text()), prop::option::of(any::<i32>()), prop::option::of(any::<bool>()))
        .prop_map(|(id, index, goes)| {
            NetworkInterfaceAttachment::builder()
                .set_attachment_id(id)
                .set_device_index(index)
                .set_delete_on_termination(goes)
                .build()
        });
    (
        prop::option::of(text()),
        prop::option::of(attachment),
        prop::collection::vec(address, 0..4),
        prop::collection::vec(prefix, 0..3),
        prop::collection::vec(tag, 0..3),
    )
        .prop_map(|(id, attachment, addresses, prefixes, tags)| {
            NetworkInterface::builder()
                .set_network_interface_id(id)
                .set_attachment(attachment)
                .set_private_ip_addresses(Some(addresses))
                .set_ipv4_prefixes(Some(prefixes))
                .set_tag_set(Some(tags))
                .build()
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn metadata_is_read_or_refused(mac in text(), texts in prop::collection::vec(prop::option::of(text()), imds::KEYS.len())) {
        let texts: BTreeMap<&'static str, String> =
            imds::KEYS.into_iter().zip(texts).filter_map(|(key, text)| Some((key, text?))).collect();
        match imds::facts(&mac, &texts) {
            // A block is never larger than what EC2 gives: a few bytes of metadata must not mean millions of addresses.
            Ok(imds::Shown::Whole(eni)) => prop_assert!(eni.blocks.iter().all(|net| net.prefix_len() >= 28)),
            Ok(imds::Shown::Addressless(_) | imds::Shown::InPart) => {}
            Err(refusal) => prop_assert!(!refusal.to_string().is_empty()),
        }
    }

    #[test]
    fn answers_of_ec2_are_read_or_left_out(eni in interface()) {
        if let Some(seen) = ec2::audited(&eni, "i-1") {
            prop_assert!(seen.blocks.iter().all(|net| net.prefix_len() >= 28));
        }
    }

    #[test]
    fn configurations_are_taken_or_refused(value in json_value()) {
        let _ = conflist::others(Some(&value));
        if let Ok(list) = conflist::checked(value.to_string().as_bytes()) {
            prop_assert!(list["name"].is_string() && list["plugins"].is_array());
        }
    }
}
