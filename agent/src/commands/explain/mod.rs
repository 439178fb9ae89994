//! `enid explain SOURCE DESTINATION`: the way of a packet through this host. With `--probe` a packet is sent, and followed.

mod probe;
mod trace;

use enid_api::v1::{ExplainRequest, Explanation, Lookup};

use serde::Serialize;

pub use self::probe::Port;
use self::probe::Probed;
use super::{
    connect::{debug, reply},
    ended::Ended,
};
use crate::{
    print::{Mood, Output, lines, show},
    settings::Settings,
};

/// Prints the way; `probe`: and what becomes of a packet.
pub async fn run(
    settings: &Settings,
    (source, destination): (&str, &str),
    probe: Option<Port>,
    output: Output,
) -> anyhow::Result<Ended> {
    let mut debug = debug(settings).await?;
    let asked = ExplainRequest { source: source.to_owned(), destination: destination.to_owned() };
    let said = reply(debug.explain(asked)).await?;
    let is_well = said.kernel_agrees && said.dropped.is_empty();
    let Some(port) = probe else {
        show(output, &said, || lines(rows(&said)))?;
        return Ok(if is_well { Ended::Well } else { Ended::SomethingIsWrong });
    };
    let probed = probe::send(&said, port).await?;
    let all = Both { explanation: &said, probe: &probed };
    show(output, &all, || lines(rows(&said).into_iter().chain(of_probe(&probed))))?;
    Ok(if is_well && probed.arrived { Ended::Well } else { Ended::SomethingIsWrong })
}

/// What a program reads where a packet was sent.
#[derive(Serialize)]
struct Both<'a> {
    explanation: &'a Explanation,
    probe: &'a Probed,
}

fn of_probe(probed: &Probed) -> Vec<(Mood, String, String)> {
    let plain = |name: &str, words: &str| (Mood::Plain, name.to_owned(), words.to_owned());
    let mut rows = vec![plain("probe", &probed.sent)];
    rows.extend(probed.trace.iter().map(|line| plain("seen in", line)));
    rows.push(match probed.arrived {
        true => (Mood::Good, "arrived".to_owned(), probed.answer.clone()),
        false => (Mood::Bad, "no answer".to_owned(), probed.answer.clone()),
    });
    rows
}

fn rows(said: &Explanation) -> Vec<(Mood, String, String)> {
    let end = |address: &str, pod: &str| if pod.is_empty() { address.to_owned() } else { format!("{address} ({pod})") };
    let plain = |name: &str, words: String| (Mood::Plain, name.to_owned(), words);
    let mut rows = vec![
        plain("from", end(&said.source, &said.source_pod)),
        plain("to", end(&said.destination, &said.destination_pod)),
        plain("comes in by", format!("{}, of {}", said.in_link, said.in_eni)),
        plain("mark", format!("{:#x}: {}", said.mark, said.mark_reason)),
    ];
    rows.extend(said.lookups.iter().map(|Lookup { rule, answer, .. }| plain("rule", format!("{rule} -> {answer}"))));
    if !said.route.is_empty() {
        let eni = if said.out_eni.is_empty() { String::new() } else { format!(", of {}", said.out_eni) };
        rows.push(plain("goes out by", format!("{}{eni}", said.out_link)));
        let kept = if said.leaves_as == said.source { "its own address, " } else { "" };
        rows.push(plain("leaves as", format!("{kept}{}: {}", said.leaves_as, said.translation_reason)));
    }
    if !said.dropped.is_empty() {
        rows.push((Mood::Bad, "does not arrive".to_owned(), said.dropped.clone()));
    }
    let (mood, name) = match said.kernel_agrees {
        true => (Mood::Good, "the kernel agrees"),
        false => (Mood::Bad, "the kernel differs"),
    };
    rows.push((mood, name.to_owned(), said.kernel.clone()));
    rows
}
