//! What host and table should carry for the core's ENIs: when an attempt is due, and what became of the last one.
//!
//! An attempt runs beside the core's task, one at a time. A verdict waits until one has ended that knows its pod's block:
//! an address is reachable before its plugin prints it. What the kernel refuses holds no verdict up for longer: it is
//! reported, and tried again.

use enid_ipamd::{Core, EniId, EniState, Millis, Ticket};
use ipnet::Ipv4Net;
use tracing::{debug, info, warn};

use crate::host::kernel::{Applied, Kernel, Steering, Wanted};

/// A link that has not shown up yet is looked for so often.
const PAUSE_MS: u64 = 100;
/// After the kernel has refused something.
const PAUSE_REFUSED_MS: u64 = 500;

/// The core's side of the kernel.
pub struct Carrier {
    kernel: Kernel,
    steering: Steering,
    vpc: Vec<Ipv4Net>,
    applied: Wanted,
    /// The topology that `applied` was made from.
    topology: Option<u64>,
    in_flight: bool,
    /// When the next attempt may begin.
    not_before: Millis,
    verdicts: Verdicts,
    /// What the kernel refused last: reported once.
    failure: Option<String>,
}

/// Verdicts that wait for an attempt.
#[derive(Default)]
struct Verdicts {
    /// The newest topology that an attempt has been made for; nobody waits for an older one.
    attempted: u64,
    /// The topology that each waits for.
    waiting: Vec<(Ticket, u64)>,
}

/// An attempt that has ended.
pub struct Attempt {
    wanted: Wanted,
    topology: u64,
    configuring: Vec<(EniId, u32)>,
    answer: anyhow::Result<Applied>,
}

/// The ENIs that the host does not carry yet, with their slots.
pub fn configuring(core: &Core) -> Vec<(EniId, u32)> {
    let configuring = |(eni, slot): (&enid_ipamd::Eni, u32)| {
        (eni.state == EniState::Configuring).then(|| (eni.facts.id.clone(), slot))
    };
    core.host_enis().filter_map(configuring).collect()
}

impl Carrier {
    /// Nothing is carried yet.
    pub fn new(kernel: Kernel, steering: Steering, vpc: Vec<Ipv4Net>) -> Self {
        Carrier {
            kernel,
            steering,
            vpc,
            applied: Wanted::default(),
            topology: None,
            in_flight: false,
            not_before: Millis(0),
            verdicts: Verdicts::default(),
            failure: None,
        }
    }

    /// An attempt, if one is due.
    pub fn start(&mut self, core: &Core, now: Millis) -> Option<impl Future<Output = Attempt> + Send + use<>> {
        let (configuring, topology) = (configuring(core), core.topology());
        if self.in_flight || (configuring.is_empty() && self.topology == Some(topology)) || now < self.not_before {
            return None;
        }
        let wanted = Wanted::new(core, &self.vpc, &self.steering);
        if (wanted == self.applied && configuring.is_empty()) || core.host_enis().next().is_none() {
            self.topology = Some(topology);
            self.verdicts.attempted = topology;
            return None;
        }
        self.in_flight = true;
        let kernel = self.kernel.clone();
        Some(async move {
            let answer = kernel.apply(&wanted).await;
            Attempt { wanted, topology, configuring, answer }
        })
    }

    /// Takes the end of an attempt: the ENIs that are carried now.
    pub fn end(&mut self, attempt: Attempt, now: Millis) -> Vec<EniId> {
        (self.in_flight, self.verdicts.attempted) = (false, attempt.topology);
        let mut up = Vec::new();
        match attempt.answer {
            Ok(applied) => {
                self.failure = None;
                for change in &applied.changes {
                    debug!(kind = change.kind.name(), "kernel: {}", change.what);
                }
                if let Some(reason) = &applied.waits_for {
                    debug!(reason, "kernel waits");
                    self.not_before = now.plus(PAUSE_MS);
                } else {
                    self.applied = attempt.wanted;
                    self.topology = Some(attempt.topology);
                }
                let carried = attempt.configuring.into_iter().filter(|(_, slot)| applied.slots.contains(slot));
                up = carried.inspect(|(eni, slot)| info!(%eni, slot, "ENI is up")).map(|(eni, _)| eni).collect();
            }
            Err(failure) => {
                self.not_before = now.plus(PAUSE_REFUSED_MS);
                self.failed(Some(format!("{failure:#}")));
            }
        }
        up
    }

    /// Keeps a verdict until an attempt for this topology, or a newer one, has ended; whether it has to wait.
    pub fn keeps(&mut self, ticket: Ticket, topology: u64) -> bool {
        self.verdicts.keeps(ticket, topology)
    }

    /// The verdicts that need not wait any more.
    pub fn ready(&mut self) -> Vec<Ticket> {
        self.verdicts.ready()
    }

    /// What the kernel refuses, or that it refuses nothing any more.
    pub fn failed(&mut self, failure: Option<String>) {
        if let Some(words) = failure.as_ref().filter(|_| self.failure != failure) {
            warn!("the kernel refused: {words}");
        }
        self.failure = failure;
    }

    /// What the kernel refused last.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// The VPC's CIDRs, as metadata shows them.
    pub fn set_vpc(&mut self, cidrs: Vec<Ipv4Net>) {
        if cidrs != self.vpc {
            info!(?cidrs, "the VPC has other CIDRs");
            self.vpc = cidrs;
            self.topology = None;
        }
    }

    /// What is carried, or should be as long as nothing is: what is only on its way into the kernel is no fault there.
    pub fn carried(&self, core: &Core) -> Wanted {
        if self.applied == Wanted::default() {
            return Wanted::new(core, &self.vpc, &self.steering);
        }
        self.applied.clone()
    }

    /// When an attempt may begin for which nothing else wakes the core's task.
    pub fn due(&self, now: Millis) -> Option<Millis> {
        Some(self.not_before).filter(|at| *at > now && !self.in_flight)
    }
}

impl Verdicts {
    fn keeps(&mut self, ticket: Ticket, topology: u64) -> bool {
        let waits = topology > self.attempted;
        if waits {
            self.waiting.push((ticket, topology));
        }
        waits
    }

    fn ready(&mut self) -> Vec<Ticket> {
        let attempted = self.attempted;
        self.waiting.extract_if(.., |(_, topology)| *topology <= attempted).map(|(ticket, _)| ticket).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_waits_for_an_attempt_that_knows_its_block() {
        let mut verdicts = Verdicts { attempted: 3, ..Verdicts::default() };
        assert!(!verdicts.keeps(Ticket(1), 3), "the host carries it");
        assert!(verdicts.keeps(Ticket(2), 4) && verdicts.keeps(Ticket(3), 5));
        assert_eq!(verdicts.ready(), []);
        verdicts.attempted = 4; // it was in flight while the block of the third came
        assert_eq!(verdicts.ready(), [Ticket(2)]);
        verdicts.attempted = 6;
        assert_eq!(verdicts.ready(), [Ticket(3)]);
    }
}
