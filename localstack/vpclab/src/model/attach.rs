//! Attaching, detaching and changing ENIs.

use super::{
    Answer, ApiError, AttachmentStatus, AttachmentTruth, Due, EniStatus, InstanceState, Model,
    eni::{combination, invalid, size, too_many},
};

impl Model {
    pub(super) fn attach(
        &mut self,
        eni_id: &str,
        instance_id: &str,
        device_index: u32,
        named_card: Option<u32>,
    ) -> Result<Answer, ApiError> {
        let eni = self.known_eni(eni_id)?;
        let instance = self.instances.get(instance_id).ok_or_else(|| no_instance(instance_id))?;
        if instance.state != InstanceState::Running {
            let (_, state) = instance.state.code_and_name();
            return Err(incorrect(format!("Instance '{instance_id}' is {state}.")));
        }
        if eni.attachment.is_some() {
            let message = format!("Interface: [{eni_id}] in use.");
            return Err(ApiError::new("InvalidNetworkInterface.InUse", message));
        }
        if eni.zone != instance.zone {
            // The code is a guess.
            return Err(combination("The network interface and the instance are in different availability zones."));
        }
        let limits = &instance.limits;
        let card = named_card.unwrap_or(0);
        let attachments: Vec<&AttachmentTruth> = self.attachments_of(instance_id).collect();
        // Reported of instances with an EFA-only ENI on their second card; the words are a guess.
        if named_card.is_none() && attachments.iter().any(|other| other.card > 0) {
            let message =
                format!("{} has interfaces on several network cards; name a network card index.", limits.name);
            return Err(combination(&message));
        }
        let Some(on_card) = limits.cards.get(size(card)) else {
            return Err(invalid(format!("{} has no network card {card}.", limits.name)));
        };
        // Per card: cilium/cilium pull request 42512; code and text: terraform-provider-aws pull request 906.
        if attachments.iter().any(|other| (other.card, other.device_index) == (card, device_index)) {
            return Err(invalid(format!(
                "Instance '{instance_id}' already has an interface attached at device index '{device_index}'."
            )));
        }
        let there = attachments.iter().filter(|other| other.card == card).count();
        if attachments.len() >= size(limits.enis) || there >= size(*on_card) {
            let message = format!("Interface count {} exceeds the limit for {}", attachments.len() + 1, limits.name);
            return Err(ApiError::new("AttachmentLimitExceeded", message));
        }
        if eni.ipv4_slots() > size(limits.ipv4_per_eni) || eni.ipv6_slots() > size(limits.ipv6_per_eni) {
            return Err(too_many());
        }
        let has_prefixes = !eni.prefixes.is_empty() || !eni.ipv6_prefixes.is_empty();
        if has_prefixes && !limits.nitro {
            return Err(no_prefixes(&limits.name));
        }
        let id = self.new_id("eni-attach");
        let attachment = AttachmentTruth {
            id: id.clone(),
            instance: instance_id.to_owned(),
            device_index,
            card,
            status: AttachmentStatus::Attaching,
            delete_on_termination: false,
        };
        if let Some(eni) = self.enis.get_mut(eni_id) {
            eni.attachment = Some(attachment);
            eni.status = EniStatus::InUse;
        }
        let at = self.now + self.draw(self.options.attach_ms);
        self.plan(at, Due::Attached(eni_id.to_owned(), id.clone()));
        self.show(eni_id);
        Ok(Answer::Attached { attachment: id })
    }

    /// Attachments of an instance, attaching and detaching ones included.
    pub(super) fn attachments_of(&self, instance: &str) -> impl Iterator<Item = &AttachmentTruth> {
        self.enis
            .values()
            .filter_map(|eni| eni.attachment.as_ref())
            .filter(move |attachment| attachment.instance == instance)
    }

    /// The ENI that has this attachment, and the attachment.
    fn by_attachment(&self, id: &str) -> Result<(&str, &AttachmentTruth), ApiError> {
        let found = self.enis.values().find_map(|eni| {
            let attachment = eni.attachment.as_ref().filter(|attachment| attachment.id == id)?;
            Some((eni.id.as_str(), attachment))
        });
        found.ok_or_else(|| {
            ApiError::new("InvalidAttachmentID.NotFound", format!("The attachment ID '{id}' does not exist"))
        })
    }

    pub(super) fn detach(&mut self, id: &str) -> Result<Answer, ApiError> {
        let (eni, attachment) = self.by_attachment(id)?;
        if attachment.device_index == 0 && attachment.card == 0 {
            let message = "The network interface at device index 0 cannot be detached.";
            return Err(ApiError::new("OperationNotPermitted", message));
        }
        if attachment.status == AttachmentStatus::Detaching {
            // The code is a guess.
            return Err(incorrect(format!("The attachment '{id}' is detaching already.")));
        }
        let eni = eni.to_owned();
        if let Some(attachment) = self.enis.get_mut(&eni).and_then(|eni| eni.attachment.as_mut()) {
            attachment.status = AttachmentStatus::Detaching;
        }
        let at = self.now + self.draw(self.options.attach_ms);
        self.plan(at, Due::Detached(eni.clone(), id.to_owned()));
        self.show(&eni);
        Ok(Answer::Done)
    }

    /// Attaching has ended, unless the ENI has been detached meanwhile.
    pub(super) fn attached(&mut self, eni: &str, attachment_id: &str) {
        let attachment = self.enis.get_mut(eni).and_then(|eni| eni.attachment.as_mut());
        let waiting = |attachment: &&mut AttachmentTruth| {
            attachment.id == attachment_id && attachment.status == AttachmentStatus::Attaching
        };
        if let Some(attachment) = attachment.filter(waiting) {
            attachment.status = AttachmentStatus::Attached;
            self.show(eni);
        }
    }

    /// Detaching has ended.
    pub(super) fn detached(&mut self, id: &str, attachment_id: &str) {
        if let Some(eni) = self.enis.get_mut(id)
            && eni.attachment.as_ref().is_some_and(|attachment| attachment.id == attachment_id)
        {
            eni.attachment = None;
            eni.status = EniStatus::Available;
            self.show(id);
        }
    }

    /// One attribute per call, as EC2 wants it.
    pub(super) fn modify(
        &mut self,
        id: &str,
        attachment: Option<&str>,
        delete_on_termination: Option<bool>,
        groups: Option<&[String]>,
    ) -> Result<Answer, ApiError> {
        self.known_eni(id)?;
        match (delete_on_termination, groups) {
            (Some(delete), None) => {
                let attachment = attachment.ok_or_else(|| {
                    ApiError::new("MissingParameter", "The request must contain the parameter attachmentId")
                })?;
                let (owner, _) = self.by_attachment(attachment)?;
                if owner != id {
                    let message = format!("The attachment ID '{attachment}' is not one of '{id}'");
                    return Err(ApiError::new("InvalidAttachmentID.NotFound", message));
                }
                if let Some(attachment) = self.enis.get_mut(id).and_then(|eni| eni.attachment.as_mut()) {
                    attachment.delete_on_termination = delete;
                }
            }
            (None, Some([])) => return Err(invalid("An ENI has one security group at least.")),
            (None, Some(groups)) => {
                if let Some(eni) = self.enis.get_mut(id) {
                    eni.groups = groups.to_vec();
                }
            }
            (None, None) => return Err(combination("No attributes specified.")),
            (Some(_), Some(_)) => return Err(combination("Only one attribute can be modified at a time.")),
        }
        self.show(id);
        Ok(Answer::Done)
    }
}

/// There is no such instance.
pub(super) fn no_instance(id: &str) -> ApiError {
    ApiError::new("InvalidInstanceID.NotFound", format!("The instance ID '{id}' does not exist"))
}

fn incorrect(message: String) -> ApiError {
    ApiError::new("IncorrectState", message)
}

/// Prefixes on an instance type that has none. The code is a guess.
pub(super) fn no_prefixes(kind: &str) -> ApiError {
    ApiError::new("UnsupportedOperation", format!("Prefixes are not supported on {kind}: it is not built on Nitro."))
}
