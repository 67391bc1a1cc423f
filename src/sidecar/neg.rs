//! NEG-OPEN, NEG-MSG and NEG-CLOSE (NIP-77) of one client, answered from the relay's database.
//! Events of private kinds are included if the client has authenticated as author or addressee.

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

/// The sessions of a client, and the slot of its connection.
pub(super) struct Neg {
    shared: Arc<SidecarState>,
    place: Arc<Place>,
    // The viewer of the sessions.
    viewer: Viewer,
    // Whether authentication could succeed.
    may_show_key: bool,
    sessions: NegSessions,
    // Dropping it cancels work for the client.
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

    /// Handles a message whose verb begins with `NEG-`, given the client's authentication (NIP-42).
    /// Returns the answer, if there is one.
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
                let may = access::may_sync_public(&self.shared.service.config().auth, &self.viewer);
                Some(self.sessions.message(may, id, payload).await)
            }
            Ok(ClientMessage::NegClose(id)) => {
                self.sessions.close(&id);
                None
            }
            // Only NEG verbs reach this function.
            Ok(_) => None,
            Err(refusal) => {
                self.sessions.refused(&refusal);
                Some(refusal.answer)
            }
        }
    }

    /// Updates the viewer from the client's authentication.
    fn look_at(&mut self, auth: &SharedAuth) {
        let auth = auth::lock(auth);
        let mirrors = &self.shared.service.config().auth.mirror_keys;
        let viewer = Viewer::new(self.shared.private_kinds.clone(), auth.key())
            .seeing_all(auth.key().is_some_and(|key| mirrors.contains(&key)));
        if !self.viewer.keys().is_empty() && self.viewer.keys() != viewer.keys() {
            // The relay has rejected the key: open sessions may contain too much.
            self.sessions.close_all();
        }
        self.viewer = viewer;
        self.may_show_key =
            auth.is_asked() && !self.shared.service.config().attach.relay_url.is_empty();
    }

    /// Requires authentication for private kinds only if it could succeed; otherwise nobody can see
    /// them.
    fn may_sync(&self, filters: &[Filter]) -> Result<(), String> {
        let config = &self.shared.service.config().auth;
        match self.may_show_key {
            true => access::may_sync(config, &self.viewer, filters),
            false => access::may_sync_public(config, &self.viewer),
        }
    }

    /// Whether there are no open sessions.
    pub(super) fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// Ends sessions that are idle for too long. Returns a message for each.
    pub(super) fn expire(&mut self) -> Vec<String> {
        self.sessions.expire()
    }
}
