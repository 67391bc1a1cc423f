//! Sends events to the peer: a window of events without an OK, and the handling of each OK.

use super::ledger::{IdState, Side};
use super::patience::missed;
use super::{Id, Loaded, Machine, Now, Work, sorted};
use crate::prefix::Prefix;
use crate::sync::message;
use crate::sync::reason::{self, Reason};
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// Maximum number of sent events without an OK.
const EVENTS_IN_FLIGHT: usize = 512;
/// Maximum bytes of those; a single event may exceed it.
const BYTES_IN_FLIGHT: usize = 4 << 20;
/// Events that are read from the store at a time.
const READ_EVENTS: usize = 256;
/// Length of an EVENT message without its event.
const WRAPPING_BYTES: usize = 64;
/// Attempts for an event that the peer fails to take.
const MOST_TRIES: u8 = 3;
/// Events sent together, if one of them may have ended a connection.
const FEW_SUSPECTS: usize = 8;
/// Added suspicion of an event that was sent alone when a connection was lost; after two such
/// losses it is given up.
const LONE_LOSS: u8 = 4;
const MOST_LOSSES: u8 = 2 * LONE_LOSS;
/// Events in a row at which the peer closed the connection, after which no more are sent.
const MOST_HANGUPS: u32 = 12;
/// Timeout without any OK while one is pending.
const PATIENCE: Duration = Duration::from_secs(10);
/// First pause for a peer with a rate limit, and the maximum; each pause doubles the previous one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MOST_PAUSE: Duration = Duration::from_secs(30);
/// Pauses without an accepted event, after which the rest is left to a later sync: 31 s in all.
const MOST_PAUSES: u32 = 5;
/// One pause more, for a peer that took so many events that its limit may be one for each minute.
const MINUTES_EVENTS: u64 = 50;

/// The events to send and those without an OK.
#[derive(Debug)]
pub(super) struct Upload {
    queue: VecDeque<Id>,
    /// Events that were being sent when a connection was lost, each with its suspicion: sent last
    /// and a few at a time.
    suspects: VecDeque<(Id, u8)>,
    /// Events read from the store.
    ready: VecDeque<Loaded>,
    under_way: HashMap<Id, usize>,
    bytes_under_way: usize,
    /// Refusals that do not name one of those.
    unnamed: usize,
    is_reading: bool,
    /// Maximum number of events without an OK.
    window: usize,
    /// Pauses since the last accepted event, and the end of the last one.
    pauses: u32,
    pause_ends: Option<Duration>,
    deadline: Option<Duration>,
    was_limited: bool,
}

impl Default for Upload {
    fn default() -> Self {
        Self {
            queue: VecDeque::new(),
            suspects: VecDeque::new(),
            ready: VecDeque::new(),
            under_way: HashMap::new(),
            bytes_under_way: 0,
            unnamed: 0,
            is_reading: false,
            window: EVENTS_IN_FLIGHT,
            pauses: 0,
            pause_ends: None,
            deadline: None,
            was_limited: false,
        }
    }
}

impl Upload {
    /// Adds an id to send; `losses` makes it suspect.
    pub(super) fn add(&mut self, id: Id, losses: u8) {
        match losses {
            0 => self.queue.push_back(id),
            _ => self.suspects.push_back((id, losses)),
        }
    }

    /// The ids of sent events without an OK.
    pub(super) fn under_way(&self) -> Vec<Id> {
        sorted(self.under_way.keys().copied())
    }

    /// The next ids to read.
    fn next(&mut self) -> Vec<Id> {
        if !self.queue.is_empty() {
            let count = READ_EVENTS.min(self.queue.len());
            return self.queue.drain(..count).collect();
        }
        let Some((_, losses)) = self.suspects.front().copied() else { return Vec::new() };
        if !self.ready.is_empty() || !self.under_way.is_empty() {
            return Vec::new();
        }
        let most = if losses > 1 { 1 } else { FEW_SUSPECTS };
        let alike = self.suspects.iter().take_while(|(_, other)| *other == losses).count();
        self.suspects.drain(..most.min(alike)).map(|(id, _)| id).collect()
    }

    /// Adds an event to send that is already read.
    pub(super) fn add_event(&mut self, event: Loaded) {
        self.ready.push_back(event);
    }

    /// Whether nothing is left to send or to wait for.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting() == 0 && self.under_way.is_empty() && !self.is_reading
    }

    /// The number of events waiting to be sent.
    pub(super) fn waiting(&self) -> usize {
        self.queue.len() + self.suspects.len() + self.ready.len()
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    /// The end of a pause, if events wait for it.
    pub(super) fn resumes_at(&self) -> Option<Duration> {
        self.pause_ends.filter(|_| self.waiting() > 0)
    }

    pub(super) fn extend(&mut self, until: Duration) {
        self.deadline = self.deadline.map(|at| at.max(until));
    }

    /// Takes back sent events without an OK, to be sent again after a pause.
    fn take_back(&mut self, now: Now) -> Vec<Id> {
        self.unnamed = self.under_way.len();
        self.pause(now);
        self.take_refused()
    }

    fn is_pausing(&self, now: Now) -> bool {
        self.pause_ends.is_some_and(|ends| now.at < ends)
    }

    fn settle(&mut self, id: &Id, now: Now) -> bool {
        let Some(bytes) = self.under_way.remove(id) else { return false };
        self.bytes_under_way = self.bytes_under_way.saturating_sub(bytes);
        self.deadline = (!self.under_way.is_empty()).then_some(now.at + PATIENCE);
        true
    }

    /// Takes back all sent events once there are as many refusals without an id.
    fn take_refused(&mut self) -> Vec<Id> {
        if self.unnamed == 0 || self.unnamed < self.under_way.len() {
            return Vec::new();
        }
        (self.unnamed, self.bytes_under_way, self.deadline) = (0, 0, None);
        let ids = sorted(self.under_way.drain().map(|(id, _)| id));
        ids.iter().rev().for_each(|id| self.queue.push_front(*id));
        ids
    }

    /// Begins a pause, unless there is one; after it, one event is sent at a time.
    fn pause(&mut self, now: Now) {
        self.window = 1;
        if !self.is_pausing(now) {
            let pause = FIRST_PAUSE.saturating_mul(1 << self.pauses.min(8)).min(MOST_PAUSE);
            self.pauses += 1;
            self.pause_ends = Some(now.at + pause);
        }
    }
}

impl Machine {
    pub(super) fn advance_upload(&mut self) {
        for id in self.on.upload.take_refused() {
            self.ledger.set(&id, IdState::Open);
        }
        if self.event_hangups >= MOST_HANGUPS && self.on.upload.under_way.is_empty() {
            // The peer closes the connection at every event.
            self.leave_rest_unsent(Reason::NotAnswered);
        }
        let (now, upload) = (self.now, &mut self.on.upload);
        upload.pause_ends = upload.pause_ends.filter(|ends| now.at < *ends);
        if self.one_way && !(self.on.download.is_idle() && self.on.reconciling.is_idle()) {
            return;
        }
        if !upload.is_reading && upload.ready.len() < READ_EVENTS {
            let ids = upload.next();
            if !ids.is_empty() {
                upload.is_reading = true;
                self.begin_work(Work::Load { ids });
            }
        }
        while let upload = &mut self.on.upload
            && !upload.is_pausing(self.now)
            && upload.under_way.len() < upload.window
            && upload.bytes_under_way < BYTES_IN_FLIGHT
        {
            let Some(Loaded { id, kind, json }) = upload.ready.pop_front() else { break };
            if self.ledger.get(&id).is_some_and(|entry| entry.state == IdState::Accepted) {
                // An OK came in the meantime.
                continue;
            }
            if json.len() + WRAPPING_BYTES > self.information.message_bytes {
                self.stay(id, Reason::TooLong);
                continue;
            }
            if upload.under_way.insert(id, json.len()).is_none() {
                upload.bytes_under_way += json.len();
            }
            upload.deadline.get_or_insert(self.now.at + PATIENCE);
            self.ledger.set(&id, IdState::UnderWay);
            self.ledger.note(&id, |entry| {
                entry.kind = kind;
                entry.tries = entry.tries.saturating_add(1);
            });
            self.send(message::event(&json));
        }
    }

    /// Handles events read from the store. Events removed in the meantime are not among them.
    /// Events that only their author may publish (NIP-70) are not sent.
    pub(super) fn loaded(&mut self, events: Vec<Loaded>, protected: Vec<Id>) {
        self.on.upload.is_reading = false;
        self.on.upload.ready.extend(events);
        for id in protected {
            self.stay(id, Reason::Protected);
        }
    }

    /// NIP-01, OK.
    pub(super) fn event_answered(&mut self, id: &Id, accepted: bool, text: &str) {
        if !self.on.upload.settle(id, self.now) {
            return self.answered_late(id, accepted);
        }
        self.answered();
        self.event_hangups = 0;
        let prefix = message::prefix(text);
        let is_duplicate = prefix == Some(Prefix::Duplicate);
        if accepted || is_duplicate {
            let upload = &mut self.on.upload;
            upload.pauses = 0;
            upload.window = (upload.window * 2).min(EVENTS_IN_FLIGHT);
            let state = if is_duplicate { IdState::Duplicate } else { IdState::Accepted };
            self.ledger.set(id, state);
            self.on.advanced = true;
            self.moved();
            return;
        }
        let tries = self.ledger.get(id).map_or(0, |entry| entry.tries);
        match prefix {
            Some(Prefix::AuthRequired) if self.auth_may_help(tries) => {
                self.ledger.set(id, IdState::Open);
                self.on.upload.queue.push_front(*id);
                self.auth_required_for_event();
            }
            Some(Prefix::Restricted) if self.auth_is_under_way() => {
                self.ledger.set(id, IdState::Open);
                self.on.upload.queue.push_front(*id);
            }
            Some(Prefix::AuthRequired) => {
                let why = self.auth_hopeless();
                self.refusal.get_or_insert_with(|| format!("{text}; {why}"));
                self.refused_by_peer(id, prefix);
            }
            Some(Prefix::RateLimited) if self.may_pause() => {
                self.ledger.set(id, IdState::Open);
                self.on.upload.queue.push_front(*id);
                self.on.upload.pause(self.now);
                self.note_rate();
            }
            Some(Prefix::RateLimited) => {
                self.refused_by_peer(id, prefix);
                self.leave_rest_unsent(Reason::RefusedByPeer(prefix));
            }
            Some(Prefix::Error) if tries < MOST_TRIES => {
                self.ledger.set(id, IdState::Open);
                self.on.upload.queue.push_back(*id);
                self.on.upload.pause_ends = Some(self.now.at + FIRST_PAUSE);
            }
            // The prefix of strfry and negsync for an older version.
            Some(Prefix::Replaced) => {
                self.on.advanced = true;
                self.stay(*id, Reason::Superseded);
            }
            _ => self.refused_by_peer(id, prefix),
        }
    }

    /// An OK for an event that was taken back or given up.
    fn answered_late(&mut self, id: &Id, accepted: bool) {
        let waits = |state| matches!(state, IdState::Open | IdState::Stays(Reason::NotAnswered));
        let entry = self.ledger.get(id).filter(|it| it.side == Side::Ours && it.tries > 0);
        if accepted && entry.is_some_and(|entry| waits(entry.state)) {
            self.ledger.set(id, IdState::Accepted);
            self.on.advanced = true;
            self.moved();
        }
    }

    /// A rate limit that names no event: those under way are sent again after a pause, or given up
    /// after too many pauses. Returns whether there were any.
    pub(super) fn limit_upload_rate(&mut self) -> bool {
        if self.on.upload.under_way.is_empty() {
            return false;
        }
        let limited = Reason::RefusedByPeer(Some(Prefix::RateLimited));
        if self.may_pause() {
            for id in self.on.upload.take_back(self.now) {
                self.ledger.set(&id, IdState::Open);
            }
            self.note_rate();
        } else {
            let ids = self.on.upload.under_way();
            for id in ids {
                self.on.upload.settle(&id, self.now);
                self.stay(id, limited);
            }
            self.leave_rest_unsent(limited);
        }
        true
    }

    /// Whether another pause may help against a rate limit.
    fn may_pause(&self) -> bool {
        let took_many = self.ledger.figures().uploaded >= MINUTES_EVENTS;
        self.on.upload.pauses < MOST_PAUSES + u32::from(took_many)
    }

    /// Reports a rate limit, once.
    fn note_rate(&mut self) {
        if std::mem::replace(&mut self.on.upload.was_limited, true) {
            return;
        }
        let uploaded = self.ledger.figures().uploaded;
        self.note(format!(
            "rate limit: the peer took {uploaded} events and limits their rate; sending one at a \
             time, after pauses"
        ));
    }

    fn refused_by_peer(&mut self, id: &Id, prefix: Option<Prefix>) {
        // A temporary refusal is no progress.
        self.on.advanced |= !reason::is_passing(prefix);
        self.stay(*id, Reason::RefusedByPeer(prefix));
    }

    /// `["OK", "", false, ...]`: the refusal of relays that answer in order.
    pub(super) fn refused_without_id(&mut self, text: &str) {
        let upload = &self.on.upload;
        if upload.unnamed >= upload.under_way.len() {
            self.auth_answered(None, false, text);
            return;
        }
        if let (1, Some(id)) = (upload.under_way.len(), upload.under_way.keys().next().copied()) {
            return self.event_answered(&id, false, text);
        }
        // The event is unknown: from here on one event is sent at a time.
        self.on.upload.window = 1;
        self.on.upload.unnamed += 1;
        if self.on.upload.unnamed == 1 && message::prefix(text) == Some(Prefix::AuthRequired) {
            self.auth_required_for_event();
        }
    }

    /// Handles a lost connection. An event that was being sent may be the cause; if requests were
    /// pending too, one direction at a time is used from then on.
    pub(super) fn keep_upload_suspects(&mut self) {
        let under_way = self.on.upload.under_way();
        if !under_way.is_empty() && self.on.download.asked_for() > 0 {
            self.one_way = true;
            return;
        }
        let step = if under_way.len() == 1 { LONE_LOSS } else { 1 };
        for id in under_way {
            let mut losses = 0;
            self.ledger.note(&id, |entry| {
                entry.losses = entry.losses.saturating_add(step);
                losses = entry.losses;
            });
            if losses >= MOST_LOSSES && step == LONE_LOSS {
                self.on.advanced = true;
                self.event_hangups += 1;
                self.stay(id, Reason::HungUp);
            }
        }
    }

    /// Leaves the rest unsent, because those events would have the same result.
    fn leave_rest_unsent(&mut self, reason: Reason) {
        let upload = &mut self.on.upload;
        let mut rest: Vec<Id> = upload.queue.drain(..).collect();
        rest.extend(upload.suspects.drain(..).map(|(id, _)| id));
        rest.extend(upload.ready.drain(..).map(|event| event.id));
        for id in rest {
            self.stay(id, reason);
        }
    }

    pub(super) fn take_upload_time(&mut self) {
        let now = self.now;
        if !missed(now, &mut self.on.upload.deadline) {
            return;
        }
        let unanswered = sorted(self.on.upload.under_way.drain().map(|(id, _)| id));
        self.on.upload.bytes_under_way = 0;
        self.on.upload.unnamed = 0;
        self.on.upload.deadline = None;
        self.on.upload.window = 1;
        self.silence.questions += 1;
        self.note(format!("no answer: the peer did not answer for {} events", unanswered.len()));
        for id in unanswered {
            self.stay(id, Reason::NotAnswered);
        }
        if self.silence.questions >= 2 {
            self.leave_rest_unsent(Reason::NotAnswered);
        }
    }
}
