//! A bounded pool of connections that only read. SQLite lets all of them work beside the writer.

use super::{StoreError, schema};
use rusqlite::Connection;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Connections are opened when first needed and kept.
pub(super) struct Readers {
    path: PathBuf,
    state: Mutex<State>,
    returned: Condvar,
}

struct State {
    idle: Vec<Connection>,
    // How many more may be opened.
    unopened: usize,
}

impl Readers {
    /// A pool of at most `most` connections.
    pub(super) fn new(path: PathBuf, most: usize) -> Self {
        let state = State { idle: Vec::new(), unopened: most.max(1) };
        Self { path, state: Mutex::new(state), returned: Condvar::new() }
    }

    /// Runs `work` on a connection, waiting for one while all are in use.
    pub(super) fn with<T>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let connection = Checkout { connection: Some(self.take()?), pool: self };
        connection.connection.as_ref().map_or(Err(StoreError::Closed), work)
    }

    fn take(&self) -> Result<Connection, StoreError> {
        let mut state = self.lock();
        loop {
            if let Some(connection) = state.idle.pop() {
                return Ok(connection);
            }
            if state.unopened > 0 {
                state.unopened -= 1;
                drop(state);
                return schema::open_reader(&self.path).inspect_err(|_| {
                    self.lock().unopened += 1;
                    self.returned.notify_one();
                });
            }
            state = self.returned.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives the connection back even when the work on it panics.
struct Checkout<'pool> {
    connection: Option<Connection>,
    pool: &'pool Readers,
}

impl Drop for Checkout<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.pool.lock().idle.push(connection);
            self.pool.returned.notify_one();
        }
    }
}
