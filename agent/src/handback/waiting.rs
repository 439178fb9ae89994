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
/// So often it is tried to say it in the node's status object.
const TRIES: u32 = 5;
/// So long a daemon that is asked to stop goes on with what it has begun; the chart gives it ten seconds.
const LAST_MOMENTS: Duration = Duration::from_secs(8);
/// What of it failed is tried again so soon.
const AGAIN: Duration = Duration::from_secs(5);

/// What this daemon answers to whoever asks.
const WORDS: &str =
    "this node is given back to Amazon's VPC CNI; this daemon serves no pods, and waits (docs/takeover.md)";

/// Waits until somebody wants this node back.
pub async fn asked(settings: &Settings) {
    loop {
        match mark::read(settings) {
            Ok(Some(_)) => return,
            Ok(None) => {}
            Err(failure) => warn!("{failure:#}"),
        }
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
    let mut work = pin!(until_wanted(settings));
    tokio::select! {
        () = health::waiting(settings.health, WORDS.to_owned()) => {}
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
    let (mut said, mut tries) = (String::new(), 0..TRIES);
    loop {
        let pause = match goes_on(settings).await {
            Ok(true) => {
                if tries.next().is_some() && told(settings).await {
                    tries = 0..0;
                }
                LOOK
            }
            Ok(false) => return,
            Err(failure) => {
                let words = format!("{failure:#}");
                if words != said {
                    warn!("the node is not given back yet: {words}");
                    // Who has asked for it reads it there.
                    if let Ok(Some(mark)) = mark::read(settings) {
                        let _ = mark::write(settings, mark.step, Some(&words));
                    }
                }
                said = words;
                AGAIN
            }
        };
        sleep(pause).await;
    }
}

/// Whether the node's status object says so.
async fn told(settings: &Settings) -> bool {
    let written = kubernetes::say_phase(settings, Phase::GivenBack, WORDS).await;
    written.inspect_err(|failure| warn!("the node's status object does not say so: {failure:#}")).is_ok()
}

/// Whether there is still a mark; what it asks for has been done then.
async fn goes_on(settings: &Settings) -> anyhow::Result<bool> {
    let Some(mark) = mark::read(settings)? else { return Ok(false) };
    if mark.step != Step::Done {
        let _claim = Claim::new(&settings.run_dir)?;
        steps::give_back(settings, &|what| info!("{what}")).await?;
    }
    Ok(true)
}
