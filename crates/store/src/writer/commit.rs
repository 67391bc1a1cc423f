//! Transactions: commit, flush, publish.

use super::WriterThread;
use crate::StoreError;
use crate::apply::{self, RuleMemory};
use crate::change::{Change, Written};
use crate::commits::Unpublished;
use crate::flush::{Committed, Tell};
use crate::sqlite_error;
use rusqlite::{Connection, TransactionBehavior};
use std::sync::atomic::Ordering;

/// The result of a transaction.
pub(super) struct Transacted<T> {
    pub(super) done: Result<(T, Unpublished), StoreError>,
    pub(super) change: Change,
}

impl WriterThread {
    /// The current second, which decides about expiration.
    pub(super) fn now(&self) -> u64 {
        self.beside.clock.now().max(self.beside.expired_until.load(Ordering::Acquire))
    }

    /// Runs `work` in a transaction and commits it.
    pub(super) fn transact<T>(
        &mut self,
        work: impl FnOnce(&Connection, u64, &mut RuleMemory, &mut Written) -> rusqlite::Result<T>,
    ) -> Transacted<T> {
        let mut written = Written::default();
        match self.write(&mut written, work) {
            Ok(done) => {
                self.beside.metrics.add_tombstones(written.tombstones);
                Transacted { done: Ok(done), change: written.into() }
            }
            Err(error) => Transacted { done: Err(error), change: Change::default() },
        }
    }

    /// Queues a transaction for its flush. `tell` is called once its effects are durable and
    /// published, or with the reason why they are not.
    pub(super) fn hand_over<T: Send + 'static>(
        &mut self,
        Transacted { done, change }: Transacted<T>,
        tell: impl FnOnce(Result<T, &str>) + Send + 'static,
    ) {
        let (tell, unpublished): (Tell, _) = match done {
            Ok((done, unpublished)) => {
                if !change.steps.is_empty() {
                    self.trouble.worked();
                }
                self.beside.checkpointer.committed(&self.connection);
                (Box::new(|flushed| tell(flushed.map(|()| done))), Some(unpublished))
            }
            Err(error) => {
                self.trouble.failed("the store could not be written", &error);
                if let StoreError::Sqlite(error) = &error {
                    self.beside.checkpointer.doubt().note(&error.0);
                }
                if sqlite_error::is_full(&error) {
                    // Space in the log can often be freed by moving its contents to room that the
                    // store has already.
                    self.beside.checkpointer.relieve(&self.connection);
                }
                let words = sqlite_error::in_words(&error);
                (Box::new(move |_| tell(Err(&words))), None)
            }
        };
        // A failed transaction is queued too: its reply must come after all earlier ones.
        let next_expiry = self.next_expiry;
        self.flusher.committed(Committed { unpublished, change, next_expiry, tell });
    }

    fn write<T>(
        &mut self,
        written: &mut Written,
        work: impl FnOnce(&Connection, u64, &mut RuleMemory, &mut Written) -> rusqlite::Result<T>,
    ) -> Result<(T, Unpublished), StoreError> {
        if !self.connection.is_autocommit() {
            // An earlier failure was so severe that its transaction could not be rolled back then.
            self.connection.execute_batch("ROLLBACK").map_err(StoreError::sqlite)?;
        }
        self.beside.checkpointer.doubt().check_in_place()?;
        self.beside.checkpointer.mend(&self.connection)?;
        let (now, hidden) = (self.now(), self.beside.expired_until.load(Ordering::Acquire));
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(StoreError::sqlite)?;
        let done = work(&transaction, now, &mut self.rules, written).map_err(StoreError::sqlite)?;
        written.tags.write(&transaction).map_err(StoreError::sqlite)?;
        let next_expiry = apply::next_expiry(&transaction, hidden).map_err(StoreError::sqlite)?;
        let unpublished = self.beside.commits.commit(|| {
            if self.beside.checkpointer.doubt().is_there() {
                return Err(StoreError::NotWritten("the disk failed a moment ago".into()));
            }
            transaction.commit().map_err(StoreError::sqlite)
        })?;
        self.next_expiry = next_expiry;
        Ok((done, unpublished))
    }
}
