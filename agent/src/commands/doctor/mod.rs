//! `enid doctor`: everything that the daemon, the kernel, instance metadata and EC2 say, compared, and known trouble; each finding
//! with its cure. It changes nothing. It asks EC2 once, or twice if that differs from what metadata shows.

mod cloud;
mod daemon;
mod finding;
mod node;

use std::time::Duration;

use anyhow::anyhow;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use self::daemon::OfDaemon;
pub use self::finding::Finding;
use super::ended::Ended;
use crate::{
    print::{Mood, Output, lines, show},
    settings::Settings,
};

/// What the daemon may take.
const BOUND: Duration = Duration::from_millis(3_500);
/// All of it is said within five seconds.
const WHOLE: Duration = Duration::from_millis(4_500);
/// What differs for a moment only is no finding: it is looked at again after so long.
const SECOND_LOOK: Duration = Duration::from_millis(1_200);

/// Prints what is found.
///
/// # Errors
///
/// It cannot be printed.
pub async fn run(settings: &Settings, output: Output) -> anyhow::Result<Ended> {
    let findings = found(settings).await;
    show(output, &findings, || told(&findings))?;
    Ok(if findings.iter().all(|finding| finding.note) { Ended::Well } else { Ended::SomethingIsWrong })
}

/// What is found, in time.
pub async fn found(settings: &Settings) -> Vec<Finding> {
    let ends = Instant::now() + WHOLE;

    let twice = async {
        let first = daemon::look(settings).await;
        if !first.as_ref().is_ok_and(OfDaemon::may_be_over) {
            return (None, first);
        }
        sleep(SECOND_LOOK).await;
        (first.ok(), daemon::look(settings).await)
    };
    let (daemon, cloud) = tokio::join!(timeout(BOUND, twice), cloud::look(settings));
    let late = |_| (None, Err(anyhow!("the daemon does not answer within {} ms", BOUND.as_millis())));
    let (before, now) = daemon.unwrap_or_else(late);
    // What differs at two moments at which the daemon is idle lasts.
    let is_idle = |daemon: &anyhow::Result<OfDaemon>| daemon.as_ref().is_ok_and(OfDaemon::is_idle);
    let mut differences = if is_idle(&now) { cloud::differences(&cloud, settings) } else { Vec::new() };
    if !differences.is_empty() {
        let again = async {
            sleep(SECOND_LOOK).await;
            let again = cloud::differences(&cloud::look(settings).await, settings);
            is_idle(&daemon::look(settings).await).then_some(again)
        };
        // What is not seen twice in time is no finding.
        let again = timeout_at(ends, again).await.ok().flatten().unwrap_or_default();
        differences.retain(|difference| again.contains(difference));
    }
    let of_node = node::findings(settings, now.as_ref().ok()).await;
    let of_daemon = daemon::findings(before.as_ref(), &now);
    let of_cloud = cloud::findings(&cloud, now.as_ref().ok());
    finding::each_once(of_daemon.into_iter().chain(of_node).chain(of_cloud).chain(differences))
}

fn told(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return lines([(Mood::Good, "healthy".to_owned(), "nothing is wrong".to_owned())]);
    }
    findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n\n")
}
