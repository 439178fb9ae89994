//! Invariants that steps would have broken, and the guards that a test has taken away.

use imbl::Vector;
use serde::{Deserialize, Serialize};

use crate::{invariant::Broken, mutation::Mutation};

/// What is known of the core's own faults.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Integrity {
    /// The state was kept as it was before each of them.
    broken: Vector<Broken>,
    #[cfg(feature = "mutations")]
    #[serde(skip)]
    mutation: Option<Mutation>,
}

impl Integrity {
    pub(crate) fn add(&mut self, broken: Vec<Broken>) {
        self.broken.extend(broken);
    }

    pub(crate) fn is_broken(&self) -> bool {
        !self.broken.is_empty()
    }

    pub(crate) fn broken(&self) -> impl Iterator<Item = &Broken> {
        self.broken.iter()
    }

    /// Takes a guard away.
    #[cfg(feature = "mutations")]
    pub(crate) fn mutate(&mut self, mutation: Mutation) {
        self.mutation = Some(mutation);
    }

    /// Whether this guard has been taken away.
    #[cfg(feature = "mutations")]
    pub(crate) fn is_mutated(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    /// Whether this guard has been taken away: never.
    #[cfg(not(feature = "mutations"))]
    pub(crate) fn is_mutated(&self, _: Mutation) -> bool {
        false
    }
}
