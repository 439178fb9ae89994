//! NodeConfigs at a start that has never heard of any: a new node comes up as they say, if the API server is there.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context;
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client, api::ListParams};
use tokio::time::{Instant, sleep, timeout};
use tracing::warn;

use super::{
    choose::choose,
    object::{NodeConfig, NodeConfigSpec},
};
use crate::settings::given::{Given, Overrides};

/// Where nobody answers, pods wait for the daemon no longer than this.
const SILENT: Duration = Duration::from_secs(3);
/// While the cloud's controller has not set the node's labels yet, no longer than this.
const UNINITIALIZED: Duration = Duration::from_secs(20);
/// The first attempt: kube-proxy may be setting its rules at this moment, and a packet that was sent before them is lost.
const ATTEMPT: Duration = Duration::from_secs(1);
/// A later one.
const LONGEST: Duration = Duration::from_secs(4);
const PAUSE: Duration = Duration::from_secs(1);
/// Until its labels are there (the cloud controller manager's).
const TAINT: &str = "node.cloudprovider.kubernetes.io/uninitialized";

/// What they give to the node of this name.
///
/// # Errors
///
/// The API server refuses or is silent, or does not know the node.
pub async fn ask(client: Client, name: &str, given: &Given) -> anyhow::Result<Overrides> {
    let begun = Instant::now();
    let (mut attempt, mut heard) = (ATTEMPT, None);
    let (node, configs) = loop {
        let tried = timeout(attempt, look(&client, name)).await.context("the API server does not answer").flatten();
        match tried {
            Ok(answer) if is_initialized(&answer.0) || begun.elapsed() >= UNINITIALIZED => break answer,
            // Its labels come later.
            Ok(answer) => heard = Some(answer),
            Err(failure) if heard.is_none() && begun.elapsed() >= SILENT => return Err(failure),
            Err(_) => match heard.take() {
                Some(answer) if begun.elapsed() >= UNINITIALIZED => break answer,
                known => heard = known,
            },
        }
        attempt = (attempt * 2).min(LONGEST);
        sleep(PAUSE).await;
    };
    let choice = choose(given, &configs, &node.metadata.labels.unwrap_or_default(), &Overrides::new());
    for (config, problem) in choice.problems.iter().flat_map(|(config, of)| of.iter().map(move |it| (config, it))) {
        warn!("NodeConfig {config}: {}", problem.message);
    }
    Ok(choice.overrides)
}

async fn look(client: &Client, name: &str) -> anyhow::Result<(Node, BTreeMap<String, NodeConfigSpec>)> {
    let fields = ListParams::default().fields(&format!("metadata.name={name}"));
    let nodes = Api::<Node>::all(client.clone()).list(&fields).await.context("nodes are not served")?;
    let node = nodes.items.into_iter().next().with_context(|| format!("there is no node {name}"))?;
    let configs = match Api::<NodeConfig>::all(client.clone()).list(&ListParams::default()).await {
        // The cluster knows no NodeConfigs.
        Err(kube::Error::Api(refused)) if refused.is_not_found() => Vec::new(),
        listed => listed.context("nodeconfigs are not served")?.items,
    };
    let named = configs.into_iter().map(|config| (config.metadata.name.unwrap_or_default(), config.spec));
    Ok((node, named.collect()))
}

fn is_initialized(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints.is_none_or(|taints| taints.iter().all(|taint| taint.key != TAINT))
}
