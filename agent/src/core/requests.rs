//! The plugins' requests that are open: who asked, what was offered, and what was answered.

use std::collections::BTreeMap;

use enid_ipamd::{AttachmentKey, Lease, Ticket};
use tokio::sync::mpsc;

use crate::{core::handle::Answer, host::conntrack::Offered};

/// Who asked.
struct Caller {
    answers: mpsc::UnboundedSender<Answer>,
    offered: Option<Offered>,
    /// It has its last answer: that its connection closes then is no news to the core.
    answered: bool,
}

/// The open requests.
#[derive(Default)]
pub struct Requests {
    open: BTreeMap<Ticket, Caller>,
}

impl Requests {
    /// A plugin has connected.
    pub fn open(&mut self, ticket: Ticket, answers: mpsc::UnboundedSender<Answer>) {
        self.open.insert(ticket, Caller { answers, offered: None, answered: false });
    }

    /// A plugin's connection has closed; whether it had its last answer.
    pub fn close(&mut self, ticket: Ticket) -> bool {
        self.open.remove(&ticket).is_some_and(|caller| caller.answered)
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

    /// Answers; a plugin that has gone hears nothing.
    pub fn answer(&mut self, ticket: Ticket, answer: Answer) {
        if let Some(caller) = self.open.get_mut(&ticket) {
            caller.answered = matches!(answer, Answer::Verdict(true) | Answer::Released(_));
            let _ = caller.answers.send(answer);
        }
    }
}
