//! New ENIs, each from its intent to its place in the pool: create (with its blocks and tags), attach,
//! delete-on-termination. It serves only after the third was confirmed.
//!
//! The intent is recorded before the first call. After a kill, or an answer that never came, an audit looks for an ENI
//! that carries the token as a tag: one that is found is adopted where it is, and if none is found, the creation is asked
//! for again under the same token, which EC2 answers with the same ENI if there is one after all.

use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use super::call::{Creation, Recorded};
use crate::{
    ids::{EniId, Place},
    supply::Home,
};

/// An ENI that is being created.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Pending {
    pub(crate) creation: Creation,
    /// Where it is asked for, each time.
    pub(crate) home: Home,
    pub(crate) stage: CreationStage,
    /// Where it is attached, or is being attached.
    pub(crate) place: Option<Place>,
    /// The creation was sent before and its answer is not known: a refusal of this one says nothing about that.
    pub(crate) resent: bool,
}

/// How far it has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum CreationStage {
    /// It is not known whether the ENI exists, or where it is attached: an audit will tell.
    Unclear(Option<EniId>),
    /// An audit found nothing: it is to be asked for again.
    ToCreate,
    /// CreateNetworkInterface is in flight.
    Creating,
    /// It exists and is attached to nothing.
    ToAttach(EniId),
    /// AttachNetworkInterface is in flight.
    Attaching(EniId),
    /// It is attached.
    ToProtect(EniId, String),
    /// ModifyNetworkInterfaceAttribute is in flight.
    Protecting(EniId),
}

impl CreationStage {
    pub(crate) fn eni(&self) -> Option<&EniId> {
        match self {
            CreationStage::Unclear(eni) => eni.as_ref(),
            CreationStage::ToCreate | CreationStage::Creating => None,
            CreationStage::ToAttach(eni)
            | CreationStage::Attaching(eni)
            | CreationStage::ToProtect(eni, _)
            | CreationStage::Protecting(eni) => Some(eni),
        }
    }
}

/// The creations, by client token.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Creations {
    by_token: OrdMap<String, Pending>,
}

impl Creations {
    /// An earlier run of the daemon had begun it: how far it came is not known.
    pub(crate) fn resume(&mut self, token: String, recorded: Recorded) {
        let (stage, Recorded { creation, home }) = (CreationStage::Unclear(None), recorded);
        self.by_token.insert(token, Pending { creation, home, stage, place: None, resent: true });
    }

    /// CreateNetworkInterface is sent for the first time.
    pub(crate) fn begin(&mut self, token: String, creation: Creation, home: Home) {
        let stage = CreationStage::Creating;
        self.by_token.insert(token, Pending { creation, home, stage, place: None, resent: false });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_token.is_empty()
    }

    pub(crate) fn contains(&self, token: &str) -> bool {
        self.by_token.contains_key(token)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &Pending)> {
        self.by_token.iter()
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &Pending> {
        self.by_token.values()
    }

    pub(crate) fn get(&self, token: &str) -> Option<&Pending> {
        self.by_token.get(token)
    }

    /// The creation that this ENI came out of.
    pub(crate) fn of(&self, eni: &EniId) -> Option<(&String, &Pending)> {
        self.iter().find(|(_, pending)| pending.stage.eni() == Some(eni))
    }

    /// Whether an ENI may be one that is being created at this moment.
    pub(crate) fn may_be(&self, eni: &EniId) -> bool {
        self.values().any(|pending| pending.stage.eni() == Some(eni) || pending.stage == CreationStage::Creating)
    }

    pub(crate) fn is_creating(&self) -> bool {
        self.values().any(|pending| pending.stage == CreationStage::Creating)
    }

    pub(crate) fn has_unclear(&self) -> bool {
        self.values().any(|pending| matches!(pending.stage, CreationStage::Unclear(_)))
    }

    pub(crate) fn set_stage(&mut self, token: &str, stage: CreationStage, place: Option<Place>) {
        if let Some(pending) = self.by_token.get_mut(token) {
            pending.stage = stage;
            pending.place = place.or(pending.place);
        }
    }

    pub(crate) fn set_stage_of(&mut self, eni: &EniId, stage: CreationStage) {
        if let Some(token) = self.of(eni).map(|(token, _)| token.clone()) {
            self.set_stage(&token, stage, None);
        }
    }

    /// The answer of a creation never came.
    pub(crate) fn unanswered(&mut self, token: &str) {
        if let Some(pending) = self.by_token.get_mut(token) {
            pending.stage = CreationStage::Unclear(None);
            pending.resent = true;
        }
    }

    pub(crate) fn remove(&mut self, token: &str) -> Option<Pending> {
        self.by_token.remove(token)
    }
}
