//! One step of each kind of long work, between two batches.

use super::NodeWriterThread;
use crate::acknowledged::{Acknowledged, OperatorAction};
use crate::batch::Bytes;
use crate::connection::ServerSession;
use crate::ephemeral;
use crate::transaction::{self, STEP_EVENTS, StepDone, StoredRequests, follow_stored};
use negsync_store::{Outcome, StoreError};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_postgres::Error;

/// Delay after a failure before steps without a waiting caller are retried.
pub(super) const STEP_AGAIN: Duration = Duration::from_secs(5);
/// Interval of the removal of old ephemeral events.
const EPHEMERAL_AGE_OUT: Duration = Duration::from_secs(10);

impl NodeWriterThread {
    /// NIP-40: removes a part of the expired events. Returns whether more may be left.
    pub(super) fn expire_step(&mut self) -> bool {
        let now = self.context.clock.now();
        let is_due = self.context.feed.next_expiry() <= now && self.may_step();
        if !is_due && self.wait_for_expiry.is_empty() {
            return false;
        }
        let node = self.context.node;
        let done = self.step(async |connection| transaction::expire(connection, node, now).await);
        let answer = match done.map(|done| done.there_is_more) {
            Ok(true) => return true,
            // Another node may have removed them: the feed shows what is due next.
            Ok(false) if self.context.feed.next_expiry() <= now => (self.context.catch_up)(),
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        let said = answer.map_err(|error| error.to_string());
        for waiting in std::mem::take(&mut self.wait_for_expiry) {
            // Fails only if the caller no longer waits.
            let _ = waiting.send(said.clone().map_err(StoreError::NotWritten));
        }
        false
    }

    /// Performs a part of an operator's action. Returns whether there is more.
    pub(super) fn operate_step(&mut self) -> bool {
        let Some((mut ids, action, answer)) = self.operations.pop_front() else { return false };
        let some: Arc<[Bytes]> =
            ids.split_off(ids.len().saturating_sub(STEP_EVENTS as usize)).into();
        let done = self.operate(Arc::clone(&some), action);
        if matches!(done, Ok(true)) {
            ids.extend_from_slice(&some);
        }
        match done {
            Ok(_) if !ids.is_empty() => self.operations.push_front((ids, action, answer)),
            done => {
                let _ = answer.send(done.map(drop));
            }
        }
        !self.operations.is_empty()
    }

    /// Performs an operator's action, and records it, because a fail-over may lose it. Returns
    /// whether there is more to remove.
    pub(super) fn operate(
        &mut self,
        ids: Arc<[Bytes]>,
        action: OperatorAction,
    ) -> Result<bool, StoreError> {
        let (node, now) = (self.context.node, self.context.clock.now());
        let done = self.step(async |connection| {
            transaction::operate(connection, node, &ids, action, now).await
        })?;
        if !done.there_is_more {
            let acknowledged = Acknowledged::Operated { ids, action };
            self.acknowledged.push(Instant::now(), done.feed.last(), acknowledged);
        }
        Ok(done.there_is_more)
    }

    /// NIP-62: follows a part of the stored requests to vanish whose URL has become this relay's
    /// later. Returns whether there may be more.
    pub(super) fn follow_stored_step(&mut self) -> bool {
        let read = self.stored_requests.clone();
        if read == StoredRequests::Followed || !self.may_step() {
            return false;
        }
        let Some(us) = self.context.us.clone() else { return false };
        let followed =
            self.transact(async |connection| follow_stored(connection, &us, &read).await);
        match followed {
            // Over a new connection: from the beginning.
            Ok(_) if self.stored_requests != read => return true,
            Ok(followed) => self.stored_requests = followed,
            Err(_) => {
                self.stored_requests = StoredRequests::Unknown;
                self.steps_again = Instant::now() + STEP_AGAIN;
                return false;
            }
        }
        self.may_vanish = true;
        self.stored_requests != StoredRequests::Followed
    }

    /// NIP-62: removes a part of the events of vanished keys, and replies once nothing is left.
    /// Returns whether more can be removed now.
    pub(super) fn vanish_step(&mut self) -> bool {
        let is_vanishing = self.may_vanish || self.context.feed.is_vanishing();
        if !is_vanishing || !self.may_step() && self.wait_for_vanishing.is_empty() {
            return false;
        }
        let node = self.context.node;
        let done = self.step(async |connection| transaction::vanish(connection, node).await);
        let outcome = match done.map(|done| done.there_is_more) {
            Ok(true) => return true,
            Ok(false) => {
                self.may_vanish = false;
                self.context.feed.has_vanished();
                Outcome::Stored
            }
            Err(error) => Outcome::Failed(error.to_string()),
        };
        for slot in std::mem::take(&mut self.wait_for_vanishing) {
            slot.settle(outcome.clone());
        }
        false
    }

    /// Removes old ephemeral events.
    pub(super) fn age_out(&mut self) {
        self.ephemeral_age_out = Instant::now() + EPHEMERAL_AGE_OUT;
        self.passes_on = false;
        let done = self.transact(async |connection| ephemeral::age_out(connection).await);
        // They are removed with the next ones.
        self.passes_on |= done.is_err();
    }

    /// Whether failed steps are due for a retry.
    pub(super) fn may_step(&self) -> bool {
        self.steps_again <= Instant::now()
    }

    /// Runs a step, and passes its commit to the listener, which gets the steps of the result.
    pub(super) fn step(
        &mut self,
        work: impl AsyncFn(&ServerSession) -> Result<StepDone, Error>,
    ) -> Result<StepDone, StoreError> {
        match self.transact(work) {
            Ok(mut done) => {
                self.tell(done.feed, std::mem::take(&mut done.steps), u64::MAX);
                Ok(done)
            }
            Err(error) => {
                self.steps_again = Instant::now() + STEP_AGAIN;
                Err(error)
            }
        }
    }
}
