//! Describe calls: what EC2 shows, which may be what was.

use std::collections::BTreeSet;

use super::{
    Answer, ApiError, EniTruth, InstanceTruth, Model, SubnetTruth, TypeLimits,
    attach::no_instance,
    eni::{combination, invalid, no_eni, no_subnet, size},
    filter::Filtered,
    types,
};

type Filters = [(String, Vec<String>)];

impl Model {
    /// All ENIs as EC2 shows them now, by id.
    fn shown_enis(&self) -> impl Iterator<Item = &EniTruth> {
        self.ec2.values().filter_map(|shown| shown.at(self.now))
    }

    /// An ENI as EC2 shows it now, if it does.
    pub(super) fn shown_eni(&self, id: &str) -> Option<&EniTruth> {
        self.ec2.get(id).and_then(|shown| shown.at(self.now))
    }

    pub(super) fn describe_enis(
        &mut self,
        ids: &[String],
        filters: &Filters,
        max_results: Option<u32>,
        next_token: Option<&str>,
    ) -> Result<Answer, ApiError> {
        if !ids.is_empty() && max_results.is_some() {
            return Err(combination("MaxResults and network interface IDs do not go together."));
        }
        if max_results.is_some_and(|most| !(5..=1000).contains(&most)) {
            return Err(invalid("MaxResults must be between 5 and 1000."));
        }
        if let Some(missing) = ids.iter().find(|id| self.shown_eni(id).is_none()) {
            return Err(no_eni(missing));
        }
        let after = match next_token {
            Some(token) => {
                let after = token.strip_prefix(PAGE);
                Some(after.ok_or_else(|| ApiError::new("InvalidNextToken", "The token is not one of EC2's."))?)
            }
            None => None,
        };
        let wanted: BTreeSet<&String> = ids.iter().collect();
        let named: Vec<&EniTruth> = wanted.into_iter().filter_map(|id| self.shown_eni(id)).collect();
        let candidates = if ids.is_empty() { self.shown_enis().collect() } else { named };
        let mut list = Vec::new();
        for eni in candidates {
            if after.is_none_or(|after| eni.id.as_str() > after) && eni.matches(filters)? {
                list.push(eni.clone());
            }
        }
        let most = max_results.map_or(usize::MAX, size);
        let more = list.len() > most;
        list.truncate(most);
        let next_token = list.last().filter(|_| more).map(|last| format!("{PAGE}{}", last.id));
        Ok(Answer::Interfaces { list, next_token })
    }

    pub(super) fn describe_subnets(&self, ids: &[String], filters: &Filters) -> Result<Answer, ApiError> {
        if let Some(missing) = ids.iter().find(|id| !self.subnets.contains_key(*id)) {
            return Err(no_subnet(missing));
        }
        let mut list = Vec::new();
        for (id, subnet) in &self.subnets {
            let truth = SubnetTruth {
                id: id.clone(),
                vpc: subnet.vpc.clone(),
                zone: subnet.zone.clone(),
                cidr: subnet.space.cidr,
                ipv6: subnet.space.ipv6,
                available: subnet.space.free(),
                tags: subnet.tags.clone(),
            };
            if (ids.is_empty() || ids.contains(id)) && truth.matches(filters)? {
                list.push(truth);
            }
        }
        Ok(Answer::Subnets(list))
    }

    pub(super) fn describe_instances(&self, ids: &[String]) -> Result<Answer, ApiError> {
        if let Some(missing) = ids.iter().find(|id| !self.instances.contains_key(*id)) {
            return Err(no_instance(missing));
        }
        let wanted = self.instances.iter().filter(|(id, _)| ids.is_empty() || ids.contains(id));
        let truth = wanted.map(|(id, instance)| {
            let mut enis: Vec<EniTruth> =
                self.shown_enis().filter(|eni| eni.instance() == Some(id.as_str())).cloned().collect();
            enis.sort_by_key(|eni| {
                eni.attachment.as_ref().map(|attachment| (attachment.card, attachment.device_index))
            });
            InstanceTruth {
                id: id.clone(),
                kind: instance.limits.name.clone(),
                state: instance.state,
                subnet: instance.subnet.clone(),
                vpc: instance.vpc.clone(),
                zone: instance.zone.clone(),
                address: instance.address,
                enis,
                tags: instance.tags.clone(),
            }
        });
        Ok(Answer::Instances(truth.collect()))
    }

    /// All types if none is named.
    pub(super) fn describe_types(wanted: &[String]) -> Result<Answer, ApiError> {
        if wanted.is_empty() {
            return Ok(Answer::InstanceTypes(types::all().collect()));
        }
        let known: Vec<TypeLimits> = wanted.iter().filter_map(|kind| types::limits(kind)).collect();
        let is_unknown = |kind: &&String| types::limits(kind).is_none();
        let unknown: Vec<&str> = wanted.iter().filter(is_unknown).map(String::as_str).collect();
        if !unknown.is_empty() {
            let message = format!("The following supplied instance types do not exist: [{}]", unknown.join(", "));
            return Err(ApiError::new("InvalidInstanceType", message));
        }
        Ok(Answer::InstanceTypes(known))
    }
}

/// Tokens of pages start with this; then comes the last id of the page before.
const PAGE: &str = "after:";
