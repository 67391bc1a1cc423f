//! Finding out what differs (NIP-77), window by window.

use super::super::breakdown::{self, DAY_S, Rows, ToLookUp};
use super::super::download::MOST_QUEUED_IDS;
use super::super::filter::Window;
use super::super::message;
use super::By;
use super::{Breakdown, End, Session, Work};
use crate::index::{Slice, SnapshotError};
use crate::item::Item;
use crate::reconcile::sessions::{
    OpenError, Packet, PacketKind, PacketOutcome, SessionEnd, SessionLimits,
};
use crate::reconcile::{Difference, InitiatorError, InitiatorOptions, RangeSet, Rule, Sessions};
use crate::store::{Reader, StoreError, unix_now};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long the first answer may take of a peer that does not say that it reconciles.
const FIRST_ANSWER: Duration = Duration::from_secs(5);
/// How long it may take of one that does: it may have to build a set first.
const ANNOUNCED_FIRST_ANSWER: Duration = Duration::from_secs(60);
/// How often a window is tried that the peer puts off.
const MOST_FAILURES: u32 = 5;
/// How long to wait after that.
const PUT_OFF: Duration = Duration::from_secs(2);
/// After so many windows in a row that are too large for the peer, however small, the rest is read.
const MOST_TOO_LARGE: u32 = 1_000;
/// With at most so many of our items newer than the last sync, what the peer has that is newer
/// is asked for at once.
const FEW_NEW_ITEMS: usize = 64;
/// How much is asked for at once.
const MOST_AHEAD: usize = 2_000;

/// The windows to reconcile and the one under way.
#[derive(Default)]
pub(super) struct Reconciling {
    windows: VecDeque<Window>,
    stage: Stage,
    sessions: Shared,
    // How many sessions there have been.
    begun: u64,
    // Whether the peer has ever answered.
    answered: bool,
    failures: u32,
    // Windows in a row that were too large for the peer.
    too_large: u32,
    unsettled_items: u64,
    items: u64,
}

#[derive(Default)]
enum Stage {
    #[default]
    Idle,
    /// Our set is being taken.
    Opening,
    /// The peer owes an answer.
    Waiting(Box<Open>),
    /// The answer is being read.
    Reading,
    /// The next question waits until there is less to download.
    Held(Box<Open>, Vec<u8>),
}

/// The sessions by their NIP-77 ids, one at a time. Threads share them: opening one and reading
/// an answer may take a while.
#[derive(Clone)]
struct Shared(Arc<Mutex<Sessions<String, Slice>>>);

impl Default for Shared {
    fn default() -> Self {
        let limits = SessionLimits { sessions: 1, idle_s: u64::MAX, ..SessionLimits::default() };
        Self(Arc::new(Mutex::new(Sessions::new(limits, 0))))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Sessions<String, Slice>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session under way.
struct Open {
    id: String,
    number: u64,
    window: Window,
}

/// A set that has been taken and the first question over it.
pub(super) struct Opened {
    open: Box<Open>,
    message: Vec<u8>,
    items: usize,
    newest: u64,
    /// Since when to ask ahead.
    ahead: Option<u64>,
}

/// An answer that has been read.
pub(super) struct Reading {
    open: Box<Open>,
    received: PacketOutcome,
    unsettled_items: usize,
    remembered: HashMap<[u8; 32], String>,
}

impl Reconciling {
    pub(super) fn begin(&mut self, window: Window) {
        self.windows.push_back(window);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.windows.is_empty() && matches!(self.stage, Stage::Idle)
    }

    pub(super) fn is_waiting(&self) -> bool {
        matches!(self.stage, Stage::Waiting(_))
    }

    /// Whether the peer has been silent for longer than one that reconciles would be.
    pub(super) fn waits_too_long(&self, announced: Option<bool>, silent: Duration) -> bool {
        let patience = if announced == Some(true) { ANNOUNCED_FIRST_ANSWER } else { FIRST_ANSWER };
        self.is_waiting() && !self.answered && silent >= patience
    }

    /// Whether `id` is the session under way.
    pub(super) fn is_about(&self, id: &str) -> bool {
        matches!(&self.stage, Stage::Waiting(open) if open.id == id)
    }

    /// Whether the peer has not answered a question yet.
    pub(super) fn is_unanswered(&self) -> bool {
        self.is_waiting() && !self.answered
    }

    /// Our items that are not settled, and all of them.
    pub(super) fn items(&self) -> (u64, u64) {
        (self.unsettled_items, self.items)
    }
}

impl Session<'_> {
    pub(super) fn advance_reconciling(&mut self) -> Result<(), End> {
        match std::mem::take(&mut self.reconciling.stage) {
            Stage::Idle => {
                if let Some(window) = self.reconciling.windows.pop_front() {
                    self.reconciling.stage = Stage::Opening;
                    self.take_set(window);
                }
            }
            Stage::Held(open, message) if self.download.unsettled() <= MOST_QUEUED_IDS => {
                self.ask(open, &message)?;
            }
            stage => self.reconciling.stage = stage,
        }
        Ok(())
    }

    /// Takes our set for a window, and makes the first question over it.
    fn take_set(&mut self, window: Window) {
        let filter = self.options.filter.within(window);
        let (sets, checkpoint) = (self.local.sets.clone(), self.checkpoint);
        let information = self.peer.information;
        let filter_bytes = serde_json::Value::Object(filter.json().clone()).to_string().len();
        let time_bucket_s = (self.memory.by == Some(By::Day)).then_some(DAY_S);
        let rule = match (self.options.exact, self.memory.reference_rule) {
            (true, _) => Rule::Exact,
            (false, true) => Rule::Reference,
            (false, false) => Rule::Adaptive,
        };
        // What proves a pass compares other ranges than the pass did.
        let is_proof = self.pass.as_ref().is_some_and(|pass| pass.number > 1);
        let bounds_seed = is_proof.then(|| RandomState::new().hash_one(self.reconciling.begun));
        let ahead = self.options.direction.is_down()
            && !self.options.dry_run
            && self.pass.as_ref().is_some_and(|pass| pass.number == 1)
            && filter.parsed().limit.is_none();
        self.reconciling.begun += 1;
        let id = format!("neg{}", self.reconciling.begun);
        let sessions = self.reconciling.sessions.clone();
        self.begin_work(move || {
            let set = sets.snapshot(std::slice::from_ref(filter.parsed()), usize::MAX).map_err(
                |error| match error {
                    SnapshotError::Store(error) => error,
                    // No set is larger than memory.
                    SnapshotError::TooLarge { .. } => StoreError::Closed,
                },
            )?;
            let items = set.len();
            let newest = items.checked_sub(1).and_then(|last| set.item(last));
            let newest = newest.map_or(0, |item| item.created_at);
            // What was there when the sets were equal does not come again: neither what is of
            // that second, nor what was made ahead of its time.
            let known = if newest > unix_now() { newest } else { 0 };
            let unknown = checkpoint.map(|second| second.max(known).saturating_add(1));
            let newer = |second: &u64| items - set.lower_bound(&Item::new(*second, [0; 32]));
            let ahead = unknown.filter(|second| ahead && newer(second) <= FEW_NEW_ITEMS);
            let options = InitiatorOptions {
                rule,
                frame_limit_bytes: information.frame_limit_bytes(),
                opening_limit_bytes: information.opening_limit_bytes(filter_bytes),
                sync_mark: checkpoint,
                since: window.since,
                time_bucket_s,
                bounds_seed,
                ..InitiatorOptions::default()
            };
            let mut sessions = sessions.lock();
            // Whatever was under way is over: there is one session at a time.
            let opened = match sessions.open(id.clone(), set.clone(), options, 0) {
                // The limits are within the protocol's: see `Information`.
                Err(OpenError::FrameLimit(_)) => {
                    let options = InitiatorOptions { rule, ..InitiatorOptions::default() };
                    sessions.open(id.clone(), set, options, 0)
                }
                opened => opened,
            };
            let Packet { session: number, payload: message, .. } =
                opened.map_err(|_| StoreError::Closed)?;
            let open = Box::new(Open { id, number, window });
            Ok(Work::Opened(Box::new(Opened { open, message, items, newest, ahead })))
        });
    }

    /// NIP-77, Initial message.
    pub(super) fn opened(&mut self, opened: Opened) -> Result<(), End> {
        let Opened { open, message, items, newest, ahead } = opened;
        let window = open.window;
        if let Some(pass) = &mut self.pass {
            pass.newest = pass.newest.max(newest);
            pass.breakdown.iter_mut().for_each(Breakdown::begin_session);
        }
        self.reconciling.items = items as u64;
        self.reconciling.unsettled_items = items as u64;
        let filter = self.options.filter.within(window);
        self.peer.send(message::neg_open(&open.id, &filter, &message))?;
        self.heard = Instant::now();
        self.reconciling.stage = Stage::Waiting(open);
        if let Some(second) = ahead {
            let since = Some(window.since.map_or(second, |since| since.max(second)));
            let newest = filter.within(Window { since, ..window });
            let most = self.peer.information.events_per_req.min(MOST_AHEAD);
            self.download.ask_ahead(&self.peer, &newest.newest(most))?;
        }
        Ok(())
    }

    /// NIP-77, Subsequent messages, from the responder: read on a thread, with what is remembered
    /// of the ids that it shows.
    pub(super) fn neg_msg(&mut self, payload: Vec<u8>) {
        let Stage::Waiting(open) = std::mem::take(&mut self.reconciling.stage) else { return };
        self.reconciling.stage = Stage::Reading;
        self.reconciling.answered = true;
        self.reconciling.failures = 0;
        self.reconciling.too_large = 0;
        self.memory.report.round_trips += 1;
        let reader = self.local.store.reader().clone();
        let peer = self.url.as_str().to_owned();
        let sessions = self.reconciling.sessions.clone();
        self.begin_work(move || {
            let answer = Packet { kind: PacketKind::Answer, session: open.number, payload };
            let mut sessions = sessions.lock();
            let received = sessions.receive(&open.id, &answer, 0, || None);
            let asking = sessions.asking(&open.id);
            let unsettled_items = asking.map_or(0, |initiator| initiator.unsettled_items());
            let remembered = remembered(&reader, &peer, &received.found)?;
            Ok(Work::Read(Box::new(Reading { open, received, unsettled_items, remembered })))
        });
    }

    pub(super) fn read(&mut self, reading: Reading) -> Result<(), End> {
        let Reading { open, received, unsettled_items, remembered } = reading;
        self.reconciling.stage = Stage::Idle;
        self.reconciling.unsettled_items = unsettled_items as u64;
        let breakdown = self.pass.as_mut().and_then(|pass| pass.breakdown.as_mut());
        if let Some(breakdown) = breakdown {
            breakdown.found(&received.found);
        }
        self.found(received.found.have, received.found.need, &remembered)?;
        match (received.ended, received.reply) {
            (None, Some(question)) if self.download.unsettled() > MOST_QUEUED_IDS => {
                self.reconciling.stage = Stage::Held(open, question.payload);
            }
            (None, Some(question)) => self.ask(open, &question.payload)?,
            (Some(SessionEnd::Failed(error)), _) => {
                self.peer.send(message::neg_close(&open.id))?;
                self.unreadable(&open.id, open.window, &error);
            }
            _ => {
                self.peer.send(message::neg_close(&open.id))?;
                self.look_up_differences();
            }
        }
        Ok(())
    }

    /// A session is complete: what it found is told by what it has in common.
    fn look_up_differences(&mut self) {
        let breakdown = self.pass.as_mut().and_then(|pass| pass.breakdown.as_mut());
        let Some(breakdown) = breakdown else { return };
        let by = breakdown.by;
        let ToLookUp { have, need } = breakdown.end_session();
        self.download.add(need);
        let sets = self.local.sets.clone();
        if !have.is_empty() {
            self.begin_work(move || {
                Ok(Work::Sorted(breakdown::of_ours(sets.source(), by, &have)?))
            });
        }
    }

    pub(super) fn add_rows(&mut self, rows: Rows) {
        if let Some(breakdown) = self.pass.as_mut().and_then(|pass| pass.breakdown.as_mut()) {
            breakdown.merge(rows);
        }
    }

    fn ask(&mut self, open: Box<Open>, message: &[u8]) -> Result<(), End> {
        self.peer.send(message::neg_msg(&open.id, message))?;
        self.heard = Instant::now();
        self.reconciling.stage = Stage::Waiting(open);
        Ok(())
    }

    /// The peer's answers lead nowhere: the plainest way of asking comes next, then reading.
    fn unreadable(&mut self, id: &str, window: Window, error: &InitiatorError) {
        tracing::debug!(peer = %self.url, session = id, %error, "a reconciliation failed");
        // The reference rule does not tell when the differences were made, and believes fingerprints.
        let is_last = self.memory.reference_rule || self.options.exact;
        if is_last || self.memory.by == Some(By::Day) {
            self.note(format!("{error}; reading events instead"));
            self.memory.report.method = super::Method::Req;
            self.paging.add(window);
        } else {
            self.memory.reference_rule = true;
            self.reconciling.windows.push_front(window);
        }
    }

    /// Forgets a session that the peer has ended, and hands back its set.
    fn end_session(&mut self, open: &Open) -> Option<Slice> {
        let mut sessions = self.reconciling.sessions.lock();
        let set = sessions.asking(&open.id).map(|initiator| initiator.set().clone());
        sessions.forget(&open.id);
        set
    }

    /// NIP-77, Error message.
    pub(super) fn neg_err(&mut self, text: &str, cap: Option<u64>) -> Result<(), End> {
        let Stage::Waiting(open) = std::mem::take(&mut self.reconciling.stage) else {
            return Ok(());
        };
        let window = open.window;
        let set = self.end_session(&open);
        let prefix = text.split_once(':').map_or("", |(prefix, _)| prefix.trim());
        if cap.is_some() || text.contains("too many") && prefix == "blocked" {
            self.reconciling.too_large += 1;
            if self.reconciling.too_large >= MOST_TOO_LARGE {
                self.reconciling.windows.push_front(window);
                return self.without_negentropy("every set is too large for it");
            }
            self.divide(window, set.as_ref(), cap);
            return Ok(());
        }
        if prefix == "auth-required" {
            self.reconciling.windows.push_front(window);
            return self.wait_for_auth(text);
        }
        self.reconciling.failures += 1;
        if matches!(prefix, "closed" | "rate-limited" | "error")
            && self.reconciling.failures <= MOST_FAILURES
        {
            self.reconciling.windows.push_front(window);
            self.not_before = Some(Instant::now() + PUT_OFF);
            return Ok(());
        }
        self.reconciling.windows.push_front(window);
        self.without_negentropy(text)
    }

    /// A window that is too large for the peer becomes several; a single second is read.
    fn divide(&mut self, window: Window, ours: Option<&Slice>, cap: Option<u64>) {
        self.reconciling.answered = true;
        let limited = self.options.filter.parsed().limit.is_some();
        let parts = ours.and_then(|ours| window.divide(ours, cap, unix_now()));
        match parts.filter(|_| !limited) {
            Some(parts) => {
                let count = parts.len();
                self.note(format!("too large for the peer: going on in {count} windows of time"));
                parts.into_iter().rev().for_each(|part| self.reconciling.windows.push_front(part));
            }
            None => {
                self.memory.report.method = super::Method::Req;
                self.paging.add(window);
            }
        }
    }

    /// The peer does not reconcile: what is left is read.
    pub(super) fn without_negentropy(&mut self, reason: &str) -> Result<(), End> {
        self.note(format!("the peer does not reconcile ({reason}); reading its events instead"));
        self.memory.without_negentropy = true;
        self.memory.report.method = super::Method::Req;
        if let Stage::Waiting(open) = std::mem::take(&mut self.reconciling.stage) {
            self.end_session(&open);
            self.reconciling.windows.push_front(open.window);
        }
        self.reconciling.unsettled_items = 0;
        for window in self.reconciling.windows.drain(..) {
            self.paging.add(window);
        }
        Ok(())
    }
}

/// What earlier syncs remember of the ids that were found.
fn remembered(
    reader: &Reader,
    peer: &str,
    found: &Difference,
) -> Result<HashMap<[u8; 32], String>, StoreError> {
    let mut remembered = reader.refused(peer, &found.need)?;
    remembered.extend(reader.refused(peer, &found.have)?);
    Ok(remembered)
}
