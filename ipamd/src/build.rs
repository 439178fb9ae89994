//! A new ENI, from its intent to its place in the pool: create (with its blocks and tags), attach,
//! delete-on-termination. It serves only after the third was confirmed.
//!
//! The intent is written down before the first call. After a kill, or an answer that never came, an audit
//! looks for an ENI that carries the token as a tag: one that is found is taken on where it stands, and
//! if none is found, the creation is asked for again under the same token, which EC2 answers with the
//! same ENI if there is one after all.

use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::{
    AuditedEni, Call, Core, Creation, Effect, Eni, EniId, EniState, Intent, LooseEni, Millis, Place, Write,
    mutation::Mutation,
    pool::{Expected, count},
    shrink,
};

/// An ENI on its way.
#[derive(Clone, Debug)]
pub(crate) struct Build {
    pub(crate) creation: Creation,
    pub(crate) stage: Stage,
    pub(crate) place: Option<Place>,
    /// The creation was sent before and its answer is not known: a refusal of this one says nothing about that.
    pub(crate) resent: bool,
}

/// How far it has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nobody knows whether the ENI exists, or where it hangs: an audit will tell.
    Unclear(Option<EniId>),
    /// An audit found nothing: it is to be asked for again.
    ToCreate,
    /// CreateNetworkInterface is under way.
    Creating,
    /// It exists and hangs nowhere.
    ToAttach(EniId),
    /// AttachNetworkInterface is under way.
    Attaching(EniId),
    /// It is attached.
    ToProtect(EniId, String),
    /// ModifyNetworkInterfaceAttribute is under way.
    Protecting(EniId),
}

impl Stage {
    pub(crate) fn eni(&self) -> Option<&EniId> {
        match self {
            Stage::Unclear(eni) => eni.as_ref(),
            Stage::ToCreate | Stage::Creating => None,
            Stage::ToAttach(eni) | Stage::Attaching(eni) | Stage::ToProtect(eni, _) | Stage::Protecting(eni) => {
                Some(eni)
            }
        }
    }
}

impl Core {
    /// What an earlier life had begun.
    pub(crate) fn resume(&mut self, intents: BTreeMap<String, Intent>) {
        if intents.values().any(|intent| matches!(intent, Intent::Create(_) | Intent::Leave(_))) {
            self.want_audit(crate::Scope::Ours);
        }
        for (token, intent) in intents {
            match intent {
                Intent::Create(creation) => {
                    let build = Build { creation, stage: Stage::Unclear(None), place: None, resent: true };
                    self.builds.insert(token, build);
                }
                Intent::GiveBack(nets) => {
                    for net in nets {
                        self.given_back.insert(net, (Millis(0), token.clone()));
                    }
                }
                Intent::LookAround => (self.looks_around, self.look_is_open) = (true, true),
                Intent::Leave(eni) => self.depart(eni, shrink::Stage::Unclear, Some(token)),
            }
        }
    }

    /// Begins a new ENI.
    pub(crate) fn build(&mut self, now: Millis, creation: Creation, effects: &mut Vec<Effect>) {
        let token = format!("enid-{}-{}", self.node.token_seed, self.next_call);
        if !self.is_mutated(Mutation::CreateUnrecorded) {
            effects.push(Effect::Record(Write::Intent(token.clone(), Some(Intent::Create(creation)))));
        }
        let build = Build { creation, stage: Stage::Creating, place: None, resent: false };
        self.builds.insert(token.clone(), build);
        self.call(now, Call::Create { token, creation }, self.class(), effects);
    }

    /// Takes every ENI on its way a step further, where nothing holds it up.
    pub(crate) fn go_on_building(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let waiting: Vec<(String, Build)> =
            self.builds.iter().map(|(token, build)| (token.clone(), build.clone())).collect();
        for (token, Build { creation, stage, .. }) in waiting {
            let call = match stage {
                Stage::ToCreate => Call::Create { token: token.clone(), creation },
                Stage::ToAttach(eni) => Call::Attach { eni, place: self.free_place(creation.card) },
                Stage::ToProtect(eni, attachment) => Call::Protect { eni, attachment },
                _ => continue,
            };
            if !self.pace.is_open(now, call.action(), self.class()) {
                continue;
            }
            let (stage, place) = match &call {
                Call::Attach { eni, place } => (Stage::Attaching(eni.clone()), Some(*place)),
                Call::Protect { eni, .. } => (Stage::Protecting(eni.clone()), None),
                _ => (Stage::Creating, None),
            };
            if let Some(build) = self.builds.get_mut(&token) {
                build.stage = stage;
                build.place = place.or(build.place);
            }
            self.call(now, call, self.class(), effects);
        }
    }

    pub(crate) fn created(
        &mut self,
        now: Millis,
        asked: Millis,
        token: &str,
        eni: EniId,
        blocks: Vec<IpNet>,
        effects: &mut Vec<Effect>,
    ) {
        self.expect(&eni, blocks, None, asked);
        self.born.insert(eni.clone(), now);
        if let Some(build) = self.builds.get_mut(token) {
            build.stage = Stage::ToAttach(eni);
        }
        self.go_on_building(now, effects);
    }

    pub(crate) fn attached(&mut self, now: Millis, eni: &EniId, attachment: String, effects: &mut Vec<Effect>) {
        if let Some(known) = self.enis.get_mut(eni) {
            known.attachment = Some(attachment.clone());
        }
        self.set_stage(eni, Stage::ToProtect(eni.clone(), attachment));
        self.go_on_building(now, effects);
    }

    pub(crate) fn protected(&mut self, now: Millis, eni: &EniId, attachment: String, effects: &mut Vec<Effect>) {
        self.join(eni, effects);
        self.vouched.insert(eni.clone());
        if let Some(known) = self.enis.get_mut(eni) {
            known.ours = true;
            known.attachment = Some(attachment);
        }
        let place = self.token_of(eni).and_then(|token| self.builds.get(&token)?.place);
        if let Some(expected) = self.expected.get_mut(eni) {
            expected.since = Some(now);
            expected.place = place;
        }
        self.close_build(eni, effects);
    }

    /// The ENI is ours and goes with the instance: it gets its slot, the host takes it on.
    pub(crate) fn join(&mut self, id: &EniId, effects: &mut Vec<Effect>) {
        let known = self.slots.get(id).copied();
        let mac = self.enis.get(id).map(|eni| eni.facts.mac).unwrap_or_default();
        let Some(slot) = known.or_else(|| self.slot_for(mac)) else { return };
        if known.is_none() {
            self.give_slot(id, slot, effects);
        }
        self.topology += 1;
        if let Some(eni) = self.enis.get_mut(id) {
            eni.slot = Some(slot);
            if eni.state == EniState::Unknown {
                eni.state = EniState::Joining;
            }
        }
    }

    fn token_of(&self, eni: &EniId) -> Option<String> {
        self.builds.iter().find(|(_, build)| build.stage.eni() == Some(eni)).map(|(token, _)| token.clone())
    }

    fn close_build(&mut self, eni: &EniId, effects: &mut Vec<Effect>) {
        if let Some(token) = self.token_of(eni) {
            self.builds.remove(&token);
            effects.push(Effect::Record(Write::Intent(token, None)));
        }
    }

    pub(crate) fn set_stage(&mut self, eni: &EniId, stage: Stage) {
        if let Some(build) = self.token_of(eni).and_then(|token| self.builds.get_mut(&token)) {
            build.stage = stage;
        }
    }

    pub(crate) fn not_created(&mut self, token: &str, unclear: bool, effects: &mut Vec<Effect>) {
        if unclear {
            if let Some(build) = self.builds.get_mut(token) {
                build.stage = Stage::Unclear(None);
                build.resent = true;
            }
            self.want_audit(crate::Scope::Ours);
        } else if let Some(build) = self.builds.get_mut(token)
            && build.resent
        {
            build.stage = Stage::ToCreate;
        } else {
            // EC2 has answered: nothing was created.
            self.builds.remove(token);
            effects.push(Effect::Record(Write::Intent(token.to_owned(), None)));
        }
    }

    /// Attach or protect failed. Such an ENI never served anybody: it goes again.
    pub(crate) fn not_joined(&mut self, eni: &EniId, call: &Call, unclear: bool, effects: &mut Vec<Effect>) {
        if unclear {
            self.set_stage(eni, Stage::Unclear(Some(eni.clone())));
            self.want_audit(crate::Scope::Ours);
            return;
        }
        let Some(token) = self.token_of(eni) else { return };
        if self.enis.get(eni).is_some_and(|known| known.slot.is_some() || known.sums.held > 0) {
            return self.close_build(eni, effects); // an earlier life had finished it, and pods may live on it
        }
        // A next life must not go on building what this one takes down.
        effects.push(Effect::Record(Write::Intent(token.clone(), Some(Intent::Leave(eni.clone())))));
        let place = self.builds.remove(&token).and_then(|build| build.place);
        let stage = match call {
            Call::Protect { attachment, .. } => shrink::Stage::ToDetach(attachment.clone()),
            _ => shrink::Stage::ToDelete,
        };
        self.depart(eni.clone(), stage, Some(token));
        if let Some(departure) = self.departures.get_mut(eni) {
            departure.place = departure.place.or(place);
        }
        self.forget_eni(eni);
    }

    /// What an audit of all our ENIs says about those on their way.
    pub(crate) fn settle_builds(
        &mut self,
        attached: &[AuditedEni],
        loose: Vec<LooseEni>,
        asked: Millis,
        effects: &mut Vec<Effect>,
    ) {
        let tokens: Vec<String> = self.builds.keys().cloned().collect();
        for token in tokens {
            let Some(Build { stage: Stage::Unclear(known), .. }) = self.builds.get(&token).cloned() else { continue };
            let is_it = |id: &EniId, tag: &Option<String>| known.as_ref() == Some(id) || tag.as_ref() == Some(&token);
            let hangs = attached.iter().find(|eni| is_it(&eni.id, &eni.token));
            let lies = loose.iter().find(|eni| is_it(&eni.id, &eni.token));
            let stage = match (hangs, lies, known) {
                (Some(eni), ..) => Stage::ToProtect(eni.id.clone(), eni.attachment.clone()),
                (_, Some(eni), _) => Stage::ToAttach(eni.id.clone()),
                (_, _, Some(known)) => Stage::ToAttach(known),
                _ => Stage::ToCreate,
            };
            if let Some(eni) = stage.eni().cloned() {
                self.expect(&eni, Vec::new(), None, asked);
            }
            if let Some(build) = self.builds.get_mut(&token) {
                build.stage = stage;
                build.place = hangs.map(|eni| eni.place).or(build.place);
            }
        }
        for LooseEni { id, token } in loose {
            // Metadata may go on showing what hangs nowhere; nobody lives on it then, or it is kept for them.
            let shown = |eni: &Eni| eni.state != EniState::Unknown || eni.sums.held > 0 || eni.since >= asked;
            let known = self.builds.values().any(|build| build.stage.eni() == Some(&id))
                || self.enis.get(&id).is_some_and(shown);
            // It may be what is being created at this moment, unless its token says that it is not.
            let newborn = match &token {
                Some(token) => self.builds.contains_key(token),
                None => self.builds.values().any(|build| build.stage == Stage::Creating),
            };
            if !known && !newborn && !self.departures.contains_key(&id) {
                // Ours, for this instance, and in nobody's book.
                let token = format!("leave-{id}");
                effects.push(Effect::Record(Write::Intent(token.clone(), Some(Intent::Leave(id.clone())))));
                self.depart(id.clone(), shrink::Stage::ToDelete, Some(token));
                self.forget_eni(&id);
            }
        }
    }

    pub(crate) fn expect(&mut self, eni: &EniId, blocks: Vec<IpNet>, since: Option<Millis>, asked: Millis) {
        let blocks = blocks.into_iter().collect();
        match self.expected.get_mut(eni) {
            Some(expected) => {
                expected.blocks = expected.blocks.clone().union(blocks);
                expected.since = since.or(expected.since);
            }
            None => drop(self.expected.insert(eni.clone(), Expected { blocks, since, asked, place: None })),
        }
    }

    fn free_place(&self, card: u32) -> Place {
        let attached = self.enis.values().map(|eni| eni.facts.place).chain(self.bare.values().copied());
        let built = self.builds.values().filter_map(|build| build.place);
        let joined = self.expected.values().filter_map(|expected| expected.place);
        let departing = self.departures.values().filter_map(|departure| departure.place);
        let taken: Vec<Place> = attached.chain(built).chain(joined).chain(departing).collect();
        let places = (1..=count(taken.len()) + 1).map(|device_index| Place { card, device_index });
        places.into_iter().find(|place| !taken.contains(place)).unwrap_or(Place { card, device_index: 1 })
    }
}
