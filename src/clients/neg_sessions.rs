//! NEG-OPEN, NEG-MSG and NEG-CLOSE (NIP-77): each session answers from the snapshot that it was
//! opened with.

use super::Service;
use super::limits::{NegShare, Turns};
use super::message::{self, Refusal};
use crate::config::NegentropyConfig;
use crate::index::{Slice, SnapshotError};
use crate::metrics::{Metrics, Share};
use crate::reconcile::message::{DecodeFault, Decoder};
use crate::reconcile::sessions::{Packet, PacketKind, PacketOutcome, SessionLimits};
use crate::reconcile::{MessageError, RangeSet, Sessions};
use crate::store::{Filter, StoreError, Viewer};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A message up to this length is answered where it was read, in less time than it takes to hand
/// it to another thread and back.
const INLINE_BYTES: usize = 512;
/// A message up to this length is answered in a few milliseconds at the most: each range of it can
/// ask for sixteen fingerprints.
const SHORT_BYTES: usize = 4_096;

/// The NEG sessions of one connection by their ids, apart from its subscriptions.
pub(crate) struct NegSessions {
    service: Arc<Service>,
    address: IpAddr,
    open: Arc<Mutex<Open>>,
    began: Instant,
}

struct Open {
    sessions: Sessions<String, Slice>,
    share: NegShare,
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

/// NIP-77, Initial message.
struct Opening {
    id: String,
    viewer: Viewer,
    filters: Vec<Filter>,
    packet: Packet,
    limit: usize,
    now_s: u64,
}

impl Open {
    fn receive(
        &mut self,
        id: &String,
        packet: &Packet,
        now_s: u64,
        set: impl FnOnce() -> Option<Slice>,
    ) -> PacketOutcome {
        let received = self.sessions.receive(id, packet, now_s, set);
        self.count();
        match (&received.reply, self.accounts.get_mut(id)) {
            (Some(Packet { kind: PacketKind::Answer, payload, .. }), Some(account)) => {
                account.rounds += 1;
                account.bytes_received += packet.payload.len();
                account.bytes_sent += payload.len();
            }
            _ => drop(self.accounts.remove(id)),
        }
        received
    }

    fn begin_account(&mut self, id: &str, items: usize) {
        let began = Instant::now();
        let account = Account { items, rounds: 0, bytes_received: 0, bytes_sent: 0, began };
        self.accounts.insert(id.to_owned(), account);
    }

    fn forget(&mut self, id: &String) {
        self.sessions.forget(id);
        self.count();
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
    #[error("rate-limited: the memory for sets is taken; try again later")]
    NoMemory,
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
    /// None yet, of a client at `address`.
    pub(crate) fn new(service: Arc<Service>, address: IpAddr) -> Self {
        let open = Open {
            sessions: Sessions::new(limits(&service.config().negentropy), 0),
            share: service.counts.neg_total.share(),
            counted: Share::of(&service.metrics.neg_sessions),
            accounts: HashMap::new(),
        };
        let open = Arc::new(Mutex::new(open));
        Self { service, address, open, began: Instant::now() }
    }

    /// NIP-77, Initial message. A live session of the same id ends. Returns the answer; `may` says
    /// why the client may not.
    pub(crate) async fn open(
        &mut self,
        viewer: Viewer,
        may: Result<(), &'static str>,
        id: String,
        filters: Vec<Filter>,
        payload: Vec<u8>,
    ) -> String {
        self.close(&id);
        let service = Arc::clone(&self.service);
        let metrics = &service.metrics;
        metrics.neg_received_bytes.inc_by(payload.len() as u64);
        let config = service.config();
        let has_room = self.lock().make_room(&id, &config.negentropy);
        if let Err(text) = has_room {
            return refuse(metrics, &id, &text);
        }
        if let Err(reason) = may {
            return refuse(metrics, &id, reason);
        }
        let config = &config.negentropy;
        let is_short = payload.len() <= SHORT_BYTES;
        let opening = Arc::new(Opening {
            id,
            viewer,
            filters,
            packet: Packet { kind: PacketKind::Open, session: 0, payload },
            limit: config.max_sync_events.size(),
            now_s: self.now_s(),
        });
        let mut opened = Ok(None);
        if is_short {
            let sets = service.sets.clone();
            opened = self
                .find(&service.counts.short, &opening, move |it| {
                    sets.kept_for(&it.viewer, &it.filters, it.limit)
                })
                .await;
        }
        if matches!(opened, Ok(None)) {
            let most = config.memory_mb.size() << 20;
            let sets = service.sets.clone();
            let any =
                move |it: &Opening| sets.snapshot_for(&it.viewer, &it.filters, it.limit).map(Some);
            opened = match service.sets.session_bytes() < most {
                true => self.find(&service.counts.long, &opening, any).await,
                false => Err(OpenError::NoMemory),
            };
        }
        self.lock().count();
        let id = &opening.id;
        match opened {
            Ok(Some(received)) => {
                metrics.neg_sessions_total.inc_by(u64::from(received.fault.is_none()));
                answer(metrics, id, received)
            }
            Ok(None) => refuse(metrics, id, "error: there is no set"),
            Err(OpenError::TooLarge { limit }) => {
                metrics.neg_refusals.count("blocked");
                message::neg_err_too_large(id, limit)
            }
            Err(error) => {
                if let OpenError::Unread(error) = &error {
                    service.read_trouble.failed("a set", error);
                }
                refuse(metrics, id, &error.to_string())
            }
        }
    }

    /// Opens a session in a turn of the client's, if `find` finds its set: `None` where it cannot
    /// in a short time.
    async fn find(
        &self,
        turns: &Arc<Turns>,
        opening: &Arc<Opening>,
        find: impl FnOnce(&Opening) -> Result<Option<Slice>, SnapshotError> + Send + 'static,
    ) -> Result<Option<PacketOutcome>, OpenError> {
        let (open, opening) = (Arc::clone(&self.open), Arc::clone(opening));
        let service = Arc::clone(&self.service);
        let found = turns.work(self.address, move || {
            // A message that nobody can answer is refused before a set is built for it.
            check(&opening.packet.payload)?;
            let Some(set) = find(&opening)? else { return Ok(None) };
            service.metrics.neg_set_items.observe(set.len() as f64);
            let mut open = lock(&open);
            let Opening { id, packet, now_s, .. } = &*opening;
            open.begin_account(id, set.len());
            Ok(Some(open.receive(id, packet, *now_s, || Some(set))))
        });
        found.await.unwrap_or_else(|panic| Err(OpenError::Failed(panic.to_string())))
    }

    /// NIP-77, Subsequent messages. Returns the answer.
    pub(crate) async fn message(&mut self, id: String, payload: Vec<u8>) -> String {
        let metrics = &self.service.metrics;
        metrics.neg_received_bytes.inc_by(payload.len() as u64);
        let counts = &self.service.counts;
        let bytes = payload.len();
        let turns = if bytes <= SHORT_BYTES { &counts.short } else { &counts.long };
        let (open, session, now_s) = (Arc::clone(&self.open), id.clone(), self.now_s());
        let take = move || {
            // A session has one number only: its id tells it from others, and opening it anew
            // ends it.
            let packet = Packet { kind: PacketKind::Question, session: 0, payload };
            lock(&open).receive(&session, &packet, now_s, || None)
        };
        let text = if bytes <= INLINE_BYTES {
            let _turn = turns.take(self.address).await;
            answer(metrics, &id, take())
        } else {
            match turns.work(self.address, take).await {
                Ok(received) => answer(metrics, &id, received),
                Err(panic) => refuse(metrics, &id, &format!("error: {panic}")),
            }
        };
        self.lock().count();
        text
    }

    /// NIP-77, Close message. Of an unknown id nothing is said.
    pub(crate) fn close(&mut self, id: &str) {
        self.lock().forget(&id.to_owned());
    }

    /// Ends all sessions.
    pub(crate) fn close_all(&mut self) {
        let mut open = self.lock();
        open.sessions = Sessions::new(limits(&self.service.config().negentropy), 0);
        open.accounts.clear();
        open.count();
    }

    /// A message of which no more than its session is known has been refused: the session ends.
    pub(crate) fn refused(&mut self, refusal: &Refusal) {
        if let Some(id) = &refusal.neg_session {
            self.close(id);
        }
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().sessions.answering_len() == 0
    }

    /// Ends the sessions that have been asked nothing for too long. Returns what is said of each.
    pub(crate) fn expire(&mut self) -> Vec<String> {
        let config = self.service.config();
        let expired = {
            let mut open = self.lock();
            open.sessions.set_limits(limits(&config.negentropy));
            let expired = open.sessions.expire(self.now_s()).answering;
            open.count();
            for id in &expired {
                open.accounts.remove(id);
            }
            expired
        };
        let seconds = config.negentropy.idle_timeout_s.get();
        let text = format!("closed: asked nothing for {seconds} s; begin with NEG-OPEN");
        expired.iter().map(|id| refuse(&self.service.metrics, id, &text)).collect()
    }

    fn now_s(&self) -> u64 {
        self.began.elapsed().as_secs()
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        lock(&self.open)
    }
}

impl Open {
    /// Takes a place for one more session; says why where there is none.
    fn make_room(&mut self, id: &String, config: &NegentropyConfig) -> Result<(), String> {
        self.sessions.set_limits(limits(config));
        if !self.sessions.has_room_for(id) {
            let most = config.sessions.get();
            return Err(format!("rate-limited: {most} NEG sessions are open; close one first"));
        }
        if !self.share.take(config.sessions_in_all.size()) {
            return Err("rate-limited: too many NEG sessions are open; try again later".to_owned());
        }
        Ok(())
    }

    /// Gives back the places of sessions that have ended.
    fn count(&mut self) {
        let open = self.sessions.answering_len();
        self.share.keep(open);
        self.counted.set(open);
    }
}

fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

fn limits(config: &NegentropyConfig) -> SessionLimits {
    SessionLimits {
        sessions: config.sessions.size(),
        // One more, because the seconds that count are whole ones.
        idle_s: config.idle_timeout_s.get().saturating_add(1),
        frame_limit_bytes: config.frame_limit_bytes as usize,
    }
}

/// What the client is told. NIP-77, Error message: after one the session is closed.
fn answer(metrics: &Metrics, id: &str, received: PacketOutcome) -> String {
    match (received.reply, received.fault) {
        (Some(Packet { kind: PacketKind::Answer, payload, .. }), _) => {
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
        Err(MessageError { fault: DecodeFault::OtherVersion(_), .. }) => Ok(()),
        Err(error) => Err(error),
    }
}
