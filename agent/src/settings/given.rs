//! Where the values of settings come from: flags and the environment, and NodeConfigs on top of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};

use super::{
    Settings,
    read::Mistake,
    table::{Applies, SETTINGS, Setting},
};

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nothing is given.
    Default,
    /// An environment variable, which the chart sets.
    Environment,
    /// A flag.
    Flag,
    /// The NodeConfig of this name.
    NodeConfig(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::Environment => f.write_str("environment"),
            Origin::Flag => f.write_str("flag"),
            Origin::NodeConfig(name) => write!(f, "NodeConfig {name}"),
        }
    }
}

/// A value that a NodeConfig gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Override {
    /// As written; an empty one is the default, whatever the environment says.
    pub value: String,
    /// The NodeConfig.
    pub config: String,
}

/// Values that NodeConfigs give, by the setting's name.
pub type Overrides = BTreeMap<String, Override>;

/// Settings that an instance, its pods or its disk may be unfit for.
pub const OF_INSTANCES: [&str; 6] =
    ["ENABLE_IPv4", "ENABLE_IPv6", "ENABLE_V4_EGRESS", "ENABLE_V6_EGRESS", "ENABLE_BANDWIDTH_PLUGIN", "DISABLE_POD_V6"];

/// Those of them that need a plugin on the disk.
const PLUGINS: [&str; 2] = ["ENABLE_BANDWIDTH_PLUGIN", "DISABLE_POD_V6"];

/// A value that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The NodeConfig that gives it.
    pub config: String,
    /// The setting.
    pub setting: String,
    /// One sentence.
    pub why: String,
}

/// All that is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// Values of flags and variables.
    base: BTreeMap<&'static str, (String, Origin)>,
    overrides: Overrides,
}

impl Given {
    /// What flags and variables say.
    pub fn new(flag: &dyn Fn(&Setting) -> Option<String>, variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let value = |setting: &Setting| {
            let of_variable = || variable(setting.name).map(|value| (value, Origin::Environment));
            flag(setting).map(|value| (value, Origin::Flag)).or_else(of_variable)
        };
        let given = SETTINGS.iter().filter_map(|setting| Some((setting.name, value(setting)?)));
        let base = given.filter(|(_, (value, _))| !value.trim().is_empty()).collect();
        Given { base, overrides: Overrides::new() }
    }

    /// The same with what NodeConfigs give.
    pub fn with(&self, overrides: Overrides) -> Self {
        Given { base: self.base.clone(), overrides }
    }

    /// What NodeConfigs give.
    pub fn overrides(&self) -> &Overrides {
        &self.overrides
    }

    /// The value as written, and where it comes from.
    pub fn value(&self, setting: &Setting) -> (&str, Origin) {
        if let Some(Override { value, config }) = self.overrides.get(setting.name) {
            let value = Some(value.trim()).filter(|value| !value.is_empty()).unwrap_or(setting.default);
            return (value, Origin::NodeConfig(config.clone()));
        }
        let base = self.base.get(setting.name);
        base.map_or((setting.default, Origin::Default), |(value, origin)| (value.trim(), origin.clone()))
    }

    /// Reads all of them.
    ///
    /// # Errors
    ///
    /// Every mistake.
    pub fn read(&self) -> Result<Settings, Vec<Mistake>> {
        Settings::read(&|setting| Some(self.value(setting).0.to_owned()))
    }

    /// Those of `overrides` that make sense, each alone and all together; and what is wrong with the others, which are as in
    /// `before`, if that makes sense.
    pub fn accept(&self, mut overrides: Overrides, before: &Overrides) -> (Overrides, Vec<Rejected>) {
        let (mut rejected, mut tried) = (Vec::new(), BTreeSet::new());
        while let Err(mistakes) = self.with(overrides.clone()).read() {
            let said: BTreeMap<String, String> =
                mistakes.into_iter().map(|mistake| (mistake.setting, mistake.text)).collect();
            let mut bad: Vec<String> = said.keys().filter(|name| overrides.contains_key(*name)).cloned().collect();
            if bad.is_empty() {
                // What is given elsewhere does not go with one of these.
                bad =
                    overrides.keys().filter(|name| self.is_mended_without(&overrides, name, &said)).cloned().collect();
            }
            if bad.is_empty() {
                bad = overrides.keys().cloned().collect();
            }
            if bad.is_empty() {
                break; // it is not for NodeConfigs to mend
            }
            for setting in bad {
                let Some(Override { config, .. }) = overrides.remove(&setting) else { continue };
                if !tried.insert(setting.clone()) {
                    continue;
                }
                if let Some(value) = before.get(&setting) {
                    overrides.insert(setting.clone(), value.clone());
                }
                let why = said.get(&setting).or(said.values().next()).cloned().unwrap_or_default();
                rejected.push(Rejected { config, setting, why });
            }
        }
        (overrides, rejected)
    }

    /// Whether there are fewer mistakes without this override.
    fn is_mended_without(&self, overrides: &Overrides, name: &str, said: &BTreeMap<String, String>) -> bool {
        let mut less = overrides.clone();
        less.remove(name);
        self.with(less).read().map_or_else(|mistakes| mistakes.len() < said.len(), |_| true)
    }

    /// What may be tried where a node cannot have what is given, the nearest first: the same without plugins that may not be
    /// installed; with those settings that a node can be unfit for as the last start had them (`started`); all as the last
    /// start had it; without any of these settings. None where that is the same.
    pub fn fallbacks(&self, started: &Overrides) -> Vec<Given> {
        let without = |names: &[&str]| {
            let mut less = self.overrides.clone();
            less.retain(|name, _| !names.contains(&name.as_str()));
            less
        };
        let had = started.iter().filter(|(name, _)| OF_INSTANCES.contains(&name.as_str()));
        let before =
            without(&OF_INSTANCES).into_iter().chain(had.map(|(name, it)| (name.clone(), it.clone()))).collect();
        let mut found: Vec<Given> = Vec::new();
        for overrides in [without(&PLUGINS), before, started.clone(), without(&OF_INSTANCES)] {
            let (overrides, _) = self.accept(overrides, &Overrides::new());
            let given = self.with(overrides);
            if given != *self && !found.contains(&given) {
                found.push(given);
            }
        }
        found
    }

    /// What counts of `new` before the next start of a daemon that was started with this.
    pub fn until_next_start(&self, new: &Overrides) -> Self {
        let of = |overrides: &Overrides, when: Applies| {
            let settings = SETTINGS.iter().filter(move |setting| setting.applies == when);
            let given = settings.filter_map(|setting| {
                overrides.get(setting.name).map(|value| (setting.name.to_owned(), value.clone()))
            });
            given.collect::<Overrides>()
        };
        let mut overrides = of(&self.overrides, Applies::AtStart);
        overrides.extend(of(new, Applies::Live));
        self.with(overrides)
    }

    /// Settings that have another value at the next start, if `new` are the overrides then.
    pub fn pending<'a>(&'a self, new: &'a Given) -> impl Iterator<Item = &'static Setting> + 'a {
        let at_start = SETTINGS.iter().filter(|setting| setting.applies == Applies::AtStart);
        at_start.filter(|setting| self.value(setting).0 != new.value(setting).0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overrides(of: &[(&str, &str)]) -> Overrides {
        let given = |value: &str| Override { value: value.to_owned(), config: "gpu".to_owned() };
        of.iter().map(|(name, value)| ((*name).to_owned(), given(value))).collect()
    }

    fn setting(name: &str) -> &'static Setting {
        SETTINGS.iter().find(|setting| setting.name == name).unwrap()
    }

    #[test]
    fn a_nodeconfig_goes_before_a_flag_and_that_before_the_environment() {
        let given = Given::new(&|setting| (setting.name == "MAX_ENI").then(|| "3".to_owned()), &|name| {
            ["MAX_ENI", "MAX_PODS"].contains(&name).then(|| "7".to_owned())
        });
        assert_eq!(given.value(setting("MAX_ENI")), ("3", Origin::Flag));
        assert_eq!(given.value(setting("MAX_PODS")), ("7", Origin::Environment));
        assert_eq!(given.value(setting("POD_MTU")), ("", Origin::Default));
        let given = given.with(overrides(&[("MAX_ENI", "2"), ("MAX_PODS", "")]));
        let of_config = || Origin::NodeConfig("gpu".to_owned());
        assert_eq!(given.value(setting("MAX_ENI")), ("2", of_config()));
        assert_eq!(given.value(setting("MAX_PODS")), ("", of_config()));
        assert_eq!(given.read().unwrap().policy.max_pods, None);
    }

    /// The kind: one value that does not go with the chart's takes all others with it.
    #[test]
    fn what_clashes_with_the_environment_is_rejected_alone() {
        let given = Given::new(&|_| None, &|name| (name == "POD_MTU").then(|| "9001".to_owned()));
        let all = overrides(&[("AWS_VPC_ENI_MTU", "1500"), ("MAX_ENI", "3"), ("WARM_IP_TARGET", "5")]);
        let (accepted, rejected) = given.accept(all, &Overrides::new());
        assert_eq!(accepted, overrides(&[("MAX_ENI", "3"), ("WARM_IP_TARGET", "5")]));
        assert_eq!(rejected.iter().map(|it| it.setting.as_str()).collect::<Vec<_>>(), ["AWS_VPC_ENI_MTU"]);
    }

    #[test]
    fn a_node_falls_back_to_what_it_had_and_loses_nothing_else() {
        let both = [("ENABLE_IPv4", "false"), ("ENABLE_IPv6", "true")];
        let given = Given::default().with(overrides(&[both[0], both[1], ("POD_MTU", "1400"), ("MAX_ENI", "2")]));
        let had = overrides(&[("ENABLE_IPv6", "true"), ("MAX_ENI", "7")]);
        let tried: Vec<Overrides> = given.fallbacks(&had).iter().map(|it| it.overrides.clone()).collect();
        let without = overrides(&[("POD_MTU", "1400"), ("MAX_ENI", "2")]);
        let before = overrides(&[("ENABLE_IPv6", "true"), ("POD_MTU", "1400"), ("MAX_ENI", "2")]);
        assert_eq!(tried, [before, had, without]);
        // The NodeConfig is gone, and pods still have what it gave.
        let tried = Given::default().fallbacks(&overrides(&both));
        assert_eq!(tried.iter().map(|it| it.overrides.clone()).collect::<Vec<_>>(), [overrides(&both)]);
        assert!(Given::default().fallbacks(&Overrides::new()).is_empty());
    }

    #[test]
    fn what_waits_for_the_next_start() {
        let started = Given::default().with(overrides(&[("ENABLE_PREFIX_DELEGATION", "true"), ("MAX_ENI", "2")]));
        let new = overrides(&[("ENABLE_MULTI_NIC", "true"), ("MAX_ENI", "3"), ("ENABLE_V4_EGRESS", "true")]);
        let now = started.until_next_start(&new);
        assert_eq!(now.value(setting("MAX_ENI")).0, "3");
        assert_eq!(now.value(setting("ENABLE_PREFIX_DELEGATION")).0, "true");
        assert_eq!(now.value(setting("ENABLE_MULTI_NIC")).0, "false");
        let pending: Vec<&str> = started.pending(&started.with(new)).map(|setting| setting.name).collect();
        assert_eq!(pending, ["ENABLE_MULTI_NIC", "ENABLE_PREFIX_DELEGATION"]);
    }
}
