//! What the NodeConfigs of a cluster give to one node, and what is wrong with them there.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt};

use super::object::NodeConfigSpec;
use crate::settings::{
    Applies, SETTINGS,
    given::{Given, Override, Overrides, Rejected},
};

/// Why something does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// There is no such setting.
    UnknownSetting,
    /// It is not for NodeConfigs.
    OfTheChart,
    /// The value makes no sense.
    BadValue,
    /// The selector makes no sense.
    BadSelector,
    /// Another NodeConfig of the same priority gives another value.
    Tie,
    /// It counts at the daemon's next start.
    AtNextStart,
    /// The node cannot have it, as its daemon has seen at its start.
    Refused,
}

/// Something that does not count on this node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The setting, or `selector`.
    pub setting: String,
    /// Why.
    pub reason: Reason,
    /// The same in a sentence, which is the same on all nodes that have the same problem.
    pub message: String,
}

/// Problems by the NodeConfig that has them.
pub type Problems = BTreeMap<String, BTreeSet<Problem>>;

/// What a node is to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// What the NodeConfigs give.
    pub overrides: Overrides,
    /// The NodeConfigs that name the node.
    pub of_node: BTreeSet<String>,
    /// What does not count.
    pub problems: Problems,
}

const UNCHANGED: &str = "the node keeps what it had";

/// What `configs` give to a node with these labels, on top of what is `given` by flags and the environment. A setting that
/// cannot be told keeps its override of `before`.
pub fn choose(
    given: &Given,
    configs: &BTreeMap<String, NodeConfigSpec>,
    labels: &BTreeMap<String, String>,
    before: &Overrides,
) -> Choice {
    let mut choice = Choice::default();
    let mut candidates: BTreeMap<&str, Vec<(&str, &NodeConfigSpec)>> = BTreeMap::new();
    for (name, config) in configs {
        match names(&config.selector, labels) {
            Ok(true) => choice.of_node.insert(name.clone()),
            Ok(false) => continue,
            Err(why) => {
                add(&mut choice.problems, name, "selector", Reason::BadSelector, format!("it names no node: {why}"));
                continue;
            }
        };
        for setting in config.settings.keys() {
            match SETTINGS.iter().find(|known| known.name == setting) {
                None => {
                    let words = format!("there is no setting {setting}; docs/settings.md lists them");
                    add(&mut choice.problems, name, setting, Reason::UnknownSetting, words);
                }
                Some(known) if known.applies == Applies::Given => {
                    let words = format!("{setting} is set by the chart only: it belongs to the daemon's pod");
                    add(&mut choice.problems, name, setting, Reason::OfTheChart, words);
                }
                Some(known) => candidates.entry(known.name).or_default().push((name, config)),
            }
        }
    }
    for (setting, mut configs) in candidates {
        let highest = configs.iter().map(|(_, config)| config.priority).max();
        configs.retain(|(_, config)| Some(config.priority) == highest);
        let values: BTreeSet<&str> = configs.iter().map(|(_, config)| config.settings[setting].trim()).collect();
        let (Some(value), Some((config, spec))) = (values.first(), configs.first()) else { continue };
        if values.len() == 1 {
            let value = Override { value: (*value).to_owned(), config: (*config).to_owned() };
            choice.overrides.insert(setting.to_owned(), value);
            continue;
        }
        let rivals: Vec<&str> = configs.iter().map(|(name, _)| *name).collect();
        let (rivals, priority) = (rivals.join(", "), spec.priority);
        for (name, _) in &configs {
            let words = format!("{rivals} give {setting} different values at the priority {priority}; {UNCHANGED}");
            add(&mut choice.problems, name, setting, Reason::Tie, words);
        }
        if let Some(value) = before.get(setting) {
            choice.overrides.insert(setting.to_owned(), value.clone());
        }
    }
    let (overrides, rejected) = given.accept(std::mem::take(&mut choice.overrides), before);
    choice.overrides = overrides;
    for Rejected { config, setting, why } in rejected {
        add(&mut choice.problems, &config, &setting, Reason::BadValue, format!("{why}; {UNCHANGED}"));
    }
    choice
}

fn names(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> Result<bool, String> {
    let selector: Selector = selector.clone().try_into().map_err(|error| format!("{error}"))?;
    Ok(selector.matches(labels))
}

/// Something of a NodeConfig does not count.
pub fn add(problems: &mut Problems, config: &str, setting: &str, reason: Reason, message: String) {
    let problem = Problem { setting: setting.to_owned(), reason, message };
    problems.entry(config.to_owned()).or_default().insert(problem);
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn configs(of: Value) -> BTreeMap<String, NodeConfigSpec> {
        serde_json::from_value(of).unwrap()
    }

    fn labels() -> BTreeMap<String, String> {
        BTreeMap::from([("group".to_owned(), "gpu".to_owned())])
    }

    fn chosen(of: Value, before: &Overrides) -> Choice {
        choose(&Given::default(), &configs(of), &labels(), before)
    }

    fn given(of: &Choice) -> Vec<(&str, &str, &str)> {
        of.overrides.iter().map(|(name, it)| (name.as_str(), it.value.as_str(), it.config.as_str())).collect()
    }

    fn problems(of: &Choice) -> Vec<(&str, &str, Reason)> {
        let all = of.problems.iter().flat_map(|(config, problems)| problems.iter().map(move |it| (config, it)));
        all.map(|(config, it)| (config.as_str(), it.setting.as_str(), it.reason)).collect()
    }

    #[test]
    fn the_higher_priority_counts_for_each_setting_by_itself() {
        let gpu = json!({ "matchLabels": { "group": "gpu" } });
        let other = json!({ "matchExpressions": [{ "key": "group", "operator": "NotIn", "values": ["gpu"] }] });
        let choice = chosen(
            json!({
                "all": { "selector": {}, "settings": { "MAX_ENI": "3", "MAX_PODS": "20" } },
                "gpu": { "selector": gpu, "priority": 5, "settings": { "MAX_ENI": "2" } },
                "other": { "selector": other, "priority": 9, "settings": { "MAX_ENI": "1" } },
            }),
            &Overrides::new(),
        );
        assert_eq!(given(&choice), [("MAX_ENI", "2", "gpu"), ("MAX_PODS", "20", "all")]);
        assert_eq!(choice.of_node, BTreeSet::from(["all".to_owned(), "gpu".to_owned()]));
        assert!(choice.problems.is_empty(), "{choice:?}");
    }

    #[test]
    fn of_two_that_tie_neither_counts_and_the_node_keeps_what_it_had() {
        let one = |value: &str| json!({ "selector": {}, "settings": { "MAX_ENI": value, "MAX_PODS": "9" } });
        let first = chosen(json!({ "a": one("2") }), &Overrides::new());
        let both = json!({ "a": one("2"), "b": one("3") });
        let tied = chosen(both.clone(), &first.overrides);
        assert_eq!(given(&tied), [("MAX_ENI", "2", "a"), ("MAX_PODS", "9", "a")]);
        assert_eq!(problems(&tied), [("a", "MAX_ENI", Reason::Tie), ("b", "MAX_ENI", Reason::Tie)]);
        let words = &tied.problems["b"].first().unwrap().message;
        assert_eq!(words, "a, b give MAX_ENI different values at the priority 0; the node keeps what it had");
        // One that has had neither has none.
        assert_eq!(given(&chosen(both, &Overrides::new())), [("MAX_PODS", "9", "a")]);
    }

    /// The kind: what waits for the next start counts there, though another NodeConfig has contradicted it meanwhile.
    #[test]
    fn of_what_counts_at_a_start_a_tie_keeps_what_the_last_one_was_given() {
        let one = |value: &str| {
            let settings =
                json!({ "ENABLE_PREFIX_DELEGATION": value, "MAX_ENI": if value == "true" { "2" } else { "3" } });
            json!({ "selector": {}, "settings": settings })
        };
        let first = chosen(json!({ "a": one("true") }), &Overrides::new());
        assert_eq!(first.overrides.len(), 2);
        let in_force = Given::default().until_next_start(&first.overrides);
        let tied = chosen(json!({ "a": one("true"), "b": one("false") }), in_force.overrides());
        assert_eq!(given(&tied), [("MAX_ENI", "2", "a")]);
    }

    #[test]
    fn what_makes_no_sense_is_named_and_does_not_count() {
        let settings = json!({
            "MAX_ENI": "many", "WARM_IPS": "1", "ENID_RUN_DIR": "/tmp", "POD_MTU": "9001", "AWS_VPC_ENI_MTU": "1500",
        });
        let before = chosen(json!({ "a": { "selector": {}, "settings": { "MAX_ENI": "4" } } }), &Overrides::new());
        let odd = json!({ "matchExpressions": [{ "key": "group", "operator": "Like", "values": ["g"] }] });
        let both = json!({
            "a": { "selector": {}, "settings": settings },
            "b": { "selector": odd, "settings": { "MAX_PODS": "1" } },
        });
        let choice = chosen(both, &before.overrides);
        assert_eq!(given(&choice), [("AWS_VPC_ENI_MTU", "1500", "a"), ("MAX_ENI", "4", "a")]);
        let expected = [
            ("a", "ENID_RUN_DIR", Reason::OfTheChart),
            ("a", "MAX_ENI", Reason::BadValue),
            ("a", "POD_MTU", Reason::BadValue),
            ("a", "WARM_IPS", Reason::UnknownSetting),
            ("b", "selector", Reason::BadSelector),
        ];
        assert_eq!(problems(&choice), expected);
        let words: Vec<&str> = choice.problems["a"].iter().map(|problem| problem.message.as_str()).collect();
        assert!(words[1].starts_with("MAX_ENI is \"many\"; allowed: whole numbers"), "{words:?}");
    }

    #[test]
    fn two_settings_that_go_together_only_are_taken_together() {
        let v6 = json!({ "a": { "selector": {}, "settings": { "ENABLE_IPv4": "false", "ENABLE_IPv6": "true" } } });
        assert_eq!(chosen(v6, &Overrides::new()).overrides.len(), 2);
        // The environment's value is the one that does not fit.
        let environment = Given::new(&|_| None, &|name| (name == "POD_MTU").then(|| "9001".to_owned()));
        let small = configs(json!({ "a": { "selector": {}, "settings": { "AWS_VPC_ENI_MTU": "1500" } } }));
        let choice = choose(&environment, &small, &labels(), &Overrides::new());
        assert_eq!((given(&choice), problems(&choice)), (vec![], vec![("a", "AWS_VPC_ENI_MTU", Reason::BadValue)]));
        assert!(choice.problems["a"].first().unwrap().message.contains("POD_MTU is \"9001\""));
    }
}
