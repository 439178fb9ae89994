//! The daemon of a node that is given back, or was.

use std::{pin::pin, time::Duration};

use anyhow::Context;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};

use super::{
    mark::{self, Step},
    steps,
};
use crate::{
    host::sockets::Claim,
    kubernetes::{self, Phase},
    serve::health,
    settings::Settings,
};

/// How often it is looked for the mark. It is a file: one look costs a system call.
const LOOK: Duration = Duration::from_secs(1);
/// So long a daemon that is asked to stop goes on with what it has begun; the chart gives it ten seconds.
const LAST_MOMENTS: Duration = Duration::from_secs(8);
/// What of it failed is tried again so soon.
const AGAIN: Duration = Duration::from_secs(5);

/// What this daemon answers to whoever asks.
const WORDS: &str = "this daemon serves no pods, and waits: the node is given back to Amazon's VPC CNI, or is being given back \
                     (docs/takeover.md)";

/// Waits until it is asked for.
pub async fn asked(settings: &Settings) {
    // One that cannot be read is one: people see to it.
    while mark::read(settings).is_ok_and(|mark| mark.is_none()) {
        sleep(LOOK).await;
    }
}

/// Gives the node back, and stays until the mark has gone: then a new run of the daemon may take the node over.
///
/// # Errors
///
/// Signals cannot be waited for.
pub async fn stay(settings: &Settings) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    warn!("{WORDS}");
    // Who sees that phase starts the other system's daemon: it is said when that finds everything.
    let said = async {
        while is_under_way(settings) {
            sleep(LOOK).await;
        }
        kubernetes::keep_saying(settings, Phase::GivenBack, WORDS).await;
    };
    let mut work = pin!(until_wanted(settings));
    tokio::select! {
        () = health::waiting(settings.health, WORDS.to_owned()) => {}
        () = said => {}
        () = &mut work => {
            info!("the node is wanted again: the daemon starts anew");
            return Ok(());
        }
        _ = terminate.recv() => info!("asked to stop"),
        _ = interrupt.recv() => info!("interrupted"),
    }
    // Half given back, the node would have no daemon that takes it.
    let end = Instant::now() + LAST_MOMENTS;
    while is_under_way(settings) && Instant::now() < end {
        let _ = timeout(LOOK, &mut work).await;
    }
    Ok(())
}

fn is_under_way(settings: &Settings) -> bool {
    mark::read(settings).is_ok_and(|mark| mark.is_some_and(|mark| mark.step != Step::Done))
}

async fn until_wanted(settings: &Settings) {
    let mut said = String::new();
    loop {
        let pause = match goes_on(settings).await {
            Ok(true) => LOOK,
            Ok(false) => return,
            Err(failure) => {
                let words = format!("{failure:#}");
                if words != said {
                    warn!("the node is not given back yet: {words} (`enid handback --cancel` takes it over again)");
                }
                said = words;
                AGAIN
            }
        };
        sleep(pause).await;
    }
}

/// Whether there is still a mark; what it asks for has been done then, or is being done by the command.
async fn goes_on(settings: &Settings) -> anyhow::Result<bool> {
    let Some(mark) = mark::read(settings)? else { return Ok(false) };
    if mark.step != Step::Done
        && let Some(_claim) = Claim::unless_held(&settings.run_dir)?
        && let Err(failure) = steps::give_back(settings, &|what| info!("{what}")).await
    {
        // Who has asked for it reads it there.
        if let Some(mark) = mark::read(settings)? {
            mark::write(settings, mark.step, Some(&format!("{failure:#}")))?;
        }
        return Err(failure);
    }
    Ok(true)
}
