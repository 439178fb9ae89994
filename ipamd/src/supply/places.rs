//! Where new ENIs are created, and which of those that there are get new pods.
//!
//! The rules and the tags are the peer's: ENIConfig (`crd.k8s.amazonaws.com/v1alpha1`), and subnets of the node's zone that
//! carry the tag `kubernetes.io/role/cni`. What the peer looks at when it starts is looked at here whenever it changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    kind::Kind,
    policy::{Placement, Policy, Second},
    subnets::Subnets,
};
use crate::{
    cause::{Cause, Refusal},
    groups::List,
    ids::{Millis, SubnetId},
};

/// A list of subnets is good for so long where an ENI is to be created: what is tagged anew counts within a minute.
const FRESH_MS: u64 = 60_000;
/// Where nothing is created it is listed again after this long, for the ENIs that are there: twelve times a day.
const AGAIN_MS: u64 = 2 * 3_600_000;
/// A list that EC2 refuses is asked for again after this long: rights may come, and go.
const REFUSED_MS: u64 = 300_000;
/// The tag that says what a subnet is for.
const TAG_ROLE: &str = "kubernetes.io/role/cni";
/// Its value that keeps ENIs out.
const EXCLUDED: &str = "0";
/// The tags that say which clusters a subnet is kept for begin so.
const TAG_CLUSTER: &str = "cni.networking.k8s.aws/cluster/";

/// A subnet as EC2 lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetFacts {
    /// Its free addresses.
    pub free: u64,
    /// It has a range of IPv6.
    pub v6: bool,
    /// The value of its tag `kubernetes.io/role/cni`.
    pub role: Option<String>,
    /// The clusters that it is kept for: its tags `cni.networking.k8s.aws/cluster/NAME`.
    pub clusters: BTreeSet<String>,
}

impl SubnetFacts {
    /// A subnet with so many free addresses and these tags; `v6`: and with a range of IPv6.
    pub fn new<'a>(free: u64, v6: bool, tags: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut facts = SubnetFacts { free, v6, ..SubnetFacts::default() };
        for (key, value) in tags {
            if key == TAG_ROLE {
                facts.role = Some(value.to_owned());
            } else if let Some(cluster) = key.strip_prefix(TAG_CLUSTER) {
                facts.clusters.insert(cluster.to_owned());
            }
        }
        facts
    }
}

/// What a node's ENIConfig asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EniConfig {
    /// Its name.
    pub name: String,
    /// Where pods' ENIs are created.
    pub subnet: SubnetId,
    /// Their security groups; none: those of the primary ENI.
    pub groups: BTreeSet<String>,
}

/// Where an ENI is created.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Home {
    /// The subnet; `None`: that of the primary ENI.
    #[serde(default)]
    pub subnet: Option<SubnetId>,
    /// Its security groups; none: those that EC2 chooses.
    #[serde(default)]
    pub groups: Arc<BTreeSet<String>>,
}

/// An ENI as far as its place goes.
#[derive(Clone, Copy)]
pub(crate) struct Placed<'a> {
    /// Its subnet.
    pub(crate) subnet: &'a SubnetId,
    /// Its security groups; none: they are not known.
    pub(crate) groups: &'a BTreeSet<String>,
    /// It is the instance's first one.
    pub(crate) is_primary: bool,
    /// New pods get no address of it now.
    pub(crate) excluded: bool,
}

/// What is known of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Places {
    /// The subnets of the node's zone, and when EC2 listed them.
    listed: Option<(Arc<BTreeMap<SubnetId, SubnetFacts>>, Millis)>,
    /// When EC2 refused to list them, and why.
    refused: Option<(Millis, Refusal)>,
    /// The node's ENIConfig, or why there is none.
    config: Option<Result<Arc<EniConfig>, Arc<str>>>,
}

impl Places {
    /// EC2 has listed the subnets of the node's zone.
    pub(crate) fn list(&mut self, now: Millis, subnets: BTreeMap<SubnetId, SubnetFacts>) {
        self.listed = Some((Arc::new(subnets), now));
        self.refused = None;
    }

    /// EC2 refuses to list them, and will again.
    pub(crate) fn unlisted(&mut self, now: Millis, refusal: Refusal) {
        self.refused = Some((now, refusal));
    }

    /// Whether it has refused that lately.
    fn is_refused(&self, now: Millis) -> bool {
        self.refused.as_ref().is_some_and(|(at, _)| now.since(*at) < REFUSED_MS)
    }

    /// Why it has refused that the last time.
    pub(crate) fn refusal(&self) -> Option<&Refusal> {
        self.refused.as_ref().map(|(_, refusal)| refusal)
    }

    /// What the API server says of the node's ENIConfig.
    pub(crate) fn configure(&mut self, config: Result<EniConfig, String>) {
        self.config = Some(config.map(Arc::new).map_err(Arc::from));
    }

    /// Whether EC2 has to list the subnets before anything can be said of one.
    pub(crate) fn is_unknown(&self, now: Millis, policy: &Policy) -> bool {
        matches!(policy.placement, Placement::Tagged { .. }) && self.listed.is_none() && !self.is_refused(now)
    }

    /// Whether EC2 has to list them before an ENI is created.
    pub(crate) fn is_stale(&self, now: Millis, policy: &Policy) -> bool {
        let is_old = || self.listed.as_ref().is_none_or(|(_, at)| now.since(*at) >= FRESH_MS);
        matches!(policy.placement, Placement::Tagged { .. }) && !self.is_refused(now) && is_old()
    }

    /// When it is listed again although nothing is created.
    pub(crate) fn next_listing(&self, policy: &Policy) -> Option<Millis> {
        let again = self.listed.as_ref().map(|(_, at)| at.plus(AGAIN_MS));
        let refused = self.refused.as_ref().map(|(at, _)| at.plus(REFUSED_MS));
        again.max(refused).filter(|_| matches!(policy.placement, Placement::Tagged { .. }))
    }

    /// Where an ENI may be created, the best place first; `of_primary`: the primary's subnet and groups.
    pub(crate) fn homes(
        &self,
        now: Millis,
        policy: &Policy,
        subnets: &Subnets,
        of_primary: (&SubnetId, &List),
    ) -> Result<Vec<Home>, Refusal> {
        let (primary, groups) = of_primary;
        let home = |subnet: Option<&SubnetId>, groups: &List| Home { subnet: subnet.cloned(), groups: groups.clone() };
        match &policy.placement {
            Placement::Primary => Ok(vec![home(None, groups)]),
            Placement::Tagged { cluster } => {
                let Some((listed, _)) = &self.listed else { return Ok(vec![home(None, groups)]) };
                let needs_v6 = policy.second == Second::V6OfEni || policy.kind == Kind::V6Prefix;
                let lacks = |id: &SubnetId| subnets.get(id).map(|it| (it.is_full(now), it.has_no_prefix(now)));
                let mut usable: Vec<(&SubnetId, u64)> = listed
                    .iter()
                    .filter(|(id, facts)| takes_enis(facts, *id == primary, cluster.as_deref()))
                    .filter(|(_, facts)| facts.v6 || !needs_v6)
                    .map(|(id, facts)| (id, facts.free))
                    .collect();
                usable.sort_by_key(|(id, free)| (lacks(id).unwrap_or_default(), std::cmp::Reverse(*free)));
                if usable.is_empty() {
                    let message = "no subnet of the node's zone may be used: none is tagged kubernetes.io/role/cni=1 for this \
                                   cluster and has the families of its pods, and the node's own is excluded";
                    return Err(Refusal::new(Cause::NoSubnet, message));
                }
                Ok(usable.into_iter().map(|(id, _)| home(Some(id), groups)).collect())
            }
            Placement::EniConfig => match &self.config {
                Some(Ok(config)) if config.groups.is_empty() => Ok(vec![home(Some(&config.subnet), groups)]),
                Some(Ok(config)) => Ok(vec![home(Some(&config.subnet), &Arc::new(config.groups.clone()))]),
                Some(Err(why)) => Err(Refusal::new(Cause::NoEniConfig, why.to_string())),
                None => Err(Refusal::new(Cause::Starting, "the node's ENIConfig has not been read yet")),
            },
        }
    }

    /// Whether new pods get no addresses of this ENI: it is in a subnet, or has security groups, that a new ENI would not
    /// have. Where that is not known, it is as before.
    pub(crate) fn excludes(&self, policy: &Policy, eni: Placed<'_>, primary: &SubnetId, groups: &List) -> bool {
        let subnet = eni.subnet;
        match &policy.placement {
            Placement::Primary => false,
            Placement::Tagged { cluster } => {
                let facts = self.listed.as_ref().and_then(|(listed, _)| listed.get(subnet));
                facts.is_some_and(|facts| is_excluded(facts, subnet == primary, cluster.as_deref()))
            }
            Placement::EniConfig => match &self.config {
                _ if eni.is_primary => true,
                Some(Ok(config)) => {
                    let wanted = if config.groups.is_empty() { groups.as_ref() } else { &config.groups };
                    let other_groups = !config.groups.is_empty() && !eni.groups.is_empty() && eni.groups != wanted;
                    *subnet != config.subnet || other_groups
                }
                _ => eni.excluded,
            },
        }
    }

    /// Whether an ENI of ours in a subnet has the primary's security groups and follows their changes.
    pub(crate) fn follows_primary(&self, policy: &Policy, subnet: &SubnetId, primary: &SubnetId) -> bool {
        match &policy.placement {
            Placement::Tagged { cluster } if subnet != primary => {
                let facts = self.listed.as_ref().and_then(|(listed, _)| listed.get(subnet));
                facts.is_some_and(|facts| takes_enis(facts, false, cluster.as_deref()))
            }
            Placement::EniConfig => {
                let config = self.config.as_ref().and_then(|config| config.as_ref().ok());
                config.is_some_and(|config| config.groups.is_empty() && *subnet == config.subnet)
            }
            _ => subnet == primary,
        }
    }
}

/// Whether the tags of a subnet say that ENIs may be created there.
fn takes_enis(facts: &SubnetFacts, is_primary: bool, cluster: Option<&str>) -> bool {
    match facts.role.as_deref().filter(|role| !role.is_empty()) {
        None => is_primary,
        Some(EXCLUDED) => false,
        Some(_) => is_for(facts, cluster),
    }
}

/// Whether they say that ENIs which are there serve no new pods.
fn is_excluded(facts: &SubnetFacts, is_primary: bool, cluster: Option<&str>) -> bool {
    match facts.role.as_deref().filter(|role| !role.is_empty()) {
        None => false,
        Some(EXCLUDED) => true,
        Some(_) => !is_primary && !is_for(facts, cluster),
    }
}

/// Whether a subnet is kept for no other cluster.
fn is_for(facts: &SubnetFacts, cluster: Option<&str>) -> bool {
    facts.clusters.is_empty() || cluster.is_none_or(|cluster| facts.clusters.contains(cluster))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The peer's table: (role, clusters, whether it is the primary's) -> (takes new ENIs, excluded).
    #[test]
    fn the_tags_mean_what_they_mean_to_the_peer() {
        let keys = [("kubernetes.io/role/cni", "1"), ("cni.networking.k8s.aws/cluster/mine", ""), ("Name", "x")];
        let facts =
            SubnetFacts { free: 3, v6: true, role: Some("1".into()), clusters: BTreeSet::from(["mine".to_owned()]) };
        assert_eq!(SubnetFacts::new(3, true, keys), facts);
        type Row<'a> = (Option<&'a str>, &'a [&'a str], bool, (bool, bool));
        let rows: [Row<'_>; 10] = [
            (None, &[], true, (true, false)),
            (None, &["other"], true, (true, false)),
            (Some(""), &[], true, (true, false)),
            (None, &[], false, (false, false)),
            (Some("0"), &[], true, (false, true)),
            (Some("0"), &["mine"], false, (false, true)),
            (Some("1"), &[], false, (true, false)),
            (Some("yes"), &["mine", "other"], false, (true, false)),
            (Some("1"), &["other"], false, (false, true)),
            (Some("1"), &["other"], true, (false, false)),
        ];
        for (role, clusters, is_primary, expected) in rows {
            let clusters: BTreeSet<String> = clusters.iter().map(|name| (*name).to_owned()).collect();
            let facts = SubnetFacts { free: 9, v6: false, role: role.map(str::to_owned), clusters };
            let found = (takes_enis(&facts, is_primary, Some("mine")), is_excluded(&facts, is_primary, Some("mine")));
            assert_eq!(found, expected, "{facts:?}, primary {is_primary}");
        }
        let others =
            SubnetFacts { free: 9, v6: false, role: Some("1".into()), clusters: BTreeSet::from(["other".to_owned()]) };
        assert!(takes_enis(&others, false, None), "without a CLUSTER_NAME nothing is kept for others");
    }
}
