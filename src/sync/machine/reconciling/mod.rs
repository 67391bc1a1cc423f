//! Finds differences by NIP-77, window by window.

mod refusals;

use super::download::MOST_QUEUED_IDS;
use super::patience::missed;
use super::work::Opening;
use super::{By, Done, Id, Items, Machine, Work};
use crate::reconcile::{Difference, InitiatorError, Rule};
use crate::sync::breakdown::{BUCKET_S, Breakdown, ToLookUp};
use crate::sync::filter::{PeerFilter, Window};
use crate::sync::message;
use crate::sync::report::Method;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// Timeout for an answer of a peer that has answered before.
const NEXT_ANSWER: Duration = Duration::from_secs(10);
/// Unanswered NEG-MSGs after which a peer that never answered one is read.
const MOST_NEG_SILENCES: u32 = 2;
/// Maximum number of the newest events that are requested ahead, with the first question.
const MOST_AHEAD: usize = 2_000;
/// The windows to reconcile and the current one.
#[derive(Debug, Default)]
pub(super) struct Reconciling {
    /// The remaining windows, each with its filter.
    windows: VecDeque<(PeerFilter, Window)>,
    stage: Stage,
    sessions: u64,
    /// Whether the peer has answered on this connection.
    was_answered: bool,
    failures: u32,
    /// Windows in a row that were too large for the peer.
    too_large: u32,
    /// Whether a window was divided on this connection.
    was_divided: bool,
    unsettled_items: u64,
    items: u64,
}

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Idle,
    /// Our set is being built.
    Opening(Session),
    /// The peer's answer is pending.
    Waiting(Session, Option<Duration>),
    /// The answer is being processed.
    Reading(Session),
    /// The next question waits until fewer downloads are queued.
    Held(Session, Vec<u8>),
    /// A window of this filter was too large and is being divided.
    Dividing(PeerFilter),
}

#[derive(Debug, Clone)]
struct Session {
    id: String,
    number: u64,
    filter: PeerFilter,
    window: Window,
    was_answered: bool,
}

impl Reconciling {
    pub(super) fn begin(&mut self, filter: &PeerFilter) {
        self.windows.extend(filter.parts(filter.window()));
    }

    pub(super) fn is_idle(&self) -> bool {
        self.windows.is_empty() && matches!(self.stage, Stage::Idle)
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        match &self.stage {
            Stage::Waiting(_, deadline) => *deadline,
            _ => None,
        }
    }

    pub(super) fn extend(&mut self, until: Duration) {
        if let Stage::Waiting(_, deadline) = &mut self.stage {
            *deadline = deadline.map(|at| at.max(until));
        }
    }

    /// Whether `id` is the current session.
    pub(super) fn is_about(&self, id: &str) -> bool {
        matches!(&self.stage, Stage::Waiting(session, _) if session.id == id)
    }

    /// Whether the first answer of this connection is pending.
    pub(super) fn is_first_unanswered(&self) -> bool {
        matches!(self.stage, Stage::Waiting(..)) && !self.was_answered
    }

    /// Whether the answer to a NEG-MSG is pending.
    pub(super) fn is_next_unanswered(&self) -> bool {
        matches!(&self.stage, Stage::Waiting(session, _) if session.was_answered)
    }

    /// The numbers of our unsettled items and of all our items.
    pub(super) fn items(&self) -> (u64, u64) {
        (self.unsettled_items, self.items)
    }

    fn take_waiting(&mut self) -> Option<Session> {
        match std::mem::take(&mut self.stage) {
            Stage::Waiting(session, _) => Some(session),
            stage => {
                self.stage = stage;
                None
            }
        }
    }

    fn take_session(&mut self) -> Option<Session> {
        match std::mem::take(&mut self.stage) {
            Stage::Waiting(session, _) | Stage::Held(session, _) => Some(session),
            Stage::Opening(session) | Stage::Reading(session) => Some(session),
            Stage::Idle | Stage::Dividing(_) => None,
        }
    }
}

impl Machine {
    pub(super) fn advance_reconciling(&mut self) {
        match std::mem::take(&mut self.on.reconciling.stage) {
            Stage::Idle => {
                if let Some((filter, window)) = self.on.reconciling.windows.pop_front() {
                    self.open(filter, window);
                }
            }
            Stage::Held(session, message) if self.on.download.unsettled() <= MOST_QUEUED_IDS => {
                self.ask(session, &message);
            }
            stage => self.on.reconciling.stage = stage,
        }
    }

    /// Builds our set for a window, and the first question about it.
    fn open(&mut self, whole: PeerFilter, window: Window) {
        let filter = whole.within(window);
        let filter_bytes = serde_json::Value::Object(filter.json().clone()).to_string().len();
        let time_bucket_s = (self.settings.by == Some(By::Day)).then_some(BUCKET_S);
        let id = self.subscription();
        self.on.reconciling.sessions += 1;
        let number = u64::from(self.connections) << 32 | self.on.reconciling.sessions;
        self.on.reconciling.stage =
            Stage::Opening(Session { id, number, filter: whole, window, was_answered: false });
        let is_proof = self.round.as_ref().is_some_and(|round| round.index > 1);
        self.begin_work(Work::Open(Opening {
            session: number,
            filter,
            window,
            rule: match (self.settings.exact, self.reference_rule) {
                (true, _) => Rule::Exact,
                (false, true) => Rule::Reference,
                (false, false) => Rule::Adaptive,
            },
            frame_limit_bytes: self.information.frame_limit_bytes(),
            opening_limit_bytes: self.information.opening_limit_bytes(filter_bytes),
            equal_up_to: self.mark.equal_up_to,
            time_bucket_s,
            bounds_seed: is_proof.then_some(self.settings.nonce ^ number),
        }));
    }

    /// NIP-77, Initial message.
    pub(super) fn opened(&mut self, number: u64, message: &[u8], items: Items) {
        let stage = std::mem::take(&mut self.on.reconciling.stage);
        let Stage::Opening(session) = stage else {
            self.on.reconciling.stage = stage;
            return;
        };
        if session.number != number {
            self.on.reconciling.stage = Stage::Opening(session);
            return;
        }
        if let Some(round) = &mut self.round {
            round.newest = round.newest.max(items.newest);
            round.breakdown.iter_mut().for_each(Breakdown::begin_session);
        }
        self.on.reconciling.items = items.count as u64;
        self.on.reconciling.unsettled_items = items.count as u64;
        let window = session.window;
        let filter = session.filter.within(window);
        self.send(message::neg_open(&session.id, &filter, message));
        self.on.reconciling.stage = Stage::Waiting(session, Some(self.answer_due()));
        let is_first = self.round.as_ref().is_some_and(|round| round.index == 1);
        let may_ask_ahead = is_first
            && self.settings.direction.is_down()
            && !self.settings.dry_run
            && filter.parsed().limit.is_none();
        if let Some(second) = items.ahead.filter(|_| may_ask_ahead) {
            let since = Some(window.since.map_or(second, |since| since.max(second)));
            let newest = filter.within(Window { since, ..window });
            self.ask_ahead(&newest.newest(self.information.events_per_req.min(MOST_AHEAD)));
        }
    }

    fn answer_due(&self) -> Duration {
        if self.on.reconciling.was_answered { self.now.at + NEXT_ANSWER } else { self.patience() }
    }

    /// NIP-77, Subsequent messages, from the responder.
    pub(super) fn neg_msg(&mut self, payload: Vec<u8>) {
        let Some(mut session) = self.on.reconciling.take_waiting() else { return };
        self.on.reconciling.was_answered = true;
        self.neg_hangups = 0;
        self.answered();
        self.on.reconciling.too_large = 0;
        self.answers_neg_msg |= session.was_answered;
        session.was_answered = true;
        self.report.round_trips += 1;
        let number = session.number;
        self.on.reconciling.stage = Stage::Reading(session);
        self.begin_work(Work::Answer { session: number, payload });
    }

    pub(super) fn read_answer(
        &mut self,
        number: u64,
        found: Difference,
        remembered: &HashMap<Id, String>,
        unsettled_items: usize,
        next: Result<Option<Vec<u8>>, InitiatorError>,
    ) {
        let stage = std::mem::take(&mut self.on.reconciling.stage);
        let session = match stage {
            Stage::Reading(session) if session.number == number => session,
            stage => {
                self.on.reconciling.stage = stage;
                return;
            }
        };
        self.on.reconciling.unsettled_items = unsettled_items as u64;
        let breakdown = self.round.as_mut().and_then(|round| round.breakdown.as_mut());
        if let Some(breakdown) = breakdown {
            breakdown.found(&found);
        }
        self.found(found.have, found.need, remembered);
        match next {
            Ok(Some(question)) if self.on.download.unsettled() > MOST_QUEUED_IDS => {
                self.on.reconciling.stage = Stage::Held(session, question);
            }
            Ok(Some(question)) => self.ask(session, &question),
            Ok(None) => {
                self.on.reconciling.failures = 0;
                self.close_session(&session);
                self.look_up_differences();
            }
            Err(error) => {
                self.close_session(&session);
                self.leads_nowhere(session, &error);
            }
        }
    }

    fn close_session(&mut self, session: &Session) {
        self.send(message::neg_close(&session.id));
        self.begin_work(Work::Forget { session: session.number });
    }

    /// Looks up the differences of a complete session for the listing.
    fn look_up_differences(&mut self) {
        let breakdown = self.round.as_mut().and_then(|round| round.breakdown.as_mut());
        let Some(breakdown) = breakdown else { return };
        let by = breakdown.by;
        let ToLookUp { have, need } = breakdown.end_session();
        for id in need {
            self.on.download.add(id, 0);
        }
        if !have.is_empty() {
            self.begin_work(Work::Sort { by, ids: have });
        }
    }

    fn ask(&mut self, session: Session, message: &[u8]) {
        self.send(message::neg_msg(&session.id, message));
        self.on.reconciling.stage = Stage::Waiting(session, Some(self.answer_due()));
    }

    /// Handles answers without progress: tries the reference rule, then reading.
    fn leads_nowhere(&mut self, session: Session, error: &InitiatorError) {
        if *error == InitiatorError::Contradiction
            && !std::mem::replace(&mut self.was_contradicted, true)
        {
            // The peer's set may have changed between its answers.
            self.on.reconciling.windows.push_front((session.filter, session.window));
            return;
        }
        if *error == InitiatorError::Contradiction {
            return self.read_from_now_on(&error.to_string(), false);
        }
        // The reference rule cannot tell the days of differences, and it trusts fingerprints.
        let is_last = self.reference_rule || self.settings.exact;
        if is_last || self.settings.by == Some(By::Day) {
            self.read_from_now_on(&error.to_string(), false);
        } else {
            self.reference_rule = true;
            self.on.reconciling.windows.push_front((session.filter, session.window));
        }
    }

    /// Divides a window that is too large for the peer; reads it if it is a single second.
    pub(super) fn divided(&mut self, window: Window, parts: Option<Vec<Window>>) {
        let filter = match std::mem::take(&mut self.on.reconciling.stage) {
            Stage::Dividing(filter) => filter,
            stage => {
                self.on.reconciling.stage = stage;
                return;
            }
        };
        match parts {
            Some(parts) => {
                if !std::mem::replace(&mut self.on.reconciling.was_divided, true) {
                    self.note("too large for the peer: going on in windows of time".to_owned());
                }
                for part in parts.into_iter().rev() {
                    self.on.reconciling.windows.push_front((filter.clone(), part));
                }
            }
            None => {
                let why = "one second is too large for it";
                self.on.reconciling.windows.push_front((filter, window));
                self.read_from_now_on(why, false);
            }
        }
    }

    /// Starts the current reconciliation again, because the peer may show other events now.
    pub(super) fn reconcile_anew(&mut self) {
        let Some(session) = self.on.reconciling.take_session() else { return };
        self.close_session(&session);
        self.on.reconciling.windows.clear();
        self.on.reconciling.begin(&self.settings.filter);
        let breakdown = self.round.as_mut().and_then(|round| round.breakdown.as_mut());
        breakdown.into_iter().for_each(Breakdown::begin_session);
    }

    pub(super) fn take_reconciling_time(&mut self) {
        let now = self.now;
        let Stage::Waiting(_, deadline) = &mut self.on.reconciling.stage else { return };
        if !missed(now, deadline) {
            return;
        }
        if !self.on.reconciling.was_answered {
            self.count_silence();
            self.read_from_now_on("it does not answer NEG-OPEN", false);
        } else if self.neg_msg_not_answered("it answers NEG-OPEN and no NEG-MSG") {
            self.count_silence();
        } else {
            self.leave_silent("a NEG message");
        }
    }

    /// Handles a NEG-MSG without an answer: silence or a hang-up. Returns whether the peer is read
    /// from now on.
    pub(super) fn neg_msg_not_answered(&mut self, why: &str) -> bool {
        self.neg_silences += 1;
        let is_hopeless = self.neg_silences >= MOST_NEG_SILENCES && !self.answers_neg_msg;
        if is_hopeless {
            self.read_from_now_on(why, false);
        }
        is_hopeless
    }

    /// Passes finished work to the part that requested it. Without a connection only received
    /// events count.
    pub(super) fn take_done(&mut self, done: Done) {
        let is_up = self.is_up();
        match done {
            Done::Recalled { mark, traits, overlap, kept } => {
                self.is_recalled = true;
                self.settings.filter = self.settings.filter.keeping(kept);
                self.report.kept_since = self.settings.filter.kept_since();
                let now = self.now.unix_s;
                if let Some((until, why)) = &traits.without_negentropy
                    && now < *until
                {
                    self.note(format!("the peer does not reconcile (remembered: {why})"));
                    self.reads = true;
                    self.report.method = Method::Req;
                }
                (self.mark, self.traits, self.overlap) = (mark, traits, overlap);
            }
            Done::Ingested { subscription, events, bytes } => {
                self.settled(&subscription, &events, bytes);
            }
            Done::Failed(reason) => self.failed = Some(reason),
            Done::Finished => {}
            Done::Compared { have, remembered, rows } => {
                if let Some(breakdown) =
                    self.round.as_mut().and_then(|round| round.breakdown.as_mut())
                {
                    breakdown.merge(rows);
                }
                self.found(have, Vec::new(), &remembered);
            }
            Done::Concluded { look, have, need } => self.concluded(look, have, need),
            Done::Sorted(rows) => {
                if let Some(breakdown) =
                    self.round.as_mut().and_then(|round| round.breakdown.as_mut())
                {
                    breakdown.merge(rows);
                }
            }
            Done::Kinds(kinds) => self.take_kinds(&kinds),
            Done::Counted { subscription, all, of_kinds } => {
                self.ours_counted(&subscription, all, of_kinds);
            }
            _ if !is_up => {}
            Done::Opened { session, message, items } => self.opened(session, &message, items),
            Done::Answered { session, found, remembered, unsettled_items, next } => {
                self.read_answer(session, found, &remembered, unsettled_items, next);
            }
            Done::Divided { window, parts } => self.divided(window, parts),
            Done::Loaded { events, protected } => self.loaded(events, protected),
            Done::Signed { id, json } => self.signed(id, &json),
        }
    }
}
