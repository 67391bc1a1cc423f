//! What was acknowledged and then lost by the database is written once more.

use super::NodeWriterThread;
use super::batches::{BATCH_BYTES, BATCH_ROWS};
use super::steps::STEP_AGAIN;
use crate::acknowledged::Acknowledged;
use crate::batch::Bytes;
use crate::transaction;
use negsync_nostr::Event;
use negsync_store::{Outcome, StoreError, unix_now};
use std::sync::Arc;
use std::time::Instant;

impl NodeWriterThread {
    /// Writes a part of what was acknowledged and lost once more. Returns whether there is more to
    /// write now.
    pub(super) fn send_again_step(&mut self) -> bool {
        if self.send_again.is_empty() || !self.may_step() {
            return false;
        }
        let done = match self.send_again.front() {
            Some(Acknowledged::Removed { ids, is_buried }) => {
                let (ids, bury) = (Arc::clone(ids), is_buried.then(unix_now));
                self.send_removal_again(&ids, bury)
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

    fn send_removal_again(
        &mut self,
        ids: &[Bytes],
        bury: Option<u64>,
    ) -> Result<usize, StoreError> {
        self.step(async |connection| transaction::remove_by_id(connection, ids, bury).await)?;
        tracing::warn!(ids = ids.len(), "acknowledged removal sent again after commits were lost");
        Ok(1)
    }

    /// Returns how many events were written, or found there.
    fn send_events_again(&mut self) -> Result<usize, StoreError> {
        let (mut rows, mut bytes) = (0, 0);
        let fits = |done: &Acknowledged| {
            let Acknowledged::Stored(event) = done else { return None };
            rows += event.weight();
            bytes += event.memory_bytes();
            let is_first = rows == event.weight();
            (is_first || rows <= BATCH_ROWS && bytes <= BATCH_BYTES).then(|| Arc::clone(event))
        };
        let events: Vec<Arc<Event>> = self.send_again.iter().map_while(fits).collect();
        let changes =
            self.write(&events).inspect_err(|_| self.steps_again = Instant::now() + STEP_AGAIN)?;
        let stored = changes.outcomes.iter().filter(|it| **it == Outcome::Stored).count();
        tracing::warn!(
            events = events.len(),
            stored,
            "acknowledged events sent again after commits were lost"
        );
        Ok(events.len())
    }
}
