//! What pods do on a few nodes over some hours, drawn from a seed: when each is created and when it is deleted.

/// Milliseconds in a second and in a minute.
const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;

/// One pod's life on its node, in milliseconds from the beginning.
#[derive(Clone, Debug)]
pub struct Life {
    pub node: usize,
    pub from: u64,
    pub to: u64,
}

/// One node's life.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub from: u64,
    pub to: u64,
}

/// Nodes and pods.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    pub nodes: Vec<Span>,
    pub pods: Vec<Life>,
}

/// Draws a trace from a seed.
type Draw = fn(u64) -> Trace;

/// The kinds of traces there are.
pub const KINDS: [(&str, Draw); 6] = [
    ("steady", steady),
    ("cron burst", cron_burst),
    ("rollout", rollout),
    ("drain", drain),
    ("spot churn", spot_churn),
    ("batch", batch),
];

/// How long a trace is, in milliseconds.
pub const LENGTH: u64 = 12 * 60 * MINUTE;

const NODES: usize = 4;

/// Nodes that live all the time, with so many pods on each that stay all the time.
fn lasting(rng: &mut fastrand::Rng, pods: std::ops::Range<u64>) -> Trace {
    let mut trace = Trace::default();
    for node in 0..NODES {
        trace.nodes.push(Span { from: 0, to: LENGTH });
        for _ in 0..rng.u64(pods.clone()) {
            let from = rng.u64(5 * SECOND..2 * MINUTE);
            trace.pods.push(Life { node, from, to: LENGTH });
        }
    }
    trace
}

/// An exponential time of this mean, in whole thousandths of it.
fn about(rng: &mut fastrand::Rng, mean: u64) -> u64 {
    let wanted = rng.f64();
    let part = (1..10_000_u32).find(|part| 1.0 - (-f64::from(*part) / 1000.0).exp() >= wanted);
    mean * u64::from(part.unwrap_or(10_000)) / 1000
}

/// Services that come and go by themselves: some 15 pods of an hour or two on each node.
fn steady(seed: u64) -> Trace {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut trace = lasting(&mut rng, 3..5);
    for node in 0..NODES {
        let mut at = 10 * SECOND;
        while at < LENGTH {
            let to = at + 5 * SECOND + about(&mut rng, 90 * MINUTE);
            trace.pods.push(Life { node, from: at, to });
            at += about(&mut rng, 6 * MINUTE);
        }
    }
    trace
}

/// A dozen jobs every ten minutes, each a minute or two long, on top of a few services.
fn cron_burst(seed: u64) -> Trace {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut trace = lasting(&mut rng, 6..10);
    for node in 0..NODES {
        let mut at = 10 * MINUTE;
        while at < LENGTH {
            for _ in 0..rng.u64(8..14) {
                let from = at + rng.u64(0..3 * SECOND);
                trace.pods.push(Life { node, from, to: from + rng.u64(30 * SECOND..2 * MINUTE) });
            }
            at += 10 * MINUTE;
        }
    }
    trace
}

/// Every hour or so all pods of a deployment are replaced, three at a time.
fn rollout(seed: u64) -> Trace {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut trace = lasting(&mut rng, 3..5);
    for node in 0..NODES {
        let pods = rng.u64(12..18);
        // When each pod of the generation that runs was created.
        let mut since: Vec<u64> = (0..pods).map(|_| rng.u64(5 * SECOND..MINUTE)).collect();
        let mut at = rng.u64(20 * MINUTE..70 * MINUTE);
        while at < LENGTH {
            for (number, from) in since.iter_mut().enumerate() {
                let step = u64::try_from(number / 3).unwrap_or(0) * rng.u64(15 * SECOND..25 * SECOND);
                // The old one goes when the new one is ready.
                trace.pods.push(Life { node, from: *from, to: at + step + 15 * SECOND });
                *from = at + step;
            }
            at += rng.u64(40 * MINUTE..90 * MINUTE);
        }
        trace.pods.extend(since.into_iter().map(|from| Life { node, from, to: LENGTH }));
    }
    trace
}

/// A full node is emptied within a minute, stays empty for a while and fills up again.
fn drain(seed: u64) -> Trace {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut trace = lasting(&mut rng, 2..4);
    for node in 0..NODES {
        let mut at = rng.u64(10 * SECOND..10 * MINUTE);
        while at < LENGTH {
            let until = at + rng.u64(60 * MINUTE..150 * MINUTE);
            for _ in 0..rng.u64(16..22) {
                let from = at + rng.u64(0..90 * SECOND);
                trace.pods.push(Life { node, from, to: until + rng.u64(0..MINUTE) });
            }
            at = until + rng.u64(30 * MINUTE..90 * MINUTE);
        }
    }
    trace
}

/// Nodes that live for half an hour to an hour and a half; each is filled within a minute of its start.
fn spot_churn(seed: u64) -> Trace {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut trace = Trace::default();
    for _ in 0..NODES {
        let mut at = rng.u64(0..10 * MINUTE);
        while at < LENGTH {
            let to = (at + rng.u64(30 * MINUTE..90 * MINUTE)).min(LENGTH);
            let node = trace.nodes.len();
            trace.nodes.push(Span { from: at, to });
            for _ in 0..rng.u64(12..22) {
                let from = at + rng.u64(2 * SECOND..MINUTE);
                trace.pods.push(Life { node, from, to });
            }
            at = to + rng.u64(MINUTE..5 * MINUTE);
        }
    }
    trace
}

/// Short jobs in waves: pods of a minute each, sometimes many a minute, sometimes none for an hour.
fn batch(seed: u64) -> Trace {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut trace = lasting(&mut rng, 2..4);
    for node in 0..NODES {
        let mut at = rng.u64(MINUTE..20 * MINUTE);
        while at < LENGTH {
            let until = at + rng.u64(10 * MINUTE..40 * MINUTE);
            while at < until {
                trace.pods.push(Life { node, from: at, to: at + 20 * SECOND + about(&mut rng, MINUTE) });
                at += about(&mut rng, 12 * SECOND);
            }
            at += rng.u64(20 * MINUTE..90 * MINUTE);
        }
    }
    trace
}
