//! `make sim`: random histories of a node, each drawn from a seed, with every fault we can think of.
//!
//!     sim seeds [COUNT [FIRST]]   random histories; one that fails is shrunk and written to tests/sim/stories
//!     sim stories                 every history that once failed, and the peer's known bugs, replayed
//!     sim story FILE              one of them; SIM_TRACE=1 prints every event and effect
//!     sim replay BUNDLE           what a daemon has recorded (`enid bundle`), taken again: the same state and plan
//!     sim mutations               each guard taken away once: somebody must notice
//!     sim counts                  how many EC2 calls the usual situations cost
//!     sim fleet                   thousands of nodes under one account's buckets
//!     sim groups                  the last part of that: security groups of a whole fleet are changed
//!     sim waste [FIRST [COUNT]]   idle addresses, calls and waiting: auto beside the peer's settings
//!     sim plot FILE               the picture of that, as SVG
//!
//! Without a word: stories, seeds (SEEDS, 500), mutations, counts, fleet, waste.

mod cloud;
mod counts;
mod fleet;
mod mutations;
mod replay;
mod run;
mod stories;
mod story;
mod world;

use std::{collections::BTreeMap, path::Path, process::ExitCode};

use anyhow::Context;
use comfy_table::{Table, presets::NOTHING};
use rayon::prelude::*;

use crate::{
    run::{MOVES, play},
    world::Tally,
};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sim: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> anyhow::Result<()> {
    let number = |at: usize, otherwise: u64| -> anyhow::Result<u64> {
        args.get(at).map_or(Ok(otherwise), |text| text.parse().with_context(|| format!("{text:?} is no number")))
    };
    match args.first().map(String::as_str) {
        None => {
            stories::replay()?;
            let count = std::env::var("SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(500);
            seeds(1, count)?;
            mutations::run()?;
            counts::run()?;
            fleet::crowd::run()?;
            fleet::groups::run()?;
            fleet::waste::run(None)
        }
        Some("seeds") => seeds(number(2, 1)?, number(1, 500)?),
        Some("story") => stories::one(args.get(1).context("which file?")?),
        Some("stories") => stories::replay(),
        Some("replay") => replay::run(args.get(1).context("which bundle?")?),
        Some("mutations") => mutations::run(),
        Some("counts") => counts::run(),
        Some("fleet") => {
            fleet::crowd::run()?;
            fleet::groups::run()
        }
        Some("groups") => fleet::groups::run(),
        Some("waste") => match args.get(1) {
            Some(_) => fleet::waste::run(Some(number(1, 1)?..number(1, 1)? + number(2, 3)?)),
            None => fleet::waste::run(None),
        },
        Some("plot") => fleet::plot::draw(Path::new(args.get(1).context("which file?")?), fleet::waste::SEEDS),
        Some(other) => {
            anyhow::bail!(
                "there is no {other:?}; sim seeds | story | stories | replay | mutations | counts | fleet | groups | waste | plot"
            )
        }
    }
}

fn seeds(first: u64, count: u64) -> anyhow::Result<()> {
    let mut all = Tally::default();
    // On all processors; of several that break it is the first seed that is told.
    let played = (first..first + count).into_par_iter().map(|seed| {
        let story = story::draw(seed, MOVES);
        let (broken, tally) = play(seed, &story, None);
        (seed, story, broken, tally)
    });
    for (seed, story, broken, tally) in played.collect::<Vec<_>>() {
        if let Some(what) = broken {
            return Err(stories::record(seed, &story, &what)?);
        }
        all.steps += tally.steps;
        all.millis += tally.millis;
        all.added += tally.added;
        all.refused += tally.refused;
        for (kind, number) in tally.faults {
            *all.faults.entry(kind).or_default() += number;
        }
    }
    println!("Seeds {first} to {}: no invariant broken", first + count - 1);
    report(&all);
    Ok(())
}

fn report(tally: &Tally) {
    let mut table = Table::new();
    table.load_style(NOTHING);
    let hours = tally.millis / 3_600_000;
    let mut rows: BTreeMap<&str, u64> = tally.faults.clone();
    table.add_row(["steps".to_owned(), tally.steps.to_string()]);
    table.add_row(["node-hours".to_owned(), hours.to_string()]);
    table.add_row(["ADDs answered".to_owned(), tally.added.to_string()]);
    table.add_row(["ADDs refused".to_owned(), tally.refused.to_string()]);
    while let Some((kind, number)) = rows.pop_first() {
        table.add_row([kind.to_owned(), number.to_string()]);
    }
    println!("{table}\n");
}
