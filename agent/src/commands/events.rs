//! `enid events`: the last operations, and with -f those that end from now on.

use anyhow::bail;
use enid_api::v1::{ListOperationsRequest, Operation, WatchOperationsRequest, WatchedOperation};

use super::{
    connect::{debug, reply},
    words::{moment, request, took},
};
use crate::{
    print::{Output, print, show},
    settings::Settings,
};

/// Prints them, one in a line.
pub async fn run(settings: &Settings, follow: bool, output: Output) -> anyhow::Result<()> {
    let mut debug = debug(settings).await?;
    // Before the list is read: nothing ends in between.
    let from = if follow { Some(reply(debug.watch_operations(WatchOperationsRequest {})).await?) } else { None };
    let operations = reply(debug.list_operations(ListOperationsRequest {})).await?.operations;
    let Some(mut from) = from else {
        let text = || operations.iter().map(line).collect::<Vec<_>>().join("\n");
        return show(output, &operations, text);
    };
    let ended: Vec<&Operation> = operations.iter().filter(|operation| !operation.outcome.is_empty()).collect();
    let known: Vec<u64> = ended.iter().map(|operation| operation.number).collect();
    for operation in ended {
        each(output, operation)?;
    }
    while let Ok(Some(WatchedOperation { operation, missed })) = from.message().await {
        if missed > 0 {
            eprintln!("enid: {missed} operations were missed here, since this was read too slowly");
        }
        if let Some(operation) = operation.filter(|it| !known.contains(&it.number)) {
            each(output, &operation)?;
        }
    }
    bail!("the daemon has ended")
}

fn each(output: Output, operation: &Operation) -> anyhow::Result<()> {
    // One value after the other: JSON in a line each, as others stream it.
    match output {
        Output::Json => print(&serde_json::to_string(operation)?),
        Output::Yaml => print(&format!("---\n{}", serde_saphyr::to_string(operation)?)),
        Output::Table | Output::Wide => print(&line(operation)),
    }
}

/// An operation as people read it.
pub fn line(operation: &Operation) -> String {
    let Operation { kind, pod, container, subject, address, eni, outcome, cause, message, aws_request_id, .. } =
        operation;
    let ifname = Some(&operation.ifname).filter(|name| !name.is_empty() && *name != "eth0");
    let container = container.get(..12.min(container.len())).unwrap_or_default();
    let who = if pod.is_empty() { container } else { pod };
    let named =
        [who, ifname.map_or("", String::as_str), subject, address, eni].into_iter().filter(|word| !word.is_empty());
    let named = named.collect::<Vec<_>>().join(" ");
    let when = match (operation.times, operation.first_unix_ms) {
        (times @ 2.., first) => format!("{} ({times} times since {})", moment(operation.began_unix_ms), moment(first)),
        _ => moment(operation.began_unix_ms),
    };
    let phases = operation.phases.iter().map(|phase| format!("{} {}", phase.name, took(phase.took_us)));
    let phases = phases.collect::<Vec<_>>().join(", ");
    let mut text = format!("{when}  {kind:6}");
    if !named.is_empty() {
        text.push_str(&format!(" {named}"));
    }
    match &**outcome {
        "" => text.push_str(" goes on"),
        "done" if operation.took_us == 0 || operation.phases.is_empty() && kind != "EC2" => {}
        outcome => text.push_str(&format!(" {outcome} after {}", took(operation.took_us))),
    }
    if !phases.is_empty() {
        text.push_str(&format!(" ({phases})"));
    }
    if !operation.awaited.is_empty() && outcome != "refused" {
        text.push_str(&format!("; it waited for {}: {}", operation.awaited_cause, operation.awaited));
    }
    let words = [&**cause, &**message].into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(": ");
    if !words.is_empty() {
        text.push_str(&format!("{}{words}", if named.is_empty() && phases.is_empty() { " " } else { ": " }));
    }
    text.push_str(&request(aws_request_id));
    if operation.retry_unix_ms > 0 {
        text.push_str(&format!("; the daemon tries again at {}", moment(operation.retry_unix_ms)));
    }
    text
}

#[cfg(test)]
mod tests {
    use enid_api::v1::Phase;

    use super::*;

    #[test]
    fn a_line_says_what_it_was_and_how_it_ended() {
        let add = Operation {
            kind: "ADD".into(),
            pod: "default/web".into(),
            address: "10.0.1.7".into(),
            eni: "eni-1".into(),
            outcome: "done".into(),
            began_unix_ms: 1_700_000_000_000,
            took_us: 4_100,
            phases: vec![Phase { name: "address".into(), took_us: 200 }],
            ..Operation::default()
        };
        let said = line(&add);
        assert_eq!(said, "2023-11-14T22:13:20Z  ADD    default/web 10.0.1.7 eni-1 done after 4.1 ms (address 200 µs)");
        let refused = Operation {
            outcome: "refused".into(),
            cause: "throttled".into(),
            message: "EC2 throttles".into(),
            aws_request_id: "r-1".into(),
            times: 3,
            first_unix_ms: 1_699_999_990_000,
            address: String::new(),
            eni: String::new(),
            phases: Vec::new(),
            ..add
        };
        let said = line(&refused);
        assert!(said.contains("(3 times since 2023-11-14T22:13:10Z)"), "{said}");
        assert!(said.ends_with("refused after 4.1 ms: throttled: EC2 throttles (EC2 request r-1)"), "{said}");
    }
}
