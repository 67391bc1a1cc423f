//! NEG-OPEN, NEG-MSG and NEG-CLOSE (NIP-77) of one client, answered from the relay's database.

use super::Shared;
use crate::clients::limits::Place;
use crate::clients::message::{self, ClientMessage};
use crate::clients::neg_sessions::{Build, NegSessions};
use crate::store::Viewer;
use std::sync::Arc;

/// The sessions of a client, and the place of its connection.
pub(super) struct Neg {
    shared: Arc<Shared>,
    place: Place,
    sessions: NegSessions,
}

impl Neg {
    pub(super) fn new(shared: Arc<Shared>, place: Place) -> Self {
        let sets = shared.service.sets.clone();
        let build: Build = Arc::new(move |_, filters, limit| sets.snapshot(filters, limit));
        let sessions = NegSessions::new(Arc::clone(&shared.service), place.address(), build);
        Self { shared, place, sessions }
    }

    /// Takes a message whose verb begins with `NEG-`; returns the answer, where there is one.
    pub(super) async fn take(&mut self, text: Vec<u8>) -> Option<String> {
        let Ok(text) = String::from_utf8(text) else {
            return Some(message::notice("invalid: a message that is not UTF-8"));
        };
        match self.shared.service.read(&self.place, text.into()).await {
            Ok(ClientMessage::NegOpen { id, filters, payload }) => {
                Some(self.sessions.open(Viewer::default(), id, filters, payload).await)
            }
            Ok(ClientMessage::NegMsg { id, payload }) => {
                Some(self.sessions.message(id, payload).await)
            }
            Ok(ClientMessage::NegClose(id)) => {
                self.sessions.close(&id);
                None
            }
            // Only NEG verbs come here.
            Ok(_) => None,
            Err(refusal) => {
                self.sessions.refused(&refusal);
                Some(refusal.answer)
            }
        }
    }

    /// Whether no session is open.
    pub(super) fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// Ends the sessions that have been asked nothing for too long. Returns what is said of each.
    pub(super) fn expire(&mut self) -> Vec<String> {
        self.sessions.expire()
    }
}
