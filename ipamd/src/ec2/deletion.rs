//! ENIs that are detached and deleted, and how far each is.

use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use crate::ids::{EniId, Millis, Place};

/// EC2 needs some seconds to detach an ENI, and refuses to delete it before.
const DETACHING_MS: u64 = 5_000;

/// An ENI that is being detached or deleted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Deletion {
    pub(crate) stage: DeletionStage,
    /// The intent that is closed when it is gone.
    pub(crate) token: Option<String>,
    /// It is not deleted, nor looked for, before that.
    pub(crate) not_before: Millis,
    /// Where it is, or was, attached: the place is not free before it is gone.
    pub(crate) place: Option<Place>,
}

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum DeletionStage {
    /// An earlier run had decided it, or an answer never came: an audit will tell where it is.
    Unclear,
    /// It is attached; the attachment's id.
    ToDetach(String),
    /// DetachNetworkInterface is in flight.
    Detaching,
    /// It is attached to nothing.
    ToDelete,
    /// DeleteNetworkInterface is in flight.
    Deleting,
}

/// The deletions.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Deletions {
    by_eni: OrdMap<EniId, Deletion>,
}

impl Deletions {
    /// Begins one, or takes it to another stage; `place` is where the ENI is attached, as far as that is news.
    pub(crate) fn set(&mut self, eni: &EniId, stage: DeletionStage, token: Option<String>, place: Option<Place>) {
        let before = self.by_eni.get(eni);
        let token = token.or_else(|| before.and_then(|deletion| deletion.token.clone()));
        let place = before.and_then(|deletion| deletion.place).or(place);
        self.by_eni.insert(eni.clone(), Deletion { stage, token, not_before: Millis(0), place });
    }

    /// It has been detached.
    pub(crate) fn detached(&mut self, now: Millis, eni: &EniId, place: Option<Place>) {
        self.set(eni, DeletionStage::ToDelete, None, place);
        self.wait(eni, now.plus(DETACHING_MS));
    }

    /// It is not deleted, nor looked for, before that.
    pub(crate) fn wait(&mut self, eni: &EniId, not_before: Millis) {
        if let Some(deletion) = self.by_eni.get_mut(eni) {
            deletion.not_before = not_before;
        }
    }

    /// Where it is attached, as EC2 or metadata say.
    pub(crate) fn set_place(&mut self, eni: &EniId, place: Place) -> bool {
        let found = self.by_eni.get_mut(eni);
        found.map(|deletion| deletion.place = Some(place)).is_some()
    }

    /// It is gone, or stays.
    pub(crate) fn remove(&mut self, eni: &EniId) -> Option<Deletion> {
        self.by_eni.remove(eni)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_eni.is_empty()
    }

    pub(crate) fn contains(&self, eni: &EniId) -> bool {
        self.by_eni.contains_key(eni)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&EniId, &Deletion)> {
        self.by_eni.iter()
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &Deletion> {
        self.by_eni.values()
    }

    /// ENIs of which an audit has to tell where they are.
    pub(crate) fn unclear(&self, now: Millis) -> impl Iterator<Item = &EniId> {
        let unclear = move |(_, deletion): &(&EniId, &Deletion)| {
            deletion.stage == DeletionStage::Unclear && deletion.not_before <= now
        };
        self.iter().filter(unclear).map(|(eni, _)| eni)
    }

    /// When the next ENI that is being detached may be deleted.
    pub(crate) fn next(&self, now: Millis) -> Option<Millis> {
        self.values().map(|deletion| deletion.not_before).filter(|at| *at > now).min()
    }
}
