//! NEG-OPEN, NEG-MSG and NEG-CLOSE (NIP-77) of one client, answered from the relay's database: of
//! private kinds it has what the client wrote or is addressed by, once the relay knows its key.

use super::Shared;
use super::auth::{self, SharedAuth};
use crate::index::{Slice, SnapshotError};
use crate::reconcile::Sessions;
use crate::reconcile::message::{Decoder, Fault};
use crate::reconcile::sessions::{Kind, Limits, Packet};
use crate::relay::message::{self, ClientMessage};
use crate::store::{PrivateKinds, Viewer};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The sessions of a client, by their ids.
pub(super) struct NegSessions {
    shared: Arc<Shared>,
    // Whose they are.
    viewer: Viewer,
    sessions: Arc<Mutex<Sessions<String, Slice>>>,
}

/// A message, and what is known of the client that sent it.
struct Asked {
    text: String,
    viewer: Viewer,
    /// A key of the client's would be believed.
    may_show_key: bool,
}

impl NegSessions {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let sessions = Arc::new(Mutex::new(no_sessions(&shared)));
        Self { shared, viewer: Viewer::default(), sessions }
    }

    /// Takes a message whose verb begins with `NEG-`, sent by a client that has shown this much
    /// (NIP-42); returns the answer, where there is one.
    pub(super) async fn take(&mut self, text: String, auth: &SharedAuth) -> Option<String> {
        let (shared, sessions) = (Arc::clone(&self.shared), Arc::clone(&self.sessions));
        let asked = {
            let auth = auth::lock(auth);
            let private = shared.config.auth.private_kinds.iter().copied();
            let viewer = Viewer::new(PrivateKinds::new(private), auth.key());
            let is_named = !shared.config.attach.relay_url.is_empty();
            Asked { text, viewer, may_show_key: is_named && auth.is_asked() }
        };
        if !self.viewer.keys().is_empty() && self.viewer.keys() != asked.viewer.keys() {
            // The relay has refused what it was shown: what is open may show too much.
            *lock(&sessions) = no_sessions(&shared);
        }
        self.viewer = asked.viewer.clone();
        // Sets may have to be built, and long messages take their time.
        let taken = tokio::task::spawn_blocking(move || answer(&shared, &sessions, &asked)).await;
        taken.unwrap_or_else(|panic| Some(message::notice(&format!("error: {panic}"))))
    }
}

fn no_sessions(shared: &Shared) -> Sessions<String, Slice> {
    let config = &shared.config.negentropy;
    let limits = Limits {
        sessions: config.sessions.size(),
        // They end with their connection.
        idle_s: u64::MAX,
        frame_limit_bytes: config.frame_limit_bytes as usize,
    };
    Sessions::new(limits, 0)
}

fn lock(sessions: &Mutex<Sessions<String, Slice>>) -> MutexGuard<'_, Sessions<String, Slice>> {
    sessions.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer(
    shared: &Shared,
    sessions: &Mutex<Sessions<String, Slice>>,
    asked: &Asked,
) -> Option<String> {
    let sessions = || lock(sessions);
    let config = &shared.config.negentropy;
    match message::parse(&asked.text, &shared.config.limits) {
        Ok(ClientMessage::NegOpen { id, filters, payload }) => {
            // A live session of the same id ends.
            sessions().forget(&id);
            if !sessions().has_room_for(&id) {
                let most = config.sessions.get();
                let text = format!("rate-limited: {most} NEG sessions are open; close one first");
                return Some(message::neg_err(&id, &text));
            }
            // A message that nobody can answer is refused before a set is built for it.
            if let Some(fault) = fault(&payload) {
                return Some(message::neg_err(&id, &format!("invalid: {fault}")));
            }
            if asked.may_show_key && asked.viewer.needs_keys_for(&filters) {
                let text = "auth-required: these kinds are shown to their authors and addressees";
                return Some(message::neg_err(&id, text));
            }
            let limit = config.max_sync_events.size();
            let set = match shared.sets.snapshot_for(&asked.viewer, &filters, limit) {
                Ok(set) => set,
                Err(SnapshotError::TooLarge { limit }) => {
                    return Some(message::neg_err_too_large(&id, limit));
                }
                // Its words would name files to a stranger.
                Err(SnapshotError::Store(error)) => {
                    tracing::debug!(%error, "a set could not be read");
                    let text = "error: the relay's database cannot be read now; try again";
                    return Some(message::neg_err(&id, text));
                }
            };
            let packet = Packet { kind: Kind::Open, session: 0, payload };
            let received = sessions().receive(&id, &packet, 0, || Some(set));
            Some(message::neg_answer(&id, received))
        }
        Ok(ClientMessage::NegMsg { id, payload }) => {
            let packet = Packet { kind: Kind::Question, session: 0, payload };
            let received = sessions().receive(&id, &packet, 0, || None);
            Some(message::neg_answer(&id, received))
        }
        // Of an unknown id nothing is said.
        Ok(ClientMessage::NegClose(id)) => {
            sessions().forget(&id);
            None
        }
        // Only NEG verbs come here.
        Ok(_) => None,
        Err(refusal) => {
            if let Some(id) = refusal.neg_session {
                sessions().forget(&id);
            }
            Some(refusal.answer)
        }
    }
}

/// What is wrong with a message. One of another protocol version is fine: its answer names ours.
fn fault(payload: &[u8]) -> Option<Fault> {
    let read = Decoder::new(payload).and_then(|mut ranges| ranges.try_for_each(|r| r.map(|_| ())));
    match read {
        Ok(()) => None,
        Err(error) if matches!(error.fault, Fault::OtherVersion(_)) => None,
        Err(error) => Some(error.fault),
    }
}
