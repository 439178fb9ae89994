//! `enid why NAMESPACE/POD`: the story of one pod, and what it waits for now.

use anyhow::{Context, bail};
use enid_api::v1::{GetStoryRequest, Lease, Story};

use super::{
    connect::{NoDaemon, debug, reply},
    events::line,
    lists::addresses,
    plan,
};
use crate::{
    print::{Mood, Output, lines, show},
    record::{kept, name_of, pod_of},
    settings::Settings,
};

/// Prints the story. While no daemon runs it is read from the disk.
pub async fn run(settings: &Settings, pod: &str, output: Output) -> anyhow::Result<()> {
    let (pod_namespace, pod_name) = named(pod)?;
    let name = name_of(&pod_namespace, &pod_name);
    let asked = GetStoryRequest { pod_namespace, pod_name };
    let said = async {
        let mut debug = debug(settings).await?;
        reply(debug.get_story(asked)).await
    };
    let story = match said.await {
        Err(failure) if failure.is::<NoDaemon>() => {
            eprintln!("enid: {failure:#}");
            let operations =
                kept::story(&settings.store_dir, &settings.run_dir, &name).context("no story can be read")?;
            Story { operations, ..Story::default() }
        }
        said => said?,
    };
    show(output, &story, || told(&name, &story))
}

fn named(pod: &str) -> anyhow::Result<(String, String)> {
    let Some((namespace, name)) = pod_of(pod) else { bail!("{pod:?} is no pod: it is written NAMESPACE/POD") };
    Ok((namespace.to_owned(), name.to_owned()))
}

fn told(name: &str, story: &Story) -> String {
    let mut text: Vec<String> = story.operations.iter().map(line).collect();
    for lease in &story.leases {
        let Lease { eni, state, host_ifname, .. } = lease;
        text.push(format!("now: it has {} on {eni} ({state}, link {host_ifname})", addresses(lease)));
    }
    let last = story.operations.last();
    let waits = last.is_some_and(|last| last.kind != "DEL" && !(last.kind == "ADD" && last.outcome == "done"));
    if waits && story.leases.is_empty() {
        text.push(match &*story.cause {
            "" => "now: it would get an address at once; the runtime asks again".to_owned(),
            cause => format!("now: new pods get no address: {cause}: {}", story.cause_message),
        });
        let plan = story.plan.as_ref().map(plan::rows).unwrap_or_default();
        if !plan.is_empty() {
            text.push(lines(plan.into_iter().map(|(_, name, words)| (Mood::Plain, format!("     {name}"), words))));
        }
    }
    if text.is_empty() {
        return format!(
            "nothing is known of a pod {name}: in the last 24 hours neither the scheduler has bound it to this node, nor \
             the runtime asked for it"
        );
    }
    text.join("\n")
}

#[cfg(test)]
mod tests {
    use enid_api::v1::Operation;

    use super::*;

    fn operation(kind: &str, outcome: &str) -> Operation {
        Operation { kind: kind.into(), outcome: outcome.into(), pod: "a/b".into(), ..Operation::default() }
    }

    #[test]
    fn a_pod_that_waits_hears_what_for() {
        let refused = Story {
            operations: vec![operation("BOUND", "done"), operation("ADD", "refused")],
            cause: "subnet_full".into(),
            cause_message: "no address is free".into(),
            ..Story::default()
        };
        let last = |story: &Story| told("a/b", story).lines().last().unwrap().to_owned();
        assert_eq!(last(&refused), "now: new pods get no address: subnet_full: no address is free");
        let gone = Story { operations: vec![operation("ADD", "done"), operation("DEL", "done")], ..refused.clone() };
        assert!(last(&gone).contains("DEL"));
        let lease =
            Lease { address: "10.0.1.7".into(), eni: "eni-1".into(), state: "wired".into(), ..Lease::default() };
        let runs = Story { operations: vec![operation("ADD", "done")], leases: vec![lease], ..refused };
        assert_eq!(last(&runs), "now: it has 10.0.1.7 on eni-1 (wired, link )");
        assert!(told("a/b", &Story::default()).starts_with("nothing is known of a pod a/b"));
    }

    #[test]
    fn a_pod_has_a_namespace_and_a_name() {
        assert_eq!(named("web").unwrap(), ("default".to_owned(), "web".to_owned()));
        assert_eq!(named("a/b").unwrap(), ("a".to_owned(), "b".to_owned()));
        for bad in ["", "/", "a/", "/b", "a/b/c"] {
            assert!(named(bad).is_err(), "{bad}");
        }
    }
}
