//! NEG-OPEN, NEG-MSG and NEG-CLOSE (NIP-77). Each session answers from the snapshot with which it
//! was opened.

use super::Service;
use super::departure::Departure;
use super::limits::{FairQueue, NegShare};
use super::message::{self, MessageRefusal};
use crate::config::NegentropyConfig;
use crate::index::{Sets, Slice, SnapshotError};
use crate::metrics::{Metrics, Share};
use crate::prefix::Prefix;
use crate::reconcile::message::WholeMessage;
use crate::reconcile::{FrameLimitError, MessageError, RangeSet, Responder};
use crate::store::{Deadline, Filter, StoreError, Viewer};
use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A message up to this length is answered on the connection's task: faster than passing it to
/// another thread and back.
const INLINE_BYTES: usize = 512;
/// A message up to this length is answered in a few milliseconds at most: each of its ranges can
/// ask for sixteen fingerprints.
const SHORT_BYTES: usize = 4_096;

/// The NEG sessions of one connection by their ids, in a namespace separate from its subscriptions.
/// The connection's task owns them.
pub(crate) struct NegSessions {
    service: Arc<Service>,
    address: IpAddr,
    departure: Departure,
    open: HashMap<String, NegSession>,
    // This connection's share of all sessions.
    share: NegShare,
    counted: Share,
}

/// One session: its set, and its totals. Its end is logged.
struct NegSession {
    responder: Responder<Slice>,
    heard: Instant,
    began: Instant,
    rounds: u64,
    bytes_received: usize,
    bytes_sent: usize,
}

impl NegSession {
    fn new(responder: Responder<Slice>) -> Self {
        let now = Instant::now();
        Self { responder, heard: now, began: now, rounds: 0, bytes_received: 0, bytes_sent: 0 }
    }

    /// The answer to the first message; `payload` is the undecoded message.
    fn open(&mut self, message: WholeMessage<'_>, payload: &[u8]) -> Vec<u8> {
        let answer = self.responder.answer_read(message);
        self.count(payload, &answer);
        answer
    }

    /// The answer to a later message, or the text of an error.
    fn answer(&mut self, sets: &Sets, payload: &[u8]) -> Result<Vec<u8>, String> {
        let answer =
            self.responder.answer(payload).map_err(|error| Prefix::Invalid.before(error))?;
        sets.check(self.responder.set()).map_err(|error| Prefix::Error.before(error))?;
        self.count(payload, &answer);
        Ok(answer)
    }

    fn count(&mut self, payload: &[u8], answer: &[u8]) {
        self.heard = Instant::now();
        self.rounds += 1;
        self.bytes_received += payload.len();
        self.bytes_sent += answer.len();
    }
}

impl Drop for NegSession {
    fn drop(&mut self) {
        // Refused at once.
        if self.rounds == 0 {
            return;
        }
        tracing::debug!(
            items = self.responder.set().len(),
            rounds = self.rounds,
            bytes_received = self.bytes_received,
            bytes_sent = self.bytes_sent,
            elapsed_s = self.began.elapsed().as_secs_f64(),
            "NEG session ended"
        );
    }
}

/// NIP-77, Initial message.
struct NegOpening {
    viewer: Viewer,
    filters: Vec<Filter>,
    payload: Vec<u8>,
    /// Maximum number of items in a set.
    limit: usize,
    frame_limit_bytes: usize,
}

/// An opened session, and the answer to its first message.
type Opened = (NegSession, Vec<u8>);

/// Why a session could not be opened.
#[derive(Debug, thiserror::Error)]
enum NegOpenError {
    #[error("{prefix}: {0}", prefix = Prefix::Invalid)]
    Message(#[from] MessageError),
    #[error("{prefix}: {0}", prefix = Prefix::Error)]
    FrameLimit(#[from] FrameLimitError),
    #[error("{prefix}: too many query results", prefix = Prefix::Blocked)]
    TooLarge { limit: usize },
    #[error("{prefix}: the memory for sets is taken; try again later", prefix = Prefix::RateLimited)]
    NoMemory,
    #[error("{prefix}: query timeout", prefix = Prefix::Error)]
    Timeout,
    #[error("{prefix}: the store could not be read", prefix = Prefix::Error)]
    Unread(StoreError),
    #[error("{prefix}: {0}", prefix = Prefix::Error)]
    Failed(String),
}

impl From<SnapshotError> for NegOpenError {
    fn from(error: SnapshotError) -> Self {
        match error {
            SnapshotError::TooLarge { limit } => Self::TooLarge { limit },
            SnapshotError::Store(StoreError::Interrupted) => Self::Timeout,
            SnapshotError::Store(error) => Self::Unread(error),
            other => Self::Failed(other.to_string()),
        }
    }
}

impl NegSessions {
    /// No sessions, for a client at `address`.
    pub(crate) fn new(service: Arc<Service>, address: IpAddr, departure: Departure) -> Self {
        let share = service.counts.neg_total.share();
        let counted = Share::of(&service.metrics.neg_sessions);
        Self { service, address, departure, open: HashMap::new(), share, counted }
    }

    /// NIP-77, Initial message. Ends an open session with the same id. Returns the answer; `may`
    /// returns the reason if the client lacks the permission.
    pub(crate) async fn open(
        &mut self,
        viewer: Viewer,
        may: Result<(), Cow<'static, str>>,
        id: String,
        filters: Vec<Filter>,
        payload: Vec<u8>,
    ) -> String {
        self.close(&id);
        let service = Arc::clone(&self.service);
        let metrics = &service.metrics;
        metrics.neg_received_bytes.inc_by(payload.len() as u64);
        let config = service.config();
        if let Err(text) = self.make_room(&config.negentropy) {
            return refuse(metrics, &id, &text);
        }
        let opened = match may {
            Ok(()) => self.find_set(&config.negentropy, viewer, filters, payload).await,
            Err(reason) => {
                self.count();
                return refuse(metrics, &id, &reason);
            }
        };
        let text = match opened {
            Ok((session, answer)) => {
                metrics.neg_sessions_total.inc();
                let text = say(metrics, &id, &answer);
                self.open.insert(id, session);
                text
            }
            Err(NegOpenError::TooLarge { limit }) => {
                metrics.neg_refusals.count(Prefix::Blocked.as_str());
                message::neg_err_too_large(&id, limit)
            }
            Err(error) => {
                if let NegOpenError::Unread(error) = &error {
                    service.read_errors.store_unread("a set", error);
                }
                refuse(metrics, &id, &error.to_string())
            }
        };
        self.count();
        text
    }

    /// Opens a session over the set of the filters: in a short turn if the set is kept, otherwise
    /// in a long one.
    async fn find_set(
        &self,
        config: &NegentropyConfig,
        viewer: Viewer,
        filters: Vec<Filter>,
        payload: Vec<u8>,
    ) -> Result<Opened, NegOpenError> {
        let counts = &self.service.counts;
        let is_short = payload.len() <= SHORT_BYTES;
        let opening = Arc::new(NegOpening {
            viewer,
            filters,
            payload,
            limit: config.max_sync_events,
            frame_limit_bytes: config.frame_limit_bytes as usize,
        });
        if is_short {
            let sets = self.service.sets.clone();
            let kept = move |it: &NegOpening, _| sets.kept_for(&it.viewer, &it.filters, it.limit);
            if let Some(opened) = self.begin(&counts.short, &opening, kept).await? {
                return Ok(opened);
            }
        }
        if self.service.sets.session_bytes() >= config.memory_mb << 20 {
            // A set that is in memory anyway takes no additional memory.
            let sets = self.service.sets.clone();
            let kept = move |it: &NegOpening, deadline| {
                let sets = sets.with_deadline(deadline);
                sets.kept_after_waiting(&it.viewer, &it.filters, it.limit)
            };
            let opened = self.begin(&counts.long, &opening, kept).await?;
            return opened.ok_or(NegOpenError::NoMemory);
        }
        let sets = self.service.sets.clone();
        let any = move |it: &NegOpening, deadline| {
            let sets = sets.with_deadline(deadline);
            sets.snapshot_for(&it.viewer, &it.filters, it.limit).map(Some)
        };
        let opened = self.begin(&counts.long, &opening, any).await?;
        opened.ok_or_else(|| NegOpenError::Failed("there is no set".to_owned()))
    }

    /// Opens a session in a turn of the client's, if `find` finds its set; `None` if it would take
    /// long.
    async fn begin(
        &self,
        turns: &Arc<FairQueue>,
        opening: &Arc<NegOpening>,
        find: impl FnOnce(&NegOpening, Deadline) -> Result<Option<Slice>, SnapshotError>
        + Send
        + 'static,
    ) -> Result<Option<Opened>, NegOpenError> {
        let opening = Arc::clone(opening);
        let service = Arc::clone(&self.service);
        let departure = self.departure.clone();
        let begun = self.service.query(turns, self.address, departure, move |deadline| {
            // A malformed message is refused before a set is built for it.
            let message = WholeMessage::read(&opening.payload)?;
            let Some(set) = find(&opening, deadline)? else { return Ok(None) };
            service.metrics.neg_set_items.observe(set.len() as f64);
            let mut session = NegSession::new(Responder::new(set, opening.frame_limit_bytes)?);
            let answer = session.open(message, &opening.payload);
            service.sets.check(session.responder.set()).map_err(NegOpenError::Unread)?;
            Ok(Some((session, answer)))
        });
        begun.await.unwrap_or_else(|panic| Err(NegOpenError::Failed(panic.to_string())))
    }

    /// NIP-77, Subsequent messages. Returns the answer; `may` is as in [`NegSessions::open`].
    pub(crate) async fn message(
        &mut self,
        may: Result<(), String>,
        id: String,
        payload: Vec<u8>,
    ) -> String {
        let service = Arc::clone(&self.service);
        let metrics = &service.metrics;
        metrics.neg_received_bytes.inc_by(payload.len() as u64);
        let Some(mut session) = self.open.remove(&id) else {
            let text = Prefix::Closed.before("no session of this id is open; begin with NEG-OPEN");
            return refuse(metrics, &id, &text);
        };
        if let Err(reason) = may {
            drop(session);
            self.count();
            return refuse(metrics, &id, &reason);
        }
        let turns = match payload.len() {
            0..=SHORT_BYTES => &service.counts.short,
            _ => &service.counts.long,
        };
        let answered = if payload.len() <= INLINE_BYTES {
            let _turn = turns.take(self.address).await;
            let answer = session.answer(&service.sets, &payload);
            Ok((session, answer))
        } else {
            let sets = service.sets.clone();
            let work = move || {
                let answer = session.answer(&sets, &payload);
                (session, answer)
            };
            turns.work(self.address, work).await
        };
        // NIP-77, Error message: it closes the session.
        let text = match answered {
            Ok((session, Ok(answer))) => {
                let text = say(metrics, &id, &answer);
                self.open.insert(id, session);
                text
            }
            Ok((_, Err(text))) => refuse(metrics, &id, &text),
            Err(panic) => refuse(metrics, &id, &Prefix::Error.before(panic)),
        };
        self.count();
        text
    }

    /// NIP-77, Close message. An unknown id is ignored.
    pub(crate) fn close(&mut self, id: &str) {
        self.open.remove(id);
        self.count();
    }

    /// Ends all sessions.
    pub(crate) fn close_all(&mut self) {
        self.open.clear();
        self.count();
    }

    /// Ends the session of a refused message.
    pub(crate) fn refused(&mut self, refusal: &MessageRefusal) {
        if let Some(id) = &refusal.neg_session {
            self.close(id);
        }
    }

    /// Whether there are no sessions.
    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Ends the sessions whose last message is too old. Returns a message for each.
    pub(crate) fn expire(&mut self) -> Vec<String> {
        let seconds = self.service.config().negentropy.idle_timeout_s;
        let idle = Duration::from_secs(seconds);
        let expired = self.open.extract_if(|_, session| session.heard.elapsed() >= idle);
        let ids: Vec<String> = expired.map(|(id, _)| id).collect();
        self.count();
        let text = Prefix::Closed.before(format_args!(
            "idle timeout: no message for {seconds} s; open a new session with NEG-OPEN"
        ));
        ids.iter().map(|id| refuse(&self.service.metrics, id, &text)).collect()
    }

    /// Takes a slot for one more session; the error has the reason.
    fn make_room(&mut self, config: &NegentropyConfig) -> Result<(), String> {
        if self.open.len() >= config.sessions {
            let most = config.sessions;
            return Err(Prefix::RateLimited
                .before(format_args!("{most} NEG sessions are open; close one first")));
        }
        if !self.share.take(config.sessions_in_all) {
            let text = "too many NEG sessions are open; try again later";
            return Err(Prefix::RateLimited.before(text));
        }
        Ok(())
    }

    /// Returns the slots of ended sessions.
    fn count(&mut self) {
        self.share.keep(self.open.len());
        self.counted.set(self.open.len());
    }
}

/// NIP-77, Subsequent messages: our answer.
fn say(metrics: &Metrics, id: &str, payload: &[u8]) -> String {
    metrics.neg_rounds.inc();
    metrics.neg_sent_bytes.inc_by(payload.len() as u64);
    message::neg_msg_text(id, payload)
}

/// NIP-77, Error message, with a prefix.
fn refuse(metrics: &Metrics, id: &str, text: &str) -> String {
    tracing::debug!(text, "a NEG message was refused");
    metrics.neg_refusals.count_prefix(text);
    message::neg_err(id, text)
}
