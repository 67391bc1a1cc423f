//! Writes acknowledged operations again that the database has lost.

use super::NodeWriterThread;
use super::batches::{BATCH_BYTES, BATCH_ROWS};
use super::steps::STEP_AGAIN;
use crate::acknowledged::{Acknowledged, OperatorAction, RecentEntry};
use crate::batch::Bytes;
use negsync_nostr::Event;
use negsync_store::{Outcome, StoreError};
use std::sync::Arc;
use std::time::Instant;

impl NodeWriterThread {
    /// Schedules the operations of lost commits after a number, in addition to those still left
    /// from an earlier loss.
    pub(super) fn take_lost(&mut self, common: i64) {
        self.send_again.append(&mut self.acknowledged.take_since(common));
        self.send_again.make_contiguous().sort_by_key(|lost| lost.at);
        // Removed surplus events may be back.
        self.retaining.begin_anew();
    }

    /// Writes a part of the lost operations again. Returns whether more can be written now.
    pub(super) fn send_again_step(&mut self) -> bool {
        if self.send_again.is_empty() || !self.may_step() {
            return false;
        }
        let done = match self.send_again.front().map(|lost| &lost.done) {
            Some(Acknowledged::Operated { ids, action }) => {
                let (ids, action) = (Arc::clone(ids), *action);
                self.operate_again(ids, action)
            }
            _ => self.send_events_again(),
        };
        match done {
            Ok(sent) => drop(self.send_again.drain(..sent)),
            Err(error) => {
                tracing::warn!(%error, left = self.send_again.len(), "acknowledged events not sent again yet");
            }
        }
        !self.send_again.is_empty() && self.may_step()
    }

    fn operate_again(
        &mut self,
        ids: Arc<[Bytes]>,
        action: OperatorAction,
    ) -> Result<usize, StoreError> {
        let (count, what) = (
            ids.len(),
            match action {
                OperatorAction::Remove | OperatorAction::Bury => "removal",
                OperatorAction::Undelete => "undelete",
            },
        );
        if self.operate(ids, action)? {
            return Ok(0);
        }
        tracing::warn!(ids = count, "acknowledged {what} sent again after commits were lost");
        Ok(1)
    }

    /// Returns the number of events that were written or were there.
    fn send_events_again(&mut self) -> Result<usize, StoreError> {
        let (mut rows, mut bytes) = (0, 0);
        let fits = |lost: &RecentEntry| {
            let Acknowledged::Stored(event) = &lost.done else { return None };
            rows += event.weight();
            bytes += event.memory_bytes();
            let is_first = rows == event.weight();
            (is_first || rows <= BATCH_ROWS && bytes <= BATCH_BYTES).then(|| Arc::clone(event))
        };
        let events: Vec<Arc<Event>> = self.send_again.iter().map_while(fits).collect();
        let written = self.write(&events);
        let written = written.inspect_err(|_| self.steps_again = Instant::now() + STEP_AGAIN)?;
        let Some(changes) = written else { return Ok(0) };
        let stored = changes.outcomes.iter().filter(|it| **it == Outcome::Stored).count();
        tracing::warn!(
            events = events.len(),
            stored,
            "acknowledged events sent again after commits were lost"
        );
        Ok(events.len())
    }
}
