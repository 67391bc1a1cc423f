//! Moves of events: received events are checked in batches, found ids are queued, and each event
//! that is not moved gets a reason.

use super::ledger::{Entry, IdState, Side};
use super::{Asked, Fate, Id, Loss, Machine, REFUSED_IDS, Settled, Work};
use crate::store::RefusedId;
use crate::sync::reason::Reason;
use std::collections::HashMap;

/// Events that are checked together, and their maximum bytes.
const BATCH_EVENTS: usize = 64;
const BATCH_BYTES: usize = 256 << 10;
/// Maximum number of ids that we lack; no peer lists more.
const MOST_NEED: u64 = 100_000_000;
/// Events that were not requested, or came more than once, after which the peer is given up.
const MOST_NEEDLESS: u32 = 100_000;

/// Events of one subscription that are to be checked together.
#[derive(Debug)]
pub(super) struct Batch {
    subscription: String,
    asked: Asked,
    texts: Vec<Box<str>>,
    bytes: usize,
}

impl Machine {
    pub(super) fn advance_transfer(&mut self) {
        if self.settings.dry_run && self.settings.by.is_none() {
            return;
        }
        self.advance_download();
        self.advance_upload();
    }

    /// Handles ids that differ. `remembered` has those that earlier syncs gave up.
    pub(super) fn found(&mut self, have: Vec<Id>, need: Vec<Id>, remembered: &HashMap<Id, String>) {
        let Some(round) = self.round.as_mut() else { return };
        let is_first = round.index == 1;
        round.have += have.len() as u64;
        round.need += need.len() as u64;
        let need_in_all = round.need;
        let direction = self.settings.direction;
        for (ids, side) in [(have, Side::Ours), (need, Side::Peers)] {
            let (moves, stays) = match side {
                Side::Ours => (direction.is_up(), Reason::NotToUpload),
                Side::Peers => (direction.is_down(), Reason::NotToDownload),
            };
            for id in ids {
                let known = remembered.get(&id).and_then(|name| Reason::from_name(name));
                let excuse = if moves { known } else { Some(stays) };
                self.found_one(id, side, is_first, excuse);
            }
        }
        if need_in_all > MOST_NEED {
            let reason = format!("the peer lists more than {MOST_NEED} events that we lack");
            self.leave(Loss::Final(reason, None));
        }
    }

    fn found_one(&mut self, id: Id, side: Side, is_first: bool, excuse: Option<Reason>) {
        let (before, found_at) = (self.ledger.get(&id).copied(), self.found_at());
        let number = found_at.round;
        let is_lacked_here = |entry: &Entry| {
            (side, entry.side) == (Side::Ours, Side::Peers) && entry.shown_on != found_at.connection
        };
        match before {
            // Two pages may both miss the same event of ours. An event received on another
            // connection may be missing on this one.
            Some(entry) if entry.round == number && !is_lacked_here(&entry) => return,
            Some(entry) if matches!(entry.state, IdState::Stays(_) | IdState::Excused(_)) => {
                return self.ledger.note(&id, |entry| entry.round = number);
            }
            Some(entry) if entry.side == Side::Ours && is_taken(entry.state) => {
                self.ledger.note(&id, |entry| entry.round = number);
                if is_first {
                    // The event was accepted on a lost connection and may not be stored yet: the
                    // next round shows it. It is not sent twice.
                    return self.count_open(true);
                }
                if self.waits_for_index() {
                    return self.count_open(true);
                }
                return self.not_shown(id);
            }
            Some(entry)
                if side == Side::Peers
                    && entry.side == Side::Peers
                    && entry.state == IdState::Known =>
            {
                self.ledger.note(&id, |entry| entry.round = number);
                return self.stay(id, Reason::OutsideFilter);
            }
            _ => {}
        }
        if let Some(reason) = excuse {
            return self.ledger.find(id, side, IdState::Excused(reason), found_at);
        }
        self.ledger.find(id, side, IdState::Open, found_at);
        self.note_new(before.is_none());
        self.count_open(before.is_some_and(|entry| entry.round < number));
        if self.settings.dry_run {
            return;
        }
        let losses = before.map_or(0, |entry| entry.losses);
        match side {
            Side::Ours => self.on.upload.add(id, losses),
            Side::Peers => self.on.download.add(id, losses),
        }
    }

    /// Whether to look once more for events that the peer accepted but does not list: some relays
    /// show an event only a while after its OK.
    fn waits_for_index(&mut self) -> bool {
        match &mut self.round {
            Some(round) if !self.has_waited => {
                round.waits = true;
                true
            }
            _ => false,
        }
    }

    /// Counts an event to be moved; `again` if an earlier round was to move it.
    fn count_open(&mut self, again: bool) {
        if let Some(round) = &mut self.round {
            round.opened += 1;
            round.reopened += u64::from(again);
        }
    }

    /// Counts events that were not requested, or came more than once.
    pub(super) fn needless(&mut self, events: u32) {
        self.on.needless = self.on.needless.saturating_add(events);
        if self.on.needless > MOST_NEEDLESS {
            self.leave(Loss::Gone("the peer sends events that were not requested".to_owned()));
        }
    }

    /// Counts an event that was not requested.
    pub(super) fn unasked(&mut self) {
        *self.report.refused.entry(Reason::NotAskedFor).or_default() += 1;
        self.needless(1);
    }

    /// Handles an event for `subscription`: adds it to the batch of events that came with it.
    pub(super) fn arrived(&mut self, subscription: String, asked: Asked, text: &str) {
        let fits = |batch: &Batch| {
            batch.subscription == subscription
                && batch.texts.len() < BATCH_EVENTS
                && batch.bytes < BATCH_BYTES
        };
        if !self.on.batch.as_ref().is_some_and(fits) {
            self.flush_batch();
        }
        let batch = self.on.batch.get_or_insert_with(|| Batch {
            subscription,
            asked,
            texts: Vec::with_capacity(BATCH_EVENTS),
            bytes: 0,
        });
        batch.bytes += text.len();
        batch.texts.push(text.into());
        self.on.arriving_bytes += text.len();
    }

    /// Sends the batch to be checked.
    pub(super) fn flush_batch(&mut self) {
        let Some(batch) = self.on.batch.take() else { return };
        let Batch { subscription, asked, texts, bytes } = batch;
        self.on.download.arrived(&subscription, texts.len());
        self.reading.arrived(&subscription, texts.len());
        let live = self.on.live.is_about(&subscription);
        self.begin_work(Work::Ingest { subscription, asked, texts, bytes, live });
    }

    pub(super) fn settled(&mut self, subscription: &str, events: &[Settled], bytes: usize) {
        self.on.arriving_bytes = self.on.arriving_bytes.saturating_sub(bytes);
        for event in events {
            match &event.fate {
                Fate::Stored => {
                    self.came(event.id, IdState::Stored);
                    self.on.advanced = true;
                    self.moved();
                }
                Fate::Duplicate => self.duplicate(event.id),
                Fate::Noted => {}
                Fate::Seen(seen) => self.seen(event, *seen),
                Fate::Refused(Reason::NotAskedFor) => self.unasked(),
                Fate::Refused(reason) => {
                    let Some(id) = event.id else {
                        *self.report.refused.entry(*reason).or_default() += 1;
                        continue;
                    };
                    let settled = |state| matches!(state, IdState::Stays(_));
                    let is_first = !self.ledger.get(&id).is_some_and(|entry| settled(entry.state));
                    // Forged events are no progress.
                    self.on.advanced |= is_first && *reason != Reason::Invalid;
                    self.moved();
                    self.came(Some(id), IdState::Open);
                    self.stay(id, *reason);
                }
                Fate::Failed(reason) => self.failed = Some(reason.clone()),
            }
        }
        self.download_settled(subscription, events);
        self.page_settled(subscription, events);
    }

    /// Records an event that came; if it was read by pages, it was unknown before.
    fn came(&mut self, id: Option<Id>, state: IdState) {
        let Some(id) = id else { return };
        match self.ledger.get(&id) {
            None => {
                self.ledger.find(id, Side::Peers, state, self.found_at());
                self.note_new(state == IdState::Stored);
            }
            Some(entry) if matches!(entry.state, IdState::Stored | IdState::Stays(_)) => {}
            Some(_) => self.ledger.set(&id, state),
        }
    }

    fn duplicate(&mut self, id: Option<Id>) {
        let asked_for = |state| matches!(state, IdState::Open | IdState::UnderWay);
        match id {
            Some(id) if self.ledger.get(&id).is_some_and(|entry| asked_for(entry.state)) => {
                if self.ledger.get(&id).is_some_and(|entry| entry.side == Side::Peers) {
                    self.ledger.set(&id, IdState::Known);
                }
            }
            _ => self.report.duplicates += 1,
        }
    }

    /// Records that an event was moved, or has a reason not to be.
    pub(super) fn moved(&mut self) {
        if let Some(round) = &mut self.round {
            round.moved += 1;
        }
    }

    /// Records why an event is not moved, for this sync and, if the reason has a term, for later
    /// ones.
    pub(super) fn stay(&mut self, id: Id, reason: Reason) {
        self.ledger.set(&id, IdState::Stays(reason));
        let Some(term_s) = reason.term_s() else { return };
        let is_peers = self.ledger.get(&id).is_none_or(|entry| entry.side == Side::Peers);
        let is_ours = reason.is_ours() && (is_peers || reason == Reason::Protected);
        let peer = if is_ours { String::new() } else { self.url.clone() };
        self.refused.push(RefusedId { peer, id, reason: reason.name().to_owned(), term_s });
        if self.refused.len() >= REFUSED_IDS {
            self.remember_refused();
        }
    }

    /// Queues recorded refusals to be written.
    pub(super) fn remember_refused(&mut self) {
        let refused = std::mem::take(&mut self.refused);
        if !refused.is_empty() && !self.settings.dry_run {
            self.begin_work(Work::RememberRefused(refused));
        }
    }
}

/// Whether the peer said that it has the event.
fn is_taken(state: IdState) -> bool {
    matches!(state, IdState::Accepted | IdState::Duplicate | IdState::Shown)
}
