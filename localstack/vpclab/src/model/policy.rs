//! IAM policies, as far as those of network daemons use the language (AWS IAM User Guide, "IAM JSON policy elements
//! reference"): Allow, Action and Resource with `*`, and conditions on texts.

use std::collections::BTreeMap;

use serde::Deserialize;

/// What one role may do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Of the language.
    #[serde(rename = "Version")]
    pub version: String,
    /// One that allows is enough.
    #[serde(rename = "Statement")]
    pub statements: Vec<Statement>,
}

/// One statement.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub struct Statement {
    /// Its name.
    #[serde(default)]
    pub sid: String,
    /// The model knows Allow.
    pub effect: Effect,
    /// `ec2:CreateTags`, or with `*`.
    pub action: Texts,
    /// ARNs with `*`.
    pub resource: Texts,
    /// By operator and key; all of them have to hold.
    #[serde(default)]
    pub condition: BTreeMap<Operator, BTreeMap<String, Texts>>,
}

/// What a statement does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Effect {
    /// It allows.
    #[default]
    Allow,
}

/// How a condition compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum Operator {
    /// One of the values is the key's.
    #[serde(rename = "StringEquals")]
    Equals,
    /// The same, or the request has no such key.
    #[serde(rename = "StringEqualsIfExists")]
    EqualsIfExists,
    /// The same with `*` and `?`.
    #[serde(rename = "StringLike")]
    Like,
}

/// One text or several.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "OneOrMany")]
pub struct Texts(pub Vec<String>);

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl From<OneOrMany> for Texts {
    fn from(texts: OneOrMany) -> Self {
        match texts {
            OneOrMany::One(text) => Texts(vec![text]),
            OneOrMany::Many(texts) => Texts(texts),
        }
    }
}

/// One thing that a call does to one resource: all of a call's have to be allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// `ec2:CreateTags`.
    pub action: String,
    /// Its ARN, or `*` where the action knows none.
    pub resource: String,
    /// Keys of conditions, such as `aws:RequestTag/…`.
    pub keys: BTreeMap<String, String>,
}

impl Policy {
    /// Whether a statement allows it.
    pub fn allows(&self, access: &Access) -> bool {
        self.statements.iter().any(|statement| statement.allows(access))
    }
}

impl Statement {
    fn allows(&self, access: &Access) -> bool {
        // Actions are compared without regard to case ("IAM JSON policy elements: Action").
        let action = access.action.to_lowercase();
        self.effect == Effect::Allow
            && self.action.0.iter().any(|pattern| matches(&pattern.to_lowercase(), &action))
            && self.resource.0.iter().any(|pattern| matches(pattern, &access.resource))
            && self.condition.iter().all(|(operator, keys)| {
                keys.iter().all(|(key, wanted)| operator.holds(access.keys.get(key).map(String::as_str), &wanted.0))
            })
    }
}

impl Operator {
    fn holds(self, found: Option<&str>, wanted: &[String]) -> bool {
        match (self, found) {
            (Operator::EqualsIfExists, None) => true,
            (_, None) => false,
            (Operator::Like, Some(found)) => wanted.iter().any(|pattern| matches(pattern, found)),
            (_, Some(found)) => wanted.iter().any(|value| value == found),
        }
    }
}

/// `*` stands for any text, `?` for one character.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.chars().next() {
        None => text.is_empty(),
        Some('*') => {
            let rest = &pattern[1..];
            text.char_indices().map(|(at, _)| at).chain([text.len()]).any(|at| matches(rest, &text[at..]))
        }
        Some(first) => {
            let mut letters = text.chars();
            letters.next().is_some_and(|letter| first == '?' || letter == first)
                && matches(&pattern[first.len_utf8()..], letters.as_str())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(action: &str, resource: &str, keys: &[(&str, &str)]) -> Access {
        let keys = keys.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Access { action: action.to_owned(), resource: resource.to_owned(), keys }
    }

    #[test]
    fn actions_resources_and_conditions_all_have_to_hold() {
        let policy: Policy = serde_json::from_str(
            r#"{"Version": "2012-10-17", "Statement": [{
                "Effect": "Allow", "Action": ["ec2:Create*"], "Resource": "arn:aws:ec2:*:*:network-interface/*",
                "Condition": {"StringEquals": {"aws:RequestTag/cluster": ["a", "b"]},
                              "StringEqualsIfExists": {"aws:ResourceTag/cluster": "a"}}}]}"#,
        )
        .unwrap();
        let eni = "arn:aws:ec2:us-east-1:1:network-interface/eni-1";
        let a = ("aws:RequestTag/cluster", "a");
        assert!(policy.allows(&access("ec2:createtags", eni, &[a])));
        assert!(policy.allows(&access("ec2:CreateTags", eni, &[a, ("aws:ResourceTag/cluster", "a")])));
        for refused in [
            access("ec2:DeleteTags", eni, &[a]),
            access("ec2:CreateTags", "arn:aws:ec2:us-east-1:1:subnet/s", &[a]),
            access("ec2:CreateTags", eni, &[]),
            access("ec2:CreateTags", eni, &[("aws:RequestTag/cluster", "c")]),
            access("ec2:CreateTags", eni, &[a, ("aws:ResourceTag/cluster", "other")]),
        ] {
            assert!(!policy.allows(&refused), "{refused:?}");
        }
    }

    #[test]
    fn what_the_model_does_not_know_is_refused() {
        let deny = r#"{"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "Action": "*", "Resource": "*"}]}"#;
        assert!(serde_json::from_str::<Policy>(deny).is_err());
        let unknown = r#"{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*", "Condition": {"Bool": {}}}]}"#;
        assert!(serde_json::from_str::<Policy>(unknown).is_err());
    }

    #[test]
    fn stars_match_any_text() {
        for (pattern, text, expected) in
            [("a*c", "abbc", true), ("a*c", "abb", false), ("*", "", true), ("a?c", "abc", true), ("a?c", "ac", false)]
        {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
