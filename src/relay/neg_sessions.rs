//! NEG-OPEN, NEG-MSG and NEG-CLOSE (NIP-77): each session answers from the snapshot that it was
//! opened with.

use super::connection::Client;
use super::message;
use crate::index::{Slice, SnapshotError};
use crate::reconcile::message::{Decoder, Fault};
use crate::reconcile::{MessageError, Responder};
use crate::store::Filter;
use std::collections::HashMap;

/// A message longer than this is answered on a thread that may take its time.
const INLINE_BYTES: usize = 4_096;

/// The NEG sessions of one connection, apart from its subscriptions.
#[derive(Default)]
pub(super) struct NegSessions {
    by_id: HashMap<String, Responder<Slice>>,
}

/// Why a session could not be opened.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error("invalid: {0}")]
    Message(#[from] MessageError),
    #[error("blocked: too many query results")]
    TooLarge { limit: usize },
    #[error("error: {0}")]
    Failed(String),
}

impl From<SnapshotError> for OpenError {
    fn from(error: SnapshotError) -> Self {
        match error {
            SnapshotError::TooLarge { limit } => Self::TooLarge { limit },
            SnapshotError::Store(error) => Self::Failed(error.to_string()),
        }
    }
}

impl NegSessions {
    /// NIP-77, Initial message. A live session of the same id ends.
    pub(super) async fn open(
        &mut self,
        client: &Client,
        id: String,
        filters: Vec<Filter>,
        payload: Vec<u8>,
    ) {
        self.by_id.remove(&id);
        let config = &client.relay.config.negentropy;
        let most = config.sessions.size();
        if self.by_id.len() >= most {
            let text = format!("rate-limited: {most} NEG sessions are open; close one first");
            return client.outbox.text(message::neg_err(&id, &text)).await;
        }
        let index = client.relay.index.clone();
        let limit = config.max_sync_events.size();
        let frame_limit_bytes = config.frame_limit_bytes as usize;
        let opened = tokio::task::spawn_blocking(move || {
            // A message that nobody can answer is refused before a set is built for it.
            check(&payload)?;
            let set = index.snapshot(&filters, limit)?;
            let mut responder = Responder::new(set, frame_limit_bytes)
                .map_err(|error| OpenError::Failed(error.to_string()))?;
            let answer = responder.answer(&payload)?;
            Ok((responder, answer))
        });
        let opened = opened.await.unwrap_or_else(|panic| Err(OpenError::Failed(panic.to_string())));
        let text = match opened {
            Ok((responder, answer)) => {
                let text = message::neg_msg_text(&id, &answer);
                self.by_id.insert(id, responder);
                text
            }
            Err(OpenError::TooLarge { limit }) => message::neg_err_too_large(&id, limit),
            Err(error) => message::neg_err(&id, &error.to_string()),
        };
        client.outbox.text(text).await;
    }

    /// NIP-77, Subsequent messages.
    pub(super) async fn message(&mut self, client: &Client, id: String, payload: Vec<u8>) {
        let Some(mut responder) = self.by_id.remove(&id) else {
            let text = "closed: no session of this id is open; begin with NEG-OPEN";
            return client.outbox.text(message::neg_err(&id, text)).await;
        };
        let answered = if payload.len() <= INLINE_BYTES {
            let answer = responder.answer(&payload);
            Ok((responder, answer))
        } else {
            tokio::task::spawn_blocking(move || {
                let answer = responder.answer(&payload);
                (responder, answer)
            })
            .await
        };
        let text = match answered {
            Ok((responder, Ok(answer))) => {
                let text = message::neg_msg_text(&id, &answer);
                self.by_id.insert(id, responder);
                text
            }
            // NIP-77, Error message: after it the session is closed.
            Ok((_, Err(error))) => message::neg_err(&id, &format!("invalid: {error}")),
            Err(panic) => message::neg_err(&id, &format!("error: {panic}")),
        };
        client.outbox.text(text).await;
    }

    /// NIP-77, Close message. Of an unknown id nothing is said.
    pub(super) fn close(&mut self, id: &str) {
        self.by_id.remove(id);
    }
}

/// Reads a whole message. One of another protocol version is fine: its answer names ours.
fn check(payload: &[u8]) -> Result<(), MessageError> {
    match Decoder::new(payload) {
        Ok(mut ranges) => ranges.try_for_each(|range| range.map(|_| ())),
        Err(MessageError { fault: Fault::OtherVersion(_), .. }) => Ok(()),
        Err(error) => Err(error),
    }
}
