//! The kind NodeConfig.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a NodeConfig asks for.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "enid.dev",
    version = "v1alpha1",
    kind = "NodeConfig",
    plural = "nodeconfigs",
    shortname = "enc",
    doc = "Settings of Enid for the nodes that a label selector names. They go before those of the chart.",
    derive = "PartialEq",
    status = "NodeConfigStatus",
    printcolumn = r#"{"name": "Priority", "type": "integer", "jsonPath": ".spec.priority"}"#,
    printcolumn = r#"{"name": "Problems", "type": "string", "jsonPath": ".status.problems[*].setting"}"#,
    printcolumn = r#"{"name": "Reasons", "type": "string", "jsonPath": ".status.problems[*].reason"}"#,
    printcolumn = r#"{"name": "Nodes", "type": "string", "priority": 1, "jsonPath": ".status.problems[*].nodes"}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#
)]
pub struct NodeConfigSpec {
    /// The nodes, by their labels. An empty selector names all of them.
    pub selector: LabelSelector,
    /// Where two NodeConfigs give a node different values of a setting, the one with the higher priority counts.
    #[serde(default)]
    pub priority: i32,
    /// Values by the names of docs/settings.md. An empty value is the setting's default, whatever the chart says.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
}

/// What nodes say of a NodeConfig. It is empty until one of the nodes that it names has read it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeConfigStatus {
    /// The generation (metadata.generation) that it is about.
    pub observed_generation: i64,
    /// What does not count on some nodes, and why. None: all of it counts on all of them.
    pub problems: Vec<Entry>,
}

/// Something that does not count on some nodes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// The setting; `selector`, if the selector itself makes no sense.
    pub setting: String,
    /// UnknownSetting, OfTheChart, BadValue, BadSelector, Tie, AtNextStart or Refused.
    pub reason: String,
    /// A sentence.
    pub message: String,
    /// Names of nodes, eight at most.
    pub nodes: Vec<String>,
}

#[cfg(test)]
mod tests {
    use kube::CustomResourceExt;

    use super::*;
    use crate::kubernetes::status_object::tests::is_definition;

    #[test]
    fn the_chart_has_its_definition() {
        is_definition(NodeConfig::crd(), "nodeconfigs.yaml");
    }
}
