//! Filters of describe calls: all filters must match, one value of each is enough.

use std::collections::BTreeMap;

use super::{ApiError, EniTruth, SubnetTruth, eni::invalid};

/// Name and values, as they come.
type Filters = [(String, Vec<String>)];

/// Something that filters know by names.
pub(super) trait Filtered {
    /// All values that a filter's name stands for; `None` if there is no such filter.
    fn values(&self, name: &str) -> Option<Vec<String>>;

    /// Whether all filters match. Error: a filter that the model or EC2 does not have.
    fn matches(&self, filters: &Filters) -> Result<bool, ApiError> {
        for (name, wanted) in filters {
            let found = self.values(name).ok_or_else(|| invalid(format!("The filter '{name}' is invalid")))?;
            if !found.iter().any(|value| wanted.iter().any(|pattern| like(pattern, value))) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Filtered for EniTruth {
    fn values(&self, name: &str) -> Option<Vec<String>> {
        let attachment = self.attachment.as_ref();
        Some(match name {
            "network-interface-id" => vec![self.id.clone()],
            "status" => vec![self.status.as_str().to_owned()],
            "subnet-id" => vec![self.subnet.clone()],
            "vpc-id" => vec![self.vpc.clone()],
            "availability-zone" => vec![self.zone.clone()],
            "description" => vec![self.description.clone()],
            "mac-address" => vec![self.mac.clone()],
            "group-id" => self.groups.clone(),
            "private-ip-address" => self.primary.iter().map(ToString::to_string).collect(),
            "interface-type" => vec![self.interface_type.as_str().to_owned()],
            "addresses.private-ip-address" => self.addresses.iter().map(ToString::to_string).collect(),
            "ipv6-addresses.ipv6-address" => self.ipv6_addresses.iter().map(ToString::to_string).collect(),
            "attachment.attachment-id" => attachment.iter().map(|attachment| attachment.id.clone()).collect(),
            "attachment.instance-id" => attachment.iter().map(|attachment| attachment.instance.clone()).collect(),
            "attachment.device-index" => {
                attachment.iter().map(|attachment| attachment.device_index.to_string()).collect()
            }
            "attachment.status" => attachment.iter().map(|attachment| attachment.status.as_str().to_owned()).collect(),
            "attachment.delete-on-termination" => {
                attachment.iter().map(|attachment| attachment.delete_on_termination.to_string()).collect()
            }
            _ => return tag_values(&self.tags, name),
        })
    }
}

impl Filtered for SubnetTruth {
    fn values(&self, name: &str) -> Option<Vec<String>> {
        Some(match name {
            "subnet-id" => vec![self.id.clone()],
            "vpc-id" => vec![self.vpc.clone()],
            "availability-zone" | "availabilityZone" => vec![self.zone.clone()],
            "cidr-block" | "cidr" | "cidrBlock" => vec![self.cidr.to_string()],
            "state" => vec!["available".to_owned()],
            _ => return tag_values(&self.tags, name),
        })
    }
}

fn tag_values(tags: &BTreeMap<String, String>, name: &str) -> Option<Vec<String>> {
    match (name, name.strip_prefix("tag:")) {
        (_, Some(key)) => Some(tags.get(key).cloned().into_iter().collect()),
        ("tag-key", None) => Some(tags.keys().cloned().collect()),
        ("tag-value", None) => Some(tags.values().cloned().collect()),
        _ => None,
    }
}

/// `*` stands for any text, `?` for one character.
fn like(pattern: &str, value: &str) -> bool {
    let Some(first) = pattern.chars().next() else { return value.is_empty() };
    let rest = &pattern[first.len_utf8()..];
    let mut after = value.chars();
    match first {
        '*' => value.char_indices().map(|(at, _)| &value[at..]).chain([""]).any(|tail| like(rest, tail)),
        '?' => after.next().is_some() && like(rest, after.as_str()),
        _ => after.next() == Some(first) && like(rest, after.as_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::like;

    #[test]
    fn patterns() {
        for (pattern, value, is) in [
            ("aws-K8S-*", "aws-K8S-i-1", true),
            ("aws-K8S-*", "aws-k8s-i-1", false),
            ("*", "", true),
            ("?", "", false),
            ("a?c*", "abc", true),
            ("a*c", "abcd", false),
            ("", "x", false),
        ] {
            assert_eq!(like(pattern, value), is, "{pattern} {value}");
        }
    }
}
