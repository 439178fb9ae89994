//! The node's ENIConfig: in which subnet, and with which security groups, ENIs for its pods are created. Kind and fields are
//! those of Amazon's VPC CNI.

use std::collections::BTreeSet;

use enid_ipamd::{EniConfig, Event as Told, SubnetId};
use kube::{Api, CustomResource, runtime::watcher::Event};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{
    follow::{Faults, Follow, Sink},
    node::{EniConfigName, Own},
};
use crate::core::handle::Handle;

/// What an ENIConfig asks for.
#[derive(CustomResource, Clone, Debug, Serialize, Deserialize)]
#[kube(
    group = "crd.k8s.amazonaws.com",
    version = "v1alpha1",
    kind = "ENIConfig",
    plural = "eniconfigs",
    schema = "disabled"
)]
#[serde(rename_all = "camelCase")]
pub struct ENIConfigSpec {
    /// The subnet's id.
    #[serde(default)]
    subnet: String,
    /// Ids of security groups; none: those of the primary ENI.
    #[serde(default)]
    security_groups: Vec<String>,
}

/// Tells the core what the ENIConfig says that the node names, whichever that is at a time.
pub async fn tell(
    api: Api<ENIConfig>,
    mut own: watch::Receiver<Option<Own>>,
    handle: Handle,
    faults: watch::Sender<Faults>,
) {
    loop {
        let wanted = own.borrow_and_update().as_ref().map(|own| own.eni_config.clone());
        let before = wanted.clone();
        let followed = async {
            let Some(wanted) = wanted else { return std::future::pending().await };
            let fields = format!("metadata.name={}", wanted.name);
            let follow = Follow { api: api.clone(), fields, what: "eniconfigs", faults: faults.clone() };
            follow.into(Teller { handle: handle.clone(), wanted, config: None, listed: None }).await;
        };
        let is_news = |own: &Option<Own>| own.as_ref().map(|own| &own.eni_config) != before.as_ref();
        tokio::select! {
            () = followed => {}
            changed = own.wait_for(is_news) => if changed.is_err() {
                return;
            },
        }
    }
}

struct Teller {
    handle: Handle,
    wanted: EniConfigName,
    config: Option<ENIConfigSpec>,
    /// It is being listed anew.
    listed: Option<ENIConfigSpec>,
}

impl Sink<ENIConfig> for Teller {
    fn take(&mut self, event: Event<ENIConfig>) {
        match event {
            Event::Init => self.listed = None,
            Event::InitApply(config) => self.listed = Some(config.spec),
            Event::InitDone => self.config = self.listed.take(),
            Event::Apply(config) => self.config = Some(config.spec),
            Event::Delete(_) => self.config = None,
        }
    }

    async fn tell(&mut self) {
        let config = read(&self.wanted, self.config.as_ref());
        self.handle.tell(Told::EniConfig { config }).await;
    }

    /// What was read before stays.
    async fn refused(&mut self, why: &str) {
        if self.config.is_none() {
            let EniConfigName { name, named_by } = &self.wanted;
            let config = Err(format!("the ENIConfig {name:?}, {named_by}, cannot be read: {why}"));
            self.handle.tell(Told::EniConfig { config }).await;
        }
    }
}

/// What the core is told.
fn read(wanted: &EniConfigName, config: Option<&ENIConfigSpec>) -> Result<EniConfig, String> {
    let EniConfigName { name, named_by } = wanted;
    let Some(spec) = config else { return Err(format!("there is no ENIConfig {name:?}, {named_by}")) };
    let subnet = spec.subnet.trim();
    if !subnet.starts_with("subnet-") {
        return Err(format!(
            "the subnet of the ENIConfig {name:?} is {subnet:?}; allowed: an id such as subnet-0a1b2c3d"
        ));
    }
    let groups: BTreeSet<String> = spec.security_groups.iter().map(|group| group.trim().to_owned()).collect();
    if let Some(group) = groups.iter().find(|group| !group.starts_with("sg-")) {
        return Err(format!(
            "a security group of the ENIConfig {name:?} is {group:?}; allowed: ids such as sg-0a1b2c3d"
        ));
    }
    Ok(EniConfig { name: name.clone(), subnet: SubnetId(subnet.into()), groups })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_eniconfig_says() {
        let wanted = EniConfigName { name: "zone-a".into(), named_by: "which the node's label x names".into() };
        let of = |text: &str| read(&wanted, serde_json::from_str(text).ok().as_ref());
        let full = of(r#"{ "subnet": "subnet-1", "securityGroups": ["sg-2", "sg-1"], "more": 1 }"#).unwrap();
        assert_eq!((&*full.subnet.0, full.groups.len()), ("subnet-1", 2));
        assert!(of(r#"{ "subnet": "subnet-1" }"#).unwrap().groups.is_empty());
        for (text, words) in [
            ("", "there is no ENIConfig \"zone-a\", which the node's label x names"),
            ("{}", "the subnet of the ENIConfig \"zone-a\" is \"\"; allowed: an id such as subnet-0a1b2c3d"),
            (
                r#"{ "subnet": "subnet-1", "securityGroups": ["web"] }"#,
                "a security group of the ENIConfig \"zone-a\" is \"web\"",
            ),
        ] {
            let refused = of(text).unwrap_err();
            assert!(refused.starts_with(words), "{refused}");
        }
    }
}
