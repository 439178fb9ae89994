//! What a daemon has recorded, taken again: a bundle of `enid bundle`, or the recording in it.

use std::{fs::File, io::Read};

use anyhow::Context;
use enid_ipamd::{Action, Recording};
use flate2::read::GzDecoder;
use tar::Archive;

/// The recording's name in a bundle.
const NAME: &str = "recording.json";

/// Takes it again and says whether state and plan are the recorded ones. SIM_TRACE=1 prints every event, action and effect.
pub fn run(path: &str) -> anyhow::Result<()> {
    let recording: Recording =
        serde_json::from_str(&text(path)?).with_context(|| format!("{path} has no recording"))?;
    let traces = std::env::var_os("SIM_TRACE").is_some();
    let mut actions = 0;
    let replayed = recording.replay(|now, event, effects, plan| {
        actions += plan.actions.len();
        if traces {
            println!("{:>9} {event:?}", now.0);
            for Action { step, reason } in &plan.actions {
                println!("{:>9}   {step}: {reason}", "");
            }
            effects.iter().for_each(|effect| println!("{:>9}   -> {effect:?}", ""));
        }
    });
    replayed.map_err(|what| anyhow::anyhow!("{path}: {what}"))?;
    let began = recording.events.first().map_or(recording.at.0, |(now, _)| now.0);
    println!(
        "{path}: {} events of {} s, {actions} actions; state and plan are the recorded ones\n{}",
        recording.events.len(),
        (recording.at.0.saturating_sub(began)) / 1_000,
        recording.plan
    );
    Ok(())
}

fn text(path: &str) -> anyhow::Result<String> {
    let open = || File::open(path).with_context(|| format!("cannot open {path}"));
    let mut text = String::new();
    if path.ends_with(".json") {
        open()?.read_to_string(&mut text).with_context(|| format!("cannot read {path}"))?;
        return Ok(text);
    }
    let mut archive = Archive::new(GzDecoder::new(open()?));
    for entry in archive.entries().with_context(|| format!("{path} is no bundle"))? {
        let mut entry = entry.with_context(|| format!("{path} is no bundle"))?;
        if entry.path()?.ends_with(NAME) {
            entry.read_to_string(&mut text).with_context(|| format!("cannot read {NAME} in {path}"))?;
            return Ok(text);
        }
    }
    anyhow::bail!("{path} has no {NAME}: no daemon answered when it was made")
}
