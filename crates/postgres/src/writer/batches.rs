//! Writes events of waiting callers, as many as share a commit.

use super::{NodeJob, NodeWriterThread};
use crate::acknowledged::Acknowledged;
use crate::batch::{Changes, asks_to_vanish};
use crate::transaction::{self, BatchDone, BatchWriter, FeedAdvance};
use negsync_nostr::kinds::DELETION;
use negsync_nostr::{Event, RelayUrl, VerifiedEvent};
use negsync_store::submission::EventSlot;
use negsync_store::{Batches, Outcome, StoreError};
use std::sync::Arc;
use std::time::Instant;

/// Maximum size of a short batch: rows of tables and indexes, and bytes of memory.
pub(super) const BATCH_ROWS: usize = 4_096;
pub(super) const BATCH_BYTES: usize = 4 << 20;

impl NodeWriterThread {
    /// Writes an event and those queued behind it, up to the limits of a batch.
    pub(super) fn publish(&mut self, event: VerifiedEvent, slot: EventSlot) {
        let (events, slots) = self.gather(event, slot);
        self.publish_batch(events, slots);
    }

    /// Writes a batch. Deletion requests with many targets are left to later steps.
    fn publish_batch(&mut self, events: Vec<Arc<Event>>, slots: Vec<EventSlot>) {
        let began = Instant::now();
        let changes = match self.write(&events) {
            Ok(Some(changes)) => changes,
            Ok(None) => {
                let both = events.into_iter().zip(slots);
                let (requests, rest): (Vec<_>, Vec<_>) =
                    both.partition(|(event, _)| event.kind() == DELETION);
                self.deletions.extend(requests);
                if !rest.is_empty() {
                    let (events, slots) = rest.into_iter().unzip();
                    self.publish_batch(events, slots);
                }
                return;
            }
            Err(error) => {
                let failed = Outcome::Failed(error.to_string());
                slots.into_iter().for_each(|slot| slot.settle(failed.clone()));
                return;
            }
        };
        let vanishes = !changes.vanished.is_empty();
        let metrics = &self.context.metrics;
        metrics.commit_s.observe(began.elapsed().as_secs_f64());
        metrics.commit_events.observe(slots.len() as f64);
        for ((slot, outcome), event) in slots.into_iter().zip(changes.outcomes).zip(&events) {
            if vanishes && outcome == Outcome::Stored && asks_to_vanish(event) {
                self.wait_for_vanishing.push(slot);
            } else {
                slot.settle(outcome);
            }
        }
    }

    /// NIP-09: performs a part of a deletion request with many targets, and replies once nothing is
    /// left. Returns whether there is more.
    pub(super) fn delete_step(&mut self) -> bool {
        if let Some((request, slot)) = self.deletions.pop_front() {
            self.publish_batch(vec![request], vec![slot]);
        }
        !self.deletions.is_empty()
    }

    /// Writes events in one commit, passes it to the listener, and records the acknowledged events.
    /// The listener gets the steps of the changes. `None` if their deletion requests name more
    /// events than a step may remove: some are removed, and the events have to be written again.
    pub(super) fn write(&mut self, events: &[Arc<Event>]) -> Result<Option<Changes>, StoreError> {
        let node = self.context.node;
        let us = self.context.us.as_ref().map(RelayUrl::name);
        let clock = self.context.clock.clone();
        let done = self.transact(async |connection| {
            let by = BatchWriter { node, us: us.as_ref(), now: clock.now() };
            transaction::write_batch(connection, events, &by).await
        })?;
        let (mut changes, feed) = match done {
            BatchDone::Whole(changes, feed) => (changes, feed),
            BatchDone::Part(part) => {
                self.tell(part.feed, part.steps, u64::MAX);
                return Ok(None);
            }
        };
        self.tell_batch(&mut changes, feed);
        self.note_acknowledged(feed, events, &changes.outcomes);
        Ok(Some(changes))
    }

    fn tell_batch(&mut self, changes: &mut Changes, feed: FeedAdvance) {
        self.may_vanish |= !changes.vanished.is_empty();
        self.added += changes.added.len();
        self.retaining.stored(changes.added.values().map(Arc::as_ref));
        let expiries = changes.added.values().filter_map(|event| event.expires_at());
        let expires_at = expiries.min().unwrap_or(u64::MAX);
        self.tell(feed, std::mem::take(&mut changes.steps), expires_at);
    }

    /// Records acknowledged events, including duplicates: their commit may be lost too.
    fn note_acknowledged(
        &mut self,
        feed: FeedAdvance,
        events: &[Arc<Event>],
        outcomes: &[Outcome],
    ) {
        let (now, seq) = (Instant::now(), feed.last());
        for (event, outcome) in events.iter().zip(outcomes) {
            if matches!(outcome, Outcome::Stored | Outcome::Duplicate) {
                self.acknowledged.push(now, seq, Acknowledged::Stored(Arc::clone(event)));
            }
        }
    }

    fn gather(&self, event: VerifiedEvent, slot: EventSlot) -> (Vec<Arc<Event>>, Vec<EventSlot>) {
        let (most_rows, most_bytes) = match self.context.batches {
            Batches::Short => (BATCH_ROWS, BATCH_BYTES),
            Batches::Long { bytes } => (BATCH_ROWS * 4, bytes.clamp(BATCH_BYTES, BATCH_BYTES * 4)),
        };
        let (mut rows, mut bytes) = (event.weight(), event.memory_bytes());
        let (mut events, mut slots) = (vec![Arc::new(event.into_inner())], vec![slot]);
        loop {
            let fits = |weight: usize, job: &NodeJob| {
                let NodeJob::Publish { event, .. } = job else { return false };
                rows.saturating_add(weight) <= most_rows
                    && bytes.saturating_add(event.memory_bytes()) <= most_bytes
            };
            let Some((weight, NodeJob::Publish { event, slot })) = self.queue.pop_first(fits)
            else {
                return (events, slots);
            };
            rows += weight;
            bytes += event.memory_bytes();
            events.push(Arc::new(event.into_inner()));
            slots.push(slot);
        }
    }
}
