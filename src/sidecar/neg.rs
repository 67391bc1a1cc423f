//! NEG-OPEN, NEG-MSG and NEG-CLOSE (NIP-77) of one client, answered from the relay's database: of
//! private kinds it has what the client wrote or is addressed by, once the relay knows its key.

use super::SidecarState;
use super::auth::{self, SharedAuth};
use crate::admission::access;
use crate::prefix::Prefix;
use crate::server::departure::Attending;
use crate::server::limits::Place;
use crate::server::message::{self, ClientMessage};
use crate::server::neg_sessions::NegSessions;
use crate::store::{Filter, Viewer};
use std::borrow::Cow;
use std::sync::Arc;

/// The sessions of a client, and the place of its connection.
pub(super) struct Neg {
    shared: Arc<SidecarState>,
    place: Arc<Place>,
    // Whose the sessions are.
    viewer: Viewer,
    // A key of the client's would be believed.
    may_show_key: bool,
    sessions: NegSessions,
    // What is done for the client ends with this.
    _attending: Attending,
}

impl Neg {
    pub(super) fn new(shared: Arc<SidecarState>, place: Arc<Place>) -> Self {
        let attending = Attending::default();
        let service = Arc::clone(&shared.service);
        let sessions = NegSessions::new(service, place.address(), attending.departure());
        let viewer = Viewer::default();
        Self { shared, place, viewer, may_show_key: false, sessions, _attending: attending }
    }

    /// Takes a message whose verb begins with `NEG-`, sent by a client that has shown this much
    /// (NIP-42); returns the answer, where there is one.
    pub(super) async fn take(&mut self, text: Vec<u8>, auth: &SharedAuth) -> Option<String> {
        let Ok(text) = String::from_utf8(text) else {
            return Some(message::notice(&Prefix::Invalid.before("a message that is not UTF-8")));
        };
        self.look_at(auth);
        match self.shared.service.read(&self.place, text.into()).await {
            Ok(ClientMessage::NegOpen { id, filters, payload }) => {
                let may = self.may_sync(&filters);
                Some(
                    self.sessions
                        .open(self.viewer.clone(), may.map_err(Cow::from), id, filters, payload)
                        .await,
                )
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

    /// Sees what the client has shown by now.
    fn look_at(&mut self, auth: &SharedAuth) {
        let auth = auth::lock(auth);
        let mirrors = &self.shared.service.config().auth.mirror_keys;
        let viewer = Viewer::new(self.shared.private_kinds.clone(), auth.key())
            .seeing_all(auth.key().is_some_and(|key| mirrors.contains(&key)));
        if !self.viewer.keys().is_empty() && self.viewer.keys() != viewer.keys() {
            // The relay has refused what it was shown: what is open may show too much.
            self.sessions.close_all();
        }
        self.viewer = viewer;
        self.may_show_key =
            auth.is_asked() && !self.shared.service.config().attach.relay_url.is_empty();
    }

    /// Private kinds are asked a key for only where one would be believed; elsewhere there are none.
    fn may_sync(&self, filters: &[Filter]) -> Result<(), String> {
        let config = &self.shared.service.config().auth;
        match self.may_show_key {
            true => access::may_sync(config, &self.viewer, filters),
            false => access::may_sync_public(config, &self.viewer),
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
