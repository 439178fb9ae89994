//! The plugins' requests that are open: who asked, what was offered, and what was answered.

use std::collections::BTreeMap;

use enid_ipamd::{AttachmentKey, Lease, Ticket};
use tokio::sync::mpsc;

use crate::{core::handle::Answer, host::conntrack::Offered};

/// Who asked.
struct Caller {
    answers: mpsc::UnboundedSender<Answer>,
    offered: Option<Offered>,
    /// Its lease has ended: that its connection closes then is no news to the core.
    released: bool,
    /// It was refused, also if it was offered something before: it has nothing, whatever it says.
    refused: bool,
}

/// The open requests.
#[derive(Default)]
pub struct Requests {
    open: BTreeMap<Ticket, Caller>,
}

impl Requests {
    /// A plugin has connected.
    pub fn open(&mut self, ticket: Ticket, answers: mpsc::UnboundedSender<Answer>) {
        self.open.insert(ticket, Caller { answers, offered: None, released: false, refused: false });
    }

    /// A plugin's connection has closed; whether that is no news.
    pub fn close(&mut self, ticket: Ticket) -> bool {
        self.open.remove(&ticket).is_some_and(|caller| caller.released)
    }

    /// Answers with an offer, and remembers it.
    pub fn offer(&mut self, ticket: Ticket, key: AttachmentKey, lease: Lease) {
        if let Some(caller) = self.open.get_mut(&ticket) {
            caller.offered = Some((key, lease.addresses().collect()));
        }
        self.answer(ticket, Answer::Offer(lease));
    }

    /// What was offered.
    pub fn offered(&self, ticket: Ticket) -> Option<&Offered> {
        self.open.get(&ticket)?.offered.as_ref()
    }

    /// Whether it was refused.
    pub fn is_refused(&self, ticket: Ticket) -> bool {
        self.open.get(&ticket).is_some_and(|caller| caller.refused)
    }

    /// Answers; a plugin that has gone, or that was refused, hears nothing.
    pub fn answer(&mut self, ticket: Ticket, answer: Answer) {
        if let Some(caller) = self.open.get_mut(&ticket).filter(|caller| !caller.refused) {
            caller.refused = matches!(answer, Answer::Refused(_));
            caller.released = matches!(answer, Answer::Released(_));
            let _ = caller.answers.send(answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use enid_ipamd::{Cause, Refusal};

    use super::*;

    #[test]
    fn who_was_refused_is_told_nothing_else_and_its_end_is_news() {
        let (sender, mut answers) = mpsc::unbounded_channel();
        let mut requests = Requests::default();
        requests.open(Ticket(1), sender);
        requests.answer(Ticket(1), Answer::Refused(Refusal::new(Cause::Internal, "the store cannot be written")));
        assert!(requests.is_refused(Ticket(1)));
        requests.answer(Ticket(1), Answer::Verdict(true));
        assert!(matches!(answers.try_recv(), Ok(Answer::Refused(_))));
        assert!(answers.try_recv().is_err(), "no verdict after a refusal");
        assert!(!requests.close(Ticket(1)), "the core ends the lease");
    }
}
