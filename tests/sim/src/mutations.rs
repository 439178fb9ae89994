//! Does the simulator notice? Each guard of the core is taken away once, and some seed must break.

use comfy_table::{Table, presets::NOTHING};
use enid_ipamd::Mutation;
use rayon::prelude::*;

use crate::{
    run::{MOVES, play},
    story,
};

/// Every guard, and the invariant (design) that it stands for.
const GUARDS: [(Mutation, &str); 13] = [
    (Mutation::AssignTwice, "1: an address has one owner"),
    (Mutation::IgnoreOrphans, "1: an orphaned link owns its address"),
    (Mutation::UnassignInUse, "2: nothing that a live pod uses is unassigned"),
    (Mutation::DetachInUse, "2: nothing that a live pod uses is detached"),
    (Mutation::IgnoreKernel, "2: a listing of the kernel after the decision stands before every release"),
    (Mutation::TrustMetadata, "2: metadata alone takes nothing away"),
    (Mutation::OfferUnrecorded, "3: a lease is durable before its ADD is answered"),
    (Mutation::CreateUnrecorded, "4: a creation is written down before it is sent"),
    (Mutation::ChangeUnmanaged, "5: an ENI is changed only if it is ours"),
    (Mutation::IgnorePlaces, "an ENI is created only where tags and ENIConfigs say"),
    (Mutation::ServeUnprotected, "an ENI serves only after delete-on-termination"),
    (Mutation::IgnoreRestrictions, "what an operator has frozen is not sent"),
    (Mutation::NoCooldown, "an address is not assigned again during its cooldown"),
];

/// Seeds that are tried before a mutation counts as unseen.
const TRIES: u64 = 400;

/// Takes each away in turn.
pub fn run() -> anyhow::Result<()> {
    println!("Mutations: a guard is taken away, and");
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(["guard", "invariant", "seed", "what breaks"]);
    let mut unseen = Vec::new();
    for (mutation, invariant) in GUARDS {
        let caught = (1..=TRIES).into_par_iter().find_map_first(|seed| {
            let story = story::draw(seed, MOVES);
            play(seed, &story, Some(mutation)).0.map(|what| (seed, what))
        });
        match caught {
            Some((seed, what)) => {
                table.add_row([format!("{mutation:?}"), invariant.to_owned(), seed.to_string(), what]);
            }
            None => unseen.push(format!("{mutation:?}")),
        }
    }
    println!("{table}\n");
    anyhow::ensure!(unseen.is_empty(), "nobody notices {}", unseen.join(", "));
    Ok(())
}
