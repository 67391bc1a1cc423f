//! A bounded pool of read-only connections, and their transactions. SQLite lets all of them work
//! beside the writer.

use crate::read_gate::ReadGate;
use crate::{Deadline, StoreError};
use rusqlite::Connection;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long closing waits for running reads.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Steps of SQLite's virtual machine between two checks of a query's deadline: a fraction of a
/// millisecond.
const DEADLINE_STEPS: i32 = 2_000;

/// A connection with an open read transaction: all its statements use the same snapshot.
#[derive(Clone, Copy)]
pub(crate) struct ReadTransaction<'read> {
    connection: &'read Connection,
    deadline: &'read Deadline,
}

impl<'read> ReadTransaction<'read> {
    /// On this connection. SQLite itself checks the deadline only if the connection has a progress
    /// handler for it.
    pub(crate) fn new(connection: &'read Connection, deadline: &'read Deadline) -> Self {
        Self { connection, deadline }
    }

    /// The deadline of the query.
    pub(crate) fn deadline(&self) -> &Deadline {
        self.deadline
    }
}

impl Deref for ReadTransaction<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection
    }
}

/// Opens a connection.
type Open = Box<dyn Fn() -> Result<Connection, StoreError> + Send + Sync>;

/// Connections are opened on demand and kept.
pub(crate) struct Pool {
    open: Open,
    // Maximum number of open connections.
    most: usize,
    gate: ReadGate,
    expired_until: Arc<AtomicU64>,
    state: Mutex<PoolState>,
    returned: Condvar,
}

#[derive(Default)]
struct PoolState {
    idle: Vec<Connection>,
    // Idle and in use.
    open: usize,
    closed: bool,
}

impl Pool {
    /// A pool of at most `most` connections, which read while the gate is open.
    pub(crate) fn new(
        open: Open,
        most: usize,
        gate: ReadGate,
        expired_until: Arc<AtomicU64>,
    ) -> Self {
        let (state, returned) = (Mutex::default(), Condvar::new());
        Self { open, most: most.max(1), gate, expired_until, state, returned }
    }

    pub(crate) fn expired_until(&self) -> u64 {
        self.expired_until.load(Ordering::Acquire)
    }

    /// Runs `work` in a read transaction on a connection; waits for one while all are in use.
    pub(crate) fn with<T, E: From<StoreError>>(
        &self,
        deadline: &Deadline,
        work: impl FnOnce(&ReadTransaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut checkout = Checkout { connection: Some(self.take(deadline)?), pool: self };
        let Some(connection) = &mut checkout.connection else {
            return Err(StoreError::Closed.into());
        };
        let reading = self.gate.enter(deadline)?;
        if !deadline.is_none() {
            let (deadline, is_to_break_off) = (deadline.clone(), reading.is_to_break_off());
            let has_to_end = move || is_to_break_off() || deadline.give_way() || is_to_break_off();
            connection
                .progress_handler(DEADLINE_STEPS, Some(has_to_end))
                .map_err(StoreError::sqlite)?;
        }
        // Ends when it is dropped; there is nothing to commit.
        let transaction = connection.unchecked_transaction().map_err(StoreError::sqlite)?;
        work(&ReadTransaction::new(&transaction, deadline))
    }

    fn take(&self, deadline: &Deadline) -> Result<Connection, StoreError> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return Err(StoreError::Closed);
            }
            if let Some(connection) = state.idle.pop() {
                return Ok(connection);
            }
            if state.open < self.most {
                state.open += 1;
                drop(state);
                let error = match (self.open)() {
                    Ok(connection) => return Ok(connection),
                    Err(error) => error,
                };
                state = self.lock();
                state.open -= 1;
                if state.open == 0 {
                    self.returned.notify_all();
                    return Err(error);
                }
                // For example out of file descriptors: the open connections then serve all reads in
                // turn.
                if !state.idle.is_empty() {
                    continue;
                }
            }
            state = deadline.wait(&self.state, &self.returned, state)?;
        }
    }

    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.open -= state.idle.len();
        state.idle.clear();
        self.returned.notify_all();
        let in_use = |state: &mut PoolState| state.open > 0;
        drop(self.returned.wait_timeout_while(state, CLOSE_TIMEOUT, in_use));
    }

    fn lock(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the connection to the pool, even if its work panics.
struct Checkout<'pool> {
    connection: Option<Connection>,
    pool: &'pool Pool,
}

impl Drop for Checkout<'_> {
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        // The next query has another deadline, or none.
        let ended = connection.progress_handler(0, None::<fn() -> bool>);
        let mut state = self.pool.lock();
        if !state.closed && ended.is_ok() {
            state.idle.push(connection);
            // Wakes all waiters: a single one might be a query whose deadline has passed.
            return self.pool.returned.notify_all();
        }
        // Closed before waiters are notified: the last connection of the store cleans up.
        drop(connection);
        state.open -= 1;
        self.pool.returned.notify_all();
    }
}
