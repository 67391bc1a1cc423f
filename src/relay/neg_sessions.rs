//! NEG-OPEN, NEG-MSG and NEG-CLOSE (NIP-77): each session answers from the snapshot that it was
//! opened with.

use super::connection::Client;
use super::{message, permission};
use crate::config::NegentropyConfig;
use crate::index::{Slice, SnapshotError};
use crate::metrics::{Metrics, Share};
use crate::reconcile::message::{Decoder, Fault};
use crate::reconcile::sessions::{Kind, Limits, Packet, Received};
use crate::reconcile::{MessageError, RangeSet, Sessions};
use crate::store::{Filter, StoreError};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A message longer than this is answered on a thread that may take its time.
const INLINE_BYTES: usize = 4_096;

/// The NEG sessions of one connection by their ids, apart from its subscriptions. Clones share
/// them: long messages are answered on another thread.
#[derive(Clone)]
pub(super) struct NegSessions {
    open: Arc<Mutex<Open>>,
}

struct Open {
    sessions: Sessions<String, Slice>,
    counted: Share,
    // Of each session; dropped with it.
    accounts: HashMap<String, Account>,
}

/// What one session did: a line of the log at its end.
struct Account {
    items: usize,
    rounds: u64,
    bytes_received: usize,
    bytes_sent: usize,
    began: Instant,
}

impl Drop for Account {
    fn drop(&mut self) {
        // Refused at once.
        if self.rounds == 0 {
            return;
        }
        tracing::debug!(
            items = self.items,
            rounds = self.rounds,
            bytes_received = self.bytes_received,
            bytes_sent = self.bytes_sent,
            elapsed_s = self.began.elapsed().as_secs_f64(),
            "a NEG session ended"
        );
    }
}

impl Open {
    fn receive(
        &mut self,
        id: &String,
        packet: &Packet,
        set: impl FnOnce() -> Option<Slice>,
    ) -> Received {
        let received = self.sessions.receive(id, packet, 0, set);
        self.counted.set(self.sessions.answering_len());
        match (&received.reply, self.accounts.get_mut(id)) {
            (Some(Packet { kind: Kind::Answer, payload, .. }), Some(account)) => {
                account.rounds += 1;
                account.bytes_received += packet.payload.len();
                account.bytes_sent += payload.len();
            }
            _ => drop(self.accounts.remove(id)),
        }
        received
    }

    fn forget(&mut self, id: &String) {
        self.sessions.forget(id);
        self.counted.set(self.sessions.answering_len());
        self.accounts.remove(id);
    }
}

/// Why a session could not be opened.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error("invalid: {0}")]
    Message(#[from] MessageError),
    #[error("blocked: too many query results")]
    TooLarge { limit: usize },
    #[error("error: the store could not be read")]
    Unread(StoreError),
    #[error("error: {0}")]
    Failed(String),
}

impl From<SnapshotError> for OpenError {
    fn from(error: SnapshotError) -> Self {
        match error {
            SnapshotError::TooLarge { limit } => Self::TooLarge { limit },
            SnapshotError::Store(error) => Self::Unread(error),
        }
    }
}

impl NegSessions {
    pub(super) fn new(config: &NegentropyConfig, metrics: &Metrics) -> Self {
        let limits = Limits {
            sessions: config.sessions.size(),
            // They end with their connection.
            idle_s: u64::MAX,
            frame_limit_bytes: config.frame_limit_bytes as usize,
        };
        let sessions = Sessions::new(limits, 0);
        let counted = Share::of(&metrics.neg_sessions);
        let open = Open { sessions, counted, accounts: HashMap::new() };
        Self { open: Arc::new(Mutex::new(open)) }
    }

    /// NIP-77, Initial message. A live session of the same id ends.
    pub(super) async fn open(
        &mut self,
        client: &Client,
        id: String,
        filters: Vec<Filter>,
        payload: Vec<u8>,
    ) {
        self.close(&id);
        let metrics = &client.relay.metrics;
        metrics.neg_received_bytes.inc_by(payload.len() as u64);
        let config = &client.relay.config.negentropy;
        if !self.lock().sessions.has_room_for(&id) {
            let most = config.sessions.get();
            let text = format!("rate-limited: {most} NEG sessions are open; close one first");
            return client.outbox.text(refuse(metrics, &id, &text)).await;
        }
        let viewer = client.auth.viewer();
        if let Err(reason) = permission::may_sync(&client.relay.config.auth, &viewer, &filters) {
            return client.outbox.text(refuse(metrics, &id, reason)).await;
        }
        let relay = Arc::clone(&client.relay);
        let limit = config.max_sync_events.size();
        let (sessions, session) = (self.clone(), id.clone());
        let opened = tokio::task::spawn_blocking(move || {
            // A message that nobody can answer is refused before a set is built for it.
            check(&payload)?;
            let set = relay.index.snapshot_for(&viewer, &filters, limit)?;
            relay.metrics.neg_set_items.observe(set.len() as f64);
            sessions.begin_account(&session, set.len());
            Ok(sessions.take(&session, Kind::Open, payload, || Some(set)))
        });
        let opened = opened.await.unwrap_or_else(|panic| Err(OpenError::Failed(panic.to_string())));
        let text = match opened {
            Ok(received) => {
                metrics.neg_sessions_total.inc_by(u64::from(received.fault.is_none()));
                answer(metrics, &id, received)
            }
            Err(OpenError::TooLarge { limit }) => {
                metrics.neg_refusals.count("blocked");
                message::neg_err_too_large(&id, limit)
            }
            Err(error) => {
                if let OpenError::Unread(error) = &error {
                    client.relay.read_trouble.failed("a set", error);
                }
                refuse(metrics, &id, &error.to_string())
            }
        };
        client.outbox.text(text).await;
    }

    /// NIP-77, Subsequent messages.
    pub(super) async fn message(&mut self, client: &Client, id: String, payload: Vec<u8>) {
        let metrics = &client.relay.metrics;
        metrics.neg_received_bytes.inc_by(payload.len() as u64);
        let (sessions, session) = (self.clone(), id.clone());
        let is_long = payload.len() > INLINE_BYTES;
        let take = move || sessions.take(&session, Kind::Question, payload, || None);
        let text = if is_long {
            match tokio::task::spawn_blocking(take).await {
                Ok(received) => answer(metrics, &id, received),
                Err(panic) => refuse(metrics, &id, &format!("error: {panic}")),
            }
        } else {
            answer(metrics, &id, take())
        };
        client.outbox.text(text).await;
    }

    /// NIP-77, Close message. Of an unknown id nothing is said.
    pub(super) fn close(&mut self, id: &str) {
        self.lock().forget(&id.to_owned());
    }

    /// A session has one number only: its id tells it from others, and opening it anew ends it.
    fn take(
        &self,
        id: &String,
        kind: Kind,
        payload: Vec<u8>,
        set: impl FnOnce() -> Option<Slice>,
    ) -> Received {
        let packet = Packet { kind, session: 0, payload };
        self.lock().receive(id, &packet, set)
    }

    fn begin_account(&self, id: &str, items: usize) {
        let began = Instant::now();
        let account = Account { items, rounds: 0, bytes_received: 0, bytes_sent: 0, began };
        self.lock().accounts.insert(id.to_owned(), account);
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the client is told. NIP-77, Error message: after one the session is closed.
fn answer(metrics: &Metrics, id: &str, received: Received) -> String {
    match (received.reply, received.fault) {
        (Some(Packet { kind: Kind::Answer, payload, .. }), _) => {
            metrics.neg_rounds.inc();
            metrics.neg_sent_bytes.inc_by(payload.len() as u64);
            message::neg_msg_text(id, &payload)
        }
        (_, Some(fault)) => refuse(metrics, id, &format!("invalid: {fault}")),
        (_, None) => {
            refuse(metrics, id, "closed: no session of this id is open; begin with NEG-OPEN")
        }
    }
}

/// NIP-77, Error message: with a prefix that says what for.
fn refuse(metrics: &Metrics, id: &str, text: &str) -> String {
    tracing::debug!(text, "a NEG message was refused");
    metrics.neg_refusals.count_prefix(text);
    message::neg_err(id, text)
}

/// Reads a whole message. One of another protocol version is fine: its answer names ours.
fn check(payload: &[u8]) -> Result<(), MessageError> {
    match Decoder::new(payload) {
        Ok(mut ranges) => ranges.try_for_each(|range| range.map(|_| ())),
        Err(MessageError { fault: Fault::OtherVersion(_), .. }) => Ok(()),
        Err(error) => Err(error),
    }
}
