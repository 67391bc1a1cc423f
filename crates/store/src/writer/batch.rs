//! Batches: the events that share a transaction, and the delivery of their outcomes.

use super::Job;
use crate::apply::{self, RuleMemory};
use crate::change::Written;
use crate::rules::Outcome;
use crate::submission::EventSlot;
use negsync_nostr::VerifiedEvent;
use negsync_nostr::kinds::VANISH;
use rusqlite::Connection;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The size of a commit: the first limit that is reached ends the batch. A single event may exceed
/// it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batches {
    /// For a relay: as much as can be written in some tens of milliseconds, because new events wait
    /// for it.
    Short,
    /// For a single source: the longer a batch, the fewer times each page is written.
    Long {
        /// Maximum memory of a batch's events, in bytes. Three batches are in memory at a time.
        bytes: usize,
    },
}

/// The limits of a batch.
#[derive(Clone, Copy)]
pub(super) struct BatchLimits {
    pub(super) rows: usize,
    /// Maximum rows of an event that joins a batch, or that begins one while a long write-ahead log is moved.
    /// An event changes about as many pages as it has rows.
    pub(super) light_rows: usize,
    pub(super) bytes: usize,
    pub(super) time: Duration,
}

impl BatchLimits {
    pub(super) fn of(batches: Batches) -> Self {
        match batches {
            Batches::Short => Self {
                rows: 4_096,
                light_rows: 1_024,
                bytes: 4 << 20,
                time: Duration::from_millis(40),
            },
            Batches::Long { bytes } => {
                Self { rows: usize::MAX, light_rows: usize::MAX, bytes, time: Duration::MAX }
            }
        }
    }
}

/// Outcomes that wait until the removal they report is complete.
pub(super) type PutOff = Arc<Mutex<Vec<(EventSlot, Outcome, WaitsFor)>>>;

/// The removal that an outcome waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WaitsFor {
    /// Events of vanished keys: no removal is pending.
    Vanishing,
    /// Targets of deletion requests: removals up to this position in the table `removal` are
    /// complete.
    Removal(i64),
}

/// The events of one transaction.
#[derive(Default)]
pub(super) struct CommitBatch {
    pub(super) slots: Vec<EventSlot>,
    // The outcomes of applied events, in order.
    outcomes: Vec<(Outcome, Option<WaitsFor>)>,
    bytes: usize,
    pub(super) vanishes: bool,
    pub(super) deletes: bool,
}

impl CommitBatch {
    /// A batch that begins with the event of `slot`.
    pub(super) fn begin(slot: EventSlot) -> Self {
        Self { slots: vec![slot], ..Self::default() }
    }

    pub(super) fn apply(
        &mut self,
        connection: &Connection,
        event: VerifiedEvent,
        now: u64,
        rules: &mut RuleMemory,
        written: &mut Written,
    ) -> rusqlite::Result<()> {
        let vanishes = event.kind() == VANISH;
        self.vanishes |= vanishes;
        self.bytes += event.memory_bytes();
        written.rows += event.weight();
        let outcome = apply::apply(connection, event, now, rules, written)?;
        let removal = written.put_off_to.take().map(WaitsFor::Removal);
        self.deletes |= removal.is_some();
        let waits_for = if vanishes { Some(WaitsFor::Vanishing) } else { removal };
        self.outcomes.push((outcome, waits_for));
        Ok(())
    }

    /// Whether another event fits in the batch.
    pub(super) fn has_room(
        &self,
        weight: usize,
        job: &Job,
        written: &Written,
        limits: &BatchLimits,
    ) -> bool {
        let Job::Publish { event, .. } = job else { return false };
        weight <= limits.light_rows
            && written.rows.saturating_add(weight) <= limits.rows
            && self.bytes.saturating_add(event.memory_bytes()) <= limits.bytes
    }

    /// Delivers the outcomes, except those that wait for a removal.
    pub(super) fn settle(self, put_off: &PutOff) {
        for (slot, (outcome, waits_for)) in self.slots.into_iter().zip(self.outcomes) {
            match waits_for {
                Some(waits_for) => lock(put_off).push((slot, outcome, waits_for)),
                None => slot.settle(outcome),
            }
        }
    }
}

/// Delivers the outcomes that waited for the removal that `is_about` selects, or the reason why the
/// removal failed.
pub(super) fn answer_put_off(
    put_off: &PutOff,
    is_about: impl Fn(WaitsFor) -> bool,
    removed: Result<(), &str>,
) {
    let ready: Vec<_> = lock(put_off).extract_if(.., |waiting| is_about(waiting.2)).collect();
    for (slot, outcome, _) in ready {
        slot.settle(removed.map_or_else(|error| Outcome::Failed(error.to_owned()), |()| outcome));
    }
}

fn lock(put_off: &PutOff) -> MutexGuard<'_, Vec<(EventSlot, Outcome, WaitsFor)>> {
    put_off.lock().unwrap_or_else(PoisonError::into_inner)
}
