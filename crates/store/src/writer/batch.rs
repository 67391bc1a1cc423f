//! What shares a transaction, and who gets its outcomes when.

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

/// How much shares a commit: what comes first ends the batch. A single event may be more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batches {
    /// As much as can be written in some tens of milliseconds: whoever comes meanwhile waits for it.
    Short,
    /// For whoever writes alone: the longer a batch, the fewer times each page is written.
    Long {
        /// The most memory that the events of a batch take, in bytes. Three batches are in memory.
        bytes: usize,
    },
}

/// What a batch may hold.
#[derive(Clone, Copy)]
pub(super) struct BatchLimits {
    pub(super) rows: usize,
    /// The most of an event that joins a batch, or begins one while pages are moved out of the write-ahead
    /// log: it changes about as many pages as it has rows.
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

/// Outcomes that wait until all is gone that they are about.
pub(super) type PutOff = Arc<Mutex<Vec<(EventSlot, Outcome, WaitsFor)>>>;

/// What an outcome is put off for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WaitsFor {
    /// Nobody's events are vanishing any more.
    Vanishing,
    /// What deletion requests name is gone, up to this place in the table `removal`.
    Removal(i64),
}

/// Events of one transaction.
#[derive(Default)]
pub(super) struct CommitBatch {
    pub(super) slots: Vec<EventSlot>,
    // Of those that were applied, in order.
    outcomes: Vec<(Outcome, Option<WaitsFor>)>,
    bytes: usize,
    pub(super) vanishes: bool,
    pub(super) deletes: bool,
}

impl CommitBatch {
    /// A batch of which the event of `slot` is the first.
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

    /// Whether another event belongs into the batch.
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

    /// Gives the outcomes, but for those that wait until something is gone.
    pub(super) fn settle(self, put_off: &PutOff) {
        for (slot, (outcome, waits_for)) in self.slots.into_iter().zip(self.outcomes) {
            match waits_for {
                Some(waits_for) => lock(put_off).push((slot, outcome, waits_for)),
                None => slot.settle(outcome),
            }
        }
    }
}

/// Gives the outcomes that were put off for what `is_about` names, or says what kept the rest from being
/// removed.
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
