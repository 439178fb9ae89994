//! `enid handback`: asks for it, and waits until it is done.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::time::{Instant, sleep};

use super::{
    mark::{self, Step},
    steps,
};
use crate::{host::sockets::Claim, settings::Settings};

/// So long it may take: the daemon has to end what it does.
const BOUND: Duration = Duration::from_secs(120);
/// How soon it is looked at again.
const LOOK: Duration = Duration::from_millis(200);

/// Gives this node back, or has its daemon do so.
///
/// # Errors
///
/// The node cannot be given back, or was not within the bound: the mark stays, and the daemon goes on.
pub async fn run(settings: &Settings) -> anyhow::Result<()> {
    match mark::read(settings)? {
        Some(mark) if mark.step == Step::Done => {
            println!("this node was given back already");
            return Ok(());
        }
        Some(_) => {}
        None => {
            steps::check(settings).await.context("nothing is changed")?;
            mark::ask(settings)?;
        }
    }
    let (end, mut said) = (Instant::now() + BOUND, None);
    loop {
        let failure = match mark::read(settings)? {
            None => bail!("the mark has been removed: somebody wants Enid to serve this node"),
            Some(mark) if mark.step == Step::Done => break,
            Some(mark) => mark.failure,
        };
        // Where a daemon runs, it has the claim and does it itself.
        let failure = match Claim::unless_held(&settings.run_dir)? {
            None => failure,
            Some(_claim) => {
                let done = steps::give_back(settings, &|what| println!("{what}")).await;
                done.err().map(|failure| format!("{failure:#}"))
            }
        };
        if let Some(failure) = failure.as_ref().filter(|_| failure != said) {
            println!("not yet: {failure}");
        }
        said = failure.or(said);
        if Instant::now() >= end {
            let why = said.unwrap_or_else(|| "the daemon does not say why not".to_owned());
            bail!("the node is not given back within {} s: {why}; the daemon goes on trying", BOUND.as_secs());
        }
        sleep(LOOK).await;
    }
    println!(
        "This node is given back to Amazon's VPC CNI: start its daemon here, and keep Enid's away (docs/takeover.md). \
         `enid handback --cancel` lets Enid take it over again."
    );
    Ok(())
}

/// Takes the mark away: the daemon starts anew, and takes the node over.
///
/// # Errors
///
/// The node is being given back at this moment, or the mark cannot be removed.
pub fn cancel(settings: &Settings) -> anyhow::Result<()> {
    // One that is damaged goes, too.
    if mark::read(settings).is_ok_and(|mark| mark.is_none()) {
        println!("this node is not given back: nothing is changed");
        return Ok(());
    }
    let claim = Claim::unless_held(&settings.run_dir)?;
    ensure!(claim.is_some(), "the node is being given back; ask again when that is done");
    mark::remove(settings)?;
    println!("Enid takes this node over again once Amazon's daemon has gone from it");
    Ok(())
}
