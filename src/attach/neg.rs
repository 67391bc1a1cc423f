//! NEG-OPEN, NEG-MSG and NEG-CLOSE (NIP-77) of one client, answered from the relay's database.

use super::Shared;
use crate::index::{Slice, SnapshotError};
use crate::reconcile::Sessions;
use crate::reconcile::message::{Decoder, Fault};
use crate::reconcile::sessions::{Kind, Limits, Packet};
use crate::relay::message::{self, ClientMessage};
use std::sync::{Arc, Mutex, PoisonError};

/// The sessions of a client, by their ids.
pub(super) struct NegSessions {
    shared: Arc<Shared>,
    sessions: Arc<Mutex<Sessions<String, Slice>>>,
}

impl NegSessions {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let config = &shared.config.negentropy;
        let limits = Limits {
            sessions: config.sessions.size(),
            // They end with their connection.
            idle_s: u64::MAX,
            frame_limit_bytes: config.frame_limit_bytes as usize,
        };
        Self { sessions: Arc::new(Mutex::new(Sessions::new(limits, 0))), shared }
    }

    /// Takes a message whose verb begins with `NEG-`; returns the answer, where there is one.
    pub(super) async fn take(&self, text: String) -> Option<String> {
        let (shared, sessions) = (Arc::clone(&self.shared), Arc::clone(&self.sessions));
        // Sets may have to be built, and long messages take their time.
        let taken = tokio::task::spawn_blocking(move || answer(&shared, &sessions, &text)).await;
        taken.unwrap_or_else(|panic| Some(message::notice(&format!("error: {panic}"))))
    }
}

fn answer(
    shared: &Shared,
    sessions: &Mutex<Sessions<String, Slice>>,
    text: &str,
) -> Option<String> {
    let sessions = || sessions.lock().unwrap_or_else(PoisonError::into_inner);
    let config = &shared.config.negentropy;
    match message::parse(text, &shared.config.limits) {
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
            let set = match shared.sets.snapshot(&filters, config.max_sync_events.size()) {
                Ok(set) => set,
                Err(SnapshotError::TooLarge { limit }) => {
                    return Some(message::neg_err_too_large(&id, limit));
                }
                Err(error @ SnapshotError::Store(_)) => {
                    return Some(message::neg_err(&id, &format!("error: {error}")));
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
