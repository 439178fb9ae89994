//! What happens to a node, as data: drawn from a seed, written to a file, shrunk when something breaks.

use enid_ipamd::Placement;
use serde::{Deserialize, Serialize};

/// One thing that happens. Between two of them the simulated clock goes on only by [`Move::Pass`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Move {
    /// So many milliseconds pass; what is due in them happens at its own time.
    Pass(u64),
    /// So many pods arrive at once.
    Start(u32),
    /// The runtime deletes the pod of this number, counted over those there are.
    Stop(u32),
    /// The runtime repeats the DEL of a pod that has gone.
    StopAgain(u32),
    /// The runtime repeats the ADD of a pod that runs, as it does when it lost the answer.
    StartAgain(u32),
    /// The plugin of this number is not scheduled for so many milliseconds.
    Pause(u32, u64),
    /// kill −9 of the plugin of this number.
    KillPlugin(u32),
    /// The container of this number dies with its namespace: the link is gone, nobody tells.
    Crash(u32),
    /// kill −9 of the daemon while it carries out its next effects: before the record is on disk, after it,
    /// or after so many of the effects that follow; and a new one starts.
    Kill(Boundary),
    /// The machine restarts: every pod and link is gone, the clock begins anew.
    Reboot,
    /// The daemon's file is lost while it is down; it is started again.
    LoseStore,
    /// The runtime tells which pods live; with `true`, it forgets some.
    Collect(bool),
    /// EC2 carries calls out and their answers are lost, this part of them (in percent).
    LoseAnswers(u8),
    /// Calls do not arrive.
    LoseRequests(u8),
    /// EC2 refuses some calls for reasons of its own.
    Refuse(u8),
    /// Nothing answers at EC2.
    Down(bool),
    /// The role has lost its rights to these actions.
    Deny(bool),
    /// Assign calls bring fewer than asked for.
    Partial(u8),
    /// Metadata keeps showing what it showed.
    Stale(bool),
    /// Metadata leaves things out.
    Torn(u8),
    /// No /28 is free in the subnet.
    Fragment(bool),
    /// An operator detaches an ENI that is not in use by pods.
    Detach(u32),
    /// The settings change.
    Settings(u8),
    /// The node is cordoned, or is not any more.
    Cordon(bool),
    /// The wall clock is set by so many seconds, backwards too.
    Clock(i32),
    /// So many pods are bound to the node and on their way.
    Bound(u32),
    /// A pod that no lease explains appears just before the pool gives its address up.
    Orphan,
    /// An operator gives the instance these security groups, by number; EC2 forgets those that it had.
    Groups(u8),
    /// Somebody attaches an ENI of theirs at the next place.
    Foreign,
    /// Others take addresses of the subnet until so many are free; with none named they give all back.
    Fill(Option<u32>),
    /// The daemon finds the file of another instance: it is started on that one's record.
    ForeignStore,
    /// An operator tags a subnet, by number, for or against ENIs, or takes the tag away.
    Tag(u8, Option<bool>),
    /// Others take addresses of one of the further subnets until so many are free, or give all back.
    FillFurther(u8, Option<u32>),
    /// The node's ENIConfig names this subnet and these security groups, by number; 0: none.
    EniConfig(u8, u8),
    /// The node's ENIConfig is gone.
    NoEniConfig,
    /// An operator restricts: bit 0 freezes releases, bit 1 writes, bit 2 excludes an ENI; 0 lifts all.
    Restrict(u8),
    /// An operator wants surplus released now, or EC2 asked about the ENIs.
    Order(bool),
    /// Metadata refuses to answer (401, for one) until it does again.
    Unreadable(bool),
}

/// Moves that only every fourth seed has, put in between the others: so the others' stories stay as they are.
const RARE: usize = 4;

/// How the subnets of new ENIs are chosen in the run of a seed.
pub fn placement(seed: u64) -> Placement {
    match seed % 13 {
        10 => Placement::Tagged { cluster: None },
        11 => Placement::EniConfig,
        _ => Placement::Primary,
    }
}

/// Moves that change that, in such a run.
const PLACING: usize = 12;

/// One seed in so many has orphaned links, so many of them.
const ORPHANS_IN: u64 = 4;
const ORPHANS: usize = 8;

/// Where a kill hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Boundary {
    /// Offers are out, nothing is on disk.
    BeforeDisk,
    /// The disk has it, nothing that follows was done.
    AfterDisk,
    /// So many of the effects that follow were done.
    After(u8),
}

/// A story of this many moves from a seed.
pub fn draw(seed: u64, moves: usize) -> Vec<Move> {
    let mut rng = fastrand::Rng::with_seed(seed);
    // Some stories have no faults of EC2 and no kills.
    let faults = rng.u8(0..4);
    let mut story: Vec<Move> = (0..moves).map(|_| one(&mut rng, faults)).collect();
    if seed.is_multiple_of(ORPHANS_IN) {
        (0..ORPHANS).for_each(|_| story.insert(rng.usize(0..story.len().max(1)), Move::Orphan));
    }
    for _ in 0..RARE {
        let rare = match seed % 4 {
            1 if rng.bool() => Move::Groups(rng.u8(0..4)),
            1 => Move::Fill((rng.u8(0..3) > 0).then(|| rng.u32(0..20))),
            2 => Move::Unreadable(rng.bool()),
            3 if faults > 0 => Move::ForeignStore,
            3 => Move::Foreign,
            _ if rng.u8(0..4) == 0 => Move::Order(rng.bool()),
            _ => Move::Restrict(rng.u8(0..8)),
        };
        story.insert(rng.usize(0..story.len().max(1)), rare);
    }
    for _ in 0..PLACING {
        let step = match placement(seed) {
            Placement::Primary => break,
            _ if rng.u8(0..3) == 0 => Move::FillFurther(rng.u8(0..3), rng.bool().then(|| rng.u32(0..6))),
            Placement::Tagged { .. } => Move::Tag(rng.u8(0..3), (rng.u8(0..4) > 0).then(|| rng.u8(0..3) > 0)),
            Placement::EniConfig if rng.u8(0..6) == 0 => Move::NoEniConfig,
            Placement::EniConfig => Move::EniConfig(rng.u8(0..3), rng.u8(0..3)),
        };
        story.insert(rng.usize(0..story.len().max(1)), step);
    }
    story
}

fn one(rng: &mut fastrand::Rng, faults: u8) -> Move {
    let percent = |rng: &mut fastrand::Rng| if rng.bool() { 0 } else { rng.u8(0..60) };
    let roll = rng.u32(0..if faults == 0 { 60 } else { 101 });
    match roll {
        0..12 => Move::Pass(rng.u64(1..400)),
        12..18 => Move::Pass(rng.u64(400..8_000)),
        18..20 => Move::Pass(rng.u64(8_000..240_000)),
        20..30 => Move::Start(rng.u32(1..4)),
        30..31 => Move::Start(rng.u32(4..16)),
        31..44 => Move::Stop(rng.u32(0..64)),
        44..46 => Move::StopAgain(rng.u32(0..64)),
        46..48 => Move::StartAgain(rng.u32(0..64)),
        48..51 => Move::Pause(rng.u32(0..8), if rng.bool() { rng.u64(1..2_000) } else { rng.u64(2_000..120_000) }),
        51..53 => Move::KillPlugin(rng.u32(0..8)),
        53..55 => Move::Crash(rng.u32(0..64)),
        55..57 => Move::Settings(rng.u8(0..8)),
        57..58 => Move::Cordon(rng.bool()),
        58..59 => Move::Bound(rng.u32(0..6)),
        59..60 => Move::Collect(rng.bool()),
        60..70 => Move::Kill(match rng.u8(0..3) {
            0 => Boundary::BeforeDisk,
            1 => Boundary::AfterDisk,
            _ => Boundary::After(rng.u8(0..4)),
        }),
        70..72 => Move::Reboot,
        72..73 => Move::LoseStore,
        73..77 => Move::LoseAnswers(percent(rng)),
        77..80 => Move::LoseRequests(percent(rng)),
        80..83 => Move::Refuse(percent(rng)),
        83..86 => Move::Down(rng.u8(0..3) == 0),
        86..88 => Move::Deny(rng.u8(0..3) == 0),
        88..90 => Move::Partial(percent(rng)),
        90..93 => Move::Stale(rng.bool()),
        93..96 => Move::Torn(percent(rng)),
        96..98 => Move::Fragment(rng.bool()),
        98..100 => Move::Detach(rng.u32(0..4)),
        _ => Move::Clock(rng.i32(-7_200..7_200)),
    }
}

/// The shortest part of a story that still breaks in the same way, found by leaving parts out.
pub fn shrink(story: &[Move], breaks: impl Fn(&[Move]) -> bool) -> Vec<Move> {
    let mut kept = story.to_vec();
    let mut chunk = kept.len().div_ceil(2);
    while chunk > 0 {
        let mut at = 0;
        while at < kept.len() {
            let mut shorter = kept.clone();
            shorter.drain(at..(at + chunk).min(kept.len()));
            if breaks(&shorter) {
                kept = shorter;
            } else {
                at += chunk;
            }
        }
        chunk /= 2;
    }
    kept
}
